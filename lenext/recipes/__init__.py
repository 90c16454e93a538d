"""Recipes: settings by name. Each is a function whose docstring gives the command, the time and the accuracy to expect.

A recipe's settings lie between the defaults and what the user writes in a file or as flags.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lenext.config import nearest
from lenext.recipes import published


def auto() -> dict[str, Any]:
    """`lenext train DATA`: a quick classifier on frozen features, then fine-tuning, within the time budget.

    With pretrained weights on the machine: five minutes on two cores. Without them: plain training, as `fit`.
    """
    return {"label_smoothing": 0.1, "warmup_epochs": 0.4, "select": "val_loss"}


def fit() -> dict[str, Any]:
    """`lenext train DATA --recipe fit`: plain training of the whole network with augmentation, pretrained or not."""
    return {}


RECIPES: dict[str, Callable[[], dict[str, Any]]] = {
    "auto": auto,
    "fit": fit,
    "convnext-tiny-binary": published.convnext_tiny_binary,
    "convnext-base-binary": published.convnext_base_binary,
    "resnext50-birds": published.resnext50_birds,
    "alexnet-flowers": published.alexnet_flowers,
}


def get(name: str) -> dict[str, Any]:
    """The settings of a recipe. Raises ValueError naming the nearest for an unknown name."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}{nearest(name, RECIPES)}; there are {', '.join(RECIPES)}")
    return {**RECIPES[name](), "recipe": name}
