"""What a run keeps: the best model as the classifier file, and checkpoints, often enough and no oftener."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lenext import runs
from lenext.classifier import Classifier
from lenext.training import checkpoint
from lenext.training.averaging import MovingAverage, TailAverage
from lenext.training.checkpoint import Checkpoint, Progress
from lenext.training.sharding import like, whole

log = logging.getLogger("lenext")

# Of the time, for saving; and how soon after one checkpoint the next may come, seconds.
COST, SOONEST = 0.01, 5.0


class Keeper:
    """The state of a training between memory and run folder.

    The best model waits in memory for the next checkpoint: with it, and only then, files change, so that what lies in
    the folder always fits together. every: seconds between checkpoints; None: as often as costs a hundredth of the
    time. select: what makes a model the best.
    """

    def __init__(
        self,
        run: Path,
        classifier: Classifier,
        optimizer: torch.optim.Optimizer,
        ema: MovingAverage | None,
        tail: TailAverage | None,
        progress: Progress,
        fabric: Any,
        *,
        every: float | None,
        select: str,
    ) -> None:
        self.run, self.classifier, self.optimizer, self.progress = run, classifier, optimizer, progress
        self.ema, self.tail, self.fabric, self.every, self.select = ema, tail, fabric, every, select
        self.best: tuple[Classifier, dict[str, Tensor]] | None = None  # better than the one in the run folder
        self.cost, self.last = 0.0, time.monotonic()
        self.begun, self.saves, self.spent = time.monotonic(), 0, 0.0

    def restore(self, saved: Checkpoint) -> None:
        """Put everything where it was."""
        saved.restore(self.classifier.model, self.optimizer)
        if self.ema is not None:
            now = self.ema.state_dict()
            self.ema.load_state_dict({name: like(now[name], value) for name, value in saved.part("ema").items()})
        if self.tail is not None:
            self.tail.load_state_dict(saved.part("tail"))
        if self.fabric.is_global_zero:  # the others have read it too: they were needed to set up the network
            saved.stand_first()

    def put_back(self) -> None:
        """The model's own weights, if an average was to stand in for them."""
        for average in (self.ema, self.tail):
            if average is not None:
                average.put_back()

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint; the first process decides."""
        wait = max(self.cost / COST, SOONEST) if self.every is None else self.every
        return self.fabric.is_global_zero and time.monotonic() - self.last >= wait

    def save_best(self) -> None:
        """The best model, if it is a new one."""
        if self.best is not None and self.fabric.is_global_zero:
            classifier, weights = self.best
            classifier.save(self.run / runs.CLASSIFIER, weights)
            self.best = None

    def save(self) -> None:
        """The best model, if it is a new one, and a checkpoint. Every process has to take part."""
        begin = time.monotonic()
        extra = {"ema": self.ema.state_dict() if self.ema else {}, "tail": self.tail.state_dict() if self.tail else {}}
        state = checkpoint.state_of(self.classifier.model, self.optimizer, extra)
        self.save_best()
        if self.fabric.is_global_zero:
            checkpoint.save(self.run, state, self.progress)
        self.cost, self.last = time.monotonic() - begin, time.monotonic()
        self.saves, self.spent = self.saves + 1, self.spent + self.cost

    def report(self) -> None:
        """Say what saving has cost since training began."""
        share = 100 * self.spent / max(time.monotonic() - self.begun, 1e-9)
        log.info("checkpoints: %d, %.1f s, %.2f %% of the time", self.saves, self.spent, share)

    def offer(self, figures: dict[str, float], epoch: int, weights: str) -> bool:
        """Keep the model as it is now if its validation figures are the best; weights: a word for what they are."""
        if not better(figures, self.progress.best, self.select):
            return False
        about = self.classifier.about | {"validation": figures | {"epoch": epoch, "weights": weights}}
        state = self.classifier.model.state_dict()
        self.best = (
            dataclasses.replace(self.classifier, about=about),
            {name: whole(tensor).to("cpu", copy=True) for name, tensor in state.items()},
        )
        # Last: an interruption before that leaves the bar where it was, and the model is offered again.
        self.progress.best, self.progress.best_epoch = figures, epoch
        return True


def better(figures: dict[str, float], best: dict[str, float] | None, select: str) -> bool:
    """Whether validation figures beat the best so far; at equal accuracy the lower loss wins."""
    if not math.isfinite(figures["val_loss"]):
        return False
    if best is None:
        return True
    if select == "val_loss":
        return figures["val_loss"] < best["val_loss"]
    return (figures["val_accuracy"], -figures["val_loss"]) > (best["val_accuracy"], -best["val_loss"])
