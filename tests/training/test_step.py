"""One step against plain torch: micro-batches, weights, clipping, sharpness, and what an undone step leaves."""

from __future__ import annotations

import copy
import math
import signal

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import nn

from lenext.training.objective import make_objective
from lenext.training.step import Step

X = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
WEIGHTS = torch.tensor([1.0, 2, 0.5] * 4)


def network(*, norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3)
    )


def make_step(model: nn.Module, **options) -> Step:
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr_scale": 1.0}], lr=0.0)
    settings = {"micro_batch": 12, "bfloat16": False, "clip_norm": 0.0, "sam": 0.0, "several": False} | options
    fabric = Fabric(accelerator="cpu", devices=1)
    module, optimizer = fabric.setup(model, optimizer)
    return Step(fabric, module, model, optimizer, make_objective("cross_entropy", 3), **settings)


def gradients(model: nn.Module, weights: torch.Tensor = WEIGHTS, rows: slice = slice(None)) -> list[torch.Tensor]:
    """Of the weighted mean loss, by plain torch."""
    model = copy.deepcopy(model)
    losses = F.cross_entropy(model(X[rows]), Y[rows], reduction="none")
    return list(torch.autograd.grad((losses * weights[rows]).sum() / weights[rows].sum(), list(model.parameters())))


def moved(model: nn.Module, before: nn.Module, lr: float) -> list[torch.Tensor]:
    return [(b - a).detach() / lr for a, b in zip(model.parameters(), before.parameters())]


def assert_close(ours, theirs) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("micro_batch", [12, 5, 1])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(micro_batch):
    model = network()
    before, step = copy.deepcopy(model), make_step(model, micro_batch=micro_batch)
    outcome = step.compute(X, Y, Y, WEIGHTS, seed=1)
    step.apply(0.1)
    assert_close(moved(model, before, 0.1), gradients(before))
    outputs = before(X)
    assert outcome.loss == pytest.approx(F.cross_entropy(outputs, Y, reduction="sum").item(), rel=1e-5)
    assert (outcome.right, outcome.seen, outcome.finite) == (int((outputs.argmax(1) == Y).sum()), 12, True)


def test_a_weight_of_zero_takes_a_picture_out():
    model, weights = network(), torch.tensor([1.0] * 6 + [0.0] * 6)
    before, step = copy.deepcopy(model), make_step(model)
    outcome = step.compute(X, Y, Y, weights, seed=1)
    step.apply(1.0)
    assert_close(moved(model, before, 1.0), gradients(before, weights, slice(6)))
    assert outcome.seen == 6
    assert outcome.loss == pytest.approx(F.cross_entropy(before(X[:6]), Y[:6], reduction="sum").item(), rel=1e-5)


def test_clipping_is_of_the_whole_gradient():
    model = network()
    before, step = copy.deepcopy(model), make_step(model, clip_norm=0.01, micro_batch=5)
    step.compute(X, Y, Y, WEIGHTS, seed=1)
    step.apply(1.0)
    expected = gradients(before)
    norm = torch.cat([g.flatten() for g in expected]).norm()
    assert_close([g * 100 for g in moved(model, before, 1.0)], [g / norm for g in expected])


def test_sharpness_takes_the_gradient_uphill_and_the_statistics_of_the_first_pass():
    model = network(norm=True)
    before, step = copy.deepcopy(model), make_step(model, sam=0.5)
    step.compute(X, Y, Y, WEIGHTS, seed=1)
    step.apply(1.0)
    plain = copy.deepcopy(before)
    first = gradients(plain)
    norm = torch.cat([g.flatten() for g in first]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(plain.parameters(), first):
            parameter.add_(0.5 * gradient / norm)
    assert_close(moved(model, before, 1.0), gradients(plain))
    before(X)
    torch.testing.assert_close(dict(model.named_buffers()), dict(before.named_buffers()))


def test_a_step_that_is_undone_leaves_nothing():
    model = network(norm=True)
    state, step = copy.deepcopy(model.state_dict()), make_step(model)
    outcome = step.compute(X.index_fill(0, torch.tensor([3]), float("nan")), Y, Y, WEIGHTS, seed=1)
    assert not outcome.finite
    step.undo()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


class Cliff(torch.autograd.Function):
    """The value itself, with an infinite slope."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.inf


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_finite_loss_with_an_infinite_gradient_is_no_step(clip_norm, monkeypatch):
    model = network(norm=True)
    step = make_step(model, clip_norm=clip_norm)
    objective = step.goal.forward
    monkeypatch.setattr(step.goal, "forward", lambda *a: Cliff.apply(objective(*a)))
    outcome = step.compute(X, Y, Y, WEIGHTS, seed=1)
    assert math.isfinite(outcome.loss)
    assert not outcome.finite


def test_a_signal_on_the_way_uphill_leaves_nothing(monkeypatch):
    model = network(norm=True)
    state, step = copy.deepcopy(model.state_dict()), make_step(model, sam=0.5)
    add = torch._foreach_add_

    def then_signal(*arguments):
        add(*arguments)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(torch, "_foreach_add_", then_signal)
    with pytest.raises(KeyboardInterrupt):
        step.compute(X, Y, Y, WEIGHTS, seed=1)
    assert not torch.equal(model.state_dict()["0.weight"], state["0.weight"])
    step.undo()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_other_errors_of_the_network_are_not_taken_for_a_lack_of_memory():
    step = make_step(network())
    with pytest.raises(RuntimeError, match=r"size of tensor|shape"):
        step.compute(X[:, :, :6], Y, Y, WEIGHTS, seed=1)
    assert step.micro_batch == 12


def forget(x):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_no_memory_for_a_single_picture_is_said_with_what_helps(monkeypatch):
    model = network()
    step = make_step(model)
    monkeypatch.setattr(model, "forward", forget)
    with pytest.raises(MemoryError, match=r"out of memory with a single picture .*--image-size"):
        step.compute(X, Y, Y, WEIGHTS, seed=1)
    assert step.micro_batch == 1


def test_several_processes_cannot_halve_and_say_the_flag_that_does(monkeypatch):
    model = network()
    step = make_step(model, micro_batch=6)
    monkeypatch.setattr(model, "forward", forget)
    monkeypatch.setattr(Fabric, "world_size", 2)
    with pytest.raises(MemoryError, match="--micro-batch 3"):
        step.compute(X, Y, Y, WEIGHTS, seed=1)
