"""Small real pictures for tests: crops of scikit-learn's photographs, and drawn shapes that a network can learn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image


@cache
def photograph(name: str = "china.jpg") -> np.ndarray:
    """uint8 (427, 640, 3)."""
    return np.array(load_sample_image(name))


def crop(rng: np.random.Generator, size: int, name: str = "china.jpg") -> Image.Image:
    """A random square cut-out of a photograph."""
    image = photograph(name)
    y, x = rng.integers(image.shape[0] - size), rng.integers(image.shape[1] - size)
    return Image.fromarray(image[y : y + size, x : x + size])


def shape_picture(rng: np.random.Generator, kind: int, size: int = 64) -> Image.Image:
    """One of ten coloured shapes on a piece of a photograph: easy to tell apart, impossible to tell by brightness."""
    image = crop(rng, size)
    draw = ImageDraw.Draw(image)
    hue = [(220, 40, 40), (40, 160, 60), (50, 80, 220), (230, 190, 30), (170, 50, 190)][kind % 5]
    low, high = (
        size // 6 + int(rng.integers(size // 12 + 1)),
        size - size // 6 - int(rng.integers(size // 12 + 1)),
    )
    if kind < 5:
        draw.ellipse((low, low, high, high), fill=hue)
    else:
        draw.polygon([(size // 2, low), (high, high), (low, high)], fill=hue)
    return image


def make_folder(
    root: Path,
    classes: Sequence[str],
    per_class: int,
    *,
    size: int = 64,
    splits: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """root/<class>/*.png, or root/<split>/<class>/*.png, of shapes that can be learned."""
    rng = np.random.default_rng(seed)
    for split in splits or ("",):
        for kind, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(per_class):
                shape_picture(rng, kind, size).save(folder / f"{i}.png")
    return root
