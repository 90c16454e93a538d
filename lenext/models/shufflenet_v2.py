"""ShuffleNetV2: a network for phones, designed by the time it takes and not by its arithmetic.

Ningning Ma, Xiangyu Zhang, Hai-Tao Zheng, Jian Sun: "ShuffleNet V2: Practical Guidelines for Efficient CNN
Architecture Design", 2018, https://arxiv.org/abs/1807.11164. Input 224 x 224, RGB.

Memory traffic is least when layers are as wide at their end as at their start, when there are few groups,
few branches and few elementwise operations. So a block sends one half of the channels through convolutions,
leaves the other half as it is, joins them, and shuffles the channels, so that the next block splits them
otherwise. Nothing is added, and no convolution has groups but the depthwise ones.

Deviations from the paper: none but dropout before the classifier, which is off by default. The names of the
parameters are torchvision's, whose weights fit. The authors' own do not: their code shuffles before the split,
where the paper and torchvision shuffle after the join, and its down-sampling branches have other widths.
`stem="small"` is for images of 32 to 64 pixels: the first convolution has stride 1, and nothing is max-pooled.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn


def depthwise(dim: int, stride: int) -> nn.Conv2d:
    """Filters every channel by itself: (B, dim, H, W) -> (B, dim, H/stride, W/stride)."""
    return nn.Conv2d(dim, dim, kernel_size=3, stride=stride, padding=1, groups=dim, bias=False)


def interleave(left: Tensor, right: Tensor) -> Tensor:
    """Joins two maps channel by channel, left and right in turn: twice (B, C, H, W) -> (B, 2 * C, H, W)."""
    return torch.stack([left, right], dim=2).flatten(1, 2)


class Block(nn.Module):
    """Half of the channels pass, half are convolved, and both are shuffled: (B, dim, H, W) -> (B, dim, H, W)."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.branch2 = nn.Sequential(
            nn.Conv2d(half, half, kernel_size=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            depthwise(half, stride=1),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, kernel_size=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)  # each (B, dim/2, H, W)
        return interleave(left, self.branch2(right))


class DownBlock(nn.Module):
    """Halves the image; all channels go through both branches: (B, in_dim, H, W) -> (B, dim, H/2, W/2)."""

    def __init__(self, *, in_dim: int, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.branch1 = nn.Sequential(
            depthwise(in_dim, stride=2),
            nn.BatchNorm2d(in_dim),
            nn.Conv2d(in_dim, half, kernel_size=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )
        self.branch2 = nn.Sequential(
            nn.Conv2d(in_dim, half, kernel_size=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            depthwise(half, stride=2),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, kernel_size=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return interleave(self.branch1(x), self.branch2(x))


class ShuffleNetV2(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    dims: channels of the three stages. last_dim: channels of the last convolution. depths: blocks per stage.
    stem: "imagenet" (3x3, stride 2, then max-pooling) or "small" (3x3, stride 1, no pooling).
    dropout: share of units dropped before the classifier, in training.
    """

    head_name = "fc"

    def __init__(
        self,
        *,
        dims: tuple[int, int, int],
        last_dim: int = 1024,
        depths: tuple[int, int, int] = (4, 8, 4),
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: str = "imagenet",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if stem == "imagenet":
            conv = nn.Conv2d(in_channels, 24, kernel_size=3, stride=2, padding=1, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        elif stem == "small":
            conv = nn.Conv2d(in_channels, 24, kernel_size=3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            raise ValueError(f'stem must be "imagenet" or "small", not {stem!r}.')
        self.conv1 = nn.Sequential(conv, nn.BatchNorm2d(24), nn.ReLU(inplace=True))

        def stage(in_dim: int, dim: int, depth: int) -> nn.Sequential:
            return nn.Sequential(DownBlock(in_dim=in_dim, dim=dim), *(Block(dim=dim) for _ in range(depth - 1)))

        self.stage2 = stage(24, dims[0], depths[0])
        self.stage3 = stage(dims[0], dims[1], depths[1])
        self.stage4 = stage(dims[1], dims[2], depths[2])
        self.conv5 = nn.Sequential(
            nn.Conv2d(dims[2], last_dim, kernel_size=1, bias=False), nn.BatchNorm2d(last_dim), nn.ReLU(inplace=True)
        )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(last_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))  # (B, 24, H/4, W/4); the small stem keeps H, W
        x = self.stage2(x)  # (B, dims[0], H/8, W/8)
        x = self.stage3(x)  # (B, dims[1], H/16, W/16)
        x = self.stage4(x)  # (B, dims[2], H/32, W/32)
        x = self.conv5(x)  # (B, last_dim, H/32, W/32)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, C, H, W) -> logits (B, num_classes)."""
        x = features.mean(dim=(2, 3))  # (B, C)
        return self.fc(self.dropout(x))

    def stages(self) -> list[nn.Module]:
        """The stem, each block and the last convolution, from the image to the last feature map."""
        stem = nn.Sequential(self.conv1, self.maxpool)
        return [stem, *self.stage2, *self.stage3, *self.stage4, self.conv5]


VARIANTS = {
    "shufflenet_v2_x0_5": partial(ShuffleNetV2, dims=(48, 96, 192)),
    "shufflenet_v2_x1_0": partial(ShuffleNetV2, dims=(116, 232, 464)),
    "shufflenet_v2_x1_5": partial(ShuffleNetV2, dims=(176, 352, 704)),
    "shufflenet_v2_x2_0": partial(ShuffleNetV2, dims=(244, 488, 976), last_dim=2048),
}
