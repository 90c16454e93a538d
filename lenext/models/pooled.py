"""A linear classifier on pooled statistics of several depths of a network.

The last feature map knows objects; earlier ones know texture, edges and small things. Average, maximum and standard
deviation over the positions of several maps, side by side, are a strong description of a picture without any
training: one linear layer on them is the quick classifier. Fine-tuning starts from exactly that function, since the
same layer is the head of the network that is tuned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lenext.models import create_model


class PooledNetwork(nn.Module):
    """A backbone of the zoo with a linear head on pooled statistics. (B, 3, S, S) -> (B, num_classes).

    backbone: any network with `stages()`. taps: indices of the stages whose outputs are pooled.
    dims: channels of each tapped output.
    """

    def __init__(self, backbone: nn.Module, *, taps: tuple[int, ...], dims: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.backbone, self.taps = backbone, taps
        width = 3 * sum(dims)
        # Statistics of the training features: the scale of a deviation and of a maximum differ by far.
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.head = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 3 * sum(dims)), before shift and scale."""
        pooled = []
        for index, stage in enumerate(self.backbone.stages()):  # type: ignore[operator]
            x = stage(x)
            if index in self.taps:
                pooled.append(pool(x))
        return torch.cat(pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))

    def classify(self, features: Tensor) -> Tensor:
        """(B, 3 * sum(dims)) -> (B, num_classes)."""
        return self.head((features - self.shift) / self.scale)


class CombinedNetwork(nn.Module):
    """The quick classifier and a fine-tuned copy of the upper stages, on one frozen lower part; logits are averaged.

    The two err on different pictures: one is a convex fit on broad features, the other has bent its features to the
    task. quick: stays as it was. tuned: a second backbone whose stages from `boundary` on are used, with its head.
    `quick_scale` makes the quick classifier's logits as sure as they should be.
    """

    def __init__(self, quick: PooledNetwork, tuned: nn.Module, *, boundary: int) -> None:
        super().__init__()
        self.quick, self.tuned, self.boundary = quick, tuned, boundary
        self.quick_scale: Tensor
        self.register_buffer("quick_scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        pooled, upper = [], x
        for index, stage in enumerate(self.quick.backbone.stages()[: self.quick.taps[-1] + 1]):  # type: ignore[operator]
            x = stage(x)
            if index in self.quick.taps:
                pooled.append(pool(x))
            if index + 1 == self.boundary:
                upper = x
        for stage in self.tuned.stages()[self.boundary :]:  # type: ignore[operator]
            upper = stage(upper)
        tuned = self.tuned.forward_head(upper)  # type: ignore[operator]
        return combine(self.quick.classify(torch.cat(pooled, 1)), tuned, self.quick_scale)


def combine(quick: Tensor, tuned: Tensor, quick_scale: Tensor | float) -> Tensor:
    """The average of two classifiers' logits."""
    return (quick * quick_scale + tuned) / 2


def pool(x: Tensor) -> Tensor:
    """Average, maximum and standard deviation over positions: maps (B, C, H, W) or tokens (B, N, C) -> (B, 3C)."""
    x = x.flatten(2) if x.ndim == 4 else x.transpose(1, 2)  # (B, C, N)
    x = x.float()
    mean = x.mean(2, keepdim=True)
    deviation = ((x - mean) ** 2).mean(2).clamp_min(1e-12).sqrt()
    return torch.cat([mean.squeeze(2), x.amax(2), deviation], 1)


def choose_taps(backbone: nn.Module, image_size: int, most: int = 6) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(indices, channels) of the stages worth pooling: the last of every width and resolution, the deepest `most`.

    Left out are maps at half the input's size or more, which see too little, and a last 1 x 1 expansion, which adds
    nothing that a linear layer could not read before it. Networks that never change shape (Transformers) give the
    outputs at even distances.
    """
    x = torch.zeros(1, 3, image_size, image_size)
    shapes = []
    with torch.inference_mode():
        for stage in backbone.eval().stages():  # type: ignore[operator]
            x = stage(x)
            shapes.append(tuple(x.shape[1:]))
    last = [i for i, shape in enumerate(shapes) if i + 1 == len(shapes) or shapes[i + 1] != shape]
    maps = [i for i in last if len(shapes[i]) == 3 and shapes[i][1] < image_size // 2]
    if len(maps) > 2 and shapes[maps[-1]][1:] == shapes[maps[-2]][1:] and shapes[maps[-1]][0] > 2 * shapes[maps[-2]][0]:
        maps.pop()
    if len(maps) < 3:  # tokens, or a network too shallow to choose from
        maps = sorted({round(i) for i in torch.linspace(len(shapes) / 2, len(shapes) - 1, 4).tolist()})
    taps = tuple(maps[-most:])
    return taps, tuple(shapes[i][0] if len(shapes[i]) == 3 else shapes[i][1] for i in taps)


def build_network(architecture: dict[str, Any], *, pretrained: bool | str = False) -> nn.Module:
    """The network that a classifier file describes.

    architecture: {"name", "num_outputs", "image_size", "arguments"}; "taps" and "dims" for a head on pooled features,
    and "boundary" for that combined with fine-tuned upper stages.
    """

    def backbone() -> nn.Module:
        return create_model(
            architecture["name"],
            num_classes=architecture["num_outputs"],
            image_size=architecture["image_size"],
            pretrained=pretrained,
            **architecture["arguments"],
        )

    if "taps" not in architecture:
        return backbone()
    taps, dims = tuple(architecture["taps"]), tuple(architecture["dims"])
    quick = PooledNetwork(backbone(), taps=taps, dims=dims, num_classes=architecture["num_outputs"])
    if "boundary" not in architecture:
        return quick
    return CombinedNetwork(quick, backbone(), boundary=architecture["boundary"])
