"""Run folders as training leaves them, with figures that a test chooses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from lenext import runs
from lenext.study.design import Comparison, Factor, Run, Study, plan

SIZES = {"small": {"model": "resnet18"}, "large": {"model": "resnet34"}}


def study(**changes: Any) -> Study:
    """Two sizes, with two optimizers each, and a question of every measure."""
    given: dict[str, Any] = {
        "question": "Does size or the optimizer matter more?",
        "factors": (Factor("size", SIZES), Factor("optimizer", {"SGD": {"optimizer": "sgd"}, "AdamW": {}})),
        "base": {"epochs": 3, "image_size": 32},
        "comparisons": (
            Comparison(question="Is larger better?", change="a larger network", cell="large, SGD",
                       against="small, SGD"),
            Comparison(question="Does AdamW overfit more?", change="AdamW", cell="small, AdamW", against="small, SGD",
                       measure="overfitting", expected="more"),
            Comparison(question="Does AdamW learn faster?", change="AdamW", cell="small, AdamW", against="small, SGD",
                       measure="speed of learning"),
        ),
        "published": {"small, SGD": 0.60, "large, SGD": 0.64},
        "published_in": "A Paper, 2020",
        "about": ("The paper trains for 90 epochs.",),
    }  # fmt: skip
    return Study(**given | changes)


def finish(
    run: Run, accuracy: float, *, overfitting: float = 0.1, epochs: int = 3, classes: int = 10, seconds: float = 60
) -> None:
    """Write the folder of a run that is done. seconds: of an epoch."""
    begin(run, classes=classes)
    for epoch in range(1, epochs + 1):
        share = 1 - math.exp(-3 * epoch / epochs)
        runs.append_metrics(run.folder, {
            "epoch": epoch, "step": 100 * epoch,
            "train_loss": 2.3 * (1 - accuracy * share), "train_accuracy": (accuracy + overfitting) * share,
            "val_loss": 2.3 * (1 - 0.9 * accuracy * share), "val_accuracy": accuracy * share,
            "lr": 0.1, "seconds": seconds + epoch, "images_per_second": 50_000 / seconds, "peak_memory_mib": 1000.0,
        })  # fmt: skip
    measured = {"n": 10_000, "accuracy": round(accuracy, 4), "top5": min(1.0, accuracy + 0.2), "nll": 1.2, "ece": 0.04}
    runs.write_json(run.folder / "evaluation.json", {"val": measured | {"accuracy": 0.0}, "test": measured})
    runs.write_text(run.folder / "report.html", "<p>a report</p>")


def begin(run: Run, *, classes: int = 10) -> None:
    """Write the folder of a run that has not come to its first epoch."""
    run.folder.mkdir(parents=True)
    settings = {"image_size": 64, "arguments": {}, **run.request}
    runs.write_config(run.folder, settings)
    runs.write_json(run.folder / runs.DATA, {"classes": [f"class {k}" for k in range(classes)]})
    environment = {"processor": "A Processor", "cores": 8, "gpu": "none", "torch": "2.9.0"}
    runs.write_json(run.folder / "environment.json", environment)


def fill(made: Study, folder: Path, seeds: int = 3, *, spread: float = 0.004) -> list[Run]:
    """Finish every run: a cell is 4 points better than the one before it, seeds differ by `spread`."""
    planned = plan(made, folder, seeds)
    rng = np.random.default_rng(0)
    places = {name: i for i, name in enumerate(made.cells)}
    for run in planned:
        place = places[run.cell.name]
        accuracy = 0.5 + 0.04 * place + 0.01 * run.seed + spread * float(rng.standard_normal())
        finish(run, accuracy, overfitting=0.05 + 0.03 * place, seconds=60 + 30 * place)
    return planned
