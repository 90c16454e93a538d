"""One trial: a run of the program in a process of its own, followed by the figures that it writes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenext import runs
from lenext.training import process

KEPT = (runs.CONFIG, runs.DATA, runs.METRICS, "train.log", "choices.json")
KEPT_OF_BEST = (*KEPT, runs.CLASSIFIER, runs.SAMPLES, "model.txt")
TENTHS = 10
Row = dict[str, Any]


@dataclass(frozen=True)
class Figures:
    """Of the validation pictures, after an epoch."""

    accuracy: float
    loss: float
    epoch: int


class Watch:
    """Tells an Optuna trial what its run has reached, tenth by tenth, until the study says that it may stop.

    Only values decide, not how often one looks: a fast run and one that is taken up again are judged alike.
    reported: {tenth: value} that the study knows from before. say: shows people how it goes.
    """

    def __init__(
        self, proposal: Any, run: Path, select: str, reported: Mapping[int, float], say: Callable[[str], object]
    ) -> None:
        self.proposal, self.run, self.select, self.say = proposal, run, select, say
        self.reported, self.epochs = set(reported), 0
        self.kept: Figures | None = None
        self.pruned = False

    def look(self, rows: list[Row]) -> bool:
        """Take note of the metrics so far; whether the run may stop."""
        self.epochs = self.epochs or runs.read_config(self.run)["epochs"]
        for number, row in enumerate(rows, start=1):
            self.kept = best_figures(rows[:number], self.select)
            if self.kept is None:
                continue
            for tenth in range(1, row["epoch"] * TENTHS // self.epochs + 1):
                if tenth < max(self.reported, default=0):
                    continue
                if tenth not in self.reported:
                    self.reported.add(tenth)
                    self.proposal.report(self.kept.accuracy, tenth)
                self.pruned = row["epoch"] < self.epochs and self.proposal.should_prune()
                if self.pruned:
                    return True
        if self.kept is not None:
            epoch = f"epoch {rows[-1]['epoch']}/{self.epochs}"
            self.say(f"trial {self.proposal.number}: {epoch}, {100 * self.kept.accuracy:.2f} %")
        return False


def follow(
    arguments: Sequence[str],
    run: Path,
    *,
    started: Callable[[process.Mark | None], object],
    look: Callable[[list[Row]], bool],
) -> str | None:
    """Run the program until it ends, or until `look` says that it may stop; None, or why it failed.

    started: is given what tells the process from others later, see `process.stop_left_over`.
    look: is given the metrics of the run folder whenever there are more, and returns whether to stop.
    """
    training = process.Process(arguments, run)
    try:
        started(training.mark())
        seen = 0
        while True:
            ended = training.has_ended()
            rows = runs.read_metrics(run)
            if len(rows) > seen:
                seen = len(rows)
                if look(rows):
                    return None
            if ended:
                return training.failure()
            time.sleep(process.POLL)
    finally:
        training.stop()


def tidy(run: Path, *, best: bool) -> None:
    """Keep of a finished trial's run folder what says how it went and, of the best one, the classifier."""
    kept = KEPT_OF_BEST if best else KEPT
    for path in run.iterdir() if run.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in kept:
            path.unlink()


def best_figures(rows: Sequence[Row], select: str) -> Figures | None:
    """Those that the run keeps its model by: the first of the best, of the weights or of their moving average."""
    found = [
        Figures(row[f"{kind}val_accuracy"], row[f"{kind}val_loss"], row["epoch"])
        for row in rows
        for kind in ("", "ema_")
        if row.get(f"{kind}val_loss") is not None  # null: no finite number
    ]
    if select == "val_loss":
        return min(found, key=lambda one: one.loss, default=None)
    return max(found, key=lambda one: (one.accuracy, -one.loss), default=None)
