"""Sharpness-aware minimisation: the gradient is taken where the loss is worst nearby, so that flat minima are found.

Pierre Foret, Ariel Kleiner, Hossein Mobahi, Behnam Neyshabur: "Sharpness-Aware Minimization for Efficiently Improving
Generalization", 2021, https://arxiv.org/abs/2010.01412. A step takes two passes:

    gradients -> climb() -> gradients -> restore() -> optimizer.step()
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Sharpness:
    """Moves parameters `radius` up along the gradient of them all, and back. Those without a gradient stay."""

    def __init__(self, parameters: Iterable[nn.Parameter], radius: float) -> None:
        self.parameters, self.radius = list(parameters), radius
        self._moved: list[Tensor] = []
        self._own: list[Tensor] = []

    @torch.no_grad()
    def climb(self) -> None:
        """Add radius * g / |g| to the weights and drop the gradients g."""
        moved: list[Tensor] = [p for p in self.parameters if p.grad is not None]
        # Before anything moves, so that `restore` may come at any moment.
        self._own = [p.clone() for p in moved]
        self._moved = moved
        gradients = [p.grad for p in moved if p.grad is not None]
        if gradients:
            norm = nn.utils.get_total_norm(gradients, foreach=True)
            steps = torch._foreach_mul(gradients, self.radius / norm.clamp_min(1e-12))
            torch._foreach_add_(moved, list(steps))
        for p in moved:
            p.grad = None

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back, bit for bit; the gradients stay. Also after a climb that was broken off."""
        if self._moved:
            torch._foreach_copy_(self._moved, self._own)
        self._moved, self._own = [], []
