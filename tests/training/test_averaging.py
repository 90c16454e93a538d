"""Averages of weights and sharpness-aware steps against torch's own averaging and closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from lenext.training import averaging
from lenext.training.averaging import MovingAverage, TailAverage, refresh_norms
from lenext.training.freezing import freeze
from lenext.training.sharpness import Sharpness


def network() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    return model.append(nn.Linear(4 * 4 * 4, 2)).to(memory_format=torch.channels_last)


def pictures(seed: int) -> torch.Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def step(model: nn.Module, seed: int) -> None:
    """Some training step: every weight and buffer moves."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(pictures(seed)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_moving_average_is_its_recursion_with_a_fast_beginning():
    model = network()
    average = MovingAverage(model, 0.3)
    expected = snapshot(model)
    for t in range(6):
        step(model, t)
        average.update()
        decay = min(0.3, (1 + t) / (10 + t))  # 0.1, 0.18, 0.25, 0.3, ...
        for name, tensor in model.state_dict().items():
            real = tensor.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * tensor if real else tensor.clone()
    with average.swapped_in():
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, expected[name])
        assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
        assert model[1].num_batches_tracked == 6


def test_tail_average_is_torchs_and_the_plain_mean():
    model = network()
    reference, tail, seen = AveragedModel(model, use_buffers=True), TailAverage(model), []
    for seed in range(3):
        step(model, seed)
        tail.add()
        reference.update_parameters(model)
        seen.append(snapshot(model))
    with tail.swapped_in():
        for name, tensor in reference.module.named_parameters():
            torch.testing.assert_close(model.get_parameter(name), tensor)
        running = "1.running_mean"
        torch.testing.assert_close(model.get_buffer(running), torch.stack([s[running] for s in seen]).mean(0))


@pytest.mark.parametrize("make", [lambda m: MovingAverage(m, 0.9), TailAverage], ids=["moving", "tail"])
def test_the_models_own_weights_come_back_bit_for_bit_also_after_an_exception(make):
    model = network()
    average = make(model)
    for seed in range(2):
        step(model, seed)
        getattr(average, "update" if isinstance(average, MovingAverage) else "add")()
    own = snapshot(model)

    def inside():
        with average.swapped_in():
            assert not same(own, snapshot(model))
            model(pictures(9))  # batch norms move
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    assert same(own, snapshot(model))


@pytest.mark.parametrize("taken", [0, 1, 3])
@pytest.mark.parametrize("make", [lambda m: MovingAverage(m, 0.9), TailAverage], ids=["moving", "tail"])
def test_a_restored_average_goes_on_as_the_uninterrupted_one(make, taken):
    def run(model, average, seeds):
        for seed in seeds:
            step(model, seed)
            getattr(average, "update" if isinstance(average, MovingAverage) else "add")()

    straight, model = network(), network()
    whole, first = make(straight), make(model)
    run(straight, whole, range(5))
    run(model, first, range(taken))
    state = {name: tensor.contiguous().clone() for name, tensor in first.state_dict().items()}
    second = make(model)
    second.load_state_dict(state)
    run(model, second, range(taken, 5))
    assert same(whole.state_dict(), second.state_dict())


def test_a_tail_of_nothing_leaves_the_model_alone():
    model = network()
    own = snapshot(model)
    with TailAverage(model).swapped_in():
        assert same(own, snapshot(model))


def test_refreshed_norms_are_torchs():
    model, reference = network().eval(), network().eval()
    step(model, 0)
    reference.load_state_dict(model.state_dict())
    batches = [pictures(seed) for seed in range(3)]
    refresh_norms(model, batches, seed=0)
    update_bn(batches, reference)
    assert same(snapshot(model), snapshot(reference))
    assert model[1].momentum == 0.1
    assert not model.training


def test_frozen_norms_are_not_refreshed():
    model = network()
    step(model, 0)
    freeze(model, 0.5)  # the first of two convolutions and a head
    before = snapshot(model)
    refresh_norms(model, [pictures(1)], seed=0)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"3.running_mean", "3.running_var"}


def test_refreshing_depends_on_the_seed_alone():
    def statistics(seed: int, state: int) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3))
        torch.manual_seed(state)
        refresh_norms(model, [pictures(1), pictures(2)], seed=seed)
        return model.get_buffer("1.running_mean")

    assert torch.equal(statistics(5, 1), statistics(5, 2))
    assert not torch.equal(statistics(5, 1), statistics(6, 1))


@pytest.mark.parametrize("make", [lambda m: MovingAverage(m, 0.9), TailAverage], ids=["moving", "tail"])
def test_putting_back_that_is_broken_off_half_way_is_made_good(make, monkeypatch):
    model = network()
    average = make(model)
    step(model, 1)
    getattr(average, "update" if isinstance(average, MovingAverage) else "add")()
    step(model, 2)
    own, load = snapshot(model), averaging._load

    def half(tensors, values):
        load(tensors, dict(list(values.items())[: len(values) // 2]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), average.swapped_in():
        monkeypatch.setattr(averaging, "_load", half)
    monkeypatch.undo()
    assert not same(own, snapshot(model))
    average.put_back()
    assert same(own, snapshot(model))


def test_climbing_goes_the_radius_up_the_gradient_and_back_exactly():
    model = network()
    model[2].weight.requires_grad = False
    sharpness = Sharpness(model.parameters(), 0.05)
    model(pictures(0)).square().mean().backward()
    own = snapshot(model)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
    sharpness.climb()
    for name, p in model.named_parameters():
        expected = own[name] + 0.05 * gradients[name] / norm if name in gradients else own[name]
        torch.testing.assert_close(p.detach(), expected)
        assert p.grad is None
    model.eval()(pictures(0)).square().mean().backward()
    sharpness.restore()
    assert same(own, snapshot(model))
    assert model[0].weight.grad is not None


def test_a_sharpness_aware_step_is_the_papers():
    """On a quadratic a x^2 / 2 the gradient at the climbed point is a (x + radius * sign x)."""
    x, radius = nn.Parameter(torch.tensor([2.0])), 0.5
    sharpness = Sharpness([x], radius)
    (3 * x**2 / 2).sum().backward()
    sharpness.climb()
    (3 * x**2 / 2).sum().backward()
    sharpness.restore()
    assert x.item() == 2.0
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(3 * 2.5)
