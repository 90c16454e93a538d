"""GoogLeNet, or Inception v1: several sizes of filter side by side in every block, and few parameters.

Christian Szegedy, Wei Liu, Yangqing Jia, Pierre Sermanet, Scott Reed, Dragomir Anguelov, Dumitru Erhan, Vincent
Vanhoucke, Andrew Rabinovich: "Going Deeper with Convolutions", 2014, https://arxiv.org/abs/1409.4842. Input
224 x 224, RGB.

A block looks at its input with a 1x1, a 3x3 and a 5x5 convolution and a max-pooling, and concatenates what they
see; 1x1 convolutions make the maps thin before the large filters, which keeps the work low. Global average
pooling takes the place of wide linear layers. Two auxiliary classifiers on inner blocks (`aux=True`) help the
gradient of a network of 22 layers; they are used in training only, with a tenth to a third of the loss's weight.

Deviations from the paper, all shared with torchvision, whose parameter names and weights fit:
- batch normalisation after every convolution, in place of local response normalisation after two;
- a 3x3 convolution where the paper has 5x5: a mistake that was found after the weights were published;
- the last max-pooling is 2x2, not 3x3; auxiliary classifiers average to 4 x 4 whatever the image size;
- 20 % of the units are dropped before the classifier, not 40 %; weights start from a normal of deviation 0.01.
torchvision's weights were ported from a network that sees pixels from -1 to 1 (mean and deviation 0.5), not from
one with ImageNet's mean and deviation; torchvision converts inside its network, here it is left to preprocessing.
`stem="small"` is for images of 32 to 64 pixels: a 3x3 convolution of stride 1 first, and no max-pooling in the stem.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU: (B, in_dim, H, W) -> (B, dim, H/stride, W/stride)."""

    def __init__(self, in_dim: int, dim: int, kernel_size: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(dim, eps=1e-3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """Four branches side by side: (B, in_dim, H, W) -> (B, dim1 + dim2 + dim3 + dim4, H, W).

    dim1: channels of the 1x1 branch. reduced2, dim2: thin maps and channels of the 3x3 branch. reduced3, dim3:
    those of the paper's 5x5 branch. dim4: channels after the pooling.
    """

    def __init__(self, in_dim: int, dim1: int, reduced2: int, dim2: int, reduced3: int, dim3: int, dim4: int) -> None:
        super().__init__()
        self.branch1 = ConvNorm(in_dim, dim1, 1)
        self.branch2 = nn.Sequential(ConvNorm(in_dim, reduced2, 1), ConvNorm(reduced2, dim2, 3))
        self.branch3 = nn.Sequential(ConvNorm(in_dim, reduced3, 1), ConvNorm(reduced3, dim3, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(kernel_size=3, stride=1, padding=1), ConvNorm(in_dim, dim4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class Auxiliary(nn.Module):
    """A classifier on an inner feature map: (B, in_dim, H, W) -> (B, num_classes)."""

    def __init__(self, *, in_dim: int, num_classes: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(4)
        self.conv = ConvNorm(in_dim, 128, 1)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.avgpool(x))  # (B, 128, 4, 4)
        x = self.dropout(self.relu(self.fc1(x.flatten(1))))  # (B, 1024)
        return self.fc2(x)


class GoogLeNet(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    aux: adds two auxiliary classifiers, which `forward_with_auxiliary` asks; `forward` never does.
    stem: "imagenet" (7x7, stride 2, and two max-poolings) or "small" (3x3, stride 1, no pooling).
    dropout: share of units dropped before the classifier, in training.
    """

    head_name = "fc"
    min_image_size = 15  # below it the third max-pooling has nothing to pool

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        aux: bool = False,
        stem: str = "imagenet",
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if stem == "imagenet":
            self.conv1 = ConvNorm(in_channels, 64, 7, stride=2)
            self.maxpool1: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
            self.maxpool2: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        elif stem == "small":
            self.conv1 = ConvNorm(in_channels, 64, 3)
            self.maxpool1 = nn.Identity()
            self.maxpool2 = nn.Identity()
            self.min_image_size = 2
        else:
            raise ValueError(f'stem must be "imagenet" or "small", not {stem!r}.')
        self.conv2 = ConvNorm(64, 64, 1)
        self.conv3 = ConvNorm(64, 192, 3)
        self.inception3a = Inception(192, 64, 96, 128, 16, 32, 32)
        self.inception3b = Inception(256, 128, 128, 192, 32, 96, 64)
        self.maxpool3 = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        self.inception4a = Inception(480, 192, 96, 208, 16, 48, 64)
        self.inception4b = Inception(512, 160, 112, 224, 24, 64, 64)
        self.inception4c = Inception(512, 128, 128, 256, 24, 64, 64)
        self.inception4d = Inception(512, 112, 144, 288, 32, 64, 64)
        self.inception4e = Inception(528, 256, 160, 320, 32, 128, 128)
        self.maxpool4 = nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)
        self.inception5a = Inception(832, 256, 160, 320, 32, 128, 128)
        self.inception5b = Inception(832, 384, 192, 384, 48, 128, 128)
        self.aux1 = Auxiliary(in_dim=512, num_classes=num_classes) if aux else None
        self.aux2 = Auxiliary(in_dim=528, num_classes=num_classes) if aux else None
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up_to_4a(x)  # (B, 512, H/16, W/16)
        x = self.up_to_4d(x)  # (B, 528, H/16, W/16)
        x = self.up_to_5b(x)  # (B, 1024, H/32, W/32)
        return self.forward_head(x)

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the classifier, of the first and of the second auxiliary one, each (B, num_classes).

        ValueError where the network was made without `aux=True`.
        """
        if self.aux1 is None or self.aux2 is None:
            raise ValueError("This GoogLeNet has no auxiliary classifiers: make it with aux=True.")
        x = self.up_to_4a(x)  # (B, 512, H/16, W/16)
        aux1 = self.aux1(x)  # (B, num_classes)
        x = self.up_to_4d(x)  # (B, 528, H/16, W/16)
        aux2 = self.aux2(x)  # (B, num_classes)
        x = self.up_to_5b(x)  # (B, 1024, H/32, W/32)
        return self.forward_head(x), aux1, aux2

    def up_to_4a(self, x: Tensor) -> Tensor:
        x = self.maxpool1(self.conv1(x))  # (B, 64, H/4, W/4); the small stem keeps H, W
        x = self.maxpool2(self.conv3(self.conv2(x)))  # (B, 192, H/8, W/8)
        x = self.inception3b(self.inception3a(x))  # (B, 480, H/8, W/8)
        return self.inception4a(self.maxpool3(x))  # (B, 512, H/16, W/16)

    def up_to_4d(self, x: Tensor) -> Tensor:
        return self.inception4d(self.inception4c(self.inception4b(x)))  # (B, 528, H/16, W/16)

    def up_to_5b(self, x: Tensor) -> Tensor:
        x = self.maxpool4(self.inception4e(x))  # (B, 832, H/32, W/32)
        return self.inception5b(self.inception5a(x))  # (B, 1024, H/32, W/32)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, 1024, H, W) -> logits (B, num_classes)."""
        x = self.avgpool(features).flatten(1)  # (B, 1024)
        return self.fc(self.dropout(x))

    def stages(self) -> list[nn.Module]:
        """The three convolutions of the stem and each block, each with the pooling after it."""
        return [
            nn.Sequential(self.conv1, self.maxpool1),
            self.conv2,
            nn.Sequential(self.conv3, self.maxpool2),
            self.inception3a,
            nn.Sequential(self.inception3b, self.maxpool3),
            self.inception4a,
            self.inception4b,
            self.inception4c,
            self.inception4d,
            nn.Sequential(self.inception4e, self.maxpool4),
            self.inception5a,
            self.inception5b,
        ]

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leaves out auxiliary classifiers that this network lacks; those for other classes start afresh."""
        if self.aux1 is None:
            return {key: tensor for key, tensor in state.items() if not key.startswith(("aux1.", "aux2."))}
        ours = self.state_dict()
        fresh = {
            key: ours[key]
            for key in state
            if key.startswith(("aux1.fc2.", "aux2.fc2.")) and state[key].shape != ours[key].shape
        }
        return {**state, **fresh}


VARIANTS = {"googlenet": partial(GoogLeNet)}
