"""The search for the fastest arithmetic and number of workers, by a clock that networks and loaders move on."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lenext import runs
from lenext.models import create_model
from lenext.training import speed
from lenext.training.speed import Speed, fastest_arithmetic, fastest_workers, remember, remembered

X, Y = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2


class Clock:
    """Time that passes only when someone sleeps."""

    now = 0.0

    def sleep(self, seconds):
        self.now += seconds

    def perf_counter(self):
        self.now += 1e-6
        return self.now


clock = Clock()


@pytest.fixture(autouse=True)
def _own_clock(monkeypatch):
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    monkeypatch.setattr(speed, "processor_has_bfloat16", lambda: True)


def loss_of(outputs):
    return F.cross_entropy(outputs.float(), Y[: len(outputs)])


class Coarse(nn.Module):
    """Right in float32, far off in bfloat16: 257 and 256 are the same number there."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[257.0], [256.0]]))

    def forward(self, x):
        if not torch.is_autocast_enabled("cpu"):
            clock.sleep(0.1)
        return F.linear(torch.ones(len(x), 1), self.weight).float() - 256


class Paced(nn.Module):
    """A linear network that takes `seconds(bfloat16, channels_last)` for its forward pass."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.linear = nn.Conv2d(3, 2, 32)

    def forward(self, x):
        last = x.is_contiguous(memory_format=torch.channels_last)
        clock.sleep(self.seconds(torch.is_autocast_enabled("cpu"), last))
        return self.linear(x).flatten(1)


def test_bfloat16_is_not_even_tried_where_the_processor_has_none_unless_asked_for(monkeypatch):
    monkeypatch.setattr(speed, "processor_has_bfloat16", lambda: False)
    tried = []

    def seconds(bfloat16, last):
        tried.append(bfloat16)
        return 0.0

    model = Paced(seconds)
    assert not fastest_arithmetic(model, X, loss_of).bfloat16
    assert tried
    assert not any(tried)
    assert fastest_arithmetic(model, X, loss_of, precision="bfloat16").bfloat16


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_the_fastest_wins_and_what_is_fixed_stays_fixed(bfloat16, last):
    model = Paced(lambda *how: 0.0 if how == (bfloat16, last) else 0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = fastest_arithmetic(model, X, loss_of)
    assert (found.bfloat16, found.channels_last) == (bfloat16, last)
    assert found.images_per_second > 0
    fixed = fastest_arithmetic(
        model, X, loss_of, precision="float32" if bfloat16 else "bfloat16", channels_last=not last
    )
    assert (fixed.bfloat16, fixed.channels_last) == (not bfloat16, not last)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


class Rounded(nn.Module):
    """Right in float32; in bfloat16 the loss, or only its gradient, is far off. Slow in float32, to tempt."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong = wrong
        self.weight = nn.Parameter(torch.tensor([[1.0, 2.0]]))

    def forward(self, x):
        outputs = self.weight.expand(len(x), 2)
        if not torch.is_autocast_enabled("cpu"):
            clock.sleep(0.1)
        elif self.wrong == "loss":
            outputs = outputs * 2
        elif self.wrong == "gradient":
            outputs = 2 * outputs - outputs.detach()
        elif self.wrong == "nan":
            outputs = outputs * float("nan")
        return outputs


def test_what_disagrees_with_float32_is_refused_unless_asked_for():
    assert fastest_arithmetic(Rounded(None), X, loss_of).bfloat16
    for wrong in ("loss", "gradient", "nan"):
        assert not fastest_arithmetic(Rounded(wrong), X, loss_of).bfloat16
    assert fastest_arithmetic(Rounded("loss"), X, loss_of, precision="bfloat16").bfloat16
    assert not fastest_arithmetic(Coarse(), X, loss_of).bfloat16


class Overshooting(nn.Module):
    """Its gradient, different for every picture, is so many times as long in bfloat16. Slow in float32, to tempt."""

    def __init__(self, times):
        super().__init__()
        self.times = times
        self.weight = nn.Parameter(torch.zeros(2, 3 * 32 * 32))

    def forward(self, x):
        if torch.is_autocast_enabled("cpu"):
            return F.linear(self.times * x.flatten(1), self.weight)
        clock.sleep(0.1)
        return F.linear(x.flatten(1), self.weight)


def test_a_gradient_may_move_in_bfloat16_as_far_as_half_of_the_pictures_move_it_and_no_farther():
    # Pictures of noise: those of each half have gradients of their own, whose mean is as long as half their difference.
    assert fastest_arithmetic(Overshooting(1.6), X, loss_of).bfloat16
    assert not fastest_arithmetic(Overshooting(2.4), X, loss_of).bfloat16
    assert not fastest_arithmetic(Overshooting(1.6), X[:3], loss_of).bfloat16  # too few to tell


