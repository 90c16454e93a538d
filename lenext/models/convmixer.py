"""ConvMixer: large patches, then nothing but depthwise and 1x1 convolutions of one width and resolution.

Asher Trockman, J. Zico Kolter: "Patches Are All You Need?", 2022, https://arxiv.org/abs/2201.09792. Input
224 x 224, RGB.

Does the Vision Transformer owe its strength to attention, or to cutting the image into patches? This network
keeps the patches and the even width of a Transformer and mixes with plain convolutions: a depthwise one of
7x7 or 9x9 pixels, with a shortcut, for places, and a 1x1 for channels. An activation and a batch norm follow
each convolution, in this order.

Deviations from the paper: none. convmixer_768_32 has ReLU where the others have GELU, as its published weights
do; `activation` chooses another. The names of the parameters are timm's; `adapt_checkpoint` also reads the
authors' checkpoints.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from lenext.models.layers import activation_layer


def conv_act_norm(conv: nn.Conv2d, activation: str) -> nn.Sequential:
    """A convolution, the activation and a batch norm: (B, in_dim, H, W) -> (B, dim, H', W')."""
    return nn.Sequential(conv, activation_layer(activation), nn.BatchNorm2d(conv.out_channels))


class Residual(nn.Module):
    """A shortcut past `fn`, which keeps the shape: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


class Block(nn.Sequential):
    """Mixes places, with a shortcut, then channels, without one: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, *, dim: int, kernel_size: int, activation: str) -> None:
        places = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        channels = nn.Conv2d(dim, dim, kernel_size=1)
        super().__init__(Residual(conv_act_norm(places, activation)), *conv_act_norm(channels, activation))


class ConvMixer(nn.Module):
    """Images (B, in_channels, H, W), H and W at least `patch_size` -> logits (B, num_classes).

    dim, depth: channels of every feature map, blocks. kernel_size: side of the depthwise filters, odd.
    patch_size: side of a patch, pixels. activation: a name that `layers.activation_layer` knows.
    """

    head_name = "head"
    min_image_size = 7  # one patch of the smallest kind

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        kernel_size: int,
        patch_size: int,
        num_classes: int = 1000,
        in_channels: int = 3,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        self.min_image_size = patch_size
        self.depth = depth
        patches = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.stem = conv_act_norm(patches, activation)
        self.blocks = nn.Sequential(
            *(Block(dim=dim, kernel_size=kernel_size, activation=activation) for _ in range(depth))
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, dim, H/patch, W/patch)
        x = self.blocks(x)  # (B, dim, H/patch, W/patch)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, C, H, W) -> logits (B, num_classes)."""
        return self.head(self.avgpool(features).flatten(1))

    def stages(self) -> list[nn.Module]:
        """The stem and each block, from the image to the last feature map."""
        return [self.stem, *self.blocks]

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Translates the names of the authors' checkpoints, who number all parts of the network."""
        return {self.from_official(key): tensor for key, tensor in state.items()}

    def from_official(self, key: str) -> str:
        """The name that a parameter of https://github.com/locuslab/convmixer has here; timm's names stay."""
        part, _, rest = key.partition(".")
        if not part.isdigit():
            return key
        number = int(part)
        if number < 3:
            return f"stem.{key}"
        if number < 3 + self.depth:
            return f"blocks.{number - 3}.{rest}"
        return f"head.{rest}"


VARIANTS = {
    "convmixer_768_32": partial(ConvMixer, dim=768, depth=32, kernel_size=7, patch_size=7, activation="relu"),
    "convmixer_1024_20_ks9_p14": partial(ConvMixer, dim=1024, depth=20, kernel_size=9, patch_size=14),
    "convmixer_1536_20": partial(ConvMixer, dim=1536, depth=20, kernel_size=9, patch_size=7),
}
