"""AlexNet as redrawn for "one weird trick": narrower first layers, one stream, no normalisation.

Alex Krizhevsky: "One weird trick for parallelizing convolutional neural networks", 2014,
https://arxiv.org/abs/1404.5997. Input 224 x 224, RGB.

Deviations from the paper: those of torchvision's `alexnet`, whose parameter names and weights fit: 256
channels, not 384, in the fourth convolution, and an average pooling to 6 x 6 before the linear layers, so
that any image of at least 63 pixels is accepted.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from lenext.models.layers import activation_layer


class AlexNetOWT(nn.Module):
    """Images (B, in_channels, H, W), H and W at least 63 -> logits (B, num_classes).

    activation: what follows every convolution and linear layer but the last, such as "relu" or "tanh".
    dropout: share of units dropped before each of the first two linear layers, in training.
    """

    head_name = "classifier.6"
    min_image_size = 63  # below it the last max-pooling has nothing to pool

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        activation: str = "relu",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(  # shapes are those of a 224 x 224 image
            nn.Conv2d(in_channels, 64, kernel_size=11, stride=4, padding=2),  # (B, 64, 55, 55)
            activation_layer(activation),
            nn.MaxPool2d(kernel_size=3, stride=2),  # (B, 64, 27, 27)
            nn.Conv2d(64, 192, kernel_size=5, padding=2),  # (B, 192, 27, 27)
            activation_layer(activation),
            nn.MaxPool2d(kernel_size=3, stride=2),  # (B, 192, 13, 13)
            nn.Conv2d(192, 384, kernel_size=3, padding=1),  # (B, 384, 13, 13)
            activation_layer(activation),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),  # (B, 256, 13, 13)
            activation_layer(activation),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),  # (B, 256, 13, 13)
            activation_layer(activation),
            nn.MaxPool2d(kernel_size=3, stride=2),  # (B, 256, 6, 6)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            activation_layer(activation),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            activation_layer(activation),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # (B, 256, H/32 - 1, W/32 - 1)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, 256, H, W) -> logits (B, num_classes)."""
        x = self.avgpool(features)  # (B, 256, 6, 6)
        return self.classifier(x.flatten(1))

    def stages(self) -> list[nn.Module]:
        """The five convolutions, each with what follows it, from the image to the last feature map."""
        return [
            self.features[:3],
            self.features[3:6],
            self.features[6:8],
            self.features[8:10],
            self.features[10:],
        ]


VARIANTS = {"alexnet_owt": partial(AlexNetOWT)}
