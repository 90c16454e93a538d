"""Every setting that the user left open, chosen from the data and the machine, each with a sentence that says why."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lenext import models
from lenext.config import TrainConfig
from lenext.data.samples import Samples
from lenext.models import catalogue
from lenext.models.weights import has_offline_weights, has_public_weights
from lenext.training.devices import device_of, processes
from lenext.training.optim import default_lr

# Architectures in the order of preference when none is named and their weights are on the machine.
PREFERRED = ("tf_efficientnet_lite0",)
FROM_SCRATCH = "resnet18"
SMALL = 96
SMALLEST = 24
# Patches along the side of a small picture.
TOKENS = 8
# Settings of the training of a whole network.
UNUSED_BY_PROBE = (
    "epochs", "batch_size", "micro_batch", "start_size", "lr", "optimizer", "weight_decay", "momentum", "nesterov",
    "schedule", "lr_decay", "lr_epochs", "final_lr", "layer_decay", "warmup_epochs", "clip_norm", "sam", "ema",
    "average", "freeze", "unfreeze_epochs", "label_smoothing", "focal_gamma", "teacher", "augment", "crop_scale",
    "flip", "policy", "color_jitter", "erasing", "repeats", "mixup", "cutmix", "sampling", "select", "patience",
)  # fmt: skip


def choose(config: TrainConfig, samples: Samples) -> tuple[TrainConfig, list[str]]:
    """(configuration with model, weights, size, batch, rate and augmentation settled, sentences that say why)."""
    if config.recipe == "probe":
        _require_probe(config)
    said: list[str] = []
    n = int(samples.in_split("train").sum())
    settled: dict[str, Any] = {}

    # ---- model and weights
    model = config.model
    if model is None:
        ready = [name for name in PREFERRED if has_offline_weights(name)]
        model = ready[0] if ready and config.pretrained is not False else FROM_SCRATCH
        why = "its ImageNet weights are on this machine" if ready else "no pretrained weights are on this machine"
        said.append(f"model {model}: {why} (--model NAME for another, `lenext models` lists them)")
    native = models.default_preprocess(model).image_size  # an unknown name ends here
    pretrained = config.pretrained
    if pretrained is None:
        pretrained = has_offline_weights(model)
        if pretrained:
            said.append("pretrained: its ImageNet weights are on this machine (--pretrained false for random weights)")
        elif has_public_weights(model):
            said.append(
                f"random weights: those of {model} are not on this machine (--pretrained true downloads them, and "
                "with few pictures that is worth a lot)"
            )
    settled |= {"model": model, "pretrained": pretrained}

    # ---- size of the input
    size = config.image_size
    if size is None:
        size, why = _image_size(model, bool(pretrained), native, _median_side(samples))
        said.append(f"image size {size}: {why}")
    settled["image_size"] = size
    arguments = small_arguments(model, size, bool(pretrained), config.arguments)
    if "stem" not in config.arguments and "stem" in arguments:
        said.append(f"stem small: at {size} pixels the ImageNet stem would throw most of the picture away")
    if "patch_size" not in config.arguments and (patch := arguments.get("patch_size")):
        said.append(f"patch size {patch}: at {size} pixels larger patches would leave a handful of tokens")
    settled["arguments"] = arguments

    # ---- batch, rate, augmentation
    batch_size = config.batch_size
    if batch_size is None:
        batch_size = 32 if pretrained else 64 if n >= 2000 else 32 if n >= 500 else 16
        settled["batch_size"] = batch_size
    if config.lr is None:
        lr = default_lr(config.optimizer, bool(pretrained), batch_size)
        settled["lr"] = lr
        said.append(f"learning rate {lr:.2g}: the default of {config.optimizer} at batch {batch_size}")
    several = samples.sets is not None
    if config.loss is None:
        settled["loss"] = "bce" if several else "cross_entropy"
        if several:
            said.append("loss bce: pictures have several labels, each is a question of its own")
    if several and config.sampling == "balanced":
        raise ValueError("--sampling balanced is for one label a picture; this data gives several")
    if several and config.loss == "cross_entropy":
        raise ValueError("--loss cross_entropy is for one label a picture; this data gives several: bce or focal")
    _require_possible(config, model, size)
    if config.strategy == "fsdp":
        if config.optimizer not in ("adamw", "adam") or config.average:
            raise ValueError("--strategy fsdp: divided weights are trained with adamw or adam, and without --average")
        if config.epochs is None:
            raise ValueError("--strategy fsdp: say for how many --epochs; a divided network is not timed beforehand")
        settled["channels_last"] = False
    if config.augment is None and (config.alters_pictures or not (pretrained and config.recipe == "auto")):
        settled["augment"] = "light" if pretrained or size <= SMALL else "standard"
    return dataclasses.replace(config, **settled), said


def _require_probe(config: TrainConfig) -> None:
    """ValueError for what recipe probe has no use for: one linear layer, fitted at once to unchanged pictures."""
    mend = "leave it out, or take --recipe finetune"
    if processes(config.devices, config.nodes) != (1, 1):
        raise ValueError("recipe probe is one process's work: --devices and --nodes divide the training of a network")
    if config.loss not in (None, "cross_entropy"):
        raise ValueError(f"--loss {config.loss}: recipe probe fits with cross_entropy; {mend}")
    usual = TrainConfig()
    for name in UNUSED_BY_PROBE:
        if getattr(config, name) != getattr(usual, name):
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag}: recipe probe fits one linear layer to features, without it; {mend}")


def small_arguments(model: str, size: int, pretrained: bool, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a network, with a stem or patches that suit pictures of `size` pixels if they are small."""
    if pretrained or size > SMALL:
        return dict(given)
    suited = {"stem": "small", "patch_size": size // TOKENS}
    return {**{name: value for name, value in suited.items() if catalogue.takes(model, name)}, **given}


def _require_possible(config: TrainConfig, model: str, size: int) -> None:
    """ValueError for settings that contradict the network, the data or the machine."""
    if config.start_size is not None and not catalogue.takes_any_size(model):
        raise ValueError(f"--start-size: {model} takes inputs of one size only; leave it out")
    if config.start_size is not None and not catalogue.smallest_size(model) <= config.start_size <= size:
        raise ValueError(
            f"--start-size is {config.start_size}; it lies between the smallest input of {model}, "
            f"{catalogue.smallest_size(model)}, and the image size {size}"
        )
    if config.strategy == "fsdp" and config.channels_last:
        raise ValueError("--channels-last true: weights that are divided (--strategy fsdp) have to be contiguous")
    device = device_of(config.accelerator)
    if config.sync_batchnorm and device.type == "cpu":
        raise ValueError("--sync-batchnorm needs GPUs; leave it out on a CPU")
    if config.unfreeze_epochs and not config.freeze:
        raise ValueError("--unfreeze-epochs lets go what --freeze holds; give both, such as --freeze 1")


def _median_side(samples: Samples, most: int = 200) -> float:
    """Median short side of a sample of the training pictures, pixels; 224 if none can be read."""
    train = np.flatnonzero(samples.in_split("train"))
    looked_at = train[np.linspace(0, len(train) - 1, min(most, len(train))).astype(int)]
    sizes = [size for i in looked_at if (size := samples.size(int(i))) is not None]
    return float(np.median([min(size) for size in sizes])) if sizes else 224.0


def _image_size(model: str, pretrained: bool, native: int, side: float) -> tuple[int, str]:
    if not pretrained and side <= SMALL and catalogue.takes(model, "patch_size"):
        return max(TOKENS * round(side / TOKENS), 2 * TOKENS), f"the pictures' short side is {side:.0f}"
    if not catalogue.takes_any_size(model):
        return native, f"the size {model} is made for"
    if pretrained:
        # Small pictures gain from enlarging; larger inputs than the weights learned at cost more than they give.
        size = int(min(max(side, native * 4 / 7), native)) // 4 * 4
        return size, f"the pictures' short side is {side:.0f} and the weights were learned at {native}"
    grain = 4 if side <= SMALL else 16
    size = int(min(max(grain * round(side / grain), catalogue.smallest_size(model), SMALLEST), native))
    return size, f"the pictures' short side is {side:.0f}"
