"""MobileNetV2: residual blocks turned inside out, wide within and narrow between.

Mark Sandler, Andrew Howard, Menglong Zhu, Andrey Zhmoginov, Liang-Chieh Chen: "MobileNetV2: Inverted Residuals
and Linear Bottlenecks", 2018, https://arxiv.org/abs/1801.04381. Input 224 x 224, RGB.

A block widens its input six times by a 1x1 convolution, filters it depthwise, and narrows it by another 1x1
convolution that no activation follows, for a ReLU would destroy information in so few channels. The shortcut
connects the narrow ends, so that little has to be kept in memory.

Deviations from the paper, shared with torchvision, whose parameter names and weights fit:
- convolutions of stride 2 pad by one pixel on all sides, which the authors' code does not;
- dropout of 0.2 before the classifier, which the paper does not mention;
- convolutions start as He et al. 2015 have it, by the fan-out, and the classifier from a normal of deviation 0.01.
`adapt_checkpoint` also reads timm's `mobilenetv2_100`. `stem="small"`, for images of 32 to 64 pixels, gives
the first convolution stride 1. `drop_path` (stochastic depth) is not of the paper, and off by default.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from lenext.models.layers import DropPath, drop_path_rates, round_channels

# The stages at width 1: expansion, channels, blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def conv_norm_act(in_dim: int, dim: int, kernel_size: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6: (B, in_dim, H, W) -> (B, dim, H/stride, W/stride)."""
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(in_dim, dim, kernel_size, stride=stride, padding=padding, groups=groups, bias=False),
        nn.BatchNorm2d(dim),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """1x1 up, depthwise 3x3, 1x1 down without activation; a shortcut where width and resolution stay.

    (B, in_dim, H, W) -> (B, dim, H/stride, W/stride)
    """

    def __init__(self, *, in_dim: int, dim: int, expansion: int, stride: int, drop_path: float) -> None:
        super().__init__()
        hidden_dim = in_dim * expansion
        self.conv = nn.Sequential(
            conv_norm_act(hidden_dim, hidden_dim, 3, stride=stride, groups=hidden_dim),
            nn.Conv2d(hidden_dim, dim, kernel_size=1, bias=False),
            nn.BatchNorm2d(dim),
        )
        if expansion > 1:
            self.conv.insert(0, conv_norm_act(in_dim, hidden_dim, 1))
        self.drop_path = DropPath(drop_path)
        self.has_shortcut = stride == 1 and in_dim == dim

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv(x)  # (B, dim, H/stride, W/stride)
        return x + self.drop_path(residual) if self.has_shortcut else residual


class MobileNetV2(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    width: factor on the channels of every layer; below 1 the last convolution keeps its 1280.
    stem: "imagenet" (the first convolution has stride 2) or "small" (stride 1).
    dropout: share of units dropped before the classifier, in training.
    drop_path: share of residual branches dropped in the last block, rising linearly from 0 in the first.
    """

    head_name = "classifier.1"

    def __init__(
        self,
        *,
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
        in_dim = round_channels(32 * width)
        self.features = nn.Sequential(conv_norm_act(in_channels, in_dim, 3, stride=2 if stem == "imagenet" else 1))
        rates = iter(drop_path_rates(drop_path, sum(depth for _, _, depth, _ in STAGES)))
        for expansion, channels, depth, stride in STAGES:
            dim = round_channels(channels * width)
            for i in range(depth):
                self.features.append(
                    InvertedResidual(
                        in_dim=in_dim,
                        dim=dim,
                        expansion=expansion,
                        stride=stride if i == 0 else 1,
                        drop_path=next(rates),
                    )
                )
                in_dim = dim
        last_dim = round_channels(1280 * max(1.0, width))
        self.features.append(conv_norm_act(in_dim, last_dim, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last_dim, num_classes))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # (B, 1280, H/32, W/32); H/16, W/16 with the small stem
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, C, H, W) -> logits (B, num_classes)."""
        return self.classifier(self.avgpool(features).flatten(1))

    def stages(self) -> list[nn.Module]:
        """The first convolution, each block and the last convolution, from the image to the last feature map."""
        return list(self.features)

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Renames the entries of timm's `mobilenetv2_100`, which are in our order."""
        ours = list(self.state_dict())
        if "conv_stem.weight" not in state or len(state) != len(ours):
            return state
        return dict(zip(ours, state.values(), strict=True))


VARIANTS = {"mobilenet_v2": partial(MobileNetV2, width=1.0)}
