"""DenseNet: every layer reads the maps of all layers before it.

Gao Huang, Zhuang Liu, Laurens van der Maaten, Kilian Q. Weinberger: "Densely Connected Convolutional Networks",
2016, https://arxiv.org/abs/1608.06993. Input 224 x 224, RGB.

Within a block of constant resolution the output of each layer is concatenated to its input, so maps are computed
once and used by all that follow. A layer can then be narrow: it adds only `growth_rate` maps, after a 1x1
convolution has condensed what came before to four times that many. Between blocks a transition halves the channels
and the resolution.

Deviations from the paper: none in the function. In a transition the average pooling comes before the 1x1
convolution, which gives the same maps for a quarter of the work. The names of the parameters are torchvision's;
`adapt_checkpoint` also reads the older ones in its published files.
`stem="small"` is for images of 32 to 64 pixels: a 3x3 convolution of stride 1 and no max-pooling, as in the
paper's CIFAR networks but before the four blocks of its ImageNet networks.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lenext.models.layers import activation_layer, norm2d


def norm_activation(norm: str, activation: str, dim: int) -> tuple[nn.Module, nn.Module]:
    """A normalisation and the activation after it, neither of which changes its input in place."""
    act: Any = activation_layer(activation)
    if norm == "none" and hasattr(act, "inplace"):
        act.inplace = False  # without a norm in between it would write into maps that are read again
    return norm2d(norm, dim), act


class DenseLayer(nn.Module):
    """Norm, activation, 1x1, norm, activation, 3x3: (B, in_dim, H, W) -> (B, in_dim + growth_rate, H, W)."""

    def __init__(self, *, in_dim: int, growth_rate: int, norm: str, activation: str, dropout: float) -> None:
        super().__init__()
        self.norm1, self.act1 = norm_activation(norm, activation, in_dim)
        self.conv1 = nn.Conv2d(in_dim, 4 * growth_rate, kernel_size=1, bias=False)
        self.norm2, self.act2 = norm_activation(norm, activation, 4 * growth_rate)
        self.conv2 = nn.Conv2d(4 * growth_rate, growth_rate, kernel_size=3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(self.act1(self.norm1(x)))  # (B, 4 * growth_rate, H, W)
        new = self.conv2(self.act2(self.norm2(new)))  # (B, growth_rate, H, W)
        return torch.cat([x, self.dropout(new)], dim=1)


class Transition(nn.Module):
    """Norm, activation, 1x1 convolution, average pooling: (B, in_dim, H, W) -> (B, in_dim/2, H/2, W/2)."""

    def __init__(self, *, in_dim: int, norm: str, activation: str) -> None:
        super().__init__()
        self.norm, self.act = norm_activation(norm, activation, in_dim)
        self.pool = nn.AvgPool2d(kernel_size=2, stride=2)
        self.conv = nn.Conv2d(in_dim, in_dim // 2, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(x))  # (B, in_dim, H, W)
        return self.conv(self.pool(x))  # both are linear: the order does not matter, the work does


class DenseNet(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    depths: layers in each of the four blocks. growth_rate: maps that a layer adds; the stem makes twice as many.
    stem: "imagenet" (7x7, stride 2, then max-pooling) or "small" (3x3, stride 1, no pooling).
    norm: "batch", "group", "layer" or "none". activation: such as "relu" or "gelu".
    dropout: share of values dropped from the maps that a layer adds, in training.
    """

    head_name = "classifier"
    min_image_size = 29  # below it the last average pooling has nothing to pool

    def __init__(
        self,
        *,
        depths: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_channels: int = 3,
        growth_rate: int = 32,
        stem: str = "imagenet",
        norm: str = "batch",
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        dim = 2 * growth_rate
        if stem == "imagenet":
            conv0 = nn.Conv2d(in_channels, dim, kernel_size=7, stride=2, padding=3, bias=False)
            pool0: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        elif stem == "small":
            conv0 = nn.Conv2d(in_channels, dim, kernel_size=3, stride=1, padding=1, bias=False)
            pool0 = nn.Identity()
            self.min_image_size = 8
        else:
            raise ValueError(f'stem must be "imagenet" or "small", not {stem!r}.')
        norm0, act0 = norm_activation(norm, activation, dim)
        self.features = nn.Sequential(OrderedDict(conv0=conv0, norm0=norm0, act0=act0, pool0=pool0))
        for i, depth in enumerate(depths, start=1):
            block = nn.Sequential()
            for j in range(1, depth + 1):
                layer = DenseLayer(
                    in_dim=dim, growth_rate=growth_rate, norm=norm, activation=activation, dropout=dropout
                )
                block.add_module(f"denselayer{j}", layer)
                dim += growth_rate
            self.features.add_module(f"denseblock{i}", block)
            if i < len(depths):
                self.features.add_module(f"transition{i}", Transition(in_dim=dim, norm=norm, activation=activation))
                dim //= 2
        norm5, act5 = norm_activation(norm, activation, dim)
        self.features.add_module("norm5", norm5)
        self.features.add_module("act5", act5)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(dim, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # (B, C, H/32, W/32); the small stem: (B, C, H/8, W/8)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, C, H, W) -> logits (B, num_classes)."""
        return self.classifier(self.avgpool(features).flatten(1))

    def stages(self) -> list[nn.Module]:
        """The stem, each dense layer and transition and the last norm, from the image to the last feature map."""
        parts: list[nn.Module] = [self.features[:4]]
        for part in self.features[4:-2]:
            parts.extend(part if isinstance(part, nn.Sequential) else [part])
        return [*parts, self.features[-2:]]

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Renames the older names of torchvision's files, such as `denselayer1.norm.1.weight`."""
        return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): state[key] for key in state}


VARIANTS = {
    "densenet121": partial(DenseNet, depths=(6, 12, 24, 16)),
    "densenet169": partial(DenseNet, depths=(6, 12, 32, 32)),
    "densenet201": partial(DenseNet, depths=(6, 12, 48, 32)),
}
