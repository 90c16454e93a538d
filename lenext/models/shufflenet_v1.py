"""ShuffleNet: grouped 1x1 convolutions, and a shuffle of the channels that lets the groups mix.

Xiangyu Zhang, Xinyu Zhou, Mengxiao Lin, Jian Sun: "ShuffleNet: An Extremely Efficient Convolutional Neural
Network for Mobile Devices", 2017, https://arxiv.org/abs/1707.01083. Input 224 x 224, RGB.

In a residual block with a depthwise convolution nearly all the work is in the 1x1 convolutions. Splitting
those into groups makes them cheap, so that the same work buys more channels; but then a group would only
ever see itself. Between the two 1x1 convolutions the channels are therefore dealt out anew, so that every
group gets some of each.

Deviations from the paper, shared with the authors' PyTorch code, whose parameter names and weights fit
(https://github.com/megvii-model/ShuffleNet-Series; those weights expect blue, green, red from 0 to 255):
- the shuffle comes after the depthwise convolution, not before it, and is the inverse of the paper's;
- the first convolution has 24 channels at width 1.5, not 36, and 16 at width 0.5 in 8 groups, not 12;
- the classifier has no bias. Weights start from normals, of deviation 0.01 in the first convolution and the
  classifier and 1 / (input channels of a group) elsewhere; the biases of batch norm start at 0.0001.
Of our own: the last pooling is over the whole map, not over 7 x 7 pixels, which at 224 x 224 is the same, so
that any image size is accepted. `stem="small"` is for images of 32 to 64 pixels: the first convolution has
stride 1, and nothing is max-pooled. Dropout before the classifier is not of the paper, and off by default.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Deals the channels out to `groups` groups in turn: (B, C, H, W) -> (B, C, H, W)."""
    B, C, H, W = x.shape
    x = x.reshape(B, C // groups, groups, H, W).transpose(1, 2)  # (B, groups, C/groups, H, W)
    return x.flatten(1, 2)


class Block(nn.Module):
    """Grouped 1x1 down, depthwise 3x3, shuffle, grouped 1x1 up, and a shortcut: (B, dim, H, W) -> (B, dim, H, W).

    At stride 2 the shortcut is an average pooling, put before the new channels instead of added to them:
    (B, in_dim, H, W) -> (B, dim, H/2, W/2).

    first_groups: groups of the first convolution. groups: those of the last one, and of the shuffle.
    """

    def __init__(self, *, in_dim: int, dim: int, stride: int, first_groups: int, groups: int) -> None:
        super().__init__()
        hidden_dim = dim // 4
        residual_dim = dim if stride == 1 else dim - in_dim
        self.groups = groups
        self.branch_main_1 = nn.Sequential(
            nn.Conv2d(in_dim, hidden_dim, kernel_size=1, groups=first_groups, bias=False),
            nn.BatchNorm2d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden_dim, hidden_dim, kernel_size=3, stride=stride, padding=1, groups=hidden_dim, bias=False),
            nn.BatchNorm2d(hidden_dim),
        )
        self.branch_main_2 = nn.Sequential(
            nn.Conv2d(hidden_dim, residual_dim, kernel_size=1, groups=groups, bias=False),
            nn.BatchNorm2d(residual_dim),
        )
        self.branch_proj = nn.AvgPool2d(kernel_size=3, stride=2, padding=1) if stride == 2 else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.branch_main_1(x)  # (B, dim/4, H/stride, W/stride)
        residual = self.branch_main_2(shuffle(residual, self.groups))
        if self.branch_proj is None:
            return self.relu(x + residual)  # (B, dim, H, W)
        return torch.cat([self.branch_proj(x), self.relu(residual)], dim=1)  # (B, dim, H/2, W/2)


class ShuffleNetV1(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    groups: groups of the 1x1 convolutions. stem_dim: channels of the first convolution.
    dims, depths: channels and blocks of each of the three stages.
    stem: "imagenet" (3x3, stride 2, then max-pooling) or "small" (3x3, stride 1, no pooling).
    dropout: share of units dropped before the classifier, in training.
    """

    head_name = "classifier.0"

    def __init__(
        self,
        *,
        groups: int,
        stem_dim: int,
        dims: tuple[int, int, int],
        depths: tuple[int, int, int] = (4, 8, 4),
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: str = "imagenet",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if stem == "imagenet":
            conv = nn.Conv2d(in_channels, stem_dim, kernel_size=3, stride=2, padding=1, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        elif stem == "small":
            conv = nn.Conv2d(in_channels, stem_dim, kernel_size=3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            raise ValueError(f'stem must be "imagenet" or "small", not {stem!r}.')
        self.first_conv = nn.Sequential(conv, nn.BatchNorm2d(stem_dim), nn.ReLU(inplace=True))

        self.features = nn.Sequential()
        in_dim = stem_dim
        for dim, depth in zip(dims, depths, strict=True):
            for i in range(depth):
                # The stem has too few channels to split them into groups.
                first_groups = 1 if in_dim == stem_dim else groups
                self.features.append(
                    Block(in_dim=in_dim, dim=dim, stride=2 if i == 0 else 1, first_groups=first_groups, groups=groups)
                )
                in_dim = dim
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Sequential(nn.Linear(in_dim, num_classes, bias=False))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01 if module is conv else 1 / module.weight.shape[1])
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.bias, 1e-4)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.first_conv(x))  # (B, stem_dim, H/4, W/4); the small stem keeps H, W
        x = self.features(x)  # (B, dims[2], H/32, W/32)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, C, H, W) -> logits (B, num_classes)."""
        x = self.avgpool(features).flatten(1)  # (B, C)
        return self.classifier(self.dropout(x))

    def stages(self) -> list[nn.Module]:
        """The stem and each block, from the image to the last feature map."""
        return [nn.Sequential(self.first_conv, self.maxpool), *self.features]


VARIANTS = {
    "shufflenet_v1_x0_5_g3": partial(ShuffleNetV1, groups=3, stem_dim=12, dims=(120, 240, 480)),
    "shufflenet_v1_x1_0_g3": partial(ShuffleNetV1, groups=3, stem_dim=24, dims=(240, 480, 960)),
    "shufflenet_v1_x1_5_g3": partial(ShuffleNetV1, groups=3, stem_dim=24, dims=(360, 720, 1440)),
    "shufflenet_v1_x2_0_g3": partial(ShuffleNetV1, groups=3, stem_dim=48, dims=(480, 960, 1920)),
    "shufflenet_v1_x0_5_g8": partial(ShuffleNetV1, groups=8, stem_dim=16, dims=(192, 384, 768)),
    "shufflenet_v1_x1_0_g8": partial(ShuffleNetV1, groups=8, stem_dim=24, dims=(384, 768, 1536)),
    "shufflenet_v1_x1_5_g8": partial(ShuffleNetV1, groups=8, stem_dim=24, dims=(576, 1152, 2304)),
    "shufflenet_v1_x2_0_g8": partial(ShuffleNetV1, groups=8, stem_dim=48, dims=(768, 1536, 3072)),
}
