"""DeiT: the Vision Transformer trained on ImageNet alone, and taught by a convolutional network.

Hugo Touvron, Matthieu Cord, Matthijs Douze, Francisco Massa, Alexandre Sablayrolles, Hervé Jégou: "Training
data-efficient image transformers & distillation through attention", 2020, https://arxiv.org/abs/2012.12877.
Input 224 x 224, RGB.

The networks are the Vision Transformers of `vit.py`; what is new is how they are trained, with strong
augmentation in place of a huge set of pictures. The distilled ones read a distillation token besides the class
token. Each of the two has a classifier of its own after the last block: the class head learns from the labels,
the distillation head from the decisions of a teacher. The answer is the mean of both.

Deviations from the paper:
- the mean is that of the logits, as in the authors' code, where the paper adds the two softmax outputs;
- the class token starts near 0, as in `vit.py`; the distillation token as published;
- branches are not dropped by default (published: `drop_path=0.1`).
The names of the parameters are those of the authors and of timm.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from lenext.models.vit import VisionTransformer, add_positions, resize_positions


class AddTokens(nn.Module):
    """Puts class and distillation token first and adds the positions: (B, N, dim) -> (B, 2 + N, dim)."""

    def __init__(self, cls_token: nn.Parameter, dist_token: nn.Parameter, pos_embed: nn.Parameter) -> None:
        super().__init__()
        self.cls_token = cls_token
        self.dist_token = dist_token
        self.pos_embed = pos_embed

    def forward(self, x: Tensor) -> Tensor:
        return add_positions(x, torch.cat([self.cls_token, self.dist_token], dim=1), self.pos_embed)


class DistilledVisionTransformer(VisionTransformer):
    """Images (B, in_channels, image_size, image_size) -> logits (B, num_classes), the mean of two classifiers.

    The arguments are those of `VisionTransformer`. To distil a teacher, train on `forward_distilled`.
    """

    head_names = ("head", "head_dist")

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
        super().__init__(
            patch_size=patch_size,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            dropout=dropout,
            drop_path=drop_path,
        )
        self.dist_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 2 + self.grid**2, dim))
        self.head_dist = nn.Linear(dim, num_classes)

        for weight in (self.dist_token, self.pos_embed, self.head_dist.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.zeros_(self.head_dist.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_distilled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> logits of the class head and of the distillation head, each (B, num_classes)."""
        return self.forward_heads(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images -> normalised tokens (B, 2 + N, dim), class and distillation token first."""
        x = self.patch_embed(x)  # (B, N, dim), N = (H/patch) * (W/patch)
        tokens = torch.cat([self.cls_token, self.dist_token], dim=1)  # (1, 2, dim)
        x = self.dropout(add_positions(x, tokens, self.pos_embed))  # (B, 2 + N, dim)
        return self.norm(self.blocks(x))  # (B, 2 + N, dim)

    def forward_heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised tokens (B, 2 + N, dim) -> logits of the class head and of the distillation head."""
        return self.head(features[:, 0]), self.head_dist(features[:, 1])

    def forward_head(self, features: Tensor) -> Tensor:
        """Normalised tokens (B, 2 + N, dim), class and distillation token first -> logits (B, num_classes)."""
        from_labels, from_teacher = self.forward_heads(features)
        return (from_labels + from_teacher) / 2

    def stages(self) -> list[nn.Module]:
        """The embedding, each block and the last norm, from the image to the tokens (B, 2 + N, dim)."""
        tokens = AddTokens(self.cls_token, self.dist_token, self.pos_embed)
        return [nn.Sequential(self.patch_embed, tokens, self.dropout), *self.blocks, self.norm]

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fits the position table of another image size."""
        if "pos_embed" in state:
            state = {**state, "pos_embed": resize_positions(state["pos_embed"], self.grid, num_prefix=2)}
        return state


VARIANTS = {
    "deit_tiny_patch16_224": partial(VisionTransformer, patch_size=16, dim=192, depth=12, num_heads=3),
    "deit_small_patch16_224": partial(VisionTransformer, patch_size=16, dim=384, depth=12, num_heads=6),
    "deit_base_patch16_224": partial(VisionTransformer, patch_size=16, dim=768, depth=12, num_heads=12),
    "deit_tiny_distilled_patch16_224": partial(
        DistilledVisionTransformer, patch_size=16, dim=192, depth=12, num_heads=3
    ),
    "deit_small_distilled_patch16_224": partial(
        DistilledVisionTransformer, patch_size=16, dim=384, depth=12, num_heads=6
    ),
    "deit_base_distilled_patch16_224": partial(
        DistilledVisionTransformer, patch_size=16, dim=768, depth=12, num_heads=12
    ),
}
