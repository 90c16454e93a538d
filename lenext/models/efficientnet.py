"""EfficientNet: depth, width and image size scaled together.

Mingxing Tan, Quoc V. Le: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019,
https://arxiv.org/abs/1905.11946. Input 224 x 224 (b0), 240 x 240 (b1), 260 x 260 (b2; torchvision's weights are
used at 288 x 288), 300 x 300 (b3), 380 x 380 (b4), RGB.

A small network, b0, was found by search: MobileNetV2's inverted residuals with squeeze-and-excitation and
SiLU. The larger ones are b0 with more blocks, more channels and larger images, in a proportion that was
measured once: twice the work buys 1.2 times the depth, 1.1 times the width and 1.15 times the image's side.

Deviations from the paper, shared with torchvision, whose parameter names and weights fit:
- convolutions of stride 2 pad alike on all sides, which the authors' code does not; weights converted from
  that code (timm's `tf_` models) are therefore not for this network;
- batch norm has epsilon 1e-5 and momentum 0.1 (authors' code: 1e-3 and 0.01).
Of our own: the classifier starts as PyTorch's linear layers do, dropping residual branches is off by default
(paper: 0.2), and its rates end at exactly `drop_path`. `stem="small"`, for images of 32 to 64 pixels, gives
the first convolution stride 1.
"""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor, nn

from lenext.models.layers import DropPath, drop_path_rates, round_channels

# The stages of b0: expansion, kernel size, stride, channels, blocks.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def conv_norm(in_dim: int, dim: int, kernel_size: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch norm: (B, in_dim, H, W) -> (B, dim, H/stride, W/stride)."""
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(in_dim, dim, kernel_size, stride=stride, padding=padding, groups=groups, bias=False),
        nn.BatchNorm2d(dim),
    )


class SqueezeExcitation(nn.Module):
    """Weighs every channel by what all channels are on average: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, *, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(dim, hidden_dim, kernel_size=1)
        self.act = nn.SiLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden_dim, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.act(self.fc1(self.avgpool(x)))  # (B, hidden_dim, 1, 1)
        return x * self.fc2(weights).sigmoid()  # (B, C, H, W)


class MBConv(nn.Module):
    """1x1 up, depthwise, weighing, 1x1 down without activation; a shortcut where width and resolution stay.

    (B, in_dim, H, W) -> (B, dim, H/stride, W/stride)
    """

    def __init__(
        self, *, in_dim: int, dim: int, expansion: int, kernel_size: int, stride: int, drop_path: float
    ) -> None:
        super().__init__()
        hidden_dim = in_dim * expansion
        depthwise = conv_norm(hidden_dim, hidden_dim, kernel_size, stride=stride, groups=hidden_dim)
        self.block = nn.Sequential(
            depthwise.append(nn.SiLU(inplace=True)),
            SqueezeExcitation(dim=hidden_dim, hidden_dim=in_dim // 4),
            conv_norm(hidden_dim, dim, 1),
        )
        if expansion > 1:
            self.block.insert(0, conv_norm(in_dim, hidden_dim, 1).append(nn.SiLU(inplace=True)))
        self.drop_path = DropPath(drop_path)
        self.has_shortcut = stride == 1 and in_dim == dim

    def forward(self, x: Tensor) -> Tensor:
        residual = self.block(x)  # (B, dim, H/stride, W/stride)
        return x + self.drop_path(residual) if self.has_shortcut else residual


class EfficientNet(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    width, depth: factors on the channels and on the blocks of b0.
    stem: "imagenet" (the first convolution has stride 2) or "small" (stride 1).
    dropout: share of units dropped before the classifier, in training.
    drop_path: share of residual branches dropped in the last block, rising linearly from 0 in the first.
    """

    head_name = "classifier.1"

    def __init__(
        self,
        *,
        width: float,
        depth: float,
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: str = "imagenet",
        dropout: float = 0.2,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "small"):
            raise ValueError(f'stem must be "imagenet" or "small", not {stem!r}.')
        in_dim = round_channels(32 * width)
        first = conv_norm(in_channels, in_dim, 3, stride=2 if stem == "imagenet" else 1)
        self.features = nn.Sequential(first.append(nn.SiLU(inplace=True)))

        depths = [math.ceil(blocks * depth) for *_, blocks in STAGES]
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        for (expansion, kernel_size, stride, channels, _), stage_depth in zip(STAGES, depths, strict=True):
            dim = round_channels(channels * width)
            stage = nn.Sequential()
            for i in range(stage_depth):
                stage.append(
                    MBConv(
                        in_dim=in_dim,
                        dim=dim,
                        expansion=expansion,
                        kernel_size=kernel_size,
                        stride=stride if i == 0 else 1,
                        drop_path=next(rates),
                    )
                )
                in_dim = dim
            self.features.append(stage)

        self.features.append(conv_norm(in_dim, 4 * in_dim, 1).append(nn.SiLU(inplace=True)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(4 * in_dim, num_classes))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[:, 0].numel() // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # (B, 1280 * width, H/32, W/32); H/16, W/16 with the small stem
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, C, H, W) -> logits (B, num_classes)."""
        return self.classifier(self.avgpool(features).flatten(1))

    def stages(self) -> list[nn.Module]:
        """The first convolution, each block and the last convolution, from the image to the last feature map."""
        first, *levels, last = self.features.children()
        return [first, *(block for level in levels for block in level.children()), last]


VARIANTS = {
    "efficientnet_b0": partial(EfficientNet, width=1.0, depth=1.0),
    "efficientnet_b1": partial(EfficientNet, width=1.0, depth=1.1),
    "efficientnet_b2": partial(EfficientNet, width=1.1, depth=1.2, dropout=0.3),
    "efficientnet_b3": partial(EfficientNet, width=1.2, depth=1.4, dropout=0.3),
    "efficientnet_b4": partial(EfficientNet, width=1.4, depth=1.8, dropout=0.4),
}
