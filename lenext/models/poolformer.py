"""PoolFormer: a Transformer whose attention is replaced by average pooling.

Weihao Yu, Mi Luo, Pan Zhou, Chenyang Si, Yichen Zhou, Xinchao Wang, Jiashi Feng, Shuicheng Yan: "MetaFormer Is
Actually What You Need for Vision", 2021, https://arxiv.org/abs/2111.11418. Input 224 x 224, RGB.

A Transformer block is a token mixer and a perceptron, each normalised first and with a shortcut. The paper
calls that frame the MetaFormer and argues that it, not attention, makes Transformers strong. To show it, the
mixer is the simplest there is: the mean of 3x3 neighbours, without a single parameter. Four stages halve the
map as in a convolutional network.

Deviations from the paper, shared with timm: the last norm comes after global pooling and normalises the pooled
channels (the authors normalise the whole map, then pool), which scales a picture's logits but hardly changes
their order. Branches are not dropped by default (published: `drop_path` 0.1, s36 0.2). The names of the
parameters are timm's, except that the paper's stages are called `levels` here (`stages()` is LeNeXt's list of
all parts); `adapt_checkpoint` translates timm's names and those of the authors' checkpoints.
"""

from __future__ import annotations

import re
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenext.models.layers import DropPath, drop_path_rates


class Embedding(nn.Module):
    """A strided convolution that makes tokens: (B, in_dim, H, W) -> (B, dim, about H/stride, about W/stride)."""

    def __init__(self, *, in_dim: int, dim: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, kernel_size, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Pooling(nn.Module):
    """The mean of 3x3 pixels, less the pixel itself, which the shortcut adds: (B, C, H, W) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False) - x


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


class LayerScale(nn.Module):
    """A learned factor for every channel: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, *, dim: int, init: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale[:, None, None]


class Block(nn.Module):
    """Pooling, then perceptron, each normalised first and with a shortcut: (B, C, H, W) -> (B, C, H, W).

    The norm is a layer norm over channels and positions at once: a group norm of one group.
    """

    def __init__(self, *, dim: int, layer_scale: float, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim)
        self.token_mixer = Pooling()
        self.layer_scale1 = LayerScale(dim=dim, init=layer_scale)
        self.norm2 = nn.GroupNorm(1, dim)
        self.mlp = MLP(dim=dim, dropout=dropout)
        self.layer_scale2 = LayerScale(dim=dim, init=layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale1(self.token_mixer(self.norm1(x))))
        return x + self.drop_path(self.layer_scale2(self.mlp(self.norm2(x))))


class Head(nn.Module):
    """Global average pooling, layer norm, classifier: (B, C, H, W) -> (B, num_classes)."""

    def __init__(self, *, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(dim=(2, 3))  # (B, C)
        return self.fc(self.norm(x))


class PoolFormer(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    depths, dims: blocks and channels of each of the four stages.
    layer_scale: initial factor of every residual branch, per channel.
    dropout: share of units dropped after both layers of every perceptron, in training.
    drop_path: share of residual branches dropped in the last block, rising linearly from 0 in the first.
    """

    head_name = "head.fc"
    min_image_size = 3  # below it the first convolution has no room

    def __init__(
        self,
        *,
        depths: tuple[int, int, int, int],
        dims: tuple[int, int, int, int] = (64, 128, 320, 512),
        num_classes: int = 1000,
        in_channels: int = 3,
        layer_scale: float = 1e-5,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = Embedding(in_dim=in_channels, dim=dims[0], kernel_size=7, stride=4, padding=2)
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.levels = nn.Sequential()
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            level, blocks = nn.Sequential(), nn.Sequential()
            if i > 0:
                downsample = Embedding(in_dim=dims[i - 1], dim=dim, kernel_size=3, stride=2, padding=1)
                level.add_module("downsample", downsample)
            for _ in range(depth):
                blocks.append(Block(dim=dim, layer_scale=layer_scale, dropout=dropout, drop_path=next(rates)))
            level.add_module("blocks", blocks)
            self.levels.append(level)
        self.head = Head(dim=dims[-1], num_classes=num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, dims[0], H/4, W/4)
        x = self.levels(x)  # (B, dims[3], H/32, W/32)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, C, H, W) -> logits (B, num_classes)."""
        return self.head(features)

    def stages(self) -> list[nn.Module]:
        """The stem, each down-sampling and each block, from the image to the last feature map."""
        parts: list[nn.Module] = [self.stem]
        for level in self.levels.children():
            for name, part in level.named_children():
                parts.extend(part.children() if name == "blocks" else [part])
        return parts

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Translates the parameter names of timm and of the authors' checkpoints into ours."""
        return {from_official(re.sub(r"^stages\.", "levels.", key)): tensor for key, tensor in state.items()}


def from_official(key: str) -> str:
    """The name that a parameter of https://github.com/sail-sg/poolformer has here; timm's names stay.

    Their `network` lists the blocks of a stage (0, 2, 4, 6) and the down-samplings (1, 3, 5) in turn.
    """
    key = re.sub(r"^network\.([0246])\.", lambda m: f"levels.{int(m[1]) // 2}.blocks.", key)
    key = re.sub(r"^network\.([135])\.proj\.", lambda m: f"levels.{int(m[1]) // 2 + 1}.downsample.conv.", key)
    key = re.sub(r"\.layer_scale_([12])$", r".layer_scale\1.scale", key)
    key = re.sub(r"^patch_embed\.proj\.", "stem.conv.", key)
    key = re.sub(r"^norm\.", "head.norm.", key)
    return re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", key)


VARIANTS = {
    "poolformer_s12": partial(PoolFormer, depths=(2, 2, 6, 2)),
    "poolformer_s24": partial(PoolFormer, depths=(4, 4, 12, 4)),
    "poolformer_s36": partial(PoolFormer, depths=(6, 6, 18, 6), layer_scale=1e-6),
}
