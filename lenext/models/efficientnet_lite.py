"""EfficientNet-Lite: EfficientNet for phones and CPUs.

Renjie Liu: "Higher accuracy on vision models with EfficientNet-Lite", Google 2020,
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite, after Mingxing Tan, Quoc V.
Le: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019,
https://arxiv.org/abs/1905.11946. Input 224 x 224 (lite0), 240 x 240 (lite1), 260 x 260 (lite2), RGB.

Against EfficientNet: no squeeze-and-excitation, ReLU6 in place of SiLU, and stem, head and the first and last
stage are not scaled, so that the network quantises well and runs on every accelerator.

Deviations from the published network: batch-norm momentum is PyTorch's 0.1, not 0.01, which suits short
fine-tuning; the classifier starts as PyTorch's linear layers do; dropping residual branches is off by default
(published: 0.2). Convolutions of stride 2 pad as TensorFlow does ("SAME": the odd pixel goes right and
below), which the published weights expect. The names of the parameters are those of timm's `tf_` models;
`adapt_checkpoint` also reads the checkpoints of the `efficientnet_lite_pytorch` packages. `stem="small"`, for
images of 32 to 64 pixels, gives the first convolution stride 1.
"""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from lenext.models.layers import DropPath, drop_path_rates, round_channels

NORM_EPS = 1e-3
# The stages of the unscaled network: expansion, kernel size, stride, channels, blocks.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class SamePadConv2d(nn.Conv2d):
    """A strided convolution padded as in TensorFlow: H, W -> ceil(H/stride), ceil(W/stride)."""

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[-2:]
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pad_h = kernel - (H % stride or stride)
        pad_w = kernel - (W % stride or stride)
        x = F.pad(x, (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2))
        return self._conv_forward(x, self.weight, self.bias)


def conv(in_dim: int, dim: int, kernel_size: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded as in TensorFlow, which at stride 1 means the same on all sides."""
    if stride == 1:
        return nn.Conv2d(in_dim, dim, kernel_size, padding=kernel_size // 2, groups=groups, bias=False)
    return SamePadConv2d(in_dim, dim, kernel_size, stride=stride, groups=groups, bias=False)


class SeparableConv(nn.Module):
    """The first block: depthwise, then 1x1 without activation. (B, in_dim, H, W) -> (B, dim, H, W)."""

    def __init__(self, *, in_dim: int, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.conv_dw = conv(in_dim, in_dim, kernel_size, groups=in_dim)
        self.bn1 = nn.BatchNorm2d(in_dim, eps=NORM_EPS)
        self.act = nn.ReLU6(inplace=True)
        self.conv_pw = conv(in_dim, dim, 1)
        self.bn2 = nn.BatchNorm2d(dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv_dw(x)))  # (B, in_dim, H, W)
        return self.bn2(self.conv_pw(x))  # (B, dim, H, W)


class InvertedResidual(nn.Module):
    """1x1 up, depthwise, 1x1 down without activation; a shortcut where width and resolution stay.

    (B, in_dim, H, W) -> (B, dim, ceil(H/stride), ceil(W/stride))
    """

    def __init__(
        self, *, in_dim: int, dim: int, expansion: int, kernel_size: int, stride: int, drop_path: float
    ) -> None:
        super().__init__()
        hidden_dim = in_dim * expansion
        self.conv_pw = conv(in_dim, hidden_dim, 1)
        self.bn1 = nn.BatchNorm2d(hidden_dim, eps=NORM_EPS)
        self.conv_dw = conv(hidden_dim, hidden_dim, kernel_size, stride=stride, groups=hidden_dim)
        self.bn2 = nn.BatchNorm2d(hidden_dim, eps=NORM_EPS)
        self.conv_pwl = conv(hidden_dim, dim, 1)
        self.bn3 = nn.BatchNorm2d(dim, eps=NORM_EPS)
        self.act = nn.ReLU6(inplace=True)
        self.drop_path = DropPath(drop_path)
        self.has_shortcut = stride == 1 and in_dim == dim

    def forward(self, x: Tensor) -> Tensor:
        residual = self.act(self.bn1(self.conv_pw(x)))  # (B, expansion * in_dim, H, W)
        residual = self.act(self.bn2(self.conv_dw(residual)))  # (B, expansion * in_dim, H/stride, W/stride)
        residual = self.bn3(self.conv_pwl(residual))  # (B, dim, H/stride, W/stride)
        return x + self.drop_path(residual) if self.has_shortcut else residual


class EfficientNetLite(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    width, depth: factors on the channels and on the blocks of the unscaled network.
    stem: "imagenet" (the first convolution has stride 2) or "small" (stride 1).
    dropout: share of units dropped before the classifier, in training.
    drop_path: share of residual branches dropped in the last block, rising linearly from 0 in the first.
    """

    head_name = "classifier"

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
        self.conv_stem = conv(in_channels, 32, 3, stride=2 if stem == "imagenet" else 1)
        self.bn1 = nn.BatchNorm2d(32, eps=NORM_EPS)
        self.act = nn.ReLU6(inplace=True)

        first, *middle, last = [blocks for *_, blocks in STAGES]
        depths = [first, *(math.ceil(blocks * depth) for blocks in middle), last]
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.blocks = nn.Sequential()
        in_dim = 32
        for (expansion, kernel_size, stride, channels, _), stage_depth in zip(STAGES, depths, strict=True):
            dim = round_channels(channels * width)
            stage = nn.Sequential()
            for i in range(stage_depth):
                rate = next(rates)
                if expansion == 1:
                    stage.append(SeparableConv(in_dim=in_dim, dim=dim, kernel_size=kernel_size))
                else:
                    stage.append(
                        InvertedResidual(
                            in_dim=in_dim,
                            dim=dim,
                            expansion=expansion,
                            kernel_size=kernel_size,
                            stride=stride if i == 0 else 1,
                            drop_path=rate,
                        )
                    )
                in_dim = dim
            self.blocks.append(stage)

        self.conv_head = conv(in_dim, 1280, 1)
        self.bn2 = nn.BatchNorm2d(1280, eps=NORM_EPS)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(1280, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[:, 0].numel() // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv_stem(x)))  # (B, 32, H/2, W/2); the small stem keeps H, W
        x = self.blocks(x)  # (B, C, H/32, W/32)
        x = self.act(self.bn2(self.conv_head(x)))  # (B, 1280, H/32, W/32)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, 1280, H, W) -> logits (B, num_classes)."""
        x = self.avgpool(features).flatten(1)  # (B, 1280)
        return self.classifier(self.dropout(x))

    def stages(self) -> list[nn.Module]:
        """The stem, each block and the last convolution, from the image to the last feature map."""
        stem = nn.Sequential(self.conv_stem, self.bn1, self.act)
        head = nn.Sequential(self.conv_head, self.bn2, self.act)
        return [stem, *(block for stage in self.blocks.children() for block in stage.children()), head]

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Renames the entries of an `efficientnet_lite_pytorch` checkpoint, which are in our order."""
        ours = list(self.state_dict())
        if "_conv_stem.weight" not in state or len(state) != len(ours):
            return state
        return dict(zip(ours, state.values(), strict=True))


VARIANTS = {
    "tf_efficientnet_lite0": partial(EfficientNetLite, width=1.0, depth=1.0),
    "tf_efficientnet_lite1": partial(EfficientNetLite, width=1.0, depth=1.1),
    "tf_efficientnet_lite2": partial(EfficientNetLite, width=1.1, depth=1.2, dropout=0.3),
}
