"""T2T-ViT: overlapping patches that are joined step by step into tokens, then a deep and narrow Transformer.

Li Yuan, Yunpeng Chen, Tao Wang, Weihao Yu, Yujun Shi, Zihang Jiang, Francis E. H. Tay, Jiashi Feng, Shuicheng
Yan: "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet", 2021,
https://arxiv.org/abs/2101.11986. Input 224 x 224, RGB.

ViT cuts the image once, into patches that know nothing of each other. Here a soft split takes overlapping
patches as tokens, one layer of attention relates them, and the tokens are laid out as an image again; after
three splits one token stands for 16 x 16 pixels and knows the edges and textures around it. As the first tokens
are many, that attention is a Performer, whose cost grows with their number and not with its square, or an
ordinary Transformer (the `t` variants). The backbone is ViT's, deeper and narrower.

Deviations from the paper, all of the authors' code, whose parameter names and weights fit:
- in the token layers the shortcut starts from the values, since input and output differ in width, and the
  Transformer divides by the root of the input's width, not of the keys';
- the Performer's layers drop a tenth of their units in training (`token_dropout`).
Branches are not dropped by default (published: 0.1). The position table and the Performer's random projections
are parameters that are not trained. A checkpoint's table of another image size is interpolated, as by
the authors (but antialiased): computed anew, it would place the patches elsewhere than the blocks have learned.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenext.models.layers import DropPath, drop_path_rates
from lenext.models.vit import MLP, AddPositions, Attention, add_positions, resize_positions

TOKEN_DIM = 64


class SoftSplit(nn.Module):
    """Overlapping patches as tokens: (B, C, H, W) -> (B, H/stride * W/stride, C * kernel_size**2)."""

    def __init__(self, *, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return F.unfold(x, self.kernel_size, stride=self.stride, padding=self.padding).transpose(1, 2)


class Restructure(nn.Module):
    """Tokens laid out as an image again: (B, size * size, C) -> (B, C, size, size)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).unflatten(2, (self.size, self.size))


