"""LeNet-5: convolution, subsampling and a classifier learned together.

Yann LeCun, Léon Bottou, Yoshua Bengio, Patrick Haffner: "Gradient-Based Learning Applied to Document Recognition",
1998, http://vision.stanford.edu/cs598_spring07/papers/Lecun98.pdf. Input 32 x 32, grey.

Deviations from the paper, which are those of every modern LeNet:
- the second convolution sees all six maps (the paper connects each of its maps to three to six of them);
- subsampling is a plain average, without the paper's coefficient and bias a map;
- tanh without the scaling by 1.7159, and a linear output layer with softmax instead of radial basis functions.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from lenext.models.layers import activation_layer


class LeNet5(nn.Module):
    """Images (B, in_channels, 32, 32) to logits (B, num_classes). 61,706 parameters for grey input and 10 classes.

    activation: what follows every convolution and the first linear layer, such as "tanh" or "relu".
    """

    min_image_size = 32
    head_name = "output"

    def __init__(
        self, *, num_classes: int = 1000, in_channels: int = 3, image_size: int = 32, activation: str = "tanh"
    ) -> None:
        super().__init__()
        if image_size != 32:
            raise ValueError(f"image_size is {image_size} pixels; LeNet-5 is made for 32.")
        self.c1 = nn.Conv2d(in_channels, 6, kernel_size=5)
        self.c3 = nn.Conv2d(6, 16, kernel_size=5)
        self.c5 = nn.Conv2d(16, 120, kernel_size=5)
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, num_classes)
        self.subsample = nn.AvgPool2d(2)
        self.activation = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.subsample(self.activation(self.c1(x)))  # (B, 6, 14, 14)
        x = self.subsample(self.activation(self.c3(x)))  # (B, 16, 5, 5)
        x = self.activation(self.c5(x))  # (B, 120, 1, 1)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, 120, 1, 1) -> (B, num_classes)."""
        x = self.activation(self.f6(features.flatten(1)))  # (B, 84)
        return self.output(x)

    def stages(self) -> list[nn.Module]:
        return [
            nn.Sequential(self.c1, self.activation, self.subsample),
            nn.Sequential(self.c3, self.activation, self.subsample),
            nn.Sequential(self.c5, self.activation),
        ]


VARIANTS = {"lenet5": partial(LeNet5)}
