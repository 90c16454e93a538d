"""What is searched: the defaults lie in it, a file says something else, and what cannot be searched is named."""

from __future__ import annotations

import optuna
import pytest

from lenext import config
from lenext.config import TrainConfig
from lenext.tune import space
from lenext.tune.space import Choices, Range

CHOSEN = TrainConfig(model="lenet5", lr=5e-4, batch_size=16, augment="light", epochs=20)


@pytest.mark.parametrize(
    "chosen",
    [
        CHOSEN,
        # What pretrained networks begin with, and values outside of what is usual.
        TrainConfig(lr=1e-4, batch_size=1, warmup_epochs=9.0, label_smoothing=0.4, mixup=0.3, optimizer="lamb"),
        TrainConfig(lr=0.1, batch_size=32, weight_decay=0.0, augment="dihedral", epochs=1),
    ],
)
def test_the_defaults_are_a_point_of_the_default_space(chosen):
    found = space.default_space(chosen, {})
    start = space.start(found, chosen)
    assert start.keys() == found.keys()
    assert start.pop(space.LR_FACTOR) == 1.0
    assert start == {name: getattr(chosen, name) for name in start}


def test_every_value_of_the_default_space_is_a_setting_that_training_takes():
    for name, values in space.default_space(CHOSEN, {}, models=["lenet5", "resnet18"]).items():
        ends = values.values if isinstance(values, Choices) else (values.low, values.high)
        for value in ends:
            config.build({name.replace("lr_factor", "lr"): value})


def test_what_is_held_is_not_searched():
    found = space.default_space(CHOSEN, {"lr": 0.1, "augment": None, "seed": 3})
    assert not found.keys() & {"lr_factor", "lr", "augment"}
    assert "optimizer" in found


def test_several_models_are_searched_and_one_is_not():
    assert space.default_space(CHOSEN, {}, ["lenet5", "resnet18"])["model"] == Choices(("lenet5", "resnet18"))
    assert "model" not in space.default_space(CHOSEN, {"model": "lenet5"}, ["lenet5"])


def test_a_file_says_what_is_searched(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(
        "lr: {low: 1e-4, high: 0.1, log: true}\nmomentum: [0, 0.9]\nbatch_size: {low: 8, high: 64}\n"
        "channels_last: [true, false]\naugment: [null, strong]\nmixup: {low: 0, high: 1}\n"
    )
    assert space.read_space(file, {}) == {
        "lr": Range(1e-4, 0.1, log=True),  # YAML takes 1e-4 for a word
        "momentum": Choices((0.0, 0.9)),
        "batch_size": Range(8, 64),
        "channels_last": Choices((True, False)),
        "augment": Choices((None, "strong")),
        "mixup": Range(0.0, 1.0),
    }
    mixup = space.read_space(file, {})["mixup"]
    assert isinstance(mixup, Range)
    assert not mixup.whole  # 0 and 1 are ends of a setting that lies between
    assert space.start(space.read_space(file, {}), CHOSEN) == {
        "lr": 5e-4, "momentum": 0.9, "batch_size": 16, "mixup": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: [1, 2]", r"unknown setting 'learning_rate'"),
        ("optimiser: [sgd, adamw]", r"unknown setting 'optimiser'; did you mean 'optimizer'\?"),
        ("seed: [1, 2]", r"seed must be the same in all trials"),
        ("momentum: {low: 0.1, high: 0.9}", r"momentum is to be searched, and --momentum sets it as well"),
        ("optimizer: [sgd, adamw2]", r"optimizer is 'adamw2'; it must be one of adamw, adam, sgd"),
        ("optimizer: {low: 1, high: 2}", r"optimizer is not a number; it needs a list"),
        ("lr: 0.1", r"lr needs a list of values such as \[a, b\], or a range"),
        ("lr: [0.1]", r"lr must list at least two different values"),
        ("lr: [0.1, 0.1]", r"lr must list at least two different values"),
        ("lr: {low: 1, high: 0.1}", r"lr: low is 1 and high 0.1; low must be less than high"),
        ("lr: {low: 0, high: 0.1}", r"lr is 0.0; it must be greater than 0"),
        ("mixup: {low: 0, high: 1, log: true}", r"mixup: low is 0; on a log scale it must be greater than 0"),
        ("mixup: {low: 0, high: 1, log: 7}", r"mixup: log is 7; it must be true or false"),
        ("mixup: {low: 0, high: 1, lgo: true}", r"mixup has the key 'lgo'; a range has low, high and log"),
        ("mixup: {low: a, high: 1}", r"mixup is 'a'; it must be a number"),
        ("lr: {low: null, high: 1}", r"lr: low and high must be numbers"),
        ("batch_size: {low: 8.5, high: 64}", r"batch_size is 8.5; it must be a whole number"),
        ("label_smoothing: {low: 0, high: 1}", r"label_smoothing is 1.0; it must be at least 0 and less than 1"),
        ("arguments: [{stem: small}, {}]", r"arguments lists \{'stem': 'small'\}"),
        ("{}", r"names no setting to search"),
        ("lr: [1", r"not valid YAML"),
    ],
)
def test_what_cannot_be_searched_is_named_with_its_mend(tmp_path, text, message):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        space.read_space(file, {"momentum": 0.9})
    assert str(caught.value).startswith(str(file))


def test_values_are_drawn_from_within_with_three_digits():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    logs, wholes, choices = Range(1e-4, 1.0, log=True), Range(8, 64), Choices(("a", None, 3))
    drawn = []
    for _ in range(200):
        trial = study.ask()
        drawn.append((logs.draw(trial, "x"), wholes.draw(trial, "n"), choices.draw(trial, "c")))
    x, n, c = zip(*drawn)
    assert all(1e-4 <= value <= 1 and value == float(f"{value:.2e}") for value in x)
    assert 60 < sum(value < 1e-2 for value in x) < 140  # half of them: even in the logarithm
    assert all(type(value) is int and 8 <= value <= 64 for value in n)
    assert set(c) == {"a", None, 3}
