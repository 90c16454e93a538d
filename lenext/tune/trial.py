"""One trial: a run of the program in a process of its own, followed by the figures that it writes.

A process of its own keeps trials apart: nothing is left over from the one before, and a crash ends one trial only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lenext import runs

PROGRAM = [sys.executable, "-m", "lenext.cli"]
POLL = 0.2  # seconds between looks at the figures
GRACE = 30.0  # seconds to save and end in after SIGTERM
KEPT = (runs.CONFIG, runs.DATA, runs.METRICS, "train.log", "choices.json")
KEPT_OF_BEST = (*KEPT, runs.CLASSIFIER, runs.SAMPLES, "model.txt")
TENTHS = 10
DIVERGED = "the training diverged"  # what the program says then
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
    arguments: Sequence[str], run: Path, *, started: Callable[[list[float]], object], look: Callable[[list[Row]], bool]
) -> str | None:
    """Run the program until it ends, or until `look` says that it may stop; None, or why it failed.

    started: is given what tells the process from others later, see `stop_left_over`.
    look: is given the metrics of the run folder whenever there are more, and returns whether to stop.
    """
    said = _messages(run)
    said.parent.mkdir(parents=True, exist_ok=True)
    with open(said, "wb") as file:
        # In a session of its own, so that Ctrl-C reaches this program alone, which stops the other in order.
        process = subprocess.Popen(
            [*PROGRAM, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    try:
        with contextlib.suppress(psutil.NoSuchProcess):
            started([process.pid, psutil.Process(process.pid).create_time()])
        seen = 0
        while True:
            status = process.poll()
            rows = runs.read_metrics(run)
            if len(rows) > seen:
                seen = len(rows)
                if look(rows):
                    return None
            if status is not None:
                return _reason(status, said)
            time.sleep(POLL)
    finally:
        _stop(process)


def stop_left_over(mark: list[float] | None) -> None:
    """End the process of an earlier search that was killed and could not end it itself."""
    if mark is None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(int(mark[0]))
        if process.create_time() != mark[1]:  # another process has that number now
            return
        process.terminate()
        end = time.monotonic() + GRACE
        # Its parent is gone, and in a container often nobody is there to take note of its end.
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > end:
                process.kill()
            time.sleep(POLL)


def tidy(run: Path, *, best: bool) -> None:
    """Keep of a finished trial's run folder what says how it went and, of the best one, the classifier."""
    kept = KEPT_OF_BEST if best else KEPT
    for path in run.iterdir() if run.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in kept:
            path.unlink()


def forget_messages(run: Path) -> None:
    """Remove what the process said: train.log has it."""
    _messages(run).unlink(missing_ok=True)


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


def _messages(run: Path) -> Path:
    return run.with_name(run.name + ".log")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _reason(status: int, said: Path) -> str | None:
    """The program's own sentence about its failure, else the last thing that was said."""
    if status == 0:
        return None
    if status < 0:
        memory = "; the system does that when memory runs out" if status == -signal.SIGKILL else ""
        return f"the process was killed by {signal.Signals(-status).name}{memory}"
    lines = [line for line in said.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    own = [line.removeprefix("lenext: ") for line in lines if line.startswith("lenext: ")]
    return (own or lines or [f"exit status {status}"])[-1].strip()
