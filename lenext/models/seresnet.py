"""SE-ResNet: a residual network whose blocks weigh their own channels.

Jie Hu, Li Shen, Samuel Albanie, Gang Sun, Enhua Wu: "Squeeze-and-Excitation Networks", 2017,
https://arxiv.org/abs/1709.01507. Input 224 x 224, RGB.

A convolution looks at one place. Squeeze: average every channel over the whole image. Excite: from these averages two
small layers compute a factor between 0 and 1 for every channel, with which the map is multiplied before the shortcut
is added. It won the ImageNet challenge of 2017 at a percent more work.

Deviations from the paper, shared with timm's `seresnet50`, whose parameter names and weights fit: the block halves
the image in its 3x3 convolution (ResNet v1.5), the two small layers are 1x1 convolutions with biases, and a shortcut
that changes shape is a 1x1 convolution. `stem="small"` (a 3x3 convolution of stride 1, no max-pooling) is for images
of 32 to 64 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from lenext.models.layers import DropPath, activation_layer, drop_path_rates, norm2d

Norm = Callable[[int], nn.Module]  # channels -> normalisation


class SqueezeExcitation(nn.Module):
    """Multiplies every channel by a factor that depends on all of them: (B, C, H, W) -> (B, C, H, W).

    reduction: by how much the layer between is narrower than C.
    """

    def __init__(self, *, dim: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, dim // reduction, kernel_size=1)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(dim // reduction, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        excited = self.fc2(self.act(self.fc1(squeezed)))  # (B, C, 1, 1)
        return x * torch.sigmoid(excited)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, excitation, shortcut: (B, in_dim, H, W) -> (B, 4 * dim, H/stride, W/stride)."""

    def __init__(
        self,
        *,
        in_dim: int,
        dim: int,
        stride: int,
        reduction: int,
        norm: Norm,
        bias: bool,
        activation: str,
        skip: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        out_dim = 4 * dim
        self.conv1 = nn.Conv2d(in_dim, dim, kernel_size=1, bias=bias)
        self.bn1 = norm(dim)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, stride=stride, padding=1, bias=bias)
        self.bn2 = norm(dim)
        self.conv3 = nn.Conv2d(dim, out_dim, kernel_size=1, bias=bias)
        self.bn3 = norm(out_dim)
        self.se = SqueezeExcitation(dim=out_dim, reduction=reduction)
        self.act = activation_layer(activation)
        self.drop_path = DropPath(drop_path)
        self.skip = skip
        self.downsample: nn.Module = nn.Identity()
        if skip and (in_dim != out_dim or stride != 1):
            self.downsample = nn.Sequential(
                nn.Conv2d(in_dim, out_dim, kernel_size=1, stride=stride, bias=bias), norm(out_dim)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = self.act(self.bn1(self.conv1(x)))  # (B, dim, H, W)
        residual = self.act(self.bn2(self.conv2(residual)))  # (B, dim, H/stride, W/stride)
        residual = self.se(self.bn3(self.conv3(residual)))  # (B, 4 * dim, H/stride, W/stride)
        if not self.skip:
            return self.act(residual)
        return self.act(self.drop_path(residual) + self.downsample(x))


class SEResNet(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    depths: blocks in each of the four stages. reduction: of the channels between squeeze and excitation.
    stem: "imagenet" (7x7, stride 2, then max-pooling) or "small" (3x3, stride 1, no pooling).
    norm: "batch", "group", "layer" or "none" (convolutions then have biases).
    activation: name in `layers.ACTIVATIONS`. skip: False leaves all shortcuts out.
    dropout: share of units dropped before the classifier.
    drop_path: share of residual branches dropped in the last block, rising linearly from 0 in the first.
    """

    head_name = "fc"

    def __init__(
        self,
        *,
        depths: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_channels: int = 3,
        reduction: int = 16,
        stem: str = "imagenet",
        norm: str = "batch",
        activation: str = "relu",
        skip: bool = True,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if not 1 <= reduction <= 256:
            raise ValueError(f"reduction must lie between 1 and 256, the narrowest block's channels, not {reduction}.")
        if not skip and drop_path:
            raise ValueError("drop_path drops what a shortcut bridges: without shortcuts (skip=False) it must be 0.")
        bias = norm == "none"
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=bias)
            self.maxpool: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        elif stem == "small":
            self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=1, bias=bias)
            self.maxpool = nn.Identity()
        else:
            raise ValueError(f'stem must be "imagenet" or "small", not {stem!r}.')
        self.bn1 = norm2d(norm, 64)
        self.act = activation_layer(activation)

        rates = iter(drop_path_rates(drop_path, sum(depths)))

        def stage(in_dim: int, dim: int, depth: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                *(
                    Bottleneck(
                        in_dim=in_dim if i == 0 else 4 * dim,
                        dim=dim,
                        stride=stride if i == 0 else 1,
                        reduction=reduction,
                        norm=partial(norm2d, norm),
                        bias=bias,
                        activation=activation,
                        skip=skip,
                        drop_path=next(rates),
                    )
                    for i in range(depth)
                )
            )

        self.layer1 = stage(64, 64, depths[0], stride=1)
        self.layer2 = stage(256, 128, depths[1], stride=2)
        self.layer3 = stage(512, 256, depths[2], stride=2)
        self.layer4 = stage(1024, 512, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2048, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))  # (B, 64, H/2, W/2); the small stem keeps H, W
        x = self.maxpool(x)  # (B, 64, H/4, W/4)
        x = self.layer1(x)  # (B, 256, H/4, W/4)
        x = self.layer2(x)  # (B, 512, H/8, W/8)
        x = self.layer3(x)  # (B, 1024, H/16, W/16)
        x = self.layer4(x)  # (B, 2048, H/32, W/32)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, 2048, H, W) -> logits (B, num_classes)."""
        x = self.avgpool(features).flatten(1)  # (B, 2048)
        return self.fc(self.dropout(x))

    def stages(self) -> list[nn.Module]:
        """The stem and each block, from the image to the last feature map."""
        stem = nn.Sequential(self.conv1, self.bn1, self.act, self.maxpool)
        return [stem, *self.layer1, *self.layer2, *self.layer3, *self.layer4]


VARIANTS = {"seresnet50": partial(SEResNet, depths=(3, 4, 6, 3))}
