"""ConvNeXt: a convolutional network modernised step by step until it matches the Swin Transformer.

Zhuang Liu, Hanzi Mao, Chao-Yuan Wu, Christoph Feichtenhofer, Trevor Darrell, Saining Xie: "A ConvNet for the
2020s", 2022, https://arxiv.org/abs/2201.03545. Input 224 x 224, RGB.

A block mixes space with one 7x7 depthwise convolution and channels with a two-layer perceptron four times as
wide, with one layer normalisation and one GELU. A patchify stem divides the image by 4; 2x2 convolutions
halve it three times more.

Deviations from the paper: none. The names of the parameters are timm's, except that the paper's stages are
called `levels` here (`stages()` is LeNeXt's list of all parts); `adapt_checkpoint` translates timm's names
and those of the authors' own checkpoints.
"""

from __future__ import annotations

import re
from functools import partial

import torch
from torch import Tensor, nn

from lenext.models.layers import DropPath, LayerNorm2d, activation_layer, drop_path_rates


class MLP(nn.Module):
    """Two linear layers over the channels: (B, H, W, C) -> (B, H, W, C), `hidden_dim` wide in between."""

    def __init__(self, *, dim: int, hidden_dim: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = activation_layer(activation)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Depthwise 7x7, layer norm, perceptron, layer scale and a shortcut: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, *, dim: int, activation: str, layer_scale: float | None, drop_path: float) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim=dim, hidden_dim=4 * dim, activation=activation)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv_dw(x).permute(0, 2, 3, 1)  # (B, H, W, C)
        residual = self.mlp(self.norm(residual))
        if self.gamma is not None:
            residual = residual * self.gamma
        return x + self.drop_path(residual.permute(0, 3, 1, 2))  # (B, C, H, W)


class Level(nn.Module):
    """One of the four stages: (B, in_dim, H, W) -> (B, dim, H/2, W/2); H and W stay where `in_dim == dim`."""

    def __init__(
        self, *, in_dim: int, dim: int, activation: str, drop_path: list[float], layer_scale: float | None
    ) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if in_dim != dim:
            self.downsample = nn.Sequential(
                LayerNorm2d(in_dim, eps=1e-6), nn.Conv2d(in_dim, dim, kernel_size=2, stride=2)
            )
        self.blocks = nn.Sequential(
            *(Block(dim=dim, activation=activation, layer_scale=layer_scale, drop_path=rate) for rate in drop_path)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Head(nn.Module):
    """Global average pooling, layer norm, dropout, classifier: (B, C, H, W) -> (B, num_classes)."""

    def __init__(self, *, dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(dim=(2, 3))  # (B, C)
        return self.fc(self.dropout(self.norm(x)))


class ConvNeXt(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    depths, dims: blocks and channels of each of the four stages.
    layer_scale: initial factor of every residual branch, per channel; None leaves the factors out.
    activation: name in `layers.ACTIVATIONS`. dropout: share of units dropped before the classifier.
    drop_path: share of residual branches dropped in the last block, rising linearly from 0 in the first.
    """

    head_name = "head.fc"
    min_image_size = 32  # below it the unpadded 2x2 convolutions run out of pixels

    def __init__(
        self,
        *,
        depths: tuple[int, int, int, int],
        dims: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_channels: int = 3,
        activation: str = "gelu",
        layer_scale: float | None = 1e-6,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, dims[0], kernel_size=4, stride=4), LayerNorm2d(dims[0], eps=1e-6)
        )
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.levels = nn.Sequential(
            *(
                Level(
                    in_dim=in_dim,
                    dim=dim,
                    activation=activation,
                    drop_path=[next(rates) for _ in range(depth)],
                    layer_scale=layer_scale,
                )
                for in_dim, dim, depth in zip((dims[0], *dims), dims, depths, strict=False)
            )
        )
        self.head = Head(dim=dims[-1], num_classes=num_classes, dropout=dropout)

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
        for level in self.levels:
            assert isinstance(level, Level)
            if not isinstance(level.downsample, nn.Identity):
                parts.append(level.downsample)
            parts.extend(level.blocks)
        return parts

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Translates the parameter names of timm and of the authors' checkpoints into ours."""
        official = "downsample_layers.0.0.weight" in state
        return {(from_official(key) if official else re.sub(r"^stages\.", "levels.", key)): state[key] for key in state}


def from_official(key: str) -> str:
    """The name that a parameter of https://github.com/facebookresearch/ConvNeXt has here."""
    for pattern, name in (
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d)\.", r"levels.\1.downsample."),
        (r"^stages\.(\d)\.", r"levels.\1.blocks."),
        (r"\.dwconv\.", ".conv_dw."),
        (r"\.pwconv([12])\.", r".mlp.fc\1."),
        (r"^norm\.", "head.norm."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
    ):
        key = re.sub(pattern, name, key)
    return key


VARIANTS = {
    "convnext_tiny": partial(ConvNeXt, depths=(3, 3, 9, 3), dims=(96, 192, 384, 768)),
    "convnext_small": partial(ConvNeXt, depths=(3, 3, 27, 3), dims=(96, 192, 384, 768)),
    "convnext_base": partial(ConvNeXt, depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024)),
    "convnext_large": partial(ConvNeXt, depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536)),
}
