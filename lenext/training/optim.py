"""Optimisers, the parameters that decay, and the learning rate at a step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

# A layer that starts from random weights on top of pretrained ones has further to go.
FRESH_SCALE = 3.0


def parameter_groups(model: nn.Module, weight_decay: float, fresh: nn.Module | None = None) -> list[dict[str, Any]]:
    """Groups of the parameters that are trained: matrices and kernels decay; biases, norms and tokens do not.

    fresh: a layer whose learning rate is FRESH_SCALE times that of the rest ("lr_scale" of its groups).
    """
    head = {id(parameter) for parameter in fresh.parameters()} if fresh is not None else set()
    groups = []
    for scale in (1.0, FRESH_SCALE):
        chosen = [p for p in model.parameters() if p.requires_grad and (id(p) in head) == (scale == FRESH_SCALE)]
        decayed = [p for p in chosen if p.ndim > 1 and p.shape[0] > 1]
        spared = [p for p in chosen if p.ndim <= 1 or p.shape[0] == 1]
        groups.append({"params": decayed, "weight_decay": weight_decay, "lr_scale": scale})
        groups.append({"params": spared, "weight_decay": 0.0, "lr_scale": scale})
    return [group for group in groups if group["params"]]


def make_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    fresh: nn.Module | None = None,
) -> torch.optim.Optimizer:
    """adamw, adam (which takes no decay, as published) or sgd with plain momentum. fresh: see parameter_groups."""
    groups = parameter_groups(model, 0.0 if name == "adam" else weight_decay, fresh)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    if name == "adam":
        return torch.optim.Adam(groups, lr=lr, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=True)
    raise ValueError(f"optimizer is {name!r}; choose one of adamw, adam, sgd")


def default_lr(optimizer: str, pretrained: bool, batch_size: int) -> float:
    """A peak learning rate that is safe without a search: linear in the batch for sgd, by square root for Adam."""
    if optimizer == "sgd":
        return (0.01 if pretrained else 0.1) * batch_size / 256
    return (4e-4 if pretrained else 1e-3) * math.sqrt(batch_size / 64)


def learning_rate(
    step: int,
    *,
    peak: float,
    schedule: str,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: float = 0.0,
    lr_decay: float = 0.95,
) -> float:
    """The rate at a step counted from 0: linear warm-up, then the schedule.

    cosine falls to zero at the end of the run; constant stays; decay holds in the first epoch after the warm-up
    and is multiplied by `lr_decay` in each later one.
    """
    warmup = round(warmup_epochs * steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    if schedule == "decay":
        return peak * lr_decay ** ((step - warmup) // steps_per_epoch)
    if schedule == "cosine":
        total = max(epochs * steps_per_epoch - warmup, 1)
        return peak * 0.5 * (1 + math.cos(math.pi * min((step - warmup) / total, 1.0)))
    raise ValueError(f"schedule is {schedule!r}; choose one of cosine, constant, decay")