class TokenPerformer(nn.Module):
    """Attention that is linear in the number of tokens, then perceptron: (B, N, in_dim) -> (B, N, dim).

    exp(q . k) is the expectation of features(q) . features(k) over random projections w. With all keys summed
    first, no N x N table is needed. Choromanski et al. 2020, https://arxiv.org/abs/2009.14794
    """

    def __init__(self, *, in_dim: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.kqv = nn.Linear(in_dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.Dropout(dropout))
        self.w = nn.Parameter(torch.empty(dim // 2, dim), requires_grad=False)
        nn.init.orthogonal_(self.w, gain=math.sqrt(dim // 2))

    def forward(self, x: Tensor) -> Tensor:
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)  # each (B, N, dim)
        k, q = self.features(k), self.features(q)  # (B, N, M)
        total = q @ k.sum(dim=1).unsqueeze(2) + 1e-8 * len(self.w)  # (B, N, 1)
        x = q @ (k.transpose(1, 2) @ v) / total  # (B, N, dim)
        x = v + self.dropout(self.proj(x))
        return x + self.mlp(self.norm2(x))

    def features(self, x: Tensor) -> Tensor:
        """exp(w x - |x|^2 / 2) for M random projections w: (B, N, dim) -> (B, N, M)."""
        # Left out: 1 / sqrt(M), which cancels. With it the 1e-8 would stand bare, and ONNX's tools drop that as 0.
        wide = x.float()  # the squares of bfloat16 are too coarse for an exponent
        exponent = F.linear(wide, self.w.float()) - wide.square().sum(dim=-1, keepdim=True) / 2
        return exponent.exp().to(x.dtype)


class TokenAttention(nn.Module):
    """Self-attention with one head and a shortcut from the values: (B, N, in_dim) -> (B, N, dim)."""

    def __init__(self, *, in_dim: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.scale = in_dim**-0.5
        self.qkv = nn.Linear(in_dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)  # each (B, 1, N, dim)
        x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return (v + self.dropout(self.proj(x))).squeeze(1)


class TokenTransformer(nn.Module):
    """Attention, then perceptron, each on normalised tokens: (B, N, in_dim) -> (B, N, dim)."""

    def __init__(self, *, in_dim: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.attn = TokenAttention(in_dim=in_dim, dim=dim, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim=dim, hidden_dim=dim, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


TokenLayer = type[TokenPerformer] | type[TokenTransformer]


class TokensToToken(nn.Module):
    """Three soft splits with two layers of attention in between: (B, C, H, W) -> (B, H/16 * W/16, dim)."""

    def __init__(self, layer: TokenLayer, *, in_channels: int, dim: int, image_size: int, dropout: float) -> None:
        super().__init__()
        self.soft_split0 = SoftSplit(kernel_size=7, stride=4, padding=2)
        self.attention1 = layer(in_dim=in_channels * 7 * 7, dim=TOKEN_DIM, dropout=dropout)
        self.restructure1 = Restructure(image_size // 4)
        self.soft_split1 = SoftSplit(kernel_size=3, stride=2, padding=1)
        self.attention2 = layer(in_dim=TOKEN_DIM * 3 * 3, dim=TOKEN_DIM, dropout=dropout)
        self.restructure2 = Restructure(image_size // 8)
        self.soft_split2 = SoftSplit(kernel_size=3, stride=2, padding=1)
        self.project = nn.Linear(TOKEN_DIM * 3 * 3, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention1(self.soft_split0(x))  # (B, H/4 * W/4, 64)
        x = self.restructure1(x)  # (B, 64, H/4, W/4)
        x = self.attention2(self.soft_split1(x))  # (B, H/8 * W/8, 64)
        x = self.restructure2(x)  # (B, 64, H/8, W/8)
        return self.project(self.soft_split2(x))  # (B, H/16 * W/16, dim)

    def stages(self) -> list[nn.Module]:
        return [
            nn.Sequential(self.soft_split0, self.attention1, self.restructure1),
            nn.Sequential(self.soft_split1, self.attention2, self.restructure2),
            nn.Sequential(self.soft_split2, self.project),
        ]


class ConvolutionTokens(nn.Module):
    """The paper's comparison, three strided convolutions: (B, C, H, W) -> (B, H/16 * W/16, dim)."""

    def __init__(self, *, in_channels: int, dim: int) -> None:
        super().__init__()
        self.soft_split0 = nn.Conv2d(in_channels, TOKEN_DIM, kernel_size=7, stride=4, padding=2)
        self.soft_split1 = nn.Conv2d(TOKEN_DIM, TOKEN_DIM, kernel_size=3, stride=2, padding=1)
        self.project = nn.Conv2d(TOKEN_DIM, dim, kernel_size=3, stride=2, padding=1)
        self.as_tokens = SoftSplit(kernel_size=1, stride=1, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.soft_split0(x)  # (B, 64, H/4, W/4)
        x = self.soft_split1(x)  # (B, 64, H/8, W/8)
        return self.as_tokens(self.project(x))  # (B, H/16 * W/16, dim)

    def stages(self) -> list[nn.Module]:
        return [self.soft_split0, self.soft_split1, nn.Sequential(self.project, self.as_tokens)]


class UnbiasedAttention(Attention):
    """ViT's attention without a bias on queries, keys and values: (B, N, C) -> (B, N, C)."""

    def __init__(self, *, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__(dim=dim, num_heads=num_heads, dropout=dropout)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)


class Block(nn.Module):
    """Attention, then perceptron, each on normalised tokens and with a shortcut: (B, N, C) -> (B, N, C)."""

    def __init__(self, *, dim: int, num_heads: int, mlp_ratio: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = UnbiasedAttention(dim=dim, num_heads=num_heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim=dim, hidden_dim=mlp_ratio * dim, dropout=dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class T2TViT(nn.Module):
    """Images (B, in_channels, image_size, image_size) -> logits (B, num_classes).

    dim, depth, num_heads, mlp_ratio: of the backbone; `mlp_ratio` times `dim` is its perceptrons' width.
    tokens: how they are made, by "performer", "transformer" or "convolution".
    image_size: side of the input, pixels; a multiple of 16, else a ValueError.
    dropout: share of units dropped in the backbone, after the positions and after every linear layer but `qkv`.
    token_dropout: the same in the layers of attention that make the tokens; the convolutions have none.
    drop_path: share of the backbone's branches dropped in the last block, rising linearly from 0 in the first.
    """

    head_name = "head"

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: int,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        tokens: str = "performer",
        dropout: float = 0.0,
        token_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if image_size < 16 or image_size % 16:
            below = max(image_size // 16, 1) * 16
            raise ValueError(f"image_size must be a multiple of 16, not {image_size}: {below} and {below + 16} work.")
        layers: dict[str, TokenLayer] = {"performer": TokenPerformer, "transformer": TokenTransformer}
        if tokens in layers:
            self.tokens_to_token: TokensToToken | ConvolutionTokens = TokensToToken(
                layers[tokens], in_channels=in_channels, dim=dim, image_size=image_size, dropout=token_dropout
            )
        elif tokens == "convolution":
            self.tokens_to_token = ConvolutionTokens(in_channels=in_channels, dim=dim)
        else:
            raise ValueError(f'tokens must be "performer", "transformer" or "convolution", not {tokens!r}.')
        self.grid = image_size // 16
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(sinusoids(1 + self.grid**2, dim).unsqueeze(0), requires_grad=False)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(
                Block(dim=dim, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout, drop_path=rate)
                for rate in drop_path_rates(drop_path, depth)
            )
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens_to_token(x)  # (B, N, dim), N = H/16 * W/16
        x = self.dropout(add_positions(x, self.cls_token, self.pos_embed))  # (B, 1 + N, dim)
        x = self.norm(self.blocks(x))  # (B, 1 + N, dim)
        return self.forward_head(x)

    def forward_head(self, features: Tensor) -> Tensor:
        """Normalised tokens (B, 1 + N, dim), the class token first -> logits (B, num_classes)."""
        return self.head(features[:, 0])

    def stages(self) -> list[nn.Module]:
        """The three splits, the positions, each block and the last norm, from the image to (B, 1 + N, dim)."""
        positions = nn.Sequential(AddPositions(self.cls_token, self.pos_embed), self.dropout)
        return [*self.tokens_to_token.stages(), positions, *self.blocks, self.norm]

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fits the position table of another image size."""
        if "pos_embed" in state:
            state = {**state, "pos_embed": resize_positions(state["pos_embed"], self.grid)}
        return state


def sinusoids(length: int, dim: int) -> Tensor:
    """Fixed positions, as in "Attention Is All You Need": (length, dim), sines and cosines in turn."""
    positions = torch.arange(length, dtype=torch.float64).unsqueeze(1)  # (length, 1)
    channels = torch.arange(dim)
    angles = positions / 10000 ** (2 * (channels // 2).double() / dim)  # (length, dim)
    return torch.where(channels % 2 == 0, angles.sin(), angles.cos()).float()


VARIANTS = {
    "t2t_vit_7": partial(T2TViT, dim=256, depth=7, num_heads=4, mlp_ratio=2, token_dropout=0.1),
    "t2t_vit_10": partial(T2TViT, dim=256, depth=10, num_heads=4, mlp_ratio=2, token_dropout=0.1),
    "t2t_vit_12": partial(T2TViT, dim=256, depth=12, num_heads=4, mlp_ratio=2, token_dropout=0.1),
    "t2t_vit_14": partial(T2TViT, dim=384, depth=14, num_heads=6, mlp_ratio=3, token_dropout=0.1),
    "t2t_vit_19": partial(T2TViT, dim=448, depth=19, num_heads=7, mlp_ratio=3, token_dropout=0.1),
    "t2t_vit_24": partial(T2TViT, dim=512, depth=24, num_heads=8, mlp_ratio=3, token_dropout=0.1),
    "t2t_vit_t_14": partial(T2TViT, dim=384, depth=14, num_heads=6, mlp_ratio=3, tokens="transformer"),
    "t2t_vit_t_19": partial(T2TViT, dim=448, depth=19, num_heads=7, mlp_ratio=3, tokens="transformer"),
    "t2t_vit_t_24": partial(T2TViT, dim=512, depth=24, num_heads=8, mlp_ratio=3, tokens="transformer"),
}
