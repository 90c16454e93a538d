"""The questions of the study `tiny-imagenet` at a size that two CPU cores answer in an hour or two.

    lenext study run small

Fashion-MNIST at 32 pixels: 8 % of its training pictures, about 4,700, 1,500 others that validate, and all 10,000 test
pictures, for each seed the same in all cells. Networks a quarter as wide, and the published rates scaled to batches of
64.
"""

from lenext.studies.tiny_imagenet import COMPARISONS, PUBLISHED
from lenext.study.design import Factor, Study

RESNET = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9}
VGG = {"optimizer": "adam", "lr": 5e-4}
NARROW = {"stem": "small", "width": 16}
PLAIN = {"width": 16, "hidden_dim": 256}

STUDY = Study(
    question="What do batch norm, depth, shortcuts, cardinality and attention contribute at a small size?",
    factors=(
        Factor(
            "network",
            {
                "VGG-19 with batch norm": {"model": "vgg19_bn", "arguments": PLAIN, **VGG},
                "VGG-19": {"model": "vgg19", "arguments": PLAIN, **VGG},
                "ResNet-18": {"model": "resnet18", "arguments": NARROW, **RESNET},
                "ResNet-34": {"model": "resnet34", "arguments": NARROW, **RESNET},
                "ResNet-50": {"model": "resnet50", "arguments": NARROW, **RESNET},
                "ResNet-50 without shortcuts": {"model": "resnet50", "arguments": {**NARROW, "skip": False}, **RESNET},
                "ResNeXt-50": {
                    "model": "resnext50_32x4d",
                    "arguments": {**NARROW, "cardinality": 8, "base_width": 4},
                    **RESNET,
                },
                "T2T-ViT": {
                    "model": "t2t_vit_7",
                    "arguments": {"tokens": "transformer"},
                    "image_size": 48,
                    "optimizer": "adamw",
                    "lr": 5e-4,
                    "weight_decay": 0.05,
                },
            },
        ),
    ),
    base={
        "recipe": "fit",
        "pretrained": False,
        "image_size": 32,
        "epochs": 6,
        "batch_size": 64,
        "schedule": "cosine",
        "weight_decay": 0.0,
        "clip_norm": 0.0,
        "augment": "none",
        "crop_scale": 0.6,
        "flip": "horizontal",
        "val_fraction": 0.025,
        "train_fraction": 0.08,
        "check": False,
        "views": 1,
        "workers": 0,
    },
    comparisons=COMPARISONS,
    published=PUBLISHED,
    published_in="Tiny-ImageNet-200, full networks, single runs of the published study",
    places=("/usr/share/datasets/fashion-mnist", "fashion-mnist", "data/fashion-mnist"),
    data_help=(
        "Fashion-MNIST, 30 MB: on Debian and Ubuntu the package dataset-fashion-mnist (apt install "
        "dataset-fashion-mnist), elsewhere the four files of https://github.com/zalandoresearch/fashion-mnist in a "
        "folder."
    ),
    pictures=58_500,
    classes=10,
    about=(
        "Accuracies cannot be compared with the published ones: other pictures, fewer of them, a few epochs and "
        "narrower networks. What can be compared is the direction of each difference.",
    ),
)
