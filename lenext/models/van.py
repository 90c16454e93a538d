"""VAN: convolutions that reach far and multiply, in the place of attention.

Meng-Hao Guo, Cheng-Ze Lu, Zheng-Ning Liu, Ming-Ming Cheng, Shi-Min Hu: "Visual Attention Network", 2022,
https://arxiv.org/abs/2202.09741. Input 224 x 224, RGB.

Attention weighs each value by what is far away, but it forgets that an image has two dimensions and weighs all
channels alike. Large kernel attention takes the weights from a convolution that sees 21 x 21 pixels, cut into
three cheap ones: depthwise 5x5, depthwise 7x7 on every third pixel, and 1x1 across channels. The input is
multiplied by them, pixel by pixel and channel by channel. The perceptrons have a depthwise 3x3 in the middle.
Learned factors, 0.01 at the start, scale the branches, and in that of attention its input as well.

Deviations from the paper: none. Branches are not dropped by default (published: `drop_path` 0.1, b3 0.2). The
names of the parameters are those of the authors' checkpoints, but for the depthwise convolution of the
perceptrons, which `adapt_checkpoint` translates.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenext.models.layers import DropPath, LayerNorm2d, drop_path_rates


class PatchEmbed(nn.Module):
    """A strided convolution and a batch norm: (B, in_dim, H, W) -> (B, dim, ceil(H/stride), ceil(W/stride))."""

    def __init__(self, *, in_dim: int, dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, kernel_size, stride=stride, padding=kernel_size // 2)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class LargeKernelAttention(nn.Module):
    """Multiplies each value by weights that 21 x 21 pixels around it decide: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(dim, dim, kernel_size=5, padding=2, groups=dim)
        self.conv_spatial = nn.Conv2d(dim, dim, kernel_size=7, padding=9, dilation=3, groups=dim)
        self.conv1 = nn.Conv2d(dim, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.conv1(self.conv_spatial(self.conv0(x)))  # (B, C, H, W)
        return x * weights


class Attention(nn.Module):
    """Large kernel attention between two 1x1 convolutions, and a shortcut: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(dim, dim, kernel_size=1)
        self.spatial_gating_unit = LargeKernelAttention(dim=dim)
        self.proj_2 = nn.Conv2d(dim, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        residual = F.gelu(self.proj_1(x))  # (B, C, H, W)
        return x + self.proj_2(self.spatial_gating_unit(residual))


class MLP(nn.Module):
    """1x1 up, depthwise 3x3, 1x1 down: (B, C, H, W) -> (B, C, H, W), `hidden_dim` wide in between."""

    def __init__(self, *, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, kernel_size=1)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, kernel_size=3, padding=1, groups=hidden_dim)
        self.fc2 = nn.Conv2d(hidden_dim, dim, kernel_size=1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dwconv(self.fc1(x))  # (B, hidden_dim, H, W)
        x = self.fc2(self.dropout(F.gelu(x)))  # (B, C, H, W)
        return self.dropout(x)


class Block(nn.Module):
    """Attention, then perceptron, each normalised first, scaled, with a shortcut: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, *, dim: int, hidden_dim: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = Attention(dim=dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = MLP(dim=dim, hidden_dim=hidden_dim, dropout=dropout)
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), 0.01))
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), 0.01))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * self.attn(self.norm1(x)))
        return x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))


class VisualAttentionNetwork(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    depths, dims: blocks and channels of each of the four stages.
    expansions: how many times wider the perceptrons of each stage are within.
    dropout: share of units dropped after both layers of every perceptron, in training.
    drop_path: share of residual branches dropped in the last block, rising linearly from 0 in the first.
    """

    head_name = "head"

    def __init__(
        self,
        *,
        depths: tuple[int, int, int, int],
        dims: tuple[int, int, int, int] = (64, 128, 320, 512),
        expansions: tuple[int, int, int, int] = (8, 8, 4, 4),
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        rates = iter(drop_path_rates(drop_path, sum(depths)))

        def stage(depth: int, dim: int, expansion: int) -> nn.Sequential:
            return nn.Sequential(
                *(
                    Block(dim=dim, hidden_dim=expansion * dim, dropout=dropout, drop_path=next(rates))
                    for _ in range(depth)
                )
            )

        self.patch_embed1 = PatchEmbed(in_dim=in_channels, dim=dims[0], kernel_size=7, stride=4)
        self.block1 = stage(depths[0], dims[0], expansions[0])
        self.norm1 = LayerNorm2d(dims[0], eps=1e-6)
        self.patch_embed2 = PatchEmbed(in_dim=dims[0], dim=dims[1], kernel_size=3, stride=2)
        self.block2 = stage(depths[1], dims[1], expansions[1])
        self.norm2 = LayerNorm2d(dims[1], eps=1e-6)
        self.patch_embed3 = PatchEmbed(in_dim=dims[1], dim=dims[2], kernel_size=3, stride=2)
        self.block3 = stage(depths[2], dims[2], expansions[2])
        self.norm3 = LayerNorm2d(dims[2], eps=1e-6)
        self.patch_embed4 = PatchEmbed(in_dim=dims[2], dim=dims[3], kernel_size=3, stride=2)
        self.block4 = stage(depths[3], dims[3], expansions[3])
        self.norm4 = LayerNorm2d(dims[3], eps=1e-6)
        self.head = nn.Linear(dims[3], num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[:, 0].numel() // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.block1(self.patch_embed1(x)))  # (B, dims[0], H/4, W/4)
        x = self.norm2(self.block2(self.patch_embed2(x)))  # (B, dims[1], H/8, W/8)
        x = self.norm3(self.block3(self.patch_embed3(x)))  # (B, dims[2], H/16, W/16)
        x = self.norm4(self.block4(self.patch_embed4(x)))  # (B, dims[3], H/32, W/32)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Normalised last feature map (B, C, H, W) -> logits (B, num_classes)."""
        return self.head(features.mean(dim=(2, 3)))

    def stages(self) -> list[nn.Module]:
        """Each embedding, each block and each norm after a stage, from the image to the last feature map."""
        return [
            *(self.patch_embed1, *self.block1, self.norm1),
            *(self.patch_embed2, *self.block2, self.norm2),
            *(self.patch_embed3, *self.block3, self.norm3),
            *(self.patch_embed4, *self.block4, self.norm4),
        ]

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Translates the authors' checkpoints, https://github.com/Visual-Attention-Network/VAN-Classification."""
        return {key.replace(".dwconv.dwconv.", ".dwconv."): tensor for key, tensor in state.items()}


VARIANTS = {
    "van_b0": partial(VisualAttentionNetwork, depths=(3, 3, 5, 2), dims=(32, 64, 160, 256)),
    "van_b1": partial(VisualAttentionNetwork, depths=(2, 2, 4, 2)),
    "van_b2": partial(VisualAttentionNetwork, depths=(3, 3, 12, 3)),
    "van_b3": partial(VisualAttentionNetwork, depths=(3, 5, 27, 3)),
}
