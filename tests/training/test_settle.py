"""What is settled before the first step: epochs within a time budget, pictures at once within a memory, workers."""

from __future__ import annotations

import dataclasses
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import lenext
from lenext import runs
from lenext.training import allocator, begin, settle
from lenext.training.objective import make_objective
from lenext.training.speed import bytes_for_backward
from lenext.training.task import Targets, Task
from tests.pictures import make_folder

STEPS, BATCH, HELD_OUT = 10, 8, 24


class Source:
    """STEPS batches of BATCH pictures."""

    def __len__(self):
        return STEPS

    def epoch(self, epoch, start=0):
        for number in range(start, STEPS):
            index = torch.arange(number * BATCH, (number + 1) * BATCH)
            yield torch.randn(BATCH, 12, generator=torch.Generator().manual_seed(number)), index

    def in_order(self):
        return self.epoch(0)


@pytest.fixture
def task() -> Task:
    """A network that takes no time."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 2))
    return Task(
        module=network, train=Source(), val=Source(), val_pictures=HELD_OUT,
        prepare=lambda x, epoch: x, predict=network, place=lambda **where: None,
    )  # fmt: skip


def labels() -> Targets:
    samples: Any = SimpleNamespace(sets=None, classes=("a", "b"), labels=(torch.arange(STEPS * BATCH) % 2).numpy())
    return Targets(samples, torch.device("cpu"))


def settled(task: Any, make_task: Any = None, *, evaluation=None, processes=1, **given):
    """(the configuration, the sentences)."""
    config = begin.configure({"batch_size": BATCH, "speed": "off", "model": "lenet5", "recipe": "fit", **given})
    fabric: Any = SimpleNamespace(
        device=torch.device("cpu"), world_size=processes, is_global_zero=True, broadcast=lambda what: what
    )
    said: list[str] = []
    config = settle.settle(
        config, task, make_task, labels(), make_objective("cross_entropy", 2), fabric,
        started=time.time(), answers=HELD_OUT, evaluation=evaluation, say=said.append,
    )  # fmt: skip
    return config, " | ".join(said)


def test_epochs_are_as_many_as_fit_with_validation_evaluation_and_report(task, monkeypatch):
    monkeypatch.setattr(settle, "_pace", lambda *_: 1.0)  # a batch a second
    validation = evaluation = HELD_OUT / BATCH / 3
    epoch, end = settle.SLACK * (STEPS + validation), settle.RESERVE + evaluation
    config, said = settled(task, time_budget=end + 3.5 * epoch)
    assert config.epochs == 3
    assert "epochs 3: as many as fit into" in said
    assert settled(task, time_budget=end + 3.5 * epoch, evaluation=evaluation + 2 * epoch)[0].epochs == 1
    assert settled(task, time_budget=1e9)[0].epochs == settle.MOST_EPOCHS
    assert settled(task, time_budget=1e9, epochs=7)[0].epochs == 7


def test_a_budget_that_is_too_small_is_said_and_ends_with_the_quick_classifier_if_there_is_one(
    task, monkeypatch, caplog
):
    monkeypatch.setattr(settle, "_pace", lambda *_: 1.0)
    config, said = settled(task, time_budget=5.0)
    assert config.epochs == 1
    assert "one epoch takes about 13 s" in caplog.text
    config, said = settled(task, time_budget=5.0, evaluation=1.0)
    assert config.epochs is None
    assert "kept: the quick classifier; one epoch takes about 13 s" in said


def test_the_pace_is_that_of_whole_batches_and_moves_nothing(task):
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    config, _ = settled(task, epochs=1)
    config = dataclasses.replace(config, micro_batch=3)
    goal, targets = make_objective("cross_entropy", 2), labels()
    asked: list[int] = []
    task.module.register_forward_hook(lambda module, inputs, output: asked.append(len(output)))
    assert settle._pace(config, task, targets, goal, torch.device("cpu")) > 0
    assert asked == [3, 3, 2] * settle.PACED
    assert all(torch.equal(before[name], value) for name, value in task.module.state_dict().items())
    assert all(parameter.grad is None for parameter in task.module.parameters())


def test_what_the_backward_pass_needs_is_counted_without_the_weights():
    model, x = nn.Sequential(nn.Tanh(), nn.Linear(12, 5), nn.Tanh()), torch.randn(8, 12)
    # Both outputs of tanh; the linear layer's input is the first of them.
    assert bytes_for_backward(model, x, torch.sum) == 4 * 8 * (12 + 5)
    assert bytes_for_backward(model, x[:4].clone(), torch.sum) == 4 * 4 * (12 + 5)


@pytest.mark.parametrize("speed", ["off", "auto"])
def test_a_small_memory_takes_fewer_pictures_at_once_on_a_cpu(task, monkeypatch, speed):
    assert settled(task, epochs=1, speed=speed)[0].micro_batch == BATCH
    monkeypatch.setattr(settle, "TIMED_PICTURES", (4, 64))
    few, _ = next(task.train.epoch(0))
    goal = make_objective("cross_entropy", 2)
    needed = bytes_for_backward(task.module, few[:4], lambda outputs: goal(outputs, torch.arange(4) % 2).mean())
    a_picture = settle.ROOM * needed / 4
    weights = 3 * 4 * sum(p.numel() for p in task.module.parameters())
    available = (3.9 * a_picture + weights) / settle.AVAILABLE
    monkeypatch.setattr(allocator, "memory", lambda: (available, 1e12))
    config, said = settled(task, epochs=1, speed=speed)
    assert config.micro_batch == 2
    assert "micro-batch 2: more pictures at once do not fit" in said
    assert settled(task, epochs=1, speed=speed, micro_batch=5)[0].micro_batch == 5  # as the user says


def test_the_number_of_workers_is_kept_for_the_next_run(task, monkeypatch):
    timed: list[list[int]] = []

    def fastest(make_batches, step, candidates):
        step(next(make_batches(0)))
        timed.append(list(candidates))
        return candidates[-1]

    monkeypatch.setattr(settle, "fastest_workers", fastest)
    monkeypatch.setattr(settle, "_is_fed", lambda *_: False)
    monkeypatch.setattr(settle, "WORTH_BATCHES", 1)
    settings = {"epochs": 1, "speed": "auto", "data": "photos of the number of workers"}
    first, said = settled(None, lambda workers: task, **settings)
    assert "that trains fastest" in said
    again, said = settled(None, lambda workers: task, **settings)
    assert "as measured before on this machine" in said
    assert first.workers == again.workers == timed[0][-1]
    settled(None, lambda workers: task, **settings, augment="strong")
    assert len(timed) == 2


def test_nothing_is_tried_with_a_network_that_will_be_divided():
    config, _ = settled(None, pytest.fail, processes=2, strategy="fsdp", epochs=1, speed="auto")
    assert (config.precision, config.micro_batch) == ("float32", BATCH // 2)
    assert config.workers is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data"), ["a", "b", "c"], 12, size=32)


def test_without_time_for_an_epoch_the_quick_classifier_is_the_result(folder, tmp_path, caplog):
    run = begin.train(begin.configure({"data": str(folder), "image_size": 64, "time_budget": 1.0}), tmp_path / "run")
    choices = " | ".join(runs.read_json(run / "choices.json"))
    for choice in ("views 1: an answer takes the picture as it is", "arithmetic ", "kept: the quick classifier; one"):
        assert choice in choices
    assert "more than the time budget of 1 s" in caplog.text
    assert not runs.read_metrics(run)
    assert runs.is_finished(run)
    assert lenext.load(run).predict(folder / "a/0.png").label in "abc"


def test_the_choices_are_kept_as_they_are_made(folder, tmp_path):
    settings = {"data": str(folder), "image_size": 64, "epochs": 1, "views": 3, "speed": "off", "lr": 1e-6}
    run = begin.train(begin.configure(settings), tmp_path / "run")
    choices = runs.read_json(run / "choices.json")
    usual = "bfloat16" if torch.cuda.is_available() else "float32"
    assert any(choice.startswith(f"arithmetic {usual}") for choice in choices)
    assert sum(choice.startswith("kept: the ") for choice in choices) == 1
    assert not any(choice.startswith("views") for choice in choices)  # that was said
    assert lenext.load(run).views == 3
    assert lenext.load(run / "quick.safetensors").views == 3
