"""ZFNet: AlexNet with a finer first layer, after its authors had looked at what its layers see.

Matthew D. Zeiler, Rob Fergus: "Visualizing and Understanding Convolutional Networks", 2013,
https://arxiv.org/abs/1311.2901. Input 224 x 224, RGB; 62,357,608 parameters at 1,000 classes.

Projecting activations back to pixels showed that AlexNet's first layer had filters of very high and very low
frequency with little in between, and that its stride of 4 left aliasing in the second. So the first
convolution is 7x7 with stride 2 in place of 11x11 with stride 4, the stride of the second is 2 in place of 1,
and all layers see all channels of the one before.

Deviations from the paper:
- the paper gives shapes but no paddings: 1 pixel before the first convolution, none before the second, 1 before
  the others, and pooling whose last window may hang over the edge give all shapes of its figure 3;
- the contrast normalisation across feature maps after the first two poolings is an option (`lrn=True`), off by
  default as in our AlexNet: it costs time for nothing. The paper gives no constants; they are AlexNet's;
- initialisation: Kaiming for convolutions and normal with deviation 0.01 for linear layers; the paper starts all
  weights at 0.01. Biases are 0 in both;
- filters of the first layer are not rescaled in training when their root mean square exceeds 0.1.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from lenext.models.layers import activation_layer


class ZFNet(nn.Module):
    """Images (B, in_channels, image_size, image_size) -> logits (B, num_classes).

    image_size: side of the input, pixels, at least 47, else a ValueError; the first linear layer is built for it.
    lrn: local response normalisation after the first and the second pooling.
    activation: what follows every convolution and linear layer but the last, such as "relu" or "gelu".
    dropout: share of units dropped after each of the first two linear layers, in training.
    """

    head_name = "fc8"
    min_image_size = 47  # below it the last max-pooling has nothing to pool

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        lrn: bool = False,
        activation: str = "relu",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if image_size < self.min_image_size:
            raise ValueError(f"image_size must be at least {self.min_image_size} pixels, not {image_size}.")

        def normalise() -> list[nn.Module]:
            # AlexNet's alpha of 1e-4 multiplies a sum over 5 channels, PyTorch's multiplies their mean.
            return [nn.LocalResponseNorm(size=5, alpha=5e-4, beta=0.75, k=2.0)] if lrn else []

        self.conv1 = nn.Conv2d(in_channels, 96, kernel_size=7, stride=2, padding=1)
        self.norm1 = nn.Sequential(*normalise())
        self.conv2 = nn.Conv2d(96, 256, kernel_size=5, stride=2)
        self.norm2 = nn.Sequential(*normalise())
        self.conv3 = nn.Conv2d(256, 384, kernel_size=3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, kernel_size=3, padding=1)
        self.conv5 = nn.Conv2d(384, 256, kernel_size=3, padding=1)
        side = (image_size + 2 - 7) // 2 + 1  # 110 at 224
        side = side // 2  # 55
        side = (side - 5) // 2 + 1  # 26
        side = side // 2 // 2  # 13, 6
        self.fc6 = nn.Linear(256 * side * side, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)
        self.activation = activation_layer(activation)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        self.dropout = nn.Dropout(dropout)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        # Shapes are those of a 224 x 224 image.
        x = self.norm1(self.pool(self.activation(self.conv1(x))))  # (B, 96, 110, 110) -> (B, 96, 55, 55)
        x = self.norm2(self.pool(self.activation(self.conv2(x))))  # (B, 256, 26, 26) -> (B, 256, 13, 13)
        x = self.activation(self.conv3(x))  # (B, 384, 13, 13)
        x = self.activation(self.conv4(x))  # (B, 384, 13, 13)
        x = self.pool(self.activation(self.conv5(x)))  # (B, 256, 13, 13) -> (B, 256, 6, 6)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, 256, 6, 6) at a 224 x 224 image -> logits (B, num_classes)."""
        x = features.flatten(1)  # (B, 9216)
        x = self.dropout(self.activation(self.fc6(x)))  # (B, 4096)
        x = self.dropout(self.activation(self.fc7(x)))  # (B, 4096)
        return self.fc8(x)

    def stages(self) -> list[nn.Module]:
        """The five convolutions, each with what follows it, from the image to the last feature map."""
        return [
            nn.Sequential(self.conv1, self.activation, self.pool, self.norm1),
            nn.Sequential(self.conv2, self.activation, self.pool, self.norm2),
            nn.Sequential(self.conv3, self.activation),
            nn.Sequential(self.conv4, self.activation),
            nn.Sequential(self.conv5, self.activation, self.pool),
        ]


VARIANTS = {"zfnet": partial(ZFNet)}
