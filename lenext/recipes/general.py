"""Recipes for a kind of task: settings that belong together, from the papers that found them.

Every setting can be changed by a flag. Times are for two CPU cores.
"""

from __future__ import annotations

from typing import Any


def auto() -> dict[str, Any]:
    """`lenext train DATA`: a quick classifier on frozen features, then fine-tuning, within the time budget.

    With pretrained weights on the machine: five minutes on two cores. Without them: plain training, as `fit`. What was
    chosen, and why, is said and kept in choices.json. On the solar cells of `lenext demo`, with EfficientNet-Lite0 and
    `--time-budget 165`: 86.3 % of 656 test pictures after 133 s on cores that compute bfloat16, where seven epochs fit.
    """
    return {"label_smoothing": 0.1, "warmup_epochs": 0.4, "select": "val_loss"}


def fit() -> dict[str, Any]:
    """`lenext train DATA --recipe fit`: plain training of the whole network with augmentation, pretrained or not.

    As many epochs as the time budget allows, five minutes unless `--time-budget` or `--epochs` says otherwise. On the
    solar cells of `lenext demo`, with `--model tf_efficientnet_lite0 --pretrained true --epochs 4`: 86.0 % of 656 test
    pictures after 225 s, on cores that compute bfloat16.
    """
    return {}


def probe() -> dict[str, Any]:
    """`lenext train DATA --recipe probe`: a linear classifier on the frozen features of a pretrained network.

    One pass over the pictures and seconds of logistic regression; more views of each picture while the time budget
    allows. The measure of what the features know. On the solar cells of `lenext demo`, with `--model
    tf_efficientnet_lite0`: 84.8 % of 656 test pictures after 54 s.
    """
    return {"pretrained": True}


def finetune() -> dict[str, Any]:
    """`lenext train DATA --recipe finetune`: the whole pretrained network, gently, with augmented pictures.

    AdamW with a warm-up and a cosine; layers learn the more slowly the nearer they are to the picture (Clark et al.
    2020; Bao et al. 2022), and a moving average of the weights is what is kept if it is better. By the loss: on a few
    hundred validation pictures the best accuracy of an epoch is mostly luck. On the solar cells of `lenext demo`, with
    `--model tf_efficientnet_lite0 --epochs 8`: 83.1 % of 656 test pictures after 8 minutes, on cores that compute
    bfloat16.
    """
    return {
        "pretrained": True,
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "layer_decay": 0.8,
        "warmup_epochs": 0.5,
        "label_smoothing": 0.1,
        "ema": 0.99,
        "augment": "light",
        "select": "val_loss",
    }


def scratch_small() -> dict[str, Any]:
    """`lenext train DATA --recipe scratch-small`: a convolutional network from random weights on small pictures.

    For 28 to 64 pixels. ResNet-18 with a 3 x 3 stem that keeps the resolution, Muon (Jordan et al. 2024), which needs a
    fraction of SGD's epochs, label smoothing, and answers averaged over the mirror image. On Fashion-MNIST, in one run
    on cores that compute bfloat16: 94.1 % of the test pictures in 27 minutes, with `--image-size 24 --start-size 20
    --crop-scale 0.9 --batch-size 512 --lr 0.02 --epochs 5 --val-fraction 0.05`. At 24 instead of 28 pixels an epoch
    takes two thirds of the time.
    """
    return {
        "model": "resnet18",
        "pretrained": False,
        "arguments": {"stem": "small"},
        "epochs": 15,
        "batch_size": 256,
        "optimizer": "muon",
        "momentum": 0.95,
        "lr": 0.014,
        "weight_decay": 0.05,
        "warmup_epochs": 0.2,
        "label_smoothing": 0.1,
        "augment": "light",
        "views": 2,
    }


def scratch_vit() -> dict[str, Any]:
    """`lenext train DATA --recipe scratch-vit`: a Vision Transformer from random weights.

    DeiT's recipe (Touvron et al. 2021) at the size of small data: a tiny network of patches of an eighth of the side,
    AdamW, long warm-up, mixup and CutMix, RandAugment, erasing, stochastic depth and a moving average. Transformers
    know nothing of pictures beforehand: expect them behind a convolutional network until there are many pictures. That
    it learns, slowly: `--epochs 10` on 600 pictures of each class of Fashion-MNIST, 37.3 % of 1,500 test pictures after
    eight minutes on two cores with AMX.
    """
    return {
        "model": "vit_tiny_patch16_224",
        "pretrained": False,
        "arguments": {"drop_path": 0.1},
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.05,
        "epochs": 100,
        "warmup_epochs": 5.0,
        "batch_size": 256,
        "augment": "standard",
        "policy": "randaugment",
        "erasing": 0.25,
        "mixup": 0.8,
        "cutmix": 1.0,
        "label_smoothing": 0.1,
        "ema": 0.999,
    }


def imagenet() -> dict[str, Any]:
    """`lenext train imagenet/ --recipe imagenet`: ResNet-50 from random weights, procedure A2 of a current recipe.

    Wightman, Touvron, Jegou 2021, "ResNet strikes back", https://arxiv.org/abs/2110.00476: LAMB at 5e-3 and batches of
    2,048, sigmoids with binary cross-entropy on mixed targets, mixup 0.1 and CutMix 1.0, RandAugment, repeated
    augmentation, stochastic depth 0.05, 300 epochs, 79.8 % at 224 as published. Meant for several GPUs: days on one.
    That it learns: `--image-size 32 --epochs 6 --batch-size 256 --repeats 1` on 600 pictures of each class of
    Fashion-MNIST, 72.0 % of 1,500 test pictures after 15 minutes.
    """
    return {
        "model": "resnet50",
        "pretrained": False,
        "arguments": {"drop_path": 0.05},
        "image_size": 224,
        "optimizer": "lamb",
        "lr": 5e-3,
        "weight_decay": 0.02,
        "loss": "bce",
        "epochs": 300,
        "warmup_epochs": 5.0,
        "batch_size": 2048,
        "augment": "standard",
        "policy": "randaugment",
        "repeats": 4,
        "mixup": 0.1,
        "cutmix": 1.0,
        "clip_norm": 1.0,
    }
