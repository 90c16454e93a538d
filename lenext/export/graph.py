"""A classifier as one graph: raw RGB pixels of any size in, probabilities out.

Every runtime resizes in a way of its own, which is the commonest reason why a deployed network disagrees with the
trained one. Here the resize is two matrix products, whose weights the graph computes from the size of the picture, and
which every runtime computes alike.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lenext.classifier import Classifier, as_logits
from lenext.data.transforms import LONGEST, dihedral
from lenext.inference.backends import Normalised
from lenext.preprocess import Preprocess

# A bicubic filter's free parameter, as Pillow and PyTorch set it where they antialias.
CUBIC = -0.5


class Square(nn.Module):
    """uint8 pictures (B, H, W, 3) of any size -> uint8 (B, 3, S, S), as `eval_transform` makes them.

    PyTorch resizes bytes with whole numbers: rows first, then columns, rounded after each, with weights of 15 bits. The
    same is done here with floats, in which such numbers and their sums are exact or nearly so.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.size, self.short = preprocess.image_size, preprocess.resize
        self.bicubic = preprocess.interpolation == "bicubic"

    def forward(self, pictures: Tensor) -> Tensor:
        _, H, W, _ = pictures.shape
        x = pictures.permute(0, 3, 1, 2).float()  # (B, 3, H, W)
        x = as_bytes(x @ self.weights(W, H).T)  # (B, 3, H, S)
        x = as_bytes(self.weights(H, W) @ x)  # (B, 3, S, S)
        return x.to(torch.uint8)

    def weights(self, side: int, other: int) -> Tensor:
        """(S, side): how much each pixel along a side of the picture counts for each pixel of the crop's side."""
        # Of a very long side only the middle counts, as `eval_transform` cuts it: by whole pixels of the short one.
        kept: Any = side - torch.sym_max(side - LONGEST * other, 0) // (4 * other) * (4 * other)
        resized: Any = self.short * torch.sym_max(kept, other) // other
        margin = resized - self.size
        first = margin // 2 + (margin % 2) * (margin // 2 % 2)  # halves go to the even number, as Python's round does
        pixels = 2 * torch.arange(side) + 1  # where their middles are, in half pixels
        # Distances in units of 1 / (2 * resized) pixels are whole numbers, exact in float32 as far as the filter
        # reaches: OpenVINO has no float64. Counted from the centre of the picture they stay small in a panorama.
        middles = (2 * (torch.arange(self.size) + first) + 1 - resized) * kept
        whole = torch.floor(middles / resized)
        parts = middles - whole * resized
        distances = (pixels - side - whole[:, None]) * resized - parts[:, None]
        border = pixels.float() * resized - kept  # of the first pixel of all; its large weight sets the rounding
        reach: Any = 2 * torch.sym_max(kept, resized)  # the filter grows where the picture shrinks
        return in_15_bits(self.kernel(torch.cat([distances, border[None]]).abs().double() / reach))[:-1]

    def kernel(self, x: Tensor) -> Tensor:
        if not self.bicubic:
            return (1 - x).clamp(min=0)
        near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * CUBIC
        return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def in_15_bits(weights: Tensor) -> Tensor:
    """The weights (S, N), whose rows shall sum to one, as multiples of the power of two that PyTorch chooses."""
    weights = weights / weights.sum(1, keepdim=True)
    unit = torch.exp2(torch.ceil(torch.log2(32767.5 / weights.max())) - 1)
    return (torch.floor(weights * unit + 0.5) / unit).float()


def as_bytes(x: Tensor) -> Tensor:
    return torch.floor(x + 0.5).clamp(0, 255)


class Answers(nn.Module):
    """uint8 (B, 3, S, S) -> probabilities (B, K), as the classifier gives them."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network = Normalised(classifier.model, classifier.preprocess)
        self.views, self.temperature = classifier.views, classifier.temperature
        self.several = classifier.task == "multi-label"

    def forward(self, x: Tensor) -> Tensor:
        views = torch.cat([dihedral(x, view) for view in range(self.views)])  # (views * B, 3, S, S)
        logits = as_logits(self.network(views))
        logits = logits.unflatten(0, (self.views, -1)).mean(0) / self.temperature  # (B, K)
        return logits.sigmoid() if self.several else logits.softmax(1)
