"""MobileNetV3: a mobile network found by search, then finished by hand.

Andrew Howard, Mark Sandler, Grace Chu, Liang-Chieh Chen, Bo Chen, Mingxing Tan, Weijun Wang, Yukun Zhu, Ruoming
Pang, Vijay Vasudevan, Quoc V. Le, Hartwig Adam: "Searching for MobileNetV3", 2019,
https://arxiv.org/abs/1905.02244. Input 224 x 224, RGB.

The blocks are MobileNetV2's. A search chose their kernel sizes and widths and which of them weigh their
channels by squeeze-and-excitation. By hand came the hard swish, x * relu6(x + 3) / 6, in the deeper half, where
it is cheap; fewer channels in the first convolution; and an end that pools before its widest layer.

Deviations from the paper, shared with torchvision, whose parameter names and weights fit:
- convolutions of stride 2 pad alike on all sides, which the authors' code does not;
- squeeze-and-excitation narrows to a quarter rounded to a multiple of 8, and the small network's last
  convolution has none, both as in that code;
- convolutions start as He et al. 2015 have it, by the fan-out, and linear layers from a normal of deviation 0.01.
`stem="small"`, for images of 32 to 64 pixels, gives the first convolution stride 1. `drop_path` (stochastic
depth) is not of the paper, and off by default.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from lenext.models.layers import DropPath, drop_path_rates, round_channels

Row = tuple[int, int, int, bool, type[nn.Module], int]
RELU, HSWISH = nn.ReLU, nn.Hardswish
# Tables 1 and 2 of the paper: kernel size, expanded channels, channels, squeeze-and-excitation, activation, stride.
LARGE: tuple[Row, ...] = (
    (3, 16, 16, False, RELU, 1),
    (3, 64, 24, False, RELU, 2),
    (3, 72, 24, False, RELU, 1),
    (5, 72, 40, True, RELU, 2),
    (5, 120, 40, True, RELU, 1),
    (5, 120, 40, True, RELU, 1),
    (3, 240, 80, False, HSWISH, 2),
    (3, 200, 80, False, HSWISH, 1),
    (3, 184, 80, False, HSWISH, 1),
    (3, 184, 80, False, HSWISH, 1),
    (3, 480, 112, True, HSWISH, 1),
    (3, 672, 112, True, HSWISH, 1),
    (5, 672, 160, True, HSWISH, 2),
    (5, 960, 160, True, HSWISH, 1),
    (5, 960, 160, True, HSWISH, 1),
)
SMALL: tuple[Row, ...] = (
    (3, 16, 16, True, RELU, 2),
    (3, 72, 24, False, RELU, 2),
    (3, 88, 24, False, RELU, 1),
    (5, 96, 40, True, HSWISH, 2),
    (5, 240, 40, True, HSWISH, 1),
    (5, 240, 40, True, HSWISH, 1),
    (5, 120, 48, True, HSWISH, 1),
    (5, 144, 48, True, HSWISH, 1),
    (5, 288, 96, True, HSWISH, 2),
    (5, 576, 96, True, HSWISH, 1),
    (5, 576, 96, True, HSWISH, 1),
)


def conv_norm(in_dim: int, dim: int, kernel_size: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch norm: (B, in_dim, H, W) -> (B, dim, H/stride, W/stride)."""
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(in_dim, dim, kernel_size, stride=stride, padding=padding, groups=groups, bias=False),
        nn.BatchNorm2d(dim, eps=1e-3, momentum=0.01),
    )


class SqueezeExcitation(nn.Module):
    """Weighs every channel by what all channels are on average: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden_dim = round_channels(dim // 4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(dim, hidden_dim, kernel_size=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden_dim, dim, kernel_size=1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        weights = self.relu(self.fc1(self.avgpool(x)))  # (B, hidden_dim, 1, 1)
        return x * self.gate(self.fc2(weights))  # (B, C, H, W)


class InvertedResidual(nn.Module):
    """1x1 up, depthwise, weighing, 1x1 down without activation; a shortcut where width and resolution stay.

    (B, in_dim, H, W) -> (B, dim, H/stride, W/stride)
    """

    def __init__(
        self,
        *,
        in_dim: int,
        hidden_dim: int,
        dim: int,
        kernel_size: int,
        stride: int,
        squeeze: bool,
        activation: type[nn.Module],
        drop_path: float,
    ) -> None:
        super().__init__()
        self.block = nn.Sequential()
        if hidden_dim != in_dim:
            self.block.append(conv_norm(in_dim, hidden_dim, 1).append(activation(inplace=True)))
        depthwise = conv_norm(hidden_dim, hidden_dim, kernel_size, stride=stride, groups=hidden_dim)
        self.block.append(depthwise.append(activation(inplace=True)))
        if squeeze:
            self.block.append(SqueezeExcitation(hidden_dim))
        self.block.append(conv_norm(hidden_dim, dim, 1))
        self.drop_path = DropPath(drop_path)
        self.has_shortcut = stride == 1 and in_dim == dim

    def forward(self, x: Tensor) -> Tensor:
        residual = self.block(x)  # (B, dim, H/stride, W/stride)
        return x + self.drop_path(residual) if self.has_shortcut else residual


class MobileNetV3(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    rows: the blocks, as in the paper's tables. last_dim: channels of the linear layer before the classifier.
    width: factor on all channels.
    stem: "imagenet" (the first convolution has stride 2) or "small" (stride 1).
    dropout: share of units dropped before the classifier, in training.
    drop_path: share of residual branches dropped in the last block, rising linearly from 0 in the first.
    """

    head_name = "classifier.3"

    def __init__(
        self,
        *,
        rows: tuple[Row, ...],
        last_dim: int,
        width: float,
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: str = "imagenet",
        dropout: float = 0.2,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "small"):
            raise ValueError(f'stem must be "imagenet" or "small", not {stem!r}.')
        in_dim = round_channels(16 * width)
        first = conv_norm(in_channels, in_dim, 3, stride=2 if stem == "imagenet" else 1)
        self.features = nn.Sequential(first.append(nn.Hardswish(inplace=True)))
        for row, rate in zip(rows, drop_path_rates(drop_path, len(rows)), strict=True):
            kernel_size, hidden_dim, dim, squeeze, activation, stride = row
            dim = round_channels(dim * width)
            self.features.append(
                InvertedResidual(
                    in_dim=in_dim,
                    hidden_dim=round_channels(hidden_dim * width),
                    dim=dim,
                    kernel_size=kernel_size,
                    stride=stride,
                    squeeze=squeeze,
                    activation=activation,
                    drop_path=rate,
                )
            )
            in_dim = dim
        self.features.append(conv_norm(in_dim, 6 * in_dim, 1).append(nn.Hardswish(inplace=True)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        last_dim = round_channels(last_dim * width)
        self.classifier = nn.Sequential(
            nn.Linear(6 * in_dim, last_dim),
            nn.Hardswish(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(last_dim, num_classes),
        )

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # (B, 6 * dim of the last row, H/32, W/32); H/16, W/16 with the small stem
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, C, H, W) -> logits (B, num_classes)."""
        return self.classifier(self.avgpool(features).flatten(1))

    def stages(self) -> list[nn.Module]:
        """The first convolution, each block and the last convolution, from the image to the last feature map."""
        return list(self.features)


VARIANTS = {
    "mobilenet_v3_small": partial(MobileNetV3, rows=SMALL, last_dim=1024, width=1.0),
    "mobilenet_v3_large": partial(MobileNetV3, rows=LARGE, last_dim=1280, width=1.0),
}
