"""What the runs of a study have reached, read from their run folders and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lenext import runs
from lenext.study.design import Run, Study, plan
from lenext.training import process

State = Literal["done", "failed", "unfinished", "missing"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """One run. state: done; failed, with a reason; unfinished: begun, and can be gone on with; missing: not begun.

    history: its metrics.jsonl, a row an epoch. The others are None unless it is done.
    split, n: test where the data has one, else val, and how many pictures that has.
    accuracy, top5, nll, ece: of the best epoch on them, shares of 1 but for nll.
    train_accuracy, val_accuracy: in the last epoch. learning: validation accuracy averaged over the epochs.
    """

    run: Run
    state: State
    reason: str = ""
    history: tuple[Row, ...] = ()
    config: dict[str, Any] | None = None
    classes: int | None = None
    split: str | None = None
    n: int | None = None
    accuracy: float | None = None
    top5: float | None = None
    nll: float | None = None
    ece: float | None = None
    train_accuracy: float | None = None
    val_accuracy: float | None = None
    learning: float | None = None

    @property
    def overfitting(self) -> float | None:
        """Training minus validation accuracy in the last epoch."""
        if self.train_accuracy is None or self.val_accuracy is None:
            return None
        return self.train_accuracy - self.val_accuracy

    @property
    def seconds(self) -> float | None:
        """Of training and validating, over all epochs."""
        return sum(row.get("seconds") or 0 for row in self.history) if self.history else None

    @property
    def images_per_second(self) -> float | None:
        """Training pictures a second, averaged over the epochs after the first, which warms up."""
        rates = [rate for row in self.history[1:] or self.history if (rate := row.get("images_per_second"))]
        return sum(rates) / len(rates) if rates else None

    @property
    def peak_memory_mib(self) -> float | None:
        return max((row["peak_memory_mib"] for row in self.history if row.get("peak_memory_mib")), default=None)


def read(study: Study, folder: Path, seeds: int) -> list[Result]:
    """The result of every run of a study in its folder, in the order of `plan`."""
    return [read_run(run) for run in plan(study, folder, seeds)]


def read_run(run: Run) -> Result:
    folder = run.folder
    if (reason := failure_file(run)).is_file():
        return Result(run, "failed", reason=reason.read_text(encoding="utf-8").strip(), history=history(folder))
    if not runs.is_run(folder):
        return Result(run, "missing")
    if not runs.is_finished(folder):
        return Result(run, "unfinished", history=history(folder))
    evaluation = runs.read_json(folder / "evaluation.json")
    split = "test" if "test" in evaluation else "val"
    measured, rows = evaluation[split], history(folder)
    last = rows[-1] if rows else {}
    curve = [row["val_accuracy"] for row in rows if row.get("val_accuracy") is not None]
    return Result(
        run,
        "done",
        history=rows,
        config=runs.read_config(folder),
        classes=len(runs.read_json(folder / runs.DATA)["classes"]),
        split=split,
        n=measured["n"],
        accuracy=measured["accuracy"],
        top5=measured.get("top5"),
        nll=measured.get("nll"),
        ece=measured.get("ece"),
        train_accuracy=last.get("train_accuracy"),
        val_accuracy=last.get("val_accuracy"),
        learning=sum(curve) / len(curve) if curve else None,
    )


def failure_file(run: Run) -> Path:
    """Holds why a run failed, where it did."""
    return run.folder.with_name(run.folder.name + ".failed")


def has_diverged(run: Run) -> bool:
    """Whether the training came to no end because its loss was no number, which is a result and would come again."""
    file = failure_file(run)
    return file.is_file() and process.DIVERGED in file.read_text(encoding="utf-8")


def history(folder: Path) -> tuple[Row, ...]:
    return tuple(runs.read_metrics(folder))


def seeds_in(study: Study, folder: Path) -> int:
    """How many seeds the folder has runs of: one more than the highest that was begun."""
    found = [0]
    for run in plan(study, folder, 1):
        for path in run.folder.parent.glob("seed-*"):
            number = path.name.removeprefix("seed-").split(".")[0]
            found.append(int(number) + 1 if number.isdigit() else 0)
    return max(found)
