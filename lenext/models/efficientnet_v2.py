"""EfficientNetV2: EfficientNet made to train fast.

Mingxing Tan, Quoc V. Le: "EfficientNetV2: Smaller Models and Faster Training", 2021,
https://arxiv.org/abs/2104.00298. Input 384 x 384 (s), 480 x 480 (m), RGB; trained at smaller sizes.

Depthwise convolutions do little arithmetic but read and write much, which makes them slow on wide maps of few
channels. So the first three stages replace the 1x1 expansion and the depthwise convolution by one plain 3x3
convolution (fused MBConv). A search that counted training time chose smaller expansions and 3x3 kernels.

Deviations from the paper, shared with torchvision, whose parameter names and weights fit:
- convolutions of stride 2 pad by one pixel on all sides, which the authors' code does not; weights that timm
  converted from that code (its `tf_` models) are therefore not for this network;
- batch-norm momentum is 0.1 (authors' code: 0.01).
Of our own: the classifier starts as PyTorch's linear layers do, dropping residual branches is off by default
(authors' code: 0.2), and its rates end at exactly `drop_path`. `stem="small"`, for images of 32 to 64 pixels,
gives the first convolution stride 1.
"""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor, nn

from lenext.models.layers import DropPath, drop_path_rates

# The stages: fused, expansion, stride. The small network has only the first six.
STAGES = (
    (True, 1, 1),
    (True, 4, 2),
    (True, 4, 2),
    (False, 4, 2),
    (False, 6, 1),
    (False, 6, 2),
    (False, 6, 1),
)


def conv_norm(in_dim: int, dim: int, kernel_size: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch norm: (B, in_dim, H, W) -> (B, dim, H/stride, W/stride)."""
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(in_dim, dim, kernel_size, stride=stride, padding=padding, groups=groups, bias=False),
        nn.BatchNorm2d(dim, eps=1e-3),
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
    """1x1 up, depthwise 3x3, weighing, 1x1 down without activation; a shortcut where width and resolution stay.

    (B, in_dim, H, W) -> (B, dim, H/stride, W/stride)
    """

    def __init__(self, *, in_dim: int, dim: int, expansion: int, stride: int, drop_path: float) -> None:
        super().__init__()
        hidden_dim = in_dim * expansion
        self.block = nn.Sequential(
            conv_norm(in_dim, hidden_dim, 1).append(nn.SiLU(inplace=True)),
            conv_norm(hidden_dim, hidden_dim, 3, stride=stride, groups=hidden_dim).append(nn.SiLU(inplace=True)),
            SqueezeExcitation(dim=hidden_dim, hidden_dim=in_dim // 4),
            conv_norm(hidden_dim, dim, 1),
        )
        self.drop_path = DropPath(drop_path)
        self.has_shortcut = stride == 1 and in_dim == dim

    def forward(self, x: Tensor) -> Tensor:
        residual = self.block(x)  # (B, dim, H/stride, W/stride)
        return x + self.drop_path(residual) if self.has_shortcut else residual


class FusedMBConv(nn.Module):
    """3x3 up, 1x1 down without activation, or at expansion 1 a single 3x3; a shortcut as in MBConv.

    (B, in_dim, H, W) -> (B, dim, H/stride, W/stride)
    """

    def __init__(self, *, in_dim: int, dim: int, expansion: int, stride: int, drop_path: float) -> None:
        super().__init__()
        hidden_dim = in_dim * expansion if expansion > 1 else dim
        self.block = nn.Sequential(conv_norm(in_dim, hidden_dim, 3, stride=stride).append(nn.SiLU(inplace=True)))
        if expansion > 1:
            self.block.append(conv_norm(hidden_dim, dim, 1))
        self.drop_path = DropPath(drop_path)
        self.has_shortcut = stride == 1 and in_dim == dim

    def forward(self, x: Tensor) -> Tensor:
        residual = self.block(x)  # (B, dim, H/stride, W/stride)
        return x + self.drop_path(residual) if self.has_shortcut else residual


class EfficientNetV2(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    dims, depths: channels and blocks of each of the six or seven stages.
    stem: "imagenet" (the first convolution has stride 2) or "small" (stride 1).
    dropout: share of units dropped before the classifier, in training.
    drop_path: share of residual branches dropped in the last block, rising linearly from 0 in the first.
    """

    head_name = "classifier.1"

    def __init__(
        self,
        *,
        dims: tuple[int, ...],
        depths: tuple[int, ...],
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: str = "imagenet",
        dropout: float = 0.2,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "small"):
            raise ValueError(f'stem must be "imagenet" or "small", not {stem!r}.')
        in_dim = dims[0]
        first = conv_norm(in_channels, in_dim, 3, stride=2 if stem == "imagenet" else 1)
        self.features = nn.Sequential(first.append(nn.SiLU(inplace=True)))

        rates = iter(drop_path_rates(drop_path, sum(depths)))
        for (fused, expansion, stride), dim, depth in zip(STAGES, dims, depths, strict=False):
            block = FusedMBConv if fused else MBConv
            stage = nn.Sequential()
            for i in range(depth):
                stage.append(
                    block(
                        in_dim=in_dim,
                        dim=dim,
                        expansion=expansion,
                        stride=stride if i == 0 else 1,
                        drop_path=next(rates),
                    )
                )
                in_dim = dim
            self.features.append(stage)

        self.features.append(conv_norm(in_dim, 1280, 1).append(nn.SiLU(inplace=True)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(1280, num_classes))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[:, 0].numel() // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # (B, 1280, H/32, W/32); H/16, W/16 with the small stem
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, 1280, H, W) -> logits (B, num_classes)."""
        return self.classifier(self.avgpool(features).flatten(1))

    def stages(self) -> list[nn.Module]:
        """The first convolution, each block and the last convolution, from the image to the last feature map."""
        first, *levels, last = self.features.children()
        return [first, *(block for level in levels for block in level.children()), last]


VARIANTS = {
    "efficientnet_v2_s": partial(EfficientNetV2, dims=(24, 48, 64, 128, 160, 256), depths=(2, 4, 4, 6, 9, 15)),
    "efficientnet_v2_m": partial(
        EfficientNetV2, dims=(24, 48, 80, 160, 176, 304, 512), depths=(3, 5, 5, 7, 14, 18, 5), dropout=0.3
    ),
}
