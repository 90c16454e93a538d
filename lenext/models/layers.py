"""Pieces that are identical in several papers, without flags: what needs one lives in its paper's file."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DropPath(nn.Module):
    """Stochastic depth: in training, drops the whole residual branch of a sample with probability `rate`.

    The branches that stay are divided by 1 - rate, so that the expected output is the branch itself. In
    evaluation it is the identity. Huang et al. 2016, "Deep Networks with Stochastic Depth",
    https://arxiv.org/abs/1603.09382

    Input and output: any shape whose first axis is the batch. `rate` outside [0, 1) is a ValueError.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop_path is the share of branches to drop and must lie in [0, 1), not {rate}.")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)  # (B, 1, ..., 1)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rates of `depth` blocks that rise linearly from 0 at the first to `rate` at the last."""
    return torch.linspace(0.0, rate, depth, dtype=torch.float64, device="cpu").tolist()


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation of each pixel over its channels: (B, C, H, W) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)  # (B, C, H, W)


def norm2d(kind: str, dim: int, eps: float = 1e-5) -> nn.Module:
    """The normalisation of feature maps (B, dim, H, W) that a comparison asks for.

    kind: "batch", "group" (32 groups, fewer where 32 does not divide `dim`; Wu & He 2018,
    https://arxiv.org/abs/1803.08494), "layer" (each pixel over its channels) or "none". Others are a ValueError.
    """
    match kind:
        case "batch":
            return nn.BatchNorm2d(dim, eps=eps)
        case "group":
            return nn.GroupNorm(math.gcd(32, dim), dim, eps=eps)
        case "layer":
            return LayerNorm2d(dim, eps=eps)
        case "none":
            return nn.Identity()
    raise ValueError(f'norm must be "batch", "group", "layer" or "none", not {kind!r}.')


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "relu6": partial(nn.ReLU6, inplace=True),
    "leaky_relu": partial(nn.LeakyReLU, inplace=True),
    "elu": partial(nn.ELU, inplace=True),
    "gelu": nn.GELU,
    "silu": partial(nn.SiLU, inplace=True),
    "mish": partial(nn.Mish, inplace=True),
    "hardswish": partial(nn.Hardswish, inplace=True),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def activation_layer(name: str) -> nn.Module:
    """The activation that a comparison asks for, any shape to the same. ValueError for an unknown name."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {name!r}.")
    return ACTIVATIONS[name]()


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor` that is not more than a tenth below `channels`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def resize_table(table: Tensor, size: tuple[int, int]) -> Tensor:
    """A table of values by position (h, w, C), interpolated to another grid: (*size, C).

    Bicubic and antialiased, as learned positions are moved to another image size. The same grid is left alone.
    """
    h, w, _ = table.shape
    if (h, w) == size:
        return table
    x = table.permute(2, 0, 1).unsqueeze(0).float()  # (1, C, h, w)
    x = F.interpolate(x, size=size, mode="bicubic", antialias=True)
    return x.squeeze(0).permute(1, 2, 0).to(table.dtype)
