"""What a network looked at: which parts of a picture spoke for a class.

HiResCAM (Draelos & Carin 2020, "Use HiResCAM instead of Grad-CAM for faithful explanations",
https://arxiv.org/abs/2011.08891): a feature map times the gradient of the class's score, summed over channels. Where
average pooling and one linear layer follow, it equals CAM and Grad-CAM; elsewhere it keeps the places that Grad-CAM
averages away. The sum over a map that is read by such a head is the score itself, so that nothing is left out.

The zoo's networks say themselves how they are put together (`stages()`, `forward_head`), so that no hooks are needed:
a network that others use at the same moment stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenext.classifier import Classifier, as_logits
from lenext.data.transforms import normalise
from lenext.models.pooled import CombinedNetwork, PooledNetwork, combine, pool

LEAST_SIDE = 4  # positions a side; a coarser map does not say where
COLOURS, STRENGTH = "turbo", 0.65
LUMINANCE = np.array([0.299, 0.587, 0.114])  # of red, green and blue, ITU-R BT.601

Stage = Callable[[Tensor], Tensor]
# The maps that a network reads, as leaves to differentiate by, and the outputs (1, K) that follow from them.
Reading = tuple[list[Tensor], Tensor]


@torch.enable_grad()
def heat_map(classifier: Classifier, pixels: Tensor, class_index: int | None = None) -> np.ndarray:
    """float32 (S, S) in 0..1: how much each part of a picture spoke for a class, 1 where most.

    pixels: uint8 (3, S, S), the picture as the network sees it, which is what `eval_transform` gives.
    class_index: into the classifier's classes; None is the most probable.
    Of one label a picture, the score is the class's logit against all others together, which is what its probability
    says; of several labels it is the class's own logit. Raises ValueError for a network that has no maps to look into.
    """
    x = normalise(pixels[None].to(next(classifier.model.parameters()).device), classifier.preprocess)
    several, S = classifier.task == "multi-label", pixels.shape[-1]
    for leaves, outputs in readings(classifier.model, x):
        maps = evidence(leaves, class_score(outputs, class_index, several))
        if any(m.any() for m in maps):  # else the answer comes from a class token, which reads an earlier map
            heat = spread(together(maps), S).clamp_min(0)
            return (heat / heat.max().clamp_min(1e-12)).cpu().numpy()
    kind = classifier.architecture["name"]
    raise ValueError(f"{kind} has no feature maps of {LEAST_SIDE} x {LEAST_SIDE} or more that a heat map could show")


def overlay(pixels: Tensor, heat: np.ndarray) -> np.ndarray:
    """uint8 (S, S, 3): the picture, uint8 (3, S, S), in grey, with colours where the heat, (S, S) in 0..1, is."""
    from matplotlib import colormaps

    colours = 255 * colormaps[COLOURS](heat)[:, :, :3]
    opacity = STRENGTH * heat[:, :, None]
    picture = pixels.permute(1, 2, 0).cpu().numpy() @ LUMINANCE
    return np.rint((1 - opacity) * picture[:, :, None] + opacity * colours).astype(np.uint8)


def class_score(outputs: Tensor, class_index: int | None, several: bool) -> Tensor:
    """The score of a class, of outputs (1, K), or of (1, 1) for two classes."""
    logits = as_logits(outputs)[0]
    k = int(logits.argmax()) if class_index is None else class_index
    if several or len(logits) == 1:
        return logits[k]
    return logits[k] - torch.cat([logits[:k], logits[k + 1 :]]).logsumexp(0)


def evidence(leaves: Sequence[Tensor], score: Tensor) -> list[Tensor]:
    """(h, w) of each leaf: gradient times value. Gradients of parameters are neither made nor touched."""
    gradients = torch.autograd.grad(score, leaves)
    return [grid(leaf.detach() * gradient) for leaf, gradient in zip(leaves, gradients)]


def grid(x: Tensor) -> Tensor:
    """Maps (1, C, h, w) or tokens (1, N, C), those of classes first, summed over channels: (h, w)."""
    if x.ndim == 4:
        return x[0].sum(0)
    side = math.isqrt(x.shape[1])
    return x[0, -side * side :].sum(1).reshape(side, side)


def together(maps: Sequence[Tensor]) -> Tensor:
    """Maps (h, w) of different sizes, added at the places of the coarsest that says where.

    The evidence of a maximum lies in one point of its map, however large the part of the picture is that it saw: shown
    at the map's own resolution, pooled maps are a few dots.
    """
    side = min((len(m) for m in maps if len(m) >= LEAST_SIDE), default=LEAST_SIDE)
    return torch.stack([spread(m, side, "area") for m in maps]).sum(0)


def spread(x: Tensor, size: int, mode: str = "bilinear") -> Tensor:
    """(h, w) -> (size, size) of the same sum."""
    return F.interpolate(x[None, None], (size, size), mode=mode)[0, 0] * (x.numel() / size**2)


# ------------------------------------------------------------------------------------------------ kinds of networks


def readings(model: nn.Module, x: Tensor) -> Iterator[Reading]:
    """Ways to look into a network that sees x (1, 3, S, S), the latest maps first. Networks of the zoo and of timm."""
    if isinstance(model, CombinedNetwork):
        leaves, quick = pooled_maps(model.quick, x)
        with torch.no_grad():
            for stage in model.quick.backbone.stages()[: model.boundary]:  # type: ignore[operator]
                x = stage(x)
        upper = model.tuned.stages()[model.boundary :]  # type: ignore[operator]
        for more, tuned in last_maps(upper, model.tuned.forward_head, x):  # type: ignore[arg-type]
            yield [*leaves, *more], combine(quick, tuned, model.quick_scale)
    elif isinstance(model, PooledNetwork):
        yield pooled_maps(model, x)
    elif hasattr(model, "stages") and hasattr(model, "forward_head"):
        yield from last_maps(model.stages(), model.forward_head, x)  # type: ignore[operator,arg-type]
    elif hasattr(model, "forward_features"):
        yield from last_maps([model.forward_features], model.forward_head, x)  # type: ignore[list-item,arg-type]


def last_maps(stages: Sequence[Stage], head: Stage, x: Tensor) -> Iterator[Reading]:
    """The output of the last stage that says where, then of the stage before it, and so on."""
    outputs = []
    with torch.no_grad():
        for stage in stages:
            x = stage(x.clone())  # some begin with an activation in place
            outputs.append(x)
    for i in reversed(range(len(stages))):
        if is_map(outputs[i]):
            leaf = outputs[i].requires_grad_()
            x = leaf.clone()
            for stage in stages[i + 1 :]:
                x = stage(x)
            yield [leaf], head(x)


def pooled_maps(model: PooledNetwork, x: Tensor) -> Reading:
    """Each map that is pooled, and what the head subtracts, which is the average of the training pictures, as a map of
    one place: a picture speaks for a class by what it has more of. A map counts by what is read from it, not by what
    follows it."""
    leaves = []
    with torch.no_grad():
        for index, stage in enumerate(model.backbone.stages()[: model.taps[-1] + 1]):  # type: ignore[operator]
            x = stage(x)
            if index in model.taps:
                leaves.append(x.clone())
    pooled = torch.cat([pool(leaf.requires_grad_()) for leaf in leaves], 1)
    average = model.shift[None, :, None, None].clone().requires_grad_()
    return [*leaves, average], model.head((pooled - average.flatten(1)) / model.scale)


def is_map(x: Tensor) -> bool:
    """Whether features are (1, C, h, h) or tokens (1, N, C) with enough places."""
    if x.ndim == 4:
        return x.shape[2] == x.shape[3] >= LEAST_SIDE
    return x.ndim == 3 and math.isqrt(x.shape[1]) >= LEAST_SIDE
