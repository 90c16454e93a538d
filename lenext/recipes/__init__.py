"""Recipes: settings by name. Each is a function whose docstring gives the command, the time and the accuracy to expect.

A recipe's settings lie between the defaults and what the user writes in a file or as flags.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lenext.config import nearest
from lenext.recipes import general, published

RECIPES: dict[str, Callable[[], dict[str, Any]]] = {
    "auto": general.auto,
    "probe": general.probe,
    "finetune": general.finetune,
    "scratch-small": general.scratch_small,
    "scratch-vit": general.scratch_vit,
    "imagenet": general.imagenet,
    "fit": general.fit,
    "convnext-tiny-binary": published.convnext_tiny_binary,
    "convnext-base-binary": published.convnext_base_binary,
    "resnext50-birds": published.resnext50_birds,
    "alexnet-flowers": published.alexnet_flowers,
    "vit-finetune": published.vit_finetune,
}


def get(name: str) -> dict[str, Any]:
    """The settings of a recipe. Raises ValueError naming the nearest for an unknown name."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}{nearest(name, RECIPES)}; there are {', '.join(RECIPES)}")
    return {**RECIPES[name](), "recipe": name}
