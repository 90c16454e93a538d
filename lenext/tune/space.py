"""What a search may change: for each setting a range or a list of values, by default or from the user's file.

The default learning rate depends on the optimiser, on pretraining and on the batch, so the default space holds not
the rate but its factor, `lr_factor`: 1 is what training would choose for the other settings of the trial.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lenext import config
from lenext.config import FIELDS, TrainConfig

LR_FACTOR = "lr_factor"
# Scores can be compared only where these are the same in all trials.
HELD = (
    "data", "root", "check", "seed", "val_fraction", "test_fraction", "train_fraction", "folds", "fold",
    "max_unreadable", "select",
)  # fmt: skip
Value = float | int | bool | str | None


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included; whole ones where both ends are. log: even in the logarithm."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        return type(self.low) is int and type(self.high) is int

    def draw(self, trial: Any, name: str) -> float:
        """What an Optuna trial proposes; three digits say all that matters and can be read."""
        if self.whole:
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return float(f"{trial.suggest_float(name, self.low, self.high, log=self.log):.3g}")

    def holds(self, value: Value) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


@dataclass(frozen=True)
class Choices:
    """Some values, in no order."""

    values: tuple[Value, ...]

    def draw(self, trial: Any, name: str) -> Value:
        """What an Optuna trial proposes."""
        return trial.suggest_categorical(name, self.values)

    def holds(self, value: Value) -> bool:
        return value in self.values


Space = dict[str, Range | Choices]


def default_space(chosen: TrainConfig, held: Mapping[str, Any], models: Sequence[str] = ()) -> Space:
    """The settings that matter most often, around their defaults, without those in `held`.

    chosen: the configuration of a run as training chose it, which is in the space. models: the architectures to try.
    """
    decay, warmup, batch = chosen.weight_decay, chosen.warmup_epochs, chosen.batch_size
    assert batch is not None
    longest = 2.0 if chosen.epochs is None else 0.2 * chosen.epochs
    space: Space = {
        LR_FACTOR: Range(0.1, 10.0, log=True),
        # Downwards by far: the penalty that suits sgd is a hundredth of the decay that suits adamw.
        "weight_decay": Range(decay / 1000, decay * 10, log=True) if decay else Range(0.0, 0.1),
        "optimizer": _choices(chosen.optimizer, "adamw", "sgd", "muon"),
        "batch_size": _choices(batch, max(batch // 2, 1), 2 * batch),
        "warmup_epochs": Range(0.0, max(longest, warmup)),
        "label_smoothing": Range(0.0, max(0.2, chosen.label_smoothing)),
        "augment": _choices(chosen.augment, "none", "light", "standard", "strong"),
        "mixup": _choices(chosen.mixup, 0.0, 0.2, 0.8),
    }
    if len(models) > 1:
        space = {"model": Choices(tuple(models)), **space}
    return {name: values for name, values in space.items() if name.replace(LR_FACTOR, "lr") not in held}


def read_space(path: str | Path, held: Mapping[str, Any], models: Sequence[str] = ()) -> Space:
    """The space of a YAML or JSON file: settings with a list of values, or with low, high and perhaps log.

    Raises ValueError that names file, setting and mend where something is not fit for a search.
    """
    entries = config.read_file(path)
    space: Space = {"model": Choices(tuple(models))} if len(models) > 1 else {}
    for name, entry in entries.items():
        if name in HELD:
            raise ValueError(f"{path}: {name} must be the same in all trials, or their scores cannot be compared")
        if name in held or name in space:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{path}: {name} is to be searched, and {flag} sets it as well; take one of them away")
        try:
            space[name] = _values(name, entry)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if not space:
        raise ValueError(f"{path} names no setting to search")
    return space


def start(space: Space, chosen: TrainConfig) -> dict[str, Value]:
    """The point of the space that is the defaults, for the settings whose default lies in it."""
    defaults = {**asdict(chosen), LR_FACTOR: 1.0}
    return {name: defaults[name] for name, values in space.items() if values.holds(defaults[name])}


def to_dict(space: Space) -> dict[str, Any]:
    """The space as its file would say it."""
    return {
        name: asdict(values) if isinstance(values, Range) else list(values.values) for name, values in space.items()
    }


def write_yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), allow_unicode=True, sort_keys=False, default_flow_style=False)


def _choices(default: Any, *others: Any) -> Choices:
    values = dict.fromkeys((default, *others))
    return Choices(tuple(values if isinstance(others[0], str) else sorted(values)))


def _values(name: str, entry: Any) -> Range | Choices:
    kinds = _kinds(name)
    if isinstance(entry, list):
        values = tuple(_number(value) if float in kinds or int in kinds else value for value in entry)
        if len(set(map(str, values))) < max(len(values), 2):
            raise ValueError(f"{name} must list at least two different values")
        for value in values:
            if not isinstance(value, float | int | bool | str | None):
                raise ValueError(f"{name} lists {value!r}; a search chooses between numbers, words and true or false")
            config.build({name: value})
        return Choices(tuple(float(v) if type(v) is int and float in kinds else v for v in values))
    if not isinstance(entry, dict) or not {"low", "high"} <= entry.keys():
        raise ValueError(f"{name} needs a list of values such as [a, b], or a range such as {{low: 0.1, high: 1}}")
    if unknown := next((key for key in entry if key not in ("low", "high", "log")), None):
        raise ValueError(f"{name} has the key {unknown!r}; a range has low, high and log")
    if not kinds & {int, float}:
        raise ValueError(f"{name} is not a number; it needs a list of values such as [a, b]")
    low, high, log = _number(entry["low"]), _number(entry["high"]), entry.get("log", False)
    for end in (low, high):
        config.build({name: end})
        if end is None:
            raise ValueError(f"{name}: low and high must be numbers")
    if not low < high:
        raise ValueError(f"{name}: low is {low} and high {high}; low must be less than high")
    if type(log) is not bool:
        raise ValueError(f"{name}: log is {log!r}; it must be true or false")
    if log and low <= 0:
        raise ValueError(f"{name}: low is {low}; on a log scale it must be greater than 0")
    return Range(float(low), float(high), log) if float in kinds else Range(low, high, log)


def _kinds(name: str) -> set[type]:
    assert name in FIELDS
    hint = typing.get_type_hints(TrainConfig)[name]
    return {hint, *typing.get_args(hint)}


def _number(value: Any) -> Any:
    """YAML takes 1e-4 for a word."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
