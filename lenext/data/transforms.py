"""Pixels to network input: one eval transform used everywhere, and the training augmentations.

Everything stays uint8 until `normalise`, which runs on the device that trains or predicts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from lenext.preprocess import Preprocess

Transform = Callable[[np.ndarray], Tensor]
AUGMENTATIONS = ("none", "light", "standard", "strong", "dihedral")


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 pixels (H, W, 3) as a tensor (3, H, W) over the same memory."""
    return torch.from_numpy(image).permute(2, 0, 1)


def eval_transform(preprocess: Preprocess) -> Transform:
    """uint8 pixels (H, W, 3) -> uint8 tensor (3, S, S): short side to `preprocess.resize`, centre square of S."""
    interpolation = InterpolationMode(preprocess.interpolation)

    def transform(image: np.ndarray) -> Tensor:
        x = to_tensor(image)
        if min(x.shape[1:]) != preprocess.resize:
            x = v2.functional.resize(x, [preprocess.resize], interpolation, antialias=True)
        return v2.functional.center_crop(x, [preprocess.image_size]).contiguous()

    return transform


def train_transform(preprocess: Preprocess, augment: str) -> Transform:
    """uint8 pixels (H, W, 3) -> uint8 tensor (3, S, S), randomly altered by torch's global generator.

    augment: none (the eval transform), light (flip, crops of 70 to 100 % of the area), standard (flip, crops of
    25 to 100 %), strong (standard, TrivialAugment and random erasing), dihedral (flips and quarter turns, for
    pictures without an up side: cells, satellites, textures).
    """
    if augment not in AUGMENTATIONS:
        raise ValueError(f"augment is {augment!r}; choose one of {', '.join(AUGMENTATIONS)}")
    size, interpolation = preprocess.image_size, InterpolationMode(preprocess.interpolation)

    def crops(smallest: float) -> list[torch.nn.Module]:
        crop = v2.RandomResizedCrop(size, scale=(smallest, 1.0), interpolation=interpolation, antialias=True)
        return [crop, v2.RandomHorizontalFlip()]

    if augment == "none":
        return eval_transform(preprocess)
    if augment == "dihedral":
        to_square = eval_transform(preprocess)
        return lambda image: dihedral(to_square(image), int(torch.randint(8, ())))
    steps = {
        "light": crops(0.7),
        "standard": crops(0.25),
        "strong": [
            *crops(0.25),
            v2.TrivialAugmentWide(interpolation=interpolation),
            v2.RandomErasing(p=0.25),
        ],
    }[augment]
    pipeline = v2.Compose(steps)
    return lambda image: pipeline(to_tensor(image)).contiguous()


def dihedral(x: Tensor, view: int) -> Tensor:
    """One of the eight symmetries of the square, applied to the last two dimensions: 0 is the identity, 1 to 3
    are the mirror images and the half turn, 4 to 7 the same after a transposition."""
    assert 0 <= view < 8
    if view & 4:
        x = x.transpose(-1, -2)
    flipped = [axis for bit, axis in ((1, -1), (2, -2)) if view & bit]
    return x.flip(flipped).contiguous() if flipped else x.contiguous()


def normalise(x: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 (B, 3, H, W), scaled to [0, 1], then by mean and standard deviation."""
    mean = torch.tensor(preprocess.mean, device=x.device).view(3, 1, 1) * 255
    std = torch.tensor(preprocess.std, device=x.device).view(3, 1, 1) * 255
    return (x.float() - mean) / std
