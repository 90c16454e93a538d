"""ResNeXt: a residual network whose bottlenecks are split into many parallel groups.

Saining Xie, Ross Girshick, Piotr Dollar, Zhuowen Tu, Kaiming He: "Aggregated Residual Transformations for
Deep Neural Networks", 2016, https://arxiv.org/abs/1611.05431. Input 224 x 224, RGB.

Next to depth and width there is a third size, cardinality: the number of identical branches whose sum is the
residual. As a grouped 3x3 convolution the branches cost no more than one wide one, and 32 narrow branches
beat one wide branch of the same cost. In "32x4d" the first stage has 32 groups of 4 channels; the groups
double their channels at every stage.

Deviation from the paper: none in the block. The names of the parameters are torchvision's, so its weights
fit. `stem="small"` (a 3x3 convolution of stride 1, no max-pooling) is for images of 32 to 64 pixels;
`stem_bias=True` with `norm_eps=1.001e-5` is the network as it is commonly built in Keras.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from lenext.models.layers import DropPath, drop_path_rates


class GroupedBottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1 and a shortcut: (B, in_dim, H, W) -> (B, out_dim, H/stride, W/stride).

    dim: channels of the grouped convolution, all groups together. groups: the cardinality.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        dim: int,
        out_dim: int,
        groups: int,
        stride: int,
        norm_eps: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_dim, dim, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim, eps=norm_eps)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(dim, eps=norm_eps)
        self.conv3 = nn.Conv2d(dim, out_dim, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_dim, eps=norm_eps)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop_path)
        self.downsample: nn.Module = nn.Identity()
        if in_dim != out_dim or stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_dim, out_dim, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_dim, eps=norm_eps),
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu(self.bn1(self.conv1(x)))  # (B, dim, H, W)
        residual = self.relu(self.bn2(self.conv2(residual)))  # (B, dim, H/stride, W/stride)
        residual = self.bn3(self.conv3(residual))  # (B, out_dim, H/stride, W/stride)
        return self.relu(self.drop_path(residual) + self.downsample(x))


class ResNeXt(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    depths: blocks in each of the four stages.
    groups, group_dim: the cardinality, and the channels of one group in the first stage.
    stem: "imagenet" (7x7, stride 2, then max-pooling) or "small" (3x3, stride 1, no pooling).
    stem_bias: whether the first convolution has a bias. norm_eps: epsilon of every batch normalisation.
    zero_init_residual: start every block as its shortcut (last batch-norm scale 0; Goyal et al. 2017).
    drop_path: share of residual branches dropped in the last block, rising linearly from 0 in the first.
    """

    head_name = "fc"

    def __init__(
        self,
        *,
        depths: tuple[int, int, int, int],
        groups: int,
        group_dim: int,
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

        def stage(in_dim: int, out_dim: int, depth: int, stride: int) -> nn.Sequential:
            dim = groups * group_dim * out_dim // 256  # 256 leaves the first stage
            return nn.Sequential(
                *(
                    GroupedBottleneck(
                        in_dim=in_dim if i == 0 else out_dim,
                        dim=dim,
                        out_dim=out_dim,
                        groups=groups,
                        stride=stride if i == 0 else 1,
                        norm_eps=norm_eps,
                        drop_path=next(rates),
                    )
                    for i in range(depth)
                )
            )

        self.layer1 = stage(64, 256, depths[0], stride=1)
        self.layer2 = stage(256, 512, depths[1], stride=2)
        self.layer3 = stage(512, 1024, depths[2], stride=2)
        self.layer4 = stage(1024, 2048, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif zero_init_residual and isinstance(module, GroupedBottleneck):
                nn.init.zeros_(module.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))  # (B, 64, H/2, W/2); the small stem keeps H, W
        x = self.maxpool(x)  # (B, 64, H/4, W/4)
        x = self.layer1(x)  # (B, 256, H/4, W/4)
        x = self.layer2(x)  # (B, 512, H/8, W/8)
        x = self.layer3(x)  # (B, 1024, H/16, W/16)
        x = self.layer4(x)  # (B, 2048, H/32, W/32)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, 2048, H, W) -> logits (B, num_classes)."""
        return self.fc(self.avgpool(features).flatten(1))

    def stages(self) -> list[nn.Module]:
        """The stem and each block, from the image to the last feature map."""
        stem = nn.Sequential(self.conv1, self.bn1, self.relu, self.maxpool)
        return [stem, *self.layer1, *self.layer2, *self.layer3, *self.layer4]


VARIANTS = {
    "resnext50_32x4d": partial(ResNeXt, depths=(3, 4, 6, 3), groups=32, group_dim=4),
    "resnext101_32x8d": partial(ResNeXt, depths=(3, 4, 23, 3), groups=32, group_dim=8),
}
