"""Muon: momentum whose every matrix is replaced by the nearest orthogonal one, so that no direction is left behind.

Keller Jordan, Yuchen Jin, Vlado Boza, Jiacheng You, Franz Cesista, Laker Newhouse, Jeremy Bernstein: "Muon: An
optimizer for hidden layers in neural networks", 2024, https://kellerjordan.github.io/posts/muon/. It is for the hidden
layers: convolution kernels, as matrices of outputs by inputs, and linear layers. The first layer, the head, biases,
norms, tokens and grouped convolutions, whose kernels are many small matrices, take AdamW steps.

A step is scaled to the size that AdamW's usually has, so that one learning rate and one weight decay serve both parts
and are those of AdamW: Liu et al. 2025, "Muon is Scalable for LLM Training", https://arxiv.org/abs/2502.16982.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

# Of x -> a x + b x^3 + c x^5, which takes singular values in (0, 1] to about 1 in five rounds; from the authors.
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 5
# Root mean square of AdamW's usual step at learning rate 1.
ADAMW_STEP = 0.2


class Muon(torch.optim.Optimizer):
    """Groups with "orthogonal": True take Muon steps, with Nesterov momentum; the others, of which there are, AdamW's.

    The parameters of orthogonal groups are matrices (O, I) or kernels (O, I, ...), in any memory format.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum})
        self._adamw = torch.optim.AdamW(self._groups(orthogonal=False), lr=lr, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        # Anew at every step, since loading a state puts other objects in their place.
        self._adamw.param_groups, self._adamw.state = self._groups(orthogonal=False), self.state
        self._adamw.step()
        for group in self._groups(orthogonal=True):
            self._step_orthogonally(group)
        return loss

    def _groups(self, *, orthogonal: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["orthogonal"] == orthogonal]

    def _step_orthogonally(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        gradients = [p.grad for p in parameters]
        momenta = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            momenta.append(state["momentum_buffer"])
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        # Matrices of one size go through together, which fills a GPU better.
        alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, update in zip(parameters, ahead):
            alike[len(update), update[0].numel()].append((parameter, update.flatten(1)))
        for shape, pairs in alike.items():
            updates = orthogonalise(torch.stack([update for _, update in pairs]))
            for (parameter, _), update in zip(pairs, updates):
                size = group["lr"] * ADAMW_STEP * max(shape) ** 0.5
                parameter.add_(update.reshape(parameter.shape), alpha=-size)


def hidden_kernels(model: nn.Module, layers: list[list[nn.Parameter]]) -> set[int]:
    """ids of the kernels and matrices that Muon is for: of convolutions without groups and of linear layers, those in
    the first and the last of the layers excepted."""
    outer = {id(p) for layer in (layers[0], layers[-1]) for p in layer}
    owners = [m for m in model.modules() if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)]
    return {id(m.weight) for m in owners} - outer


def orthogonalise(x: Tensor) -> Tensor:
    """Nearly U V^T of each matrix U S V^T: singular values of 0.7 to 1.2, but for the smallest. (N, O, I) -> the same.

    Newton-Schulz iteration, on a GPU in bfloat16, as published. float32, which CPUs prefer, is exact enough to multiply
    a wide matrix only once, by what becomes of its small Gram matrix in all rounds: a third of the time.
    """
    if x.shape[1] > x.shape[2]:
        return orthogonalise(x.mT).mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    if x.is_cuda:
        x = x.bfloat16()
    if x.is_cuda or x.shape[2] < 2 * x.shape[1]:
        for _ in range(ROUNDS):
            x = _polynomial(x @ x.mT) @ x
        return x
    gram = x @ x.mT  # (N, O, O)
    product = factor = _polynomial(gram)
    for _ in range(ROUNDS - 1):
        gram = factor @ gram @ factor
        factor = _polynomial(gram)
        product = factor @ product
    return product @ x


def _polynomial(gram: Tensor) -> Tensor:
    """a I + b G + c G^2: (N, O, O) -> the same."""
    result = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
    result.diagonal(dim1=1, dim2=2).add_(A)
    return result
