"""The networks of the study `tiny-imagenet` with a current recipe, and what it names as future work.

    lenext study run tiny-imagenet-modern --data tiny-imagenet-200/

Longer training, stronger augmentation, label smoothing, mixup and CutMix, stochastic depth and a moving average of the
weights; a convolutional stem for T2T-ViT, and distillation from a convolutional network. The best that is published at
64 pixels from random weights in 400 epochs is 68.9 % for ResNet-18 (with SAMix) and 72.2 % for ResNeXt-50: aims, which
have not been run here. Meant for GPUs.
"""

from lenext.studies.tiny_imagenet import DATA_HELP, NORMALISED, PLACES, SPLIT
from lenext.study.design import Comparison, Factor, Study

SGD = {"optimizer": "sgd", "lr": 0.2, "nesterov": True, "weight_decay": 5e-4, "batch_size": 256, "epochs": 400}
ADAMW = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 512, "epochs": 400}
SMALL_STEM = {"stem": "small", "drop_path": 0.1}
T2T = {"model": "t2t_vit_t_14", "image_size": 224, "arguments": {"drop_path": 0.1}, **ADAMW, "policy": "randaugment"}

STUDY = Study(
    question="How far do the same networks come with a current recipe, and what helps the Transformer?",
    factors=(
        Factor(
            "network",
            {
                "VGG-19 with batch norm": {"model": "vgg19_bn", **SGD, "lr": 0.05},
                "ResNet-18": {"model": "resnet18", "arguments": SMALL_STEM, **SGD},
                "ResNet-18 without mixing": {
                    "model": "resnet18",
                    "arguments": SMALL_STEM,
                    **SGD,
                    "mixup": 0.0,
                    "cutmix": 0.0,
                },
                "ResNet-34": {"model": "resnet34", "arguments": SMALL_STEM, **SGD},
                "ResNet-50": {"model": "resnet50", "arguments": SMALL_STEM, **SGD},
                "ResNet-50 without shortcuts": {
                    "model": "resnet50",
                    "arguments": {"stem": "small", "skip": False},
                    **SGD,
                },
                "ResNeXt-50": {"model": "resnext50_32x4d", "arguments": SMALL_STEM, **SGD},
                "T2T-ViT": T2T,
                "T2T-ViT without drop-path": {**T2T, "arguments": {}},
                "T2T-ViT with a convolutional stem": {**T2T, "arguments": {"drop_path": 0.1, "tokens": "convolution"}},
                "T2T-ViT taught by ResNeXt-50": {**T2T, "teacher": "cell:ResNeXt-50", "distillation": "hard"},
            },
        ),
    ),
    base={
        "recipe": "fit",
        "pretrained": False,
        "image_size": 64,
        "schedule": "cosine",
        "warmup_epochs": 5.0,
        "label_smoothing": 0.1,
        "ema": 0.999,
        "augment": "standard",
        "crop_scale": 0.25,
        "policy": "trivialaugment",
        "mixup": 0.2,
        "cutmix": 1.0,
        **SPLIT,
        **NORMALISED,
    },
    comparisons=(
        Comparison(
            question="What are mixup and CutMix worth?",
            change="mixing pictures",
            cell="ResNet-18",
            against="ResNet-18 without mixing",
            expected="more",
        ),
        Comparison(
            question="Are shortcuts worth as much with a current recipe?",
            change="removing the shortcuts of ResNet-50",
            cell="ResNet-50 without shortcuts",
            against="ResNet-50",
            expected="less",
        ),
        Comparison(
            question="Does cardinality help at equal size?",
            change="replacing ResNet-50 by ResNeXt-50",
            cell="ResNeXt-50",
            against="ResNet-50",
            expected="more",
        ),
        Comparison(
            question="Does a convolutional stem help the Transformer?",
            change="giving T2T-ViT a convolutional stem",
            cell="T2T-ViT with a convolutional stem",
            against="T2T-ViT",
            expected="more",
        ),
        Comparison(
            question="Does stochastic depth keep the Transformer from overfitting?",
            change="dropping branches of T2T-ViT",
            cell="T2T-ViT",
            against="T2T-ViT without drop-path",
            measure="overfitting",
            expected="less",
        ),
        Comparison(
            question="Does a convolutional network teach the Transformer?",
            change="teaching T2T-ViT with ResNeXt-50",
            cell="T2T-ViT taught by ResNeXt-50",
            against="T2T-ViT",
            expected="more",
        ),
    ),
    published={"ResNet-18": 0.689, "ResNeXt-50": 0.722},
    published_in="the best published results from random weights at 64 pixels, 400 epochs with SAMix",
    places=PLACES,
    data_help=DATA_HELP,
    pictures=80_000,
    classes=200,
)
