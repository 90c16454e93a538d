"""Pieces that are identical in several papers, without flags: what needs one lives in its paper's file."""

from __future__ import annotations

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
