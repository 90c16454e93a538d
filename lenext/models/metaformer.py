"""MetaFormer baselines: one Transformer frame, filled with pooling, convolution or attention.

Weihao Yu, Chenyang Si, Pan Zhou, Mi Luo, Yichen Zhou, Jiashi Feng, Shuicheng Yan, Xinchao Wang: "MetaFormer
Baselines for Vision", 2022, https://arxiv.org/abs/2210.13452. Input 224 x 224, RGB.

The authors of PoolFormer ask how far the frame alone goes, with mixers that everyone knows: PoolFormerV2
averages neighbours, ConvFormer uses MobileNetV2's separable convolution, CAFormer that in the two high-
resolution stages and plain attention in the two others. New are StarReLU, a squared ReLU with two learned
numbers in the place of GELU; learned factors on the shortcuts of the last two stages; no biases in the blocks.

Deviations from the paper, shared with timm and but for the last with the authors' code:
- StarReLU starts from the factor 1 and the offset 0; the paper derives 0.8944 and -0.4472;
- the norm within the perceptron that classifies has an epsilon of 1e-6, not 1e-5.
Branches are not dropped by default (published: `drop_path` 0.1 to 0.2). The names of the parameters are timm's,
except that the paper's stages are called `levels` here (`stages()` is LeNeXt's list of all parts), and 1x1
convolutions are linear layers; `adapt_checkpoint` translates the checkpoints of timm and of the authors.
"""

from __future__ import annotations

import re
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenext.models.layers import DropPath, LayerNorm2d, drop_path_rates


class StarReLU(nn.Module):
    """scale * relu(x)^2 + bias with learned numbers, any shape to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.relu(x).square() + self.bias


class ImageNorm(nn.Module):
    """Layer norm over positions and channels at once, without bias: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)  # (B, C, H, W)
        x = F.group_norm(x, 1, self.weight, eps=1e-6)
        return x.permute(0, 2, 3, 1)  # (B, H, W, C)


class Pooling(nn.Module):
    """The mean of 3x3 pixels, less the pixel itself, which the shortcut adds: (B, H, W, C) -> (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.permute(0, 3, 1, 2)  # (B, C, H, W)
        mean = F.avg_pool2d(mean, kernel_size=3, stride=1, padding=1, count_include_pad=False)
        return mean.permute(0, 2, 3, 1) - x  # (B, H, W, C)


class SeparableConv(nn.Module):
    """Linear up, depthwise 7x7, linear down: (B, H, W, C) -> (B, H, W, C), twice as wide in between."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.pwconv1 = nn.Linear(dim, 2 * dim, bias=False)
        self.act1 = StarReLU()
        self.dwconv = nn.Conv2d(2 * dim, 2 * dim, kernel_size=7, padding=3, groups=2 * dim, bias=False)
        self.pwconv2 = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.pwconv1(x))  # (B, H, W, 2C)
        x = self.dwconv(x.permute(0, 3, 1, 2))  # (B, 2C, H, W)
        return self.pwconv2(x.permute(0, 2, 3, 1))  # (B, H, W, C)


