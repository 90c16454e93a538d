"""Pixels to network input: one eval transform used everywhere, and the training augmentations.

Everything stays uint8 until `normalise`, which runs on the device that trains or predicts. Crops, flips and turns draw
from the generator they are given and call the resizing kernel directly: at a tenth of a millisecond a picture, the
bookkeeping around it would cost more than the work. Colours and policies are torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2

from lenext.preprocess import Preprocess

Flip = Literal["none", "horizontal", "both"]
Policy = Literal["none", "randaugment", "trivialaugment", "autoaugment", "augmix"]

# Of a picture that is longer than so many times its short side, only the middle is resized: a line of 65,500 pixels
# would else become a strip of 13 GB, of which the crop shows one square.
LONGEST = 100
# Smallest and largest width divided by height of a random crop, as every paper since Inception has them.
RATIOS = (3 / 4, 4 / 3)


class Transform(Protocol):
    """uint8 pixels (H, W, 3) -> uint8 tensor (3, S, S); a random one draws from `rng` alone."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator, /) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes to a training picture, in the order in which they are made.

    crop_scale: the smallest share of the area that a random crop keeps, in (0, 1]; 1: no crop but the centre square.
    flip: none; horizontal: mirrored half of the time; both: also upside down half of the time.
    turns: quarter turns.
    policy: colours and shapes by a published policy: RandAugment, TrivialAugment, AutoAugment, AugMix.
    color_jitter: largest relative change of brightness, contrast and saturation.
    erasing: probability that a random rectangle is painted over.
    """

    crop_scale: float = 1.0
    flip: Flip = "none"
    turns: bool = False
    policy: Policy = "none"
    color_jitter: float = 0.0
    erasing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale <= 1:
            raise ValueError(f"crop_scale is {self.crop_scale}; it is a share of the area, above 0 and at most 1")
        if self.flip not in ("none", "horizontal", "both"):
            raise ValueError(f"flip is {self.flip!r}; choose none, horizontal or both")
        if self.policy != "none" and self.policy not in POLICIES:
            raise ValueError(f"policy is {self.policy!r}; choose one of none, {', '.join(POLICIES)}")
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"color_jitter is {self.color_jitter}; it must be between 0 and 1")
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"erasing is {self.erasing}; it is a probability between 0 and 1")


POLICIES: dict[str, Callable[..., torch.nn.Module]] = {
    "randaugment": v2.RandAugment,
    "trivialaugment": v2.TrivialAugmentWide,
    "autoaugment": v2.AutoAugment,
    "augmix": v2.AugMix,
}

PRESETS = {
    "none": Augmentation(),
    "light": Augmentation(crop_scale=0.7, flip="horizontal"),
    "standard": Augmentation(crop_scale=0.25, flip="horizontal"),
    "strong": Augmentation(crop_scale=0.25, flip="horizontal", policy="trivialaugment", erasing=0.25),
    # Pictures without an up side: cells, satellites, textures.
    "dihedral": Augmentation(flip="both", turns=True),
}


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 pixels (H, W, 3) as a tensor (3, H, W) over the same memory."""
    return torch.from_numpy(image).permute(2, 0, 1)


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str = "bilinear") -> Tensor:
    """uint8 pixels (H, W, 3), of any strides -> uint8 tensor (3, *size) in channels-last memory, antialiased."""
    height, width, channels = image.shape
    if (height, width) == size:
        return to_tensor(np.array(image))
    # PyTorch has no read-only tensors. The reshape gives the batch of one a stride that says channels-last; with
    # any other the kernel would reorder the picture twice.
    pixels = np.require(image, requirements=["C", "W"]).reshape(1, height, width, channels)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return F.interpolate(x, size, mode=interpolation, antialias=True)[0]


def eval_transform(preprocess: Preprocess) -> Callable[..., Tensor]:
    """uint8 pixels (H, W, 3) -> uint8 tensor (3, S, S): short side to `preprocess.resize`, centre square of S.

    The transform draws nothing and may be called without a generator.
    """
    return partial(_centre, preprocess=preprocess)


