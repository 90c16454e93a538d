"""MobileNet: depthwise separable convolutions, for phones.

Andrew G. Howard, Menglong Zhu, Bo Chen, Dmitry Kalenichenko, Weijun Wang, Tobias Weyand, Marco Andreetto,
Hartwig Adam: "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
https://arxiv.org/abs/1704.04861. Input 224 x 224, RGB.

A 3x3 convolution is split in two: a depthwise one, which filters every channel by itself, and a 1x1 one,
which mixes the channels. Together they cost an eighth to a ninth. Thirteen such pairs follow a plain
convolution, with neither shortcuts nor pooling between them; a factor on all widths trades accuracy for work.

Deviations from the paper, shared with timm's `mobilenetv1_100`, whose parameter names and weights fit:
- ReLU6 in place of ReLU, as in the authors' published code;
- convolutions of stride 2 pad by one pixel on all sides, which that code does not;
- the last pair has stride 1; the paper's table says 2, at an image size that only fits 1.
The classifier starts as PyTorch's linear layers do. `stem="small"`, for images of 32 to 64 pixels, gives the
first convolution stride 1.
"""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor, nn

from lenext.models.layers import round_channels

# The stages at width 1: channels, stride of the first pair, pairs.
STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 2, 6), (1024, 2, 2))


class SeparableConv(nn.Module):
    """Depthwise 3x3, then 1x1, each with norm and ReLU6: (B, in_dim, H, W) -> (B, dim, H/stride, W/stride)."""

    def __init__(self, *, in_dim: int, dim: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(in_dim, in_dim, kernel_size=3, stride=stride, padding=1, groups=in_dim, bias=False)
        self.bn1 = nn.BatchNorm2d(in_dim)
        self.conv_pw = nn.Conv2d(in_dim, dim, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv_dw(x)))  # (B, in_dim, H/stride, W/stride)
        return self.act(self.bn2(self.conv_pw(x)))  # (B, dim, H/stride, W/stride)


class MobileNetV1(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    width: factor on the channels of every layer.
    stem: "imagenet" (the first convolution has stride 2) or "small" (stride 1).
    dropout: share of units dropped before the classifier, in training.
    """

    head_name = "classifier"

    def __init__(
        self,
        *,
        width: float,
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: str = "imagenet",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "small"):
            raise ValueError(f'stem must be "imagenet" or "small", not {stem!r}.')
        stem_stride = 2 if stem == "imagenet" else 1
        in_dim = round_channels(32 * width)
        self.conv_stem = nn.Conv2d(in_channels, in_dim, kernel_size=3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(in_dim)
        self.act = nn.ReLU6(inplace=True)

        self.blocks = nn.Sequential()
        for channels, stride, depth in STAGES:
            dim = round_channels(channels * width)
            stage = nn.Sequential()
            for i in range(depth):
                stage.append(SeparableConv(in_dim=in_dim, dim=dim, stride=stride if i == 0 else 1))
                in_dim = dim
            self.blocks.append(stage)

        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(in_dim, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[:, 0].numel() // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv_stem(x)))  # (B, 32 * width, H/2, W/2); the small stem keeps H, W
        x = self.blocks(x)  # (B, 1024 * width, H/32, W/32)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, C, H, W) -> logits (B, num_classes)."""
        x = self.avgpool(features).flatten(1)  # (B, C)
        return self.classifier(self.dropout(x))

    def stages(self) -> list[nn.Module]:
        """The first convolution and each pair, from the image to the last feature map."""
        stem = nn.Sequential(self.conv_stem, self.bn1, self.act)
        return [stem, *(block for stage in self.blocks.children() for block in stage.children())]


VARIANTS = {"mobilenetv1_100": partial(MobileNetV1, width=1.0)}
