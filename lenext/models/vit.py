"""Vision Transformer: an image as a sequence of patches, read by a plain Transformer encoder.

Alexey Dosovitskiy, Lucas Beyer, Alexander Kolesnikov, Dirk Weissenborn, Xiaohua Zhai, Thomas Unterthiner,
Mostafa Dehghani, Matthias Minderer, Georg Heigold, Sylvain Gelly, Jakob Uszkoreit, Neil Houlsby: "An Image is
Worth 16x16 Words: Transformers for Image Recognition at Scale", 2020, https://arxiv.org/abs/2010.11929. Input
224 x 224, RGB.

Every patch of 16 x 16 (or 32 x 32) pixels becomes one token by a linear projection; a class token is put
before them, a learned position is added to each, and the class is read from the class token after the last
block.

Deviations from the paper:
- linear layers start from a truncated normal of deviation 0.02, and so does the classifier, which the paper
  starts at 0;
- the tiny and small variants are those of "Training data-efficient image transformers" (Touvron et al. 2020);
- dropout is off by default, as the published weights were fine-tuned.
The names of the parameters are timm's; `adapt_checkpoint` also reads the authors' `.npz` files, and fits the
position table of another image size.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenext.models.layers import DropPath, drop_path_rates, resize_table


class PatchEmbed(nn.Module):
    """Cuts images into patches and projects each to a token: (B, in_channels, H, W) -> (B, N, dim)."""

    def __init__(self, *, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)  # (B, dim, H/patch, W/patch)
        return x.flatten(2).transpose(1, 2)  # (B, N, dim)


class AddPositions(nn.Module):
    """Puts the class token first and adds the position table: (B, N, dim) -> (B, 1 + N, dim)."""

    def __init__(self, cls_token: nn.Parameter, pos_embed: nn.Parameter) -> None:
        super().__init__()
        self.cls_token = cls_token
        self.pos_embed = pos_embed

    def forward(self, x: Tensor) -> Tensor:
        return add_positions(x, self.cls_token, self.pos_embed)


def add_positions(x: Tensor, cls_token: Tensor, pos_embed: Tensor) -> Tensor:
    B, _, _ = x.shape
    return torch.cat([cls_token.expand(B, -1, -1), x], dim=1) + pos_embed  # (B, 1 + N, dim)


class Attention(nn.Module):
    """Multi-head self-attention: every token becomes a mixture of all tokens. (B, N, C) -> (B, N, C)."""

    def __init__(self, *, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, C/heads)
        x = F.scaled_dot_product_attention(q, k, v)  # softmax(q k^T / sqrt(C/heads)) v
        x = x.transpose(1, 2).reshape(B, N, C)
        return self.dropout(self.proj(x))


class MLP(nn.Module):
    """Two linear layers on each token: (B, N, C) -> (B, N, C), `hidden_dim` wide in between."""

    def __init__(self, *, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.gelu(self.fc1(x)))  # (B, N, hidden_dim)
        return self.dropout(self.fc2(x))


class Block(nn.Module):
    """Attention, then perceptron, each on normalised tokens and with a shortcut: (B, N, C) -> (B, N, C)."""

    def __init__(self, *, dim: int, num_heads: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim=dim, num_heads=num_heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim=dim, hidden_dim=4 * dim, dropout=dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """Images (B, in_channels, image_size, image_size) -> logits (B, num_classes).

    patch_size: side of a patch, pixels. dim, depth, num_heads: width of a token, blocks, attention heads.
    image_size: side of the input, pixels; a multiple of `patch_size`, else a ValueError.
    dropout: share of units dropped after the positions and after every linear layer but the one to queries,
    keys and values.
    drop_path: share of residual branches dropped in the last block, rising linearly from 0 in the first.
    """

    head_name = "head"

    def __init__(
        self,
        *,
        patch_size: int = 16,
        dim: int,
        depth: int,
        num_heads: int,
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
        self.grid = image_size // patch_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid**2, dim))
        self.patch_embed = PatchEmbed(in_channels=in_channels, dim=dim, patch_size=patch_size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(
                Block(dim=dim, num_heads=num_heads, dropout=dropout, drop_path=rate)
                for rate in drop_path_rates(drop_path, depth)
            )
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)

        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)  # (B, N, dim), N = (H/patch) * (W/patch)
        x = self.dropout(add_positions(x, self.cls_token, self.pos_embed))  # (B, 1 + N, dim)
        x = self.norm(self.blocks(x))  # (B, 1 + N, dim)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Normalised tokens (B, 1 + N, dim), the class token first -> logits (B, num_classes)."""
        return self.head(features[:, 0])

    def stages(self) -> list[nn.Module]:
        """The embedding, each block and the last norm, from the image to the tokens (B, 1 + N, dim)."""
        embedding = nn.Sequential(self.patch_embed, AddPositions(self.cls_token, self.pos_embed), self.dropout)
        return [embedding, *self.blocks, self.norm]

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Translates the authors' JAX arrays, and fits the position table of another image size."""
        if "embedding/kernel" in state:
            state = from_jax(state)
        if "pos_embed" in state:
            state = {**state, "pos_embed": resize_positions(state["pos_embed"], self.grid)}
        return state


