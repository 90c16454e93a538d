"""Layers that stay as they are, and how they are let go in the course of training.

A frozen parameter is marked, and so told apart from those that a network itself declares fixed, such as a table of
sinusoids: these are never trained, and optimisers never hear of them. Marks are set on the parameters that stand in
the model: freeze after whatever puts others in their place, and after DDP, which forgets what asks for no gradient.
"""

from __future__ import annotations

from torch import nn

from lenext.training.optim import is_trained, layers


def freeze(model: nn.Module, share: float) -> None:
    """Freeze the first layers, this share of all but the head, rounded; let go of the others. 1: all but the head."""
    found = layers(model)
    frozen = int(share * (len(found) - 1) + 0.5)
    for number, layer in enumerate(found):
        for parameter in filter(is_trained, layer):
            parameter.requires_grad = number >= frozen
            parameter.is_frozen = number < frozen  # type: ignore[attr-defined]
            if number < frozen:
                parameter.grad = None


def keep_still(model: nn.Module) -> None:
    """After `model.train()`: what is wholly frozen runs as in evaluation, with its batch norms' own statistics."""
    for module in model.modules():
        parameters = list(module.parameters())
        frozen = any(getattr(p, "is_frozen", False) for p in parameters)
        if frozen and not any(p.requires_grad for p in parameters):
            module.eval()


def frozen_share(epoch: int, share: float, unfreeze_epochs: int) -> float:
    """The share that is frozen in an epoch counted from 1: evenly down to 0 over the first epochs, if there are any."""
    if not unfreeze_epochs:
        return share
    return share * max(1 - (epoch - 1) / unfreeze_epochs, 0.0)
