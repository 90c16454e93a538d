"""What is done to a decoded picture before a network sees it: one small record, carried by every model and file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Resize the short side to `image_size / crop_fraction`, cut the centre square, scale to [0, 1], normalise.

    image_size: side of the square input, pixels.
    mean, std: per RGB channel, of pixels scaled to [0, 1].
    interpolation: "bilinear" or "bicubic", both antialiased.
    crop_fraction: share of the short side that the centre crop keeps, in (0, 1].
    """

    image_size: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    crop_fraction: float = 0.875

    @property
    def resize(self) -> int:
        """The short side after resizing, pixels."""
        return round(self.image_size / self.crop_fraction)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
