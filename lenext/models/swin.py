"""Swin Transformer: attention within windows that shift from block to block, on a pyramid of feature maps.

Ze Liu, Yutong Lin, Yue Cao, Han Hu, Yixuan Wei, Zheng Zhang, Stephen Lin, Baining Guo: "Swin Transformer:
Hierarchical Vision Transformer using Shifted Windows", 2021, https://arxiv.org/abs/2103.14030. Input
224 x 224, RGB.

Pixels attend to those of the same window of 7 x 7 only, so that the work grows with the image and not with its
square. Every second block moves the windows by half their side, which joins neighbours; the map is rolled for
it, and a mask keeps apart what was not adjacent before. A learned bias for each relative position takes the
place of absolute positions. Merging 2 x 2 pixels into one halves the map three times.

Deviations from the paper, all shared with timm:
- where the map is not larger than the window, the window is the map, and does not shift;
- where the window does not divide the map, zeros are added right and below. They are added after rolling, so
  that the mask misses some pixels that rolling brought together; the authors' detectors add them before.
Neither happens at 224 x 224, but in the last stage, whose map is one window.
Branches are not dropped by default (published: 0.2 tiny, 0.3 small, 0.5 base). The names of the parameters are
timm's; `adapt_checkpoint` also reads the authors' and torchvision's, and fits the biases of another window.
"""

from __future__ import annotations

import math
import re
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenext.models.layers import DropPath, LayerNorm2d, drop_path_rates, resize_table


class PatchEmbed(nn.Module):
    """Projects patches of 4 x 4 pixels: (B, in_channels, H, W) -> (B, dim, H/4, W/4)."""

    def __init__(self, *, in_channels: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=4, stride=4)
        self.norm = LayerNorm2d(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.norm(self.proj(x)))


