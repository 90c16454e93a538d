"""Eight networks on Tiny-ImageNet-200, as a study that is often followed had them: which parts of a network matter?

    lenext study run tiny-imagenet --data tiny-imagenet-200/

Meant for GPUs, one run on each. Settings are those published: 20 % of the training pictures validate and the
distributed validation pictures test; random crops resized to 64 pixels and mirrored; cosine annealing.
"""

from lenext.study.design import Comparison, Factor, Study

CROPS = {"augment": "none", "crop_scale": 0.08, "flip": "horizontal"}
SPLIT = {"val_as_test": True, "val_fraction": 0.2}
NORMALISED = {"mean": [0.4802, 0.4481, 0.3975], "std": [0.2302, 0.2265, 0.2262]}
SMALL_STEM = {"stem": "small"}
ADAM = {"optimizer": "adam", "lr": 5e-4, "batch_size": 256, "epochs": 200}
SGD = {"optimizer": "sgd", "lr": 0.2, "momentum": 0.9, "batch_size": 256, "epochs": 100}

PLACES = ("tiny-imagenet-200", "data/tiny-imagenet-200", "~/data/tiny-imagenet-200")
DATA_HELP = (
    "Tiny-ImageNet-200, 237 MB to download and 480 MB unpacked, from http://cs231n.stanford.edu/tiny-imagenet-200.zip "
    "or, the same, https://huggingface.co/datasets/zh-plus/tiny-imagenet."
)

COMPARISONS = (
    Comparison(
        question="Does batch norm decide whether VGG-19 trains at all?",
        change="adding batch norm to VGG-19",
        cell="VGG-19 with batch norm",
        against="VGG-19",
    ),
    Comparison(
        question="Does accuracy grow with depth, from 18 layers to 34?",
        change="going from ResNet-18 to ResNet-34",
        cell="ResNet-34",
        against="ResNet-18",
    ),
    Comparison(
        question="And from 34 layers to 50?",
        change="going from ResNet-34 to ResNet-50",
        cell="ResNet-50",
        against="ResNet-34",
    ),
    Comparison(
        question="What are shortcuts worth at 50 layers?",
        change="removing the shortcuts of ResNet-50",
        cell="ResNet-50 without shortcuts",
        against="ResNet-50",
    ),
    Comparison(
        question="Does cardinality help at equal size?",
        change="replacing ResNet-50 by ResNeXt-50",
        cell="ResNeXt-50",
        against="ResNet-50",
    ),
    Comparison(
        question="Does a network of higher cardinality learn faster?",
        change="replacing ResNet-50 by ResNeXt-50",
        cell="ResNeXt-50",
        against="ResNet-50",
        measure="speed of learning",
        expected="more",
    ),
    Comparison(
        question="Does a Transformer reach what a convolutional network does, with so few pictures?",
        change="replacing ResNet-50 by T2T-ViT",
        cell="T2T-ViT",
        against="ResNet-50",
    ),
    Comparison(
        question="Does the Transformer overfit?",
        change="replacing ResNet-50 by T2T-ViT",
        cell="T2T-ViT",
        against="ResNet-50",
        measure="overfitting",
        expected="more",
    ),
)
PUBLISHED = {
    "VGG-19 with batch norm": 0.5279,
    "VGG-19": 0.0050,
    "ResNet-18": 0.5509,
    "ResNet-34": 0.5603,
    "ResNet-50": 0.5897,
    "ResNet-50 without shortcuts": 0.5403,
    "ResNeXt-50": 0.5929,
    "T2T-ViT": 0.4163,
}

STUDY = Study(
    question="What do batch norm, depth, shortcuts, cardinality and attention contribute on Tiny-ImageNet-200?",
    factors=(
        Factor(
            "network",
            {
                "VGG-19 with batch norm": {"model": "vgg19_bn", **ADAM},
                "VGG-19": {"model": "vgg19", **ADAM},
                "ResNet-18": {"model": "resnet18", "arguments": SMALL_STEM, **SGD},
                "ResNet-34": {"model": "resnet34", "arguments": SMALL_STEM, **SGD},
                "ResNet-50": {"model": "resnet50", "arguments": SMALL_STEM, **SGD},
                "ResNet-50 without shortcuts": {"model": "resnet50", "arguments": {**SMALL_STEM, "skip": False}, **SGD},
                "ResNeXt-50": {
                    "model": "resnext50_32x4d",
                    "arguments": SMALL_STEM,
                    **SGD,
                    "lr": 0.1,
                    "batch_size": 128,
                },
                "T2T-ViT": {
                    "model": "t2t_vit_t_14",
                    "image_size": 224,
                    "optimizer": "adamw",
                    "lr": 5e-4,
                    "weight_decay": 0.05,
                    "batch_size": 128,
                    "epochs": 100,
                },
            },
        ),
    ),
    base={
        "recipe": "fit",
        "pretrained": False,
        "image_size": 64,
        "schedule": "cosine",
        "weight_decay": 0.0,
        "clip_norm": 0.0,
        "precision": "float32",
        "views": 1,
        **CROPS,
        **SPLIT,
        **NORMALISED,
    },
    comparisons=COMPARISONS,
    published=PUBLISHED,
    published_in="the published study, single runs",
    places=PLACES,
    data_help=DATA_HELP,
    pictures=80_000,
    classes=200,
    about=(
        "The optimiser of T2T-ViT was not published: AdamW at 5e-4 with weight decay 0.05, batches of 128 and 100 "
        "epochs here, which are its paper's rate and decay. Its input is 224 x 224, as published, enlarged from 64.",
        "Published are single runs. Their text gives 0.3948 for T2T-ViT where their table has 0.4163.",
    ),
)
