"""MLP-Mixer: patches mixed by perceptrons alone, without convolution or attention.

Ilya Tolstikhin, Neil Houlsby, Alexander Kolesnikov, Lucas Beyer, Xiaohua Zhai, Thomas Unterthiner, Jessica Yung,
Andreas Steiner, Daniel Keysers, Jakob Uszkoreit, Mario Lucic, Alexey Dosovitskiy: "MLP-Mixer: An all-MLP
Architecture for Vision", 2021, https://arxiv.org/abs/2105.01601. Input 224 x 224, RGB.

The image becomes a table of tokens x channels by projecting patches of 16 x 16 pixels. Each block has two
perceptrons: one reads the columns of the table, so that a channel hears of all places; the other reads the
rows, so that a place hears of all its channels. Both are the same for every column or row. As the first is as
wide as there are patches, the network is built for one image size, and needs no positions.

Deviations from the paper:
- the GELU is exact, as in timm; the authors' code approximates it by tanh, which hardly moves the logits;
- weights start from a normal of variance 1 / fan-in, not truncated, and the classifier from a truncated normal
  of deviation 0.02, which the paper starts at 0.
Dropping branches is off by default (the paper: up to 0.1). The names of the parameters are timm's;
`adapt_checkpoint` also reads the authors' `.npz` files.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from lenext.models.layers import DropPath, drop_path_rates


class PatchEmbed(nn.Module):
    """Cuts images into patches and projects each to a token: (B, in_channels, H, W) -> (B, N, dim)."""

    def __init__(self, *, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)  # (B, dim, H/patch, W/patch)
        return x.flatten(2).transpose(1, 2)  # (B, N, dim)


class MLP(nn.Module):
    """Two linear layers on the last axis: (B, M, K) -> (B, M, K), `hidden_dim` wide in between."""

    def __init__(self, *, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.gelu(self.fc1(x)))  # (B, M, hidden_dim)
        return self.dropout(self.fc2(x))


class Block(nn.Module):
    """Mixes tokens, then channels, each normalised first and with a shortcut: (B, N, C) -> (B, N, C)."""

    def __init__(self, *, dim: int, num_tokens: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp_tokens = MLP(dim=num_tokens, hidden_dim=dim // 2, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp_channels = MLP(dim=dim, hidden_dim=4 * dim, dropout=dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.norm1(x).transpose(1, 2)  # (B, C, N)
        x = x + self.drop_path(self.mlp_tokens(columns).transpose(1, 2))
        return x + self.drop_path(self.mlp_channels(self.norm2(x)))


class MLPMixer(nn.Module):
    """Images (B, in_channels, image_size, image_size) -> logits (B, num_classes).

    patch_size: side of a patch, pixels. dim, depth: width of a token, blocks.
    image_size: side of the input, pixels; a multiple of `patch_size`, else a ValueError.
    dropout: share of units dropped after both layers of every perceptron, in training.
    drop_path: share of residual branches dropped in the last block, rising linearly from 0 in the first.
    """

    head_name = "head"

    def __init__(
        self,
        *,
        patch_size: int,
        dim: int,
        depth: int,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if image_size < patch_size or image_size % patch_size:
            below = max(image_size // patch_size, 1) * patch_size
            raise ValueError(
                f"image_size must be a multiple of the patch size, {patch_size} pixels, not {image_size}: "
                f"{below} and {below + patch_size} work."
            )
        num_tokens = (image_size // patch_size) ** 2
        self.stem = PatchEmbed(in_channels=in_channels, dim=dim, patch_size=patch_size)
        self.blocks = nn.Sequential(
            *(
                Block(dim=dim, num_tokens=num_tokens, dropout=dropout, drop_path=rate)
                for rate in drop_path_rates(drop_path, depth)
            )
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.head.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, N, dim), N = (H/patch) * (W/patch)
        x = self.norm(self.blocks(x))  # (B, N, dim)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Normalised tokens (B, N, dim) -> logits (B, num_classes)."""
        return self.head(features.mean(dim=1))

    def stages(self) -> list[nn.Module]:
        """The embedding, each block and the last norm, from the image to the tokens (B, N, dim)."""
        return [self.stem, *self.blocks, self.norm]

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Translates the authors' JAX arrays."""
        return from_jax(state) if "stem/kernel" in state else state


def from_jax(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' arrays under our names and in our shapes.

    Source: the `.npz` files of https://github.com/google-research/vision_transformer. Their linear layers are
    stored as (in, out), ours as (out, in).
    """
    names = {
        "stem/": "stem.proj.",
        "MixerBlock_": "blocks.",
        "/LayerNorm_0/": ".norm1.",
        "/LayerNorm_1/": ".norm2.",
        "/token_mixing/": ".mlp_tokens.",
        "/channel_mixing/": ".mlp_channels.",
        "Dense_0/": "fc1.",
        "Dense_1/": "fc2.",
        "pre_head_layer_norm/": "norm.",
        "head/": "head.",
        "scale": "weight",
        "kernel": "weight",
    }
    state = {}
    for key, array in arrays.items():
        if array.ndim == 4:  # convolution: (kernel, kernel, in, out)
            array = array.permute(3, 2, 0, 1)
        elif array.ndim == 2:
            array = array.T
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        state[key] = array
    return state


VARIANTS = {
    "mixer_s16_224": partial(MLPMixer, patch_size=16, dim=512, depth=8),
    "mixer_b16_224": partial(MLPMixer, patch_size=16, dim=768, depth=12),
    "mixer_l16_224": partial(MLPMixer, patch_size=16, dim=1024, depth=24),
}
