"""What the search found: a line a trial as it goes, trials.csv, best.yaml, and one HTML page without scripts."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenext import runs
from lenext.config import TrainConfig
from lenext.evaluation.figures import percent
from lenext.evaluation.metrics import accuracy_interval
from lenext.evaluation.page import write_page
from lenext.evaluation.report import duration, share
from lenext.tune import figures, space
from lenext.tune.space import LR_FACTOR, Space

TABLE, BEST, PAGE = "trials.csv", "best.yaml", "report.html"


@dataclass(frozen=True)
class Trial:
    """A trial that has ended. score, val_loss: of the epoch that its run kept, None where there is none.

    state: done, pruned, diverged or failed. drawn: what the search proposed; settings: what came of it. curve:
    {tenth of the run: best score so far}.
    """

    number: int
    state: str
    score: float | None
    val_loss: float | None
    epoch: int | None
    seconds: float
    reason: str
    drawn: dict[str, Any]
    settings: dict[str, Any]
    curve: dict[int, float]


def read(study: Any) -> list[Trial]:
    """The trials of an Optuna study that have ended, in their order."""
    rows = []
    for one in study.trials:
        if not one.state.is_finished():
            continue
        about = one.user_attrs
        kept = about.get("kept", {})
        state = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}[one.state.name]
        rows.append(
            Trial(
                number=one.number,
                state="diverged" if state == "pruned" and "reason" in about else state,
                score=kept.get("accuracy"),
                val_loss=kept.get("loss"),
                epoch=kept.get("epoch"),
                seconds=about.get("seconds", 0.0),
                reason=about.get("reason", ""),
                drawn=one.params,
                settings=about.get("settings", {}),
                curve=one.intermediate_values,
            )
        )
    return rows


def best(trials: Sequence[Trial]) -> Trial | None:
    """The trial of the highest score, among equals of the lowest loss; None where none came to its end."""
    return max((one for one in trials if one.state == "done"), key=_rank, default=None)


def heading() -> str:
    return f"{'trial':>5}  {'score':>8}  {'':<8}  {'time':>7}  settings"


def line(trials: Sequence[Trial], one: Trial) -> str:
    """One trial of them as a line under `heading`."""
    state = "best" if one == best(trials) else one.state
    score = "" if one.score is None else f"{100 * one.score:.2f} %"
    settings = "  ".join(f"{name} {shown(value)}" for name, value in one.settings.items())
    why = f"  ({one.reason})" if one.reason else ""
    return f"{one.number:>5}  {score:>8}  {state:<8}  {duration(one.seconds):>7}  {settings}{why}"


def write_tables(folder: Path, trials: Sequence[Trial], names: Sequence[str]) -> None:
    """trials.csv, with a column for each of the settings `names`, and best.yaml where there is a best trial."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["trial", "state", "val_accuracy", "val_loss", "epoch", "seconds", *names, "reason"])
    for one in trials:
        settings = [one.settings.get(name) for name in names]
        writer.writerow([one.number, one.state, one.score, one.val_loss, one.epoch, one.seconds, *settings, one.reason])
    runs.write_text(folder / TABLE, file.getvalue())
    top = best(trials)
    if top is not None and top.score is not None:
        score = f"validation accuracy {100 * top.score:.2f} % in epoch {top.epoch}"
        comment = f"# Trial {top.number} of {len(trials)}: {score}\n# lenext train DATA --config {BEST}\n"
        text = (folder / "trials" / f"{top.number:04d}.yaml").read_text(encoding="utf-8")
        runs.write_text(folder / BEST, comment + text)


def write_html(
    folder: Path,
    trials: Sequence[Trial],
    searched: Space,
    *,
    importances: dict[str, float],
    defaults: TrainConfig,
    data: str,
    held: dict[str, Any],
    validation_pictures: int,
) -> Path:
    """Write report.html into the folder of the search; returns its path. At least one trial has come to its end.

    importances: {name in the space: share}, empty where there were too few trials to tell. defaults: the
    configuration without a search. held: the settings that the user gave. validation_pictures: their number.
    """
    top = best(trials)
    assert top is not None
    assert top.score is not None
    names = {name: "lr" if name == LR_FACTOR else name for name in searched}
    run = folder / "trials" / f"{top.number:04d}"
    first = trials[0] if trials[0].state == "done" else None
    content = {
        "data": data,
        "folder": str(folder),
        "best": top,
        "first": first,
        "trials": sorted(trials, key=_rank, reverse=True),
        "counts": {state: sum(one.state == state for one in trials) for state in STATES},
        "seconds": sum(one.seconds for one in trials),
        "pictures": validation_pictures,
        "interval": accuracy_interval(round(top.score * validation_pictures), validation_pictures),
        "names": names,
        "space": {name: spoken(values, relative=name == LR_FACTOR) for name, values in searched.items()},
        "defaults": first.settings if first else {n: getattr(defaults, n) for n in names.values()},
        "held": held,
        "figures": figures.draw(trials, top, searched, importances),
        "train": f"lenext train {shlex.quote(data)} --config {shlex.quote(str(folder / BEST))}",
        "evaluate": f"lenext evaluate {shlex.quote(str(run))}",
        "go_on": f"--out {shlex.quote(str(folder))}",
    }
    filters: dict[str, Any] = {"share": share, "percent": percent, "shown": shown, "duration": duration}
    return write_page(folder / PAGE, "lenext.tune", "tune.html.j2", content, filters)


STATES = ("done", "pruned", "diverged", "failed")


def shown(value: Any) -> str:
    """A setting's value for people."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def spoken(values: space.Range | space.Choices, *, relative: bool) -> str:
    """What was searched, in words."""
    if isinstance(values, space.Choices):
        return ", ".join(shown(value) for value in values.values)
    scale = ", log scale" if values.log else ""
    unit = " times the default that goes with the other settings" if relative else ""
    return f"{shown(values.low)} to {shown(values.high)}{unit}{scale}"


def _rank(one: Trial) -> tuple[bool, float, float]:
    score, loss = one.score, one.val_loss
    return one.state == "done", -math.inf if score is None else score, -math.inf if loss is None else -loss
