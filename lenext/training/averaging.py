"""Averages of the weights over training, which lie in flatter valleys than the weights of any one step.

A running average follows the weights step by step (Polyak & Juditsky 1992); the plain mean of the last epochs' ends is
stochastic weight averaging (Izmailov et al. 2018, https://arxiv.org/abs/1803.05407), after which the statistics of
batch norms have to be taken anew. Both live where the model lives: make them once it is on its device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lenext.data.loader import derive_seed
from lenext.training.freezing import keep_still


class _Average:
    """Weights and buffers that can stand in for a model's own."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.average: dict[str, Tensor] = {}
        self._own: dict[str, Tensor] = {}

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; afterwards its own again, bit for bit."""
        now = _tensors(self.model)
        self._own = {name: now[name].clone() for name in self.average}
        try:
            _load(now, self.average)
            yield
        finally:
            self.put_back()

    def put_back(self) -> None:
        """The model's own weights, where others stand in for them, wholly or in part.

        An interruption may divide `swapped_in` anywhere, and this too: whoever handles it calls this once more.
        """
        _load(_tensors(self.model), self._own)
        self._own = {}


class MovingAverage(_Average):
    """Exponential moving average of a model's weights and buffers. Whole numbers are copied.

    decay: what is kept of the average at a step, in the long run. At step t it is at most (1 + t) / (10 + t), so that
    the random weights of the beginning are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay, self.steps = decay, 0
        self.average = {name: tensor.clone() for name, tensor in _tensors(model).items()}

    def update(self) -> None:
        """Take in the weights as they are after an optimiser step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        _move(self.average, _tensors(self.model), 1 - decay)
        self.steps += 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"steps": torch.tensor(self.steps), **_prefixed(self.average)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.steps = int(state["steps"])
        _load(self.average, _bare(state))


class TailAverage(_Average):
    """Plain mean of a model's weights and buffers at the moments of `add`. Whole numbers are the last ones.

    Before the first of them there is nothing to swap in, and the model keeps its own.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.count = 0

    def add(self) -> None:
        """Take in the weights as they are."""
        if not self.count:
            self.average = {name: tensor.clone() for name, tensor in _tensors(self.model).items()}
        self.count += 1
        _move(self.average, _tensors(self.model), 1 / self.count)

    def state_dict(self) -> dict[str, Tensor]:
        return {"count": torch.tensor(self.count), **_prefixed(self.average)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.count = int(state["count"])
        self.average = {name: tensor.clone() for name, tensor in _tensors(self.model).items()} if self.count else {}
        _load(self.average, _bare(state))


@torch.no_grad()
def refresh_norms(model: nn.Module, batches: Iterable[Tensor], *, seed: int) -> None:
    """The statistics of batch norms anew: the mean over batches of what each finds in it.

    batches: inputs of the model, on its device. seed: of dropout. Frozen layers keep their statistics. As torch's
    `update_bn`, which knows no frozen layers.
    """
    was_training = model.training
    model.train()
    keep_still(model)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean
        for number, x in enumerate(batches if norms else ()):
            torch.manual_seed(derive_seed(seed, number))
            model(x)
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        model.train(was_training)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers by name, in place."""
    return {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}


def _move(average: dict[str, Tensor], now: dict[str, Tensor], share: float) -> None:
    """A share of the way from the average to what is now."""
    real = [name for name, tensor in average.items() if tensor.is_floating_point()]
    whole = [name for name, tensor in average.items() if not tensor.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in real], [now[name] for name in real], share)
    if whole:
        torch._foreach_copy_([average[name] for name in whole], [now[name] for name in whole])


def _prefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"average.{name}": tensor for name, tensor in tensors.items()}


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What was `_prefixed`."""
    return {name.removeprefix("average."): value for name, value in state.items() if name.startswith("average.")}


def _load(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        tensors[name].copy_(value)
