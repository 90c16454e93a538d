"""ResNet: residual networks of 18 to 152 layers.

Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun: "Deep Residual Learning for Image Recognition", 2015,
https://arxiv.org/abs/1512.03385. Input 224 x 224, RGB.

A block learns the difference F from its input and returns F(x) + x, so that a layer which has nothing to add
only has to drive F to zero. That made networks of a hundred layers trainable.

Deviations from the paper, all shared with torchvision, whose parameter names and weights fit:
- the bottleneck block halves the image in its 3x3 convolution, not in its first 1x1 (known as ResNet v1.5:
  half a point of accuracy for 5 % more work);
- where width or resolution changes, the shortcut is a 1x1 convolution (the paper's option B); elsewhere the
  identity.
`stem="small"` is for images of 32 to 64 pixels: a 3x3 convolution of stride 1 and no max-pooling, as in the
paper's CIFAR-10 section but at the widths of its ImageNet networks.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from lenext.models.layers import DropPath, drop_path_rates


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, in_dim, H, W) -> (B, dim, H/stride, W/stride)."""

    expansion = 1

    def __init__(self, *, in_dim: int, dim: int, stride: int, norm_eps: float, drop_path: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_dim, dim, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim, eps=norm_eps)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim, eps=norm_eps)
        self.downsample = shortcut(in_dim, dim, stride, norm_eps)
        self.drop_path = DropPath(drop_path)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu(self.bn1(self.conv1(x)))  # (B, dim, H/stride, W/stride)
        residual = self.bn2(self.conv2(residual))
        return self.relu(self.drop_path(residual) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, and a shortcut: (B, in_dim, H, W) -> (B, 4 * dim, H/stride, W/stride)."""

    expansion = 4

    def __init__(self, *, in_dim: int, dim: int, stride: int, norm_eps: float, drop_path: float) -> None:
        super().__init__()
        out_dim = dim * self.expansion
        self.conv1 = nn.Conv2d(in_dim, dim, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim, eps=norm_eps)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim, eps=norm_eps)
        self.conv3 = nn.Conv2d(dim, out_dim, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_dim, eps=norm_eps)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_dim, out_dim, stride, norm_eps)
        self.drop_path = DropPath(drop_path)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu(self.bn1(self.conv1(x)))  # (B, dim, H, W)
        residual = self.relu(self.bn2(self.conv2(residual)))  # (B, dim, H/stride, W/stride)
        residual = self.bn3(self.conv3(residual))  # (B, 4 * dim, H/stride, W/stride)
        return self.relu(self.drop_path(residual) + self.downsample(x))


def shortcut(in_dim: int, out_dim: int, stride: int, norm_eps: float) -> nn.Module:
    """The identity where it fits, otherwise a 1x1 convolution that changes width and resolution."""
    if in_dim == out_dim and stride == 1:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_dim, out_dim, kernel_size=1, stride=stride, bias=False),
        nn.BatchNorm2d(out_dim, eps=norm_eps),
    )


class ResNet(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    block: `BasicBlock` or `Bottleneck`. depths: blocks in each of the four stages.
    stem: "imagenet" (7x7, stride 2, then max-pooling) or "small" (3x3, stride 1, no pooling).
    stem_bias: whether the first convolution has a bias. norm_eps: epsilon of every batch normalisation.
    zero_init_residual: start every block as its shortcut (last batch-norm scale 0; Goyal et al. 2017).
    drop_path: share of residual branches dropped in the last block, rising linearly from 0 in the first.
    """

    head_name = "fc"

    def __init__(
        self,
        *,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: str = "imagenet",
        stem_bias: bool = False,
        norm_eps: float = 1e-5,
        zero_init_residual: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=stem_bias)
            self.maxpool: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        elif stem == "small":
            self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=1, bias=stem_bias)
            self.maxpool = nn.Identity()
        else:
            raise ValueError(f'stem must be "imagenet" or "small", not {stem!r}.')
        self.bn1 = nn.BatchNorm2d(64, eps=norm_eps)
        self.relu = nn.ReLU(inplace=True)

        rates = iter(drop_path_rates(drop_path, sum(depths)))

        def stage(in_dim: int, dim: int, depth: int, stride: int) -> nn.Sequential:
            in_dims = [in_dim] + [dim * block.expansion] * (depth - 1)
            strides = [stride] + [1] * (depth - 1)
            return nn.Sequential(
                *(
                    block(in_dim=i, dim=dim, stride=s, norm_eps=norm_eps, drop_path=next(rates))
                    for i, s in zip(in_dims, strides, strict=True)
                )
            )

        self.layer1 = stage(64, 64, depths[0], stride=1)
        self.layer2 = stage(64 * block.expansion, 128, depths[1], stride=2)
        self.layer3 = stage(128 * block.expansion, 256, depths[2], stride=2)
        self.layer4 = stage(256 * block.expansion, 512, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))  # (B, 64, H/2, W/2); the small stem keeps H, W
        x = self.maxpool(x)  # (B, 64, H/4, W/4)
        x = self.layer1(x)  # (B, 64 * expansion, H/4, W/4)
        x = self.layer2(x)  # (B, 128 * expansion, H/8, W/8)
        x = self.layer3(x)  # (B, 256 * expansion, H/16, W/16)
        x = self.layer4(x)  # (B, 512 * expansion, H/32, W/32)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, C, H, W) -> logits (B, num_classes)."""
        return self.fc(self.avgpool(features).flatten(1))

    def stages(self) -> list[nn.Module]:
        """The stem and each block, from the image to the last feature map."""
        stem = nn.Sequential(self.conv1, self.bn1, self.relu, self.maxpool)
        return [stem, *self.layer1, *self.layer2, *self.layer3, *self.layer4]


VARIANTS = {
    "resnet18": partial(ResNet, block=BasicBlock, depths=(2, 2, 2, 2)),
    "resnet34": partial(ResNet, block=BasicBlock, depths=(3, 4, 6, 3)),
    "resnet50": partial(ResNet, block=Bottleneck, depths=(3, 4, 6, 3)),
    "resnet101": partial(ResNet, block=Bottleneck, depths=(3, 4, 23, 3)),
    "resnet152": partial(ResNet, block=Bottleneck, depths=(3, 8, 36, 3)),
}