class Attention(nn.Module):
    """Multi-head self-attention among all pixels, heads of 32 channels: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, *, dim: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = dim // 32
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        qkv = self.qkv(x).reshape(B, H * W, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, H * W, C/heads)
        x = F.scaled_dot_product_attention(q, k, v)  # softmax(q k^T / sqrt(C/heads)) v
        x = x.transpose(1, 2).reshape(B, H, W, C)
        return self.dropout(self.proj(x))


class MLP(nn.Module):
    """Two linear layers on each pixel: (B, H, W, C) -> (B, H, W, C), four times as wide in between."""

    def __init__(self, *, dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim, bias=False)
        self.act = StarReLU()
        self.fc2 = nn.Linear(4 * dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.act(self.fc1(x)))  # (B, H, W, 4C)
        return self.dropout(self.fc2(x))


class Scale(nn.Module):
    """A learned factor for every channel: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Block(nn.Module):
    """Token mixer, then perceptron, each normalised first and with a shortcut: (B, C, H, W) -> (B, C, H, W).

    mixer: "pool", "conv" or "attention". scaled: whether the shortcuts have learned factors.
    """

    def __init__(self, *, dim: int, mixer: str, scaled: bool, dropout: float, drop_path: float) -> None:
        super().__init__()
        norm = ImageNorm if mixer == "pool" else partial(nn.LayerNorm, eps=1e-6, bias=False)
        scale = Scale if scaled else nn.Identity
        self.norm1 = norm(dim)
        match mixer:
            case "pool":
                self.token_mixer: nn.Module = Pooling()
            case "conv":
                self.token_mixer = SeparableConv(dim=dim)
            case "attention":
                self.token_mixer = Attention(dim=dim, dropout=dropout)
        self.res_scale1 = scale(dim)
        self.norm2 = norm(dim)
        self.mlp = MLP(dim=dim, dropout=dropout)
        self.res_scale2 = scale(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        x = self.res_scale1(x) + self.drop_path(self.token_mixer(self.norm1(x)))
        x = self.res_scale2(x) + self.drop_path(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2)  # (B, C, H, W)


class Stem(nn.Module):
    """A 7x7 convolution and a norm: (B, in_channels, H, W) -> (B, dim, H/4, W/4)."""

    def __init__(self, *, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, kernel_size=7, stride=4, padding=2)
        self.norm = LayerNorm2d(dim, eps=1e-6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Downsampling(nn.Module):
    """A norm and a 3x3 convolution: (B, in_dim, H, W) -> (B, dim, H/2, W/2)."""

    def __init__(self, *, in_dim: int, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(in_dim, eps=1e-6, bias=False)
        self.conv = nn.Conv2d(in_dim, dim, kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


class MLPClassifier(nn.Module):
    """A perceptron with a squared ReLU and a norm: (B, dim) -> (B, num_classes)."""

    def __init__(self, *, dim: int, num_classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.norm = nn.LayerNorm(4 * dim, eps=1e-6)
        self.fc2 = nn.Linear(4 * dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x)).square()  # (B, 4 * dim)
        return self.fc2(self.norm(x))


class Head(nn.Module):
    """Global average pooling, layer norm, classifier: (B, C, H, W) -> (B, num_classes)."""

    def __init__(self, *, dim: int, num_classes: int, mlp: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc = MLPClassifier(dim=dim, num_classes=num_classes) if mlp else nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(dim=(2, 3))  # (B, C)
        return self.fc(self.norm(x))


class MetaFormer(nn.Module):
    """Images (B, in_channels, H, W) -> logits (B, num_classes).

    depths, mixers: blocks of each of the four stages, and what mixes their tokens: "pool", "conv", "attention".
    dims: channels of each stage, multiples of 32.
    mlp_head: whether a perceptron classifies, or one linear layer.
    dropout: share of units dropped after both layers of every perceptron and after attention, in training.
    drop_path: share of residual branches dropped in the last block, rising linearly from 0 in the first.
    """

    min_image_size = 3  # below it the first convolution has no room

    def __init__(
        self,
        *,
        depths: tuple[int, int, int, int],
        mixers: tuple[str, str, str, str],
        mlp_head: bool,
        dims: tuple[int, int, int, int] = (64, 128, 320, 512),
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = Stem(in_channels=in_channels, dim=dims[0])
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.levels = nn.Sequential()
        for i, (depth, dim, mixer) in enumerate(zip(depths, dims, mixers, strict=True)):
            level, blocks = nn.Sequential(), nn.Sequential()
            if i > 0:
                level.add_module("downsample", Downsampling(in_dim=dims[i - 1], dim=dim))
            for _ in range(depth):
                blocks.append(Block(dim=dim, mixer=mixer, scaled=i >= 2, dropout=dropout, drop_path=next(rates)))
            level.add_module("blocks", blocks)
            self.levels.append(level)
        self.head = Head(dim=dims[-1], num_classes=num_classes, mlp=mlp_head)
        self.head_name = "head.fc.fc2" if mlp_head else "head.fc"

        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, dims[0], H/4, W/4)
        x = self.levels(x)  # (B, dims[3], H/32, W/32)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Last feature map (B, C, H, W) -> logits (B, num_classes)."""
        return self.head(features)

    def stages(self) -> list[nn.Module]:
        """The stem, each down-sampling and each block, from the image to the last feature map."""
        parts: list[nn.Module] = [self.stem]
        for level in self.levels.children():
            for name, part in level.named_children():
                parts.extend(part.children() if name == "blocks" else [part])
        return parts

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Translates the names of timm and of the authors' checkpoints, and timm's 1x1 convolutions."""
        official = any(key.startswith("downsample_layers.") for key in state)
        adapted = {}
        for key, tensor in state.items():
            if key.endswith((".fc1.weight", ".fc2.weight", ".pwconv1.weight", ".pwconv2.weight")):
                tensor = tensor.flatten(1)
            adapted[from_official(key) if official else re.sub(r"^stages\.", "levels.", key)] = tensor
        return adapted


def from_official(key: str) -> str:
    """The name that a parameter of https://github.com/sail-sg/metaformer has here."""
    for pattern, name in (
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d)\.", r"levels.\1.downsample."),
        (r"\.(pre|post)_norm\.", ".norm."),
        (r"^stages\.(\d)\.", r"levels.\1.blocks."),
        (r"^head\.", "head.fc."),
        (r"^norm\.", "head.norm."),
    ):
        key = re.sub(pattern, name, key)
    return key


VARIANTS = {
    "poolformerv2_s12": partial(MetaFormer, depths=(2, 2, 6, 2), mixers=("pool",) * 4, mlp_head=False),
    "convformer_s18": partial(MetaFormer, depths=(3, 3, 9, 3), mixers=("conv",) * 4, mlp_head=True),
    "caformer_s18": partial(MetaFormer, depths=(3, 3, 9, 3), mixers=("conv",) * 2 + ("attention",) * 2, mlp_head=True),
}
