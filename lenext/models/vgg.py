"""VGG: nothing but 3x3 convolutions, max-pooling and three linear layers, 11 to 19 layers with weights.

Karen Simonyan, Andrew Zisserman: "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014,
https://arxiv.org/abs/1409.1556. Input 224 x 224, RGB.

Two 3x3 convolutions in a row see as far as one of 5x5, three as far as one of 7x7, with fewer weights and more
non-linearities. So the network is one convolution repeated: each of five levels ends in a max-pooling that halves
the image, and the channels double from 64 to 512. The linear layers hold about nine tenths of the parameters.

Deviations from the paper, shared with torchvision, whose parameter names and weights fit (`adapt_checkpoint`
translates timm's):
- the `_bn` variants normalise after every convolution, which the paper does not know;
- an average pooling to 7 x 7 before the linear layers, so that any image of at least 32 pixels is accepted;
- Kaiming initialisation of the convolutions; the paper starts its deeper networks from its trained shallow one;
- the paper's variants with local response normalisation and with 1x1 convolutions are left out.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from lenext.models.layers import activation_layer, norm2d

PROPORTIONS = (1, 2, 4, 8, 8)  # channels of the five levels, in those of the first


class VGG(nn.Module):
    """Images (B, in_channels, H, W), H and W at least 32 -> logits (B, num_classes).

    depths: convolutions in each of the five levels.
    width: channels of the first level; the others have 2, 4, 8 and 8 times as many.
    norm: what follows every convolution: "none", "batch", "group" or "layer".
    activation: what follows every convolution and linear layer but the last, such as "relu" or "gelu".
    hidden_dim: units of the first two linear layers, which hold nine tenths of the parameters.
    dropout: share of units dropped after each of these two, in training.
    """

    head_name = "classifier.6"
    min_image_size = 32  # below it the last max-pooling has nothing to pool

    def __init__(
        self,
        *,
        depths: tuple[int, int, int, int, int],
        num_classes: int = 1000,
        in_channels: int = 3,
        width: int = 64,
        norm: str = "none",
        activation: str = "relu",
        hidden_dim: int = 4096,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if type(width) is not int or width < 1:
            raise ValueError(f"width, the first level's channels, must be a whole number of at least 1, not {width!r}.")
        self.features = nn.Sequential()
        in_dim = in_channels
        for proportion, depth in zip(PROPORTIONS, depths, strict=True):
            dim = proportion * width
            for _ in range(depth):
                self.features.append(nn.Conv2d(in_dim, dim, kernel_size=3, padding=1))
                if norm != "none":  # an identity would shift the numbers in the names of the parameters
                    self.features.append(norm2d(norm, dim))
                self.features.append(activation_layer(activation))
                in_dim = dim
            self.features.append(nn.MaxPool2d(kernel_size=2, stride=2))
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(8 * width * 7 * 7, hidden_dim),
            activation_layer(activation),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, hidden_dim),
            activation_layer(activation),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, num_classes),
        )

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # (B, 8 * width, H/32, W/32)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, 8 * width, H, W) -> logits (B, num_classes)."""
        x = self.avgpool(features)  # (B, 8 * width, 7, 7)
        return self.classifier(x.flatten(1))

    def stages(self) -> list[nn.Module]:
        """Each convolution with what follows it, from the image to the last feature map."""
        starts = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.Conv2d)]
        ends = [*starts[1:], len(self.features)]
        return [self.features[start:end] for start, end in zip(starts, ends, strict=True)]

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Translates timm's names and shapes: its linear layers are convolutions over the 7 x 7 map."""
        names = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3.", "head.fc.": "classifier.6."}
        adapted = {}
        for key, tensor in state.items():
            for theirs, ours in names.items():
                if key.startswith(theirs):
                    key = key.replace(theirs, ours)
                    tensor = tensor.flatten(1) if tensor.ndim == 4 else tensor
            adapted[key] = tensor
        return adapted


VARIANTS = {
    "vgg11": partial(VGG, depths=(1, 1, 2, 2, 2)),
    "vgg11_bn": partial(VGG, depths=(1, 1, 2, 2, 2), norm="batch"),
    "vgg13": partial(VGG, depths=(2, 2, 2, 2, 2)),
    "vgg13_bn": partial(VGG, depths=(2, 2, 2, 2, 2), norm="batch"),
    "vgg16": partial(VGG, depths=(2, 2, 3, 3, 3)),
    "vgg16_bn": partial(VGG, depths=(2, 2, 3, 3, 3), norm="batch"),
    "vgg19": partial(VGG, depths=(2, 2, 4, 4, 4)),
    "vgg19_bn": partial(VGG, depths=(2, 2, 4, 4, 4), norm="batch"),
}