class PatchMerging(nn.Module):
    """Joins 2 x 2 pixels into one: (B, C, H, W) -> (B, 2C, ceil(H/2), ceil(W/2))."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        _, _, H, W = x.shape
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        if H % 2 or W % 2:
            x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H/2, 2, W/2, 2, C)
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # (B, H/2, W/2, 4C), the pixels column by column
        x = self.reduction(self.norm(x))  # (B, H/2, W/2, 2C)
        return x.permute(0, 3, 1, 2)  # (B, 2C, H/2, W/2)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows of N = window * window pixels: (B * windows, N, C) -> the same."""

    def __init__(self, *, dim: int, num_heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", relative_positions(window), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """mask: (windows, N, N), added to the logits of attention."""
        BW, N, C = x.shape
        bias = self.relative_position_bias_table[self.relative_position_index]  # (N, N, heads)
        bias = bias.permute(2, 0, 1).unsqueeze(0)  # (1, heads, N, N)
        if mask is not None:
            windows, _, _ = mask.shape
            bias = (bias + mask.unsqueeze(1)).repeat(BW // windows, 1, 1, 1)  # (B * windows, heads, N, N)

        qkv = self.qkv(x).reshape(BW, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B * windows, heads, N, C/heads)
        if torch.compiler.is_exporting():  # with a learned bias, PyTorch 2.14 takes the fused one apart wrongly
            x = (q @ k.transpose(-2, -1) * (C // self.num_heads) ** -0.5 + bias).softmax(-1) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x.transpose(1, 2).reshape(BW, N, C)
        return self.dropout(self.proj(x))


def relative_positions(window: int) -> Tensor:
    """Which row of the bias table belongs to each pair of pixels of a window: (N, N), N = window * window."""
    steps = torch.arange(window)
    steps = steps[:, None] - steps[None, :] + window - 1  # (window, window), from 0 to 2 * window - 2
    pairs = steps[:, None, :, None] * (2 * window - 1) + steps[None, :, None, :]  # (y, x, y, x)
    return pairs.reshape(window**2, window**2)


def shift_mask(size: int, window: int, shift: int) -> Tensor:
    """-100 for pairs of pixels of a window that only rolling brought together, 0 for others: (windows, N, N)."""
    steps = torch.arange(size)
    region = (steps >= size - window).int() + (steps >= size - shift).int()  # (size,), 0 to 2
    regions = 3 * region[:, None] + region[None, :]  # (size, size), 0 to 8
    regions = partition(regions[None, :, :, None], window).squeeze(2)  # (windows, N)
    return -100.0 * (regions[:, :, None] != regions[:, None, :]).float()


def partition(x: Tensor, window: int) -> Tensor:
    """Cuts maps into windows: (B, H, W, C) -> (B * H/window * W/window, window * window, C)."""
    B, H, W, C = x.shape
    x = x.reshape(B, H // window, window, W // window, window, C)
    return x.transpose(2, 3).reshape(-1, window**2, C)


def merge(x: Tensor, window: int, H: int, W: int) -> Tensor:
    """Puts windows back in their places: (B * H/window * W/window, window * window, C) -> (B, H, W, C)."""
    _, _, C = x.shape
    x = x.reshape(-1, H // window, W // window, window, window, C)
    return x.transpose(2, 3).reshape(-1, H, W, C)


class MLP(nn.Module):
    """Two linear layers on each pixel: (B, H, W, C) -> (B, H, W, C), four times as wide in between."""

    def __init__(self, *, dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.gelu(self.fc1(x)))  # (B, H, W, 4C)
        return self.dropout(self.fc2(x))


class Block(nn.Module):
    """Attention in windows, then perceptron, each normalised first and with a shortcut: (B, C, H, W) -> the same.

    size: side of the map. window: side of a window. shifted: whether the windows are moved by half their side.
    """

    def __init__(
        self, *, dim: int, num_heads: int, size: int, window: int, shifted: bool, dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        self.window = min(window, size)
        self.shift = window // 2 if shifted and size > window else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim=dim, num_heads=num_heads, window=self.window, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim=dim, dropout=dropout)
        self.drop_path = DropPath(drop_path)
        padded = math.ceil(size / self.window) * self.window
        mask = shift_mask(padded, self.window, self.shift) if self.shift else None
        self.attn_mask: Tensor | None
        self.register_buffer("attn_mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        x = x + self.drop_path(self.attend(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2)  # (B, C, H, W)

    def attend(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        _, H, W, _ = x.shape
        pad_h, pad_w = -H % self.window, -W % self.window
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        if pad_h or pad_w:
            x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))  # (B, H', W', C)
        x = self.attn(partition(x, self.window), self.attn_mask)  # (B * windows, N, C)
        x = merge(x, self.window, H + pad_h, W + pad_w)[:, :H, :W]  # (B, H, W, C)
        return x.roll((self.shift, self.shift), dims=(1, 2)) if self.shift else x


class Head(nn.Module):
    """Global average pooling and classifier: (B, C, H, W) -> (B, num_classes)."""

    def __init__(self, *, dim: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(dim=(2, 3)))


class SwinTransformer(nn.Module):
    """Images (B, in_channels, image_size, image_size) -> logits (B, num_classes).

    dim: channels of the first of the four stages; each of the others has twice those of the one before.
    depths, num_heads: blocks and attention heads of each stage.
    image_size: side of the input, pixels, at least 4. window_size: side of a window, pixels of the feature map.
    dropout: share of units dropped after the embedding and after every linear layer but `qkv`.
    drop_path: share of residual branches dropped in the last block, rising linearly from 0 in the first.
    """

    head_name = "head.fc"
    min_image_size = 4  # one patch

    def __init__(
        self,
        *,
        dim: int,
        depths: tuple[int, int, int, int],
        num_heads: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        window_size: int = 7,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if image_size < 4 or window_size < 1:
            raise ValueError(f"image_size is {image_size}, window_size {window_size}: at least 4 and 1 pixels work.")
        self.patch_embed = PatchEmbed(in_channels=in_channels, dim=dim, dropout=dropout)
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.layers = nn.Sequential()
        size = image_size // 4
        for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            level = nn.Sequential()
            if i > 0:
                level.add_module("downsample", PatchMerging(dim=dim))
                dim, size = 2 * dim, math.ceil(size / 2)
            block = partial(Block, dim=dim, num_heads=heads, size=size, window=window_size, dropout=dropout)
            blocks = (block(shifted=j % 2 == 1, drop_path=next(rates)) for j in range(depth))
            level.add_module("blocks", nn.Sequential(*blocks))
            self.layers.append(level)
        self.norm = LayerNorm2d(dim)
        self.head = Head(dim=dim, num_classes=num_classes)

        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)  # (B, dim, H/4, W/4)
        x = self.norm(self.layers(x))  # (B, 8 * dim, H/32, W/32)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Normalised last feature map (B, C, H, W) -> logits (B, num_classes)."""
        return self.head(features)

    def stages(self) -> list[nn.Module]:
        """The embedding, each merging, each block and the last norm, from the image to the last feature map."""
        parts: list[nn.Module] = [self.patch_embed]
        for level in self.layers.children():
            for name, part in level.named_children():
                parts.extend(part.children() if name == "blocks" else [part])
        return [*parts, self.norm]

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Translates the authors' and torchvision's names, drops their tables of indices, fits the biases."""
        authors = any(key.startswith("layers.0.downsample.") for key in state)
        computed = ("relative_position_index", "attn_mask")
        state = {renamed(key, authors): state[key] for key in state if not key.endswith(computed)}
        for key, parameter in self.named_parameters():
            if key.endswith("bias_table") and key in state:
                state[key] = resize_biases(state[key], len(parameter))
        return state


def renamed(key: str, authors: bool) -> str:
    """The name that a parameter of timm's, torchvision's or, if so said, the authors' network has here."""
    if authors:  # who merge at the end of a stage, not at the start of the next
        key = re.sub(r"^layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", key)
    key = key.replace("features.0.0.", "patch_embed.proj.").replace("features.0.2.", "patch_embed.norm.")
    key = re.sub(r"^features\.([1357])\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.", key)
    key = re.sub(r"^features\.([246])\.", lambda m: f"layers.{int(m[1]) // 2}.downsample.", key)
    key = key.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
    return re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", key)


def resize_biases(table: Tensor, length: int) -> Tensor:
    """A table of biases by relative position (old * old, heads), interpolated to (length, heads)."""
    L, heads = table.shape
    old, new = math.isqrt(L), math.isqrt(length)
    if old**2 != L:
        return table
    return resize_table(table.reshape(old, old, heads), (new, new)).reshape(length, heads)


VARIANTS = {
    "swin_tiny_patch4_window7_224": partial(SwinTransformer, dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "swin_small_patch4_window7_224": partial(SwinTransformer, dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "swin_base_patch4_window7_224": partial(SwinTransformer, dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
}
