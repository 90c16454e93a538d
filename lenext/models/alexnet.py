"""AlexNet: five convolutions and three fully connected layers, the network that won ImageNet in 2012.

Alex Krizhevsky, Ilya Sutskever, Geoffrey Hinton: "ImageNet Classification with Deep Convolutional Neural
Networks", 2012, https://papers.nips.cc/paper/4824. Input 224 x 224, RGB; 62,378,344 parameters at 1,000
classes.

Deviations from the paper:
- one stream. The paper splits layers 2, 4 and 5 over two GPUs that do not see each other; here every layer
  sees all channels of the one before (which is why it has 62.4 million parameters, not 60.9);
- 2 pixels of padding before the first convolution, so that 224 x 224 gives the paper's 55 x 55 maps;
- local response normalisation is an option (`lrn=True`), off by default: later work found it to cost time for
  nothing;
- initialisation: Kaiming for convolutions and normal with deviation 0.01 for linear layers, biases 0; the
  paper draws all weights with deviation 0.01 and starts half of the biases at 1.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from lenext.models.layers import activation_layer


class AlexNet(nn.Module):
    """Images (B, in_channels, image_size, image_size) -> logits (B, num_classes).

    image_size: side of the input, pixels, at least 63; the first linear layer is built for it.
    lrn: local response normalisation after the first and the second convolution.
    activation: what follows every convolution and linear layer but the last, such as "relu" or "tanh".
    dropout: share of units dropped before each of the first two linear layers, in training.
    """

    head_name = "fc8"
    min_image_size = 63  # below it the last max-pooling has nothing to pool

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

        def normalise() -> list[nn.Module]:
            # The paper's alpha of 1e-4 multiplies a sum over 5 channels, PyTorch's multiplies their mean.
            return [nn.LocalResponseNorm(size=5, alpha=5e-4, beta=0.75, k=2.0)] if lrn else []

        self.conv1 = nn.Conv2d(in_channels, 96, kernel_size=11, stride=4, padding=2)
        self.norm1 = nn.Sequential(*normalise())
        self.conv2 = nn.Conv2d(96, 256, kernel_size=5, padding=2)
        self.norm2 = nn.Sequential(*normalise())
        self.conv3 = nn.Conv2d(256, 384, kernel_size=3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, kernel_size=3, padding=1)
        self.conv5 = nn.Conv2d(384, 256, kernel_size=3, padding=1)
        side = (image_size + 4 - 11) // 4 + 1  # 55 at 224
        for _ in range(3):
            side = (side - 3) // 2 + 1  # 27, 13, 6
        self.fc6 = nn.Linear(256 * side * side, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)
        self.activation = activation_layer(activation)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2)
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
        x = self.pool(self.norm1(self.activation(self.conv1(x))))  # (B, 96, 55, 55) -> (B, 96, 27, 27)
        x = self.pool(self.norm2(self.activation(self.conv2(x))))  # (B, 256, 27, 27) -> (B, 256, 13, 13)
        x = self.activation(self.conv3(x))  # (B, 384, 13, 13)
        x = self.activation(self.conv4(x))  # (B, 384, 13, 13)
        x = self.pool(self.activation(self.conv5(x)))  # (B, 256, 13, 13) -> (B, 256, 6, 6)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, 256, 6, 6) at a 224 x 224 image -> logits (B, num_classes)."""
        x = features.flatten(1)  # (B, 9216)
        x = self.activation(self.fc6(self.dropout(x)))  # (B, 4096)
        x = self.activation(self.fc7(self.dropout(x)))  # (B, 4096)
        return self.fc8(x)

    def stages(self) -> list[nn.Module]:
        """The five convolutions, each with what follows it, from the image to the last feature map."""
        return [
            nn.Sequential(self.conv1, self.activation, self.norm1, self.pool),
            nn.Sequential(self.conv2, self.activation, self.norm2, self.pool),
            nn.Sequential(self.conv3, self.activation),
            nn.Sequential(self.conv4, self.activation),
            nn.Sequential(self.conv5, self.activation, self.pool),
        ]


VARIANTS = {"alexnet": partial(AlexNet)}