def test_compiling_is_tried_only_where_it_can_pay(monkeypatch):
    model, tried = Paced(lambda *how: 0.05), []

    def compile_to_something_faster(module):
        tried.append(module)
        module.seconds = lambda *how: 0.0

    monkeypatch.setattr(Paced, "compile", compile_to_something_faster)
    monkeypatch.setattr(speed.shutil, "which", lambda name: "/usr/bin/g++")
    assert not fastest_arithmetic(model, X, loss_of, compile=False, remaining=lambda rate: 1e6).compile
    assert not fastest_arithmetic(model, X, loss_of, compile=None, remaining=lambda rate: 5.0).compile
    assert not tried
    assert fastest_arithmetic(model, X, loss_of, compile=None, remaining=lambda rate: 1e6 / rate).compile
    assert fastest_arithmetic(model, X, loss_of, compile=True).compile
    assert all(module is not model for module in tried)
    # A faster step that does not make up for the time it took to compile.
    assert not fastest_arithmetic(model, X, loss_of, compile=None, remaining=lambda rate: 1e6).compile


def test_a_compiler_that_fails_or_is_absent_changes_nothing(monkeypatch):
    monkeypatch.setattr(Paced, "compile", lambda module: 1 / 0)
    model = Paced(lambda *how: 0.0)
    assert not fastest_arithmetic(model, X, loss_of, compile=True).compile
    monkeypatch.setattr(speed.shutil, "which", lambda name: None)
    monkeypatch.setattr(Paced, "compile", lambda module: pytest.fail("tried without a compiler"))
    assert not fastest_arithmetic(model, X, loss_of, compile=None, remaining=lambda rate: 1e6).compile


def test_a_real_network_leaves_as_it_came():
    model = create_model("lenet5", num_classes=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert fastest_arithmetic(model, X, loss_of, steps=1).images_per_second > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Loader:
    """Batches that take `seconds` each to prepare; the first `ahead` are ready when the first is asked for."""

    def __init__(self, seconds, ahead, length=1000):
        self.seconds, self.ahead, self.length = seconds, ahead, length

    def __iter__(self):
        for number in range(self.length):
            if number > self.ahead:
                clock.sleep(self.seconds)
            yield number


def test_the_number_of_workers_is_what_trains_fastest():
    loaders = {0: Loader(0.05, 0), 1: Loader(0.02, 2), 2: Loader(0.0, 4), 4: Loader(0.05, 8)}
    assert fastest_workers(lambda n: iter(loaders[n]), lambda batch: clock.sleep(0.005), [4, 2, 1, 0]) == 2
    # A queue filled while the workers start is no sign of speed.
    assert fastest_workers(lambda n: iter(loaders[n]), lambda batch: None, [1, 4], batches=6) == 1
    # No gain, no workers.
    even = Loader(0.0, 0)
    assert fastest_workers(lambda n: iter(even), lambda batch: clock.sleep(0.02), [0, 2, 4]) == 0
    assert fastest_workers(lambda n: pytest.fail("nothing to compare"), print, [3]) == 3


def test_a_short_epoch_ends_the_timing():
    loaders = {0: Loader(0.05, 0, length=3), 2: Loader(0.0, 0, length=12)}
    assert fastest_workers(lambda n: iter(loaders[n]), lambda batch: None, [0, 2]) == 2


def test_a_measurement_is_found_under_its_whole_key_only():
    key = {"processor": "a", "input": [8, 3, 32, 32], "test": "whole key"}
    found = Speed(True, False, compile=True, images_per_second=12.5, micro_batch=4)
    assert remembered(key) is None
    remember(key, found)
    assert remembered(dict(reversed(key.items()))) == found
    assert remembered({**key, "input": [8, 3, 64, 64]}) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: "{",
        lambda kept: "[]",
        lambda kept: json.dumps({**kept, "value": {}}),
        lambda kept: json.dumps({**kept, "key": {}}),
        lambda kept: json.dumps({**kept, "value": {**kept["value"], "bfloat16": "yes"}}),
        lambda kept: json.dumps({**kept, "value": {**kept["value"], "images_per_second": -1.0}}),
        lambda kept: json.dumps({**kept, "value": {**kept["value"], "unknown": 1}}),
    ],
)
def test_a_damaged_file_counts_as_absent(damage):
    key = {"test": "damaged"}
    remember(key, Speed(False, False, images_per_second=1.0))
    assert remembered(key) is not None
    (file,) = (f for f in runs.cache_folder("speed").glob("*.json") if json.loads(f.read_text())["key"] == key)
    whole = file.read_text()
    file.write_text(damage(json.loads(whole)))
    assert remembered(key) is None
    file.write_text(whole)


def test_no_place_to_keep_it_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember({}, Speed(False, False, images_per_second=1.0))
    assert remembered({}) is None