def train_transform(preprocess: Preprocess, augmentation: Augmentation) -> Transform:
    """uint8 pixels (H, W, 3) -> uint8 tensor (3, S, S), altered as the augmentation says."""
    fill = [round(255 * value) for value in preprocess.mean]
    steps: list[torch.nn.Module] = []
    if augmentation.policy != "none":
        # Shears and turns of tensors know no bicubic interpolation, whatever resizing uses.
        steps.append(POLICIES[augmentation.policy](interpolation=InterpolationMode.BILINEAR, fill=fill))
    if augmentation.color_jitter:
        strength = augmentation.color_jitter
        steps.append(v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength))
    if augmentation.erasing:
        steps.append(v2.RandomErasing(p=augmentation.erasing, value=fill))
    views = VIEWS[augmentation.flip, augmentation.turns]
    return partial(_augment, preprocess=preprocess, crop_scale=augmentation.crop_scale, views=views, steps=tuple(steps))


def random_crop(height: int, width: int, smallest: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop of `smallest` to all of the area, with a ratio of 3:4 to 4:3.

    Distributed as torchvision's RandomResizedCrop: the area uniformly, the ratio log-uniformly; a picture too long
    for ten draws gives its largest centre crop of an allowed ratio.
    """
    low, high = math.log(RATIOS[0]), math.log(RATIOS[1])
    for _ in range(10):
        area = height * width * (smallest + (1 - smallest) * rng.random())
        ratio = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w
    w = min(width, round(height * RATIOS[1]))
    h = min(height, round(width / RATIOS[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def dihedral(x: Tensor, view: int) -> Tensor:
    """One of the eight symmetries of the square, applied to the last two dimensions: 0 is the identity, 1 to 3
    are the mirror images and the half turn, 4 to 7 the same after a transposition."""
    return _turn(x, view).contiguous()


# The symmetries, as `dihedral` numbers them, among which a flip and turns draw.
VIEWS: dict[tuple[str, bool], tuple[int, ...]] = {
    ("none", False): (0,),
    ("horizontal", False): (0, 1),
    ("both", False): (0, 1, 2, 3),
    ("none", True): (0, 3, 5, 6),
    ("horizontal", True): tuple(range(8)),
    ("both", True): tuple(range(8)),
}


def normalise(x: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 (B, 3, H, W), scaled to [0, 1], then by mean and standard deviation."""
    mean = torch.tensor(preprocess.mean, device=x.device).view(3, 1, 1) * 255
    std = torch.tensor(preprocess.std, device=x.device).view(3, 1, 1) * 255
    return (x.float() - mean) / std


def _centre(image: np.ndarray, rng: np.random.Generator | None = None, *, preprocess: Preprocess) -> Tensor:
    image = _middle(image)
    height, width, _ = image.shape
    short, size = preprocess.resize, preprocess.image_size
    longer = int(short * max(height, width) / min(height, width))
    x = resize(image, (short, longer) if height <= width else (longer, short), preprocess.interpolation)
    top, left = (round((side - size) / 2) for side in x.shape[1:])
    return x[:, top : top + size, left : left + size]


def _middle(image: np.ndarray) -> np.ndarray:
    """The middle of a very long picture; other pictures as they are."""
    height, width, _ = image.shape
    # Of both ends the same, and a multiple of the short side twice: the middle stays where it is after resizing, too.
    step = 2 * min(height, width)
    cut = max((max(height, width) - LONGEST * min(height, width)) // 2, 0) // step * step
    return image[cut : height - cut] if height > width else image[:, cut : width - cut]


def _augment(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    preprocess: Preprocess,
    crop_scale: float,
    views: tuple[int, ...],
    steps: tuple[torch.nn.Module, ...],
) -> Tensor:
    if crop_scale == 1:
        x = _centre(image, preprocess=preprocess)
    else:
        top, left, h, w = random_crop(image.shape[0], image.shape[1], crop_scale, rng)
        size = (preprocess.image_size, preprocess.image_size)
        x = resize(image[top : top + h, left : left + w], size, preprocess.interpolation)
    x = _turn(x, views[int(rng.random() * len(views))])
    if not steps:
        return x
    with torch.random.fork_rng(devices=[]):  # torchvision's transforms draw from the global generator
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        for step in steps:
            x = step(x)
    return x


def _turn(x: Tensor, view: int) -> Tensor:
    assert 0 <= view < 8
    if view & 4:
        x = x.transpose(-1, -2)
    flipped = [axis for bit, axis in ((1, -1), (2, -2)) if view & bit]
    return x.flip(flipped) if flipped else x
