"""AS-MLP: perceptrons that see their neighbours because groups of channels are shifted.

Dongze Lian, Zehao Yu, Xing Sun, Shenghua Gao: "AS-MLP: An Axial Shifted MLP Architecture for Vision", 2021,
https://arxiv.org/abs/2107.08391. Input 224 x 224, RGB.

The channels of a map are cut into five groups, which move by -2, -1, 0, 1 and 2 pixels; what enters at the
border is zero. A 1x1 convolution then sees five neighbours at the price of one. It is done along the width and
along the height, and the two are added: a cross-shaped neighbourhood in each block. The pyramid of four stages
is that of the Swin Transformer.

Deviations from the paper: a map with an odd side gets a row or column of zeros before 2 x 2 pixels are merged
(the authors refuse it; it does not happen at 224 x 224), so that the network takes images of any size. Branches
are not dropped by default (published: `drop_path` 0.2 tiny, 0.3 small, 0.5 base). The names of the parameters
are those of the authors' checkpoints.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenext.models.layers import DropPath, drop_path_rates


def layer_norm(dim: int) -> nn.GroupNorm:
    """Layer norm over channels and positions at once: (B, dim, H, W) -> (B, dim, H, W)."""
    return nn.GroupNorm(1, dim)


def shift(x: Tensor, shift_size: int, axis: int) -> Tensor:
    """Moves `shift_size` groups of channels by different distances along the height (2) or the width (3).

    (B, C, H, W) -> (B, C, H, W). The first group moves furthest towards 0, the last as far the other way. Where
    `shift_size` does not divide C, the last group is smaller.
    """
    half, size = shift_size // 2, x.shape[axis]
    x = F.pad(x, (half, half) if axis == 3 else (0, 0, half, half))
    groups = x.chunk(shift_size, dim=1)
    return torch.cat([group.narrow(axis, 2 * half - i, size) for i, group in enumerate(groups)], dim=1)


class AxialShift(nn.Module):
    """Mixes pixels along the width and, beside it, along the height: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, *, dim: int, shift_size: int) -> None:
        super().__init__()
        self.shift_size = shift_size
        self.conv1 = nn.Conv2d(dim, dim, kernel_size=1)
        self.norm1 = layer_norm(dim)
        self.conv2_1 = nn.Conv2d(dim, dim, kernel_size=1)
        self.conv2_2 = nn.Conv2d(dim, dim, kernel_size=1)
        self.norm2 = layer_norm(dim)
        self.conv3 = nn.Conv2d(dim, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.conv1(x)))  # (B, C, H, W)
        across = F.gelu(self.conv2_1(shift(x, self.shift_size, 3)))
        down = F.gelu(self.conv2_2(shift(x, self.shift_size, 2)))
        return self.conv3(self.norm2(across + down))


class MLP(nn.Module):
    """Two 1x1 convolutions: (B, C, H, W) -> (B, C, H, W), four times as wide in between."""

    def __init__(self, *, dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, 4 * dim, kernel_size=1)
        self.fc2 = nn.Conv2d(4 * dim, dim, kernel_size=1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.gelu(self.fc1(x)))  # (B, 4C, H, W)
        return self.dropout(self.fc2(x))


class Block(nn.Module):
    """Axial shift, then perceptron, each normalised first and with a shortcut: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, *, dim: int, shift_size: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.axial_shift = AxialShift(dim=dim, shift_size=shift_size)
        self.norm2 = layer_norm(dim)
        self.mlp = MLP(dim=dim, dropout=dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.axial_shift(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Projects patches of 4 x 4 pixels: (B, in_channels, H, W) -> (B, dim, H/4, W/4)."""

    def __init__(self, *, in_channels: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=4, stride=4)
        self.norm = layer_norm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.norm(self.proj(x)))


class PatchMerging(nn.Module):
    """Joins 2 x 2 pixels into one: (B, C, H, W) -> (B, 2C, ceil(H/2), ceil(W/2))."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(4 * dim, 2 * dim, kernel_size=1, bias=False)
        self.norm = layer_norm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        _, _, H, W = x.shape
        if H % 2 or W % 2:
            x = F.pad(x, (0, W % 2, 0, H % 2))
        left, right = x[..., 0::2], x[..., 1::2]
        x = torch.cat([left[:, :, 0::2], left[:, :, 1::2], right[:, :, 0::2], right[:, :, 1::2]], dim=1)
        return self.reduction(self.norm(x))  # (B, 2C, H/2, W/2)


class ASMLP(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    dim: channels of the first of the four stages; each of the others has twice those of the one before.
    depths: blocks of each stage.
    shift_size: into how many groups channels are cut, an odd number (1: no shift), else a ValueError.
    dropout: share of units dropped after the embedding and after both layers of every perceptron, in training.
    drop_path: share of residual branches dropped in the last block, rising linearly from 0 in the first.
    """

    head_name = "head"
    min_image_size = 4  # one patch

    def __init__(
        self,
        *,
        dim: int,
        depths: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_channels: int = 3,
        shift_size: int = 5,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if shift_size < 1 or shift_size % 2 == 0:
            raise ValueError(f"shift_size must be odd, such as 3, 5 or 7, not {shift_size}.")
        self.patch_embed = PatchEmbed(in_channels=in_channels, dim=dim, dropout=dropout)
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.layers = nn.Sequential()
        for i, depth in enumerate(depths):
            level, blocks = nn.Sequential(), nn.Sequential()
            for _ in range(depth):
                blocks.append(Block(dim=dim, shift_size=shift_size, dropout=dropout, drop_path=next(rates)))
            level.add_module("blocks", blocks)
            if i < len(depths) - 1:
                level.add_module("downsample", PatchMerging(dim=dim))
                dim = 2 * dim
            self.layers.append(level)
        self.norm = layer_norm(dim)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)  # (B, dim, H/4, W/4)
        x = self.norm(self.layers(x))  # (B, 8 * dim, H/32, W/32)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Normalised last feature map (B, C, H, W) -> logits (B, num_classes)."""
        return self.head(self.avgpool(features).flatten(1))

    def stages(self) -> list[nn.Module]:
        """The embedding, each block, each merging and the last norm, from the image to the last feature map."""
        parts: list[nn.Module] = [self.patch_embed]
        for level in self.layers.children():
            for name, part in level.named_children():
                parts.extend(part.children() if name == "blocks" else [part])
        return [*parts, self.norm]


VARIANTS = {
    "as_mlp_tiny": partial(ASMLP, dim=96, depths=(2, 2, 6, 2)),
    "as_mlp_small": partial(ASMLP, dim=96, depths=(2, 2, 18, 2)),
    "as_mlp_base": partial(ASMLP, dim=128, depths=(2, 2, 18, 2)),
}