def resize_positions(table: Tensor, grid: int, num_prefix: int = 1) -> Tensor:
    """A table (1, P + n * n, C), P tokens that are no patches first, interpolated to (1, P + grid * grid, C)."""
    _, N, C = table.shape
    old_grid = math.isqrt(N - num_prefix)
    if old_grid**2 != N - num_prefix:
        return table
    prefix, patches = table[:, :num_prefix], table[0, num_prefix:]
    patches = resize_table(patches.reshape(old_grid, old_grid, C), (grid, grid))  # (grid, grid, C)
    return torch.cat([prefix, patches.reshape(1, grid**2, C)], dim=1)


def from_jax(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' arrays under our names and in our shapes.

    Source: the `.npz` files of https://github.com/google-research/vision_transformer. Their linear layers are
    stored as (in, out), ours as (out, in); their query, key and value are three arrays, split by head.
    """
    names = {
        "cls": "cls_token",
        "Transformer/posembed_input/pos_embedding": "pos_embed",
        "embedding/": "patch_embed.proj.",
        "Transformer/encoder_norm/": "norm.",
        "head/": "head.",
        "Transformer/encoderblock_": "blocks.",
        "/LayerNorm_0/": ".norm1.",
        "/LayerNorm_2/": ".norm2.",
        "/MlpBlock_3/Dense_0/": ".mlp.fc1.",
        "/MlpBlock_3/Dense_1/": ".mlp.fc2.",
        "/MultiHeadDotProductAttention_1/": ".attn.",
        "out/": "proj.",
        "scale": "weight",
        "kernel": "weight",
        "/": ".",
    }
    state = {}
    for key, array in arrays.items():
        if array.ndim == 4:  # convolution: (kernel, kernel, in, out)
            array = array.permute(3, 2, 0, 1)
        elif key.endswith("out/kernel"):  # (heads, C/heads, C)
            array = array.flatten(0, 1).T
        elif key.endswith("kernel"):  # (in, out), or (C, heads, C/heads) before attention
            array = array.flatten(1).T
        elif array.ndim == 2:  # bias before attention: (heads, C/heads)
            array = array.flatten()
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)
        state[key] = array
    for query in [key for key in state if ".attn.query." in key]:
        parts = [query.replace("query", part) for part in ("query", "key", "value")]
        state[query.replace("query", "qkv")] = torch.cat([state.pop(part) for part in parts if part in state])
    return state


VARIANTS = {
    "vit_tiny_patch16_224": partial(VisionTransformer, patch_size=16, dim=192, depth=12, num_heads=3),
    "vit_small_patch16_224": partial(VisionTransformer, patch_size=16, dim=384, depth=12, num_heads=6),
    "vit_base_patch16_224": partial(VisionTransformer, patch_size=16, dim=768, depth=12, num_heads=12),
    "vit_base_patch32_224": partial(VisionTransformer, patch_size=32, dim=768, depth=12, num_heads=12),
    "vit_large_patch16_224": partial(VisionTransformer, patch_size=16, dim=1024, depth=24, num_heads=16),
}
