"""Optimisers, the layers whose rates differ, the parameters that decay, and the learning rate at a step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lenext.models.weights import head_names
from lenext.training.muon import Muon, hidden_kernels

# A layer that starts from random weights on top of pretrained ones has further to go.
FRESH_SCALE = 3.0


# ------------------------------------------------------------------------------------------------------------- layers
def layers(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters from the picture to the head, a layer each for stem, residual or Transformer block, and head.

    Every parameter comes once. What hangs on the network itself, such as tokens and position tables, belongs to the
    first layer, and a norm on its own to the layer before it. The head is what classifies, alone.
    """
    first = list(model.parameters(recurse=False))
    head = [p for name in head_names(model) for p in model.get_submodule(name).parameters()]
    placed = {id(p) for p in (*first, *head)}
    found: list[list[nn.Parameter]] = []
    for part in _parts(model):
        layer = [p for p in part if id(p) not in placed]
        placed.update(id(p) for p in layer)
        if found and all(p.ndim < 2 for p in layer):
            found[-1] += layer
        elif layer:
            found.append(layer)
    first += [p for p in model.parameters() if id(p) not in placed]
    if first and found:
        found[0] = first + found[0]
    elif first:
        found = [first]
    return [*found, head] if head else found


def _parts(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """The parameters of one part after the other; some come again."""
    if hasattr(model, "group_matcher"):  # timm knows the order of its networks
        from timm.models import group_parameters

        matcher: Any = model.group_matcher
        numbers = group_parameters(model, matcher(coarse=False), reverse=True)
        named = dict(model.named_parameters())
        for number in sorted(set(numbers.values())):
            yield [p for name, p in named.items() if numbers[name] == number]
        return
    if _has_stages(model):
        for stage in model.stages():  # type: ignore[operator]
            yield list(stage.parameters())
    for child in model.children():
        if _is_container(child):
            yield from _parts(child)
        else:
            yield list(child.parameters())


def _is_container(module: nn.Module) -> bool:
    """Whether a module is several layers: a sequence, a network of its own, or something with a sequence of blocks."""
    sequences = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    inner = (getattr(module, name, None) for name in ("blocks", "layers"))
    return isinstance(module, sequences) or _has_stages(module) or any(isinstance(part, sequences) for part in inner)


def _has_stages(module: nn.Module) -> bool:
    return inspect.ismethod(getattr(module, "stages", None))


# --------------------------------------------------------------------------------------------------------- parameters
def is_trained(parameter: nn.Parameter) -> bool:
    """Whether training may ever change it. What a network itself declares fixed never is; what is frozen may yet be."""
    return parameter.requires_grad or getattr(parameter, "is_frozen", False)


def parameter_groups(
    model: nn.Module, weight_decay: float, *, fresh: nn.Module | None = None, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups of the parameters that are trained, now or once they are no longer frozen.

    Weights of more than one dimension decay; biases, norms, tokens and tables of positions do not. "lr_scale" of a
    group is what the learning rate is multiplied by: `layer_decay` for every layer between it and the head, and
    FRESH_SCALE for the layer `fresh`.
    """
    new = {id(p) for p in fresh.parameters()} if fresh is not None else set()
    names = {id(p): name for name, p in model.named_parameters()}
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for distance, layer in enumerate(reversed(layers(model))):
        for p in filter(is_trained, layer):
            scale = layer_decay**distance * (FRESH_SCALE if id(p) in new else 1.0)
            decays = p.ndim > 1 and names[id(p)].endswith("weight")
            empty = {"params": [], "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale}
            groups.setdefault((scale, decays), empty)["params"].append(p)
    return list(groups.values())


# --------------------------------------------------------------------------------------------------------- optimisers
def make_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    fresh: nn.Module | None = None,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """adamw; adam (which takes no decay, as published); sgd; lamb or lion, from timm; or muon.

    momentum: of sgd and muon. nesterov: of sgd; muon always looks ahead. fresh, layer_decay: see parameter_groups.
    The model is on its device already. Raises ValueError for settings that cannot work and for a missing package.
    """
    groups = parameter_groups(model, 0.0 if name == "adam" else weight_decay, fresh=fresh, layer_decay=layer_decay)
    match name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, fused=True)
        case "sgd":
            if nesterov and not momentum:
                raise ValueError("nesterov looks ahead along the momentum, which is 0: set --momentum 0.9, for example")
            optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
            if momentum:
                optimizer.register_step_pre_hook(_start_momentum)
            return optimizer
        case "muon":
            hidden = hidden_kernels(model, layers(model))
            split = [
                {**group, "params": chosen, "orthogonal": orthogonal}
                for group in groups
                for orthogonal in (True, False)
                if (chosen := [p for p in group["params"] if (id(p) in hidden) == orthogonal])
            ]
            return Muon(split, lr=lr, momentum=momentum)
        case "lamb" | "lion":
            try:
                from timm import optim as timm_optim
            except ImportError:
                raise ValueError(f"optimizer {name} needs one more package: pip install 'lenext[optimizers]'") from None
            if name == "lion":
                return timm_optim.Lion(groups, lr=lr)
            lamb = timm_optim.Lamb(groups, lr=lr, max_grad_norm=None)  # gradients are clipped before, as asked for
            lamb.register_state_dict_post_hook(_count_in_numbers)
            return lamb
    raise ValueError(f"optimizer is {name!r}; choose one of adamw, adam, sgd, lamb, lion, muon")


def _start_momentum(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Momentum from zero for whatever has its first gradient: torch's fused SGD starts all of a group at once."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None and "momentum_buffer" not in optimizer.state[p]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def _count_in_numbers(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """timm counts LAMB's steps in the groups, in tensors; the groups of a checkpoint are numbers."""
    for group in state["param_groups"]:
        if "step" in group:
            group["step"] = int(group["step"])


# ------------------------------------------------------------------------------------------------------ learning rate
def default_lr(optimizer: str, pretrained: bool, batch_size: int) -> float:
    """A peak learning rate that is safe without a search: linear in the batch for sgd, by its square root for others.

    Lion's steps, all of one size, want a third to a tenth of AdamW's rate (Chen et al. 2023,
    https://arxiv.org/abs/2302.06675), LAMB's twice as much (You et al. 2019, https://arxiv.org/abs/1904.00962: 0.005
    for 512 pictures); Muon's are scaled to AdamW's.
    """
    if optimizer == "sgd":
        return (0.01 if pretrained else 0.1) * batch_size / 256
    share = {"lion": 0.2, "lamb": 2.0}.get(optimizer, 1.0)
    return share * (4e-4 if pretrained else 1e-3) * math.sqrt(batch_size / 64)


def learning_rate(
    step: int,
    *,
    peak: float,
    schedule: str,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: float = 0.0,
    lr_decay: float = 0.95,
    lr_epochs: int = 30,
    final_lr: float = 0.0,
) -> float:
    """The rate at a step counted from 0: linear warm-up, then the schedule, whose epochs count from there.

    cosine: falls to `final_lr` of the peak at the end of the run. constant. decay: held for one epoch, then times
    `lr_decay` in each later one. step: times `lr_decay` every `lr_epochs`. exponential: times `lr_decay` an epoch, a
    little at every step. one_cycle: has a warm-up of its own, from a 25th of the peak over three tenths of the run,
    then falls to `final_lr` of the peak; both ways along a cosine (Smith 2018, https://arxiv.org/abs/1803.09820).
    """
    total = epochs * steps_per_epoch
    if schedule == "one_cycle":
        top = 0.3 * total - 1
        if step <= top:
            return peak * _along_cosine(1 / 25, 1.0, step / top)
        return peak * _along_cosine(1.0, final_lr, (step - top) / (total - 1 - top))
    warmup = round(warmup_epochs * steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / warmup
    step, total = step - warmup, max(total - warmup, 1)
    match schedule:
        case "cosine":
            return peak * _along_cosine(1.0, final_lr, min(step / total, 1.0))
        case "constant":
            return peak
        case "decay":
            return peak * lr_decay ** (step // steps_per_epoch)
        case "step":
            return peak * lr_decay ** (step // (lr_epochs * steps_per_epoch))
        case "exponential":
            return peak * lr_decay ** (step / steps_per_epoch)
    raise ValueError(f"schedule is {schedule!r}; choose one of cosine, constant, decay, step, exponential, one_cycle")


def _along_cosine(start: float, end: float, share: float) -> float:
    """From start (share 0) to end (share 1) along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
