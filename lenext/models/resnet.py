"""ResNet and its two direct heirs, ResNeXt and Wide ResNet: one block, three sizes.

Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun: "Deep Residual Learning for Image Recognition", 2015,
https://arxiv.org/abs/1512.03385. A block learns the difference F from its input and returns F(x) + x, so that a
layer which has nothing to add only has to drive F to zero. That made networks of a hundred layers trainable.

Saining Xie, Ross Girshick, Piotr Dollar, Zhuowen Tu, Kaiming He: "Aggregated Residual Transformations for Deep
Neural Networks", 2016, https://arxiv.org/abs/1611.05431. Next to depth and width there is a third size, the
cardinality: the number of identical branches whose sum is F. As a grouped 3x3 convolution the branches cost no more
than one wide one, and 32 branches of 4 channels ("32x4d") beat one of 64.

Sergey Zagoruyko, Nikos Komodakis: "Wide Residual Networks", 2016, https://arxiv.org/abs/1605.07146. Twice the
channels inside the block buy more than three times the depth, and run faster.

Input 224 x 224, RGB. Deviations from the papers, all shared with torchvision, whose parameter names and weights fit:
- the bottleneck halves the image in its 3x3 convolution, not in its first 1x1 (known as ResNet v1.5: half a point of
  accuracy for 5 % more work);
- where width or resolution changes, the shortcut is a 1x1 convolution (option B of the first paper);
- Wide ResNet-50-2 widens the 3x3 convolutions of the ImageNet bottleneck and has no dropout inside the block.
For comparisons the norm, the activation, the shortcuts, the cardinality and the width are arguments. `stem="small"`
is for images of 32 to 64 pixels: a 3x3 convolution of stride 1 and no max-pooling, as in the first paper's CIFAR-10
section but at the widths of its ImageNet networks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from lenext.models.layers import DropPath, activation_layer, drop_path_rates, norm2d

Norm = Callable[[int], nn.Module]  # channels -> normalisation


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, in_dim, H, W) -> (B, dim, H/stride, W/stride)."""

    expansion = 1

    def __init__(
        self, *, in_dim: int, dim: int, stride: int, norm: Norm, bias: bool, activation: str, drop_path: float
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_dim, dim, kernel_size=3, stride=stride, padding=1, bias=bias)
        self.bn1 = norm(dim)
        self.act = activation_layer(activation)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, bias=bias)
        self.bn2 = norm(dim)
        self.downsample: nn.Module | None = shortcut(in_dim, dim, stride, norm, bias)
        self.drop_path = DropPath(drop_path)

    @property
    def last_norm(self) -> nn.Module:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        residual = self.act(self.bn1(self.conv1(x)))  # (B, dim, H/stride, W/stride)
        residual = self.bn2(self.conv2(residual))
        if self.downsample is None:
            return self.act(residual)
        return self.act(self.drop_path(residual) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, and a shortcut: (B, in_dim, H, W) -> (B, 4 * dim, H/stride, W/stride).

    hidden_dim: channels of the 3x3 convolution, all its groups together. cardinality: how many groups.
    """

    expansion = 4

    def __init__(
        self,
        *,
        in_dim: int,
        dim: int,
        hidden_dim: int,
        cardinality: int,
        stride: int,
        norm: Norm,
        bias: bool,
        activation: str,
        drop_path: float,
    ) -> None:
        super().__init__()
        out_dim = dim * self.expansion
        self.conv1 = nn.Conv2d(in_dim, hidden_dim, kernel_size=1, bias=bias)
        self.bn1 = norm(hidden_dim)
        self.conv2 = nn.Conv2d(
            hidden_dim, hidden_dim, kernel_size=3, stride=stride, padding=1, groups=cardinality, bias=bias
        )
        self.bn2 = norm(hidden_dim)
        self.conv3 = nn.Conv2d(hidden_dim, out_dim, kernel_size=1, bias=bias)
        self.bn3 = norm(out_dim)
        self.act = activation_layer(activation)
        self.downsample: nn.Module | None = shortcut(in_dim, out_dim, stride, norm, bias)
        self.drop_path = DropPath(drop_path)

    @property
    def last_norm(self) -> nn.Module:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        residual = self.act(self.bn1(self.conv1(x)))  # (B, hidden_dim, H, W)
        residual = self.act(self.bn2(self.conv2(residual)))  # (B, hidden_dim, H/stride, W/stride)
        residual = self.bn3(self.conv3(residual))  # (B, 4 * dim, H/stride, W/stride)
        if self.downsample is None:
            return self.act(residual)
        return self.act(self.drop_path(residual) + self.downsample(x))


def shortcut(in_dim: int, out_dim: int, stride: int, norm: Norm, bias: bool) -> nn.Module:
    """The identity where it fits, otherwise a 1x1 convolution that changes width and resolution."""
    if in_dim == out_dim and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_dim, out_dim, kernel_size=1, stride=stride, bias=bias), norm(out_dim))


class ResNet(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    block: `BasicBlock` or `Bottleneck`. depths: blocks in each of the four stages.
    width: channels of the stem and of the first stage's blocks, which bottlenecks put out fourfold; they double from
    stage to stage.
    cardinality, base_width: groups of the bottleneck's 3x3 convolution and channels of each of them in the first
    stage, which double too; None is `width`. 32 and 4 are ResNeXt 32x4d, 1 and 128 are Wide ResNet-50-2, both at a
    width of 64: they do not shrink with it.
    stem: "imagenet" (7x7, stride 2, then max-pooling) or "small" (3x3, stride 1, no pooling).
    stem_bias: whether the first convolution has a bias.
    norm: "batch", "group", "layer" or "none" (convolutions then have biases); norm_eps is its epsilon.
    activation: name in `layers.ACTIVATIONS`. skip: False leaves all shortcuts out.
    zero_init_residual: start every block as its shortcut (last norm's scale 0; Goyal et al. 2017).
    dropout: share of units dropped before the classifier.
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
        width: int = 64,
        cardinality: int = 1,
        base_width: int | None = None,
        stem: str = "imagenet",
        stem_bias: bool = False,
        norm: str = "batch",
        norm_eps: float = 1e-5,
        activation: str = "relu",
        skip: bool = True,
        zero_init_residual: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if type(width) is not int or width < 1:
            raise ValueError(f"width, the first stage's channels, must be a whole number of at least 1, not {width!r}.")
        base_width = width if base_width is None else base_width
        if block is BasicBlock and (cardinality, base_width) != (1, width):
            raise ValueError("cardinality and base_width belong to bottleneck blocks: ResNet-50 and larger have them.")
        if cardinality < 1 or base_width < 1:
            raise ValueError(f"cardinality and base_width must be at least 1, not {cardinality} and {base_width}.")
        if not skip and drop_path:
            raise ValueError("drop_path drops what a shortcut bridges: without shortcuts (skip=False) it must be 0.")
        make_norm, bias = partial(norm2d, norm, eps=norm_eps), norm == "none"
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, width, kernel_size=7, stride=2, padding=3, bias=stem_bias or bias)
            self.maxpool: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        elif stem == "small":
            self.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, stride=1, padding=1, bias=stem_bias or bias)
            self.maxpool = nn.Identity()
        else:
            raise ValueError(f'stem must be "imagenet" or "small", not {stem!r}.')
        self.bn1 = make_norm(width)
        self.act = activation_layer(activation)

        rates = iter(drop_path_rates(drop_path, sum(depths)))

        def stage(in_dim: int, dim: int, depth: int, stride: int) -> nn.Sequential:
            build: partial[BasicBlock] | partial[Bottleneck] = partial(BasicBlock)
            if block is Bottleneck:
                hidden_dim = dim // width * base_width * cardinality
                build = partial(Bottleneck, hidden_dim=hidden_dim, cardinality=cardinality)
            blocks = nn.Sequential()
            for i in range(depth):
                layer = build(
                    in_dim=in_dim if i == 0 else dim * block.expansion,
                    dim=dim,
                    stride=stride if i == 0 else 1,
                    norm=make_norm,
                    bias=bias,
                    activation=activation,
                    drop_path=next(rates),
                )
                if not skip:
                    layer.downsample = None
                blocks.append(layer)
            return blocks

        self.layer1 = stage(width, width, depths[0], stride=1)
        self.layer2 = stage(width * block.expansion, 2 * width, depths[1], stride=2)
        self.layer3 = stage(2 * width * block.expansion, 4 * width, depths[2], stride=2)
        self.layer4 = stage(4 * width * block.expansion, 8 * width, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(8 * width * block.expansion, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck) and norm != "none":
                nn.init.zeros_(module.last_norm.get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))  # (B, width, H/2, W/2); the small stem keeps H, W
        x = self.maxpool(x)  # (B, width, H/4, W/4)
        x = self.layer1(x)  # (B, width * expansion, H/4, W/4)
        x = self.layer2(x)  # (B, 2 * width * expansion, H/8, W/8)
        x = self.layer3(x)  # (B, 4 * width * expansion, H/16, W/16)
        x = self.layer4(x)  # (B, 8 * width * expansion, H/32, W/32)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, C, H, W) -> logits (B, num_classes)."""
        x = self.avgpool(features).flatten(1)  # (B, C)
        return self.fc(self.dropout(x))

    def stages(self) -> list[nn.Module]:
        """The stem and each block, from the image to the last feature map."""
        stem = nn.Sequential(self.conv1, self.bn1, self.act, self.maxpool)
        return [stem, *self.layer1, *self.layer2, *self.layer3, *self.layer4]


VARIANTS = {
    "resnet18": partial(ResNet, block=BasicBlock, depths=(2, 2, 2, 2)),
    "resnet34": partial(ResNet, block=BasicBlock, depths=(3, 4, 6, 3)),
    "resnet50": partial(ResNet, block=Bottleneck, depths=(3, 4, 6, 3)),
    "resnet101": partial(ResNet, block=Bottleneck, depths=(3, 4, 23, 3)),
    "resnet152": partial(ResNet, block=Bottleneck, depths=(3, 8, 36, 3)),
    "resnext50_32x4d": partial(ResNet, block=Bottleneck, depths=(3, 4, 6, 3), cardinality=32, base_width=4),
    "resnext101_32x8d": partial(ResNet, block=Bottleneck, depths=(3, 4, 23, 3), cardinality=32, base_width=8),
    "wide_resnet50_2": partial(ResNet, block=Bottleneck, depths=(3, 4, 6, 3), base_width=128),
}
