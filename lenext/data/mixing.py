"""mixup and CutMix: two pictures of a batch become one, and so do their targets.

mixup: Zhang et al. 2018, https://arxiv.org/abs/1710.09412. CutMix: Yun et al. 2019, https://arxiv.org/abs/1905.04899.
One share is drawn for the whole batch, and every picture is mixed with the one that stands as far from the other end:
neighbours may be copies of one picture under repeated augmentation.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def mix(x: Tensor, targets: Tensor, *, mixup: float, cutmix: float, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (B, C, H, W), uint8 or float, and targets (B, K), float, mixed on their device; new tensors.

    mixup, cutmix: parameter of the symmetric Beta distribution that the share is drawn from; 0 leaves the method out.
    Where both are given, each batch takes one of them with equal probability. What is drawn depends on `seed` alone.
    """
    rng = np.random.default_rng(seed)
    if not mixup and not cutmix:
        return x, targets
    if not mixup or (cutmix and rng.random() < 0.5):
        share = 1 - rng.beta(cutmix, cutmix)
        H, W = x.shape[-2:]
        return cut(x, targets, random_box(H, W, share, rng))
    return blend(x, targets, rng.beta(mixup, mixup))


def blend(x: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """mixup: `share` of each picture and target, and the rest from its partner."""
    mixed = torch.lerp(x.flip(0).float(), x.float(), share)
    mixed = mixed.to(x.dtype) if x.is_floating_point() else mixed.round().to(x.dtype)
    return mixed, torch.lerp(targets.flip(0), targets, share)


def cut(x: Tensor, targets: Tensor, box: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """CutMix: the rows top to bottom and columns left to right of each picture come from its partner."""
    top, bottom, left, right = box
    H, W = x.shape[-2:]
    mixed = x.clone()
    mixed[..., top:bottom, left:right] = x.flip(0)[..., top:bottom, left:right]
    return mixed, torch.lerp(targets, targets.flip(0), (bottom - top) * (right - left) / (H * W))


def random_box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a box with `share` of the area around a random pixel, cut off at the border."""
    y, x = int(rng.integers(height)), int(rng.integers(width))
    half_height, half_width = (int(math.sqrt(share) * side / 2) for side in (height, width))
    top, left = max(y - half_height, 0), max(x - half_width, 0)
    return top, min(y + half_height, height), left, min(x + half_width, width)
