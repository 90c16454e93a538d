"""What people see: messages and progress on standard error, tables on standard output."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

errors = Console(stderr=True, highlight=False)
# Where a table goes to a file or a pipe there is no width to keep to, and cut names would help nobody.
output = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)

# Seconds between lines of progress where there is no terminal.
LINE_EVERY = 60.0


@contextlib.contextmanager
def messages() -> Iterator[None]:
    """Show the program's messages on standard error while a command runs; libraries only when they warn."""
    logger = logging.getLogger("lenext")
    handler = _Messages()
    logger.addHandler(handler)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA where nobody has it
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it tells of fonts of nearly the weight asked
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # it counts its retries
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Messages(logging.Handler):
    """One line a message, above the progress bars; warnings say what they are."""

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        style = "yellow" if level else ""
        errors.print(level + record.getMessage(), style=style, markup=False, soft_wrap=True)


class Bar:
    """A progress bar over a known number of pictures or steps, with figures beside it.

    Where standard error is not a terminal, such as a log file, a plain line from time to time.
    """

    def __init__(self, progress: Progress, description: str, total: int, done: int) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, completed=done, note="")
        self._begin: tuple[float, float] | None = None  # when the first step was done, and how many were then
        self._said = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._progress.update(self._task, advance=amount, note=note)
        self._say()

    def to(self, completed: int, note: str = "") -> None:
        self._progress.update(self._task, completed=completed, note=note)
        self._say()

    def _say(self) -> None:
        now, task = time.monotonic(), self._progress.tasks[0]
        began, start = self._begin = self._begin or (now, task.completed)
        if errors.is_terminal or now - self._said < LINE_EVERY or not task.total:
            return
        self._said, done = now, task.completed - start
        # What was prepared until the first step says nothing of the time that the others take.
        left = f", {(now - began) / done * (task.total - task.completed):.0f} s left" if done else ""
        note = f"  {task.fields['note']}" if task.fields["note"] else ""
        text = f"{task.description}: {task.completed:.0f} of {task.total:.0f}{left}{note}"
        errors.print(text, markup=False, soft_wrap=True)


@contextlib.contextmanager
def bar(description: str, total: int, *, done: int = 0) -> Iterator[Bar]:
    """A bar that disappears when it is done."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        yield Bar(progress, description, total, done)


def epoch_line(row: dict[str, Any], epochs: int, is_best: bool) -> str:
    """The figures of an epoch (a row of metrics.jsonl) for people."""
    text = f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  accuracy {row['train_accuracy']:.4f}"
    text += f"  val loss {row['val_loss']:.4f}  val accuracy {row['val_accuracy']:.4f}"
    if "ema_val_accuracy" in row:
        text += f"  averaged {row['ema_val_loss']:.4f}, {row['ema_val_accuracy']:.4f}"
    text += " (best)" if is_best else ""
    return text + f"  lr {row['lr']:.1e}  {row['seconds']:.0f} s, {row['images_per_second']:.0f} images/s"


def show_lr_search(search: Any, figure: Path) -> None:
    """What the search for a learning rate found, and where its curve is drawn."""
    output.print(escape(str(search)))
    output.print(f"drawn in     {escape(str(figure))}")


def show_evaluation(split: str, result: dict[str, Any], form: str = "table") -> None:
    """The answer of `evaluate` on standard output."""
    if form == "json":
        sys.stdout.write(json.dumps(result, ensure_ascii=False, indent=2) + "\n")
        return
    low, high = result["accuracy_interval"]
    table = Table(title=f"{split}: {result['n']} pictures", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    several = result["task"] == "multi-label"
    table.add_row("all labels right" if several else "accuracy", f"{100 * result['accuracy']:.2f} %")
    table.add_row("95 % interval", f"{100 * low:.2f} to {100 * high:.2f} %")
    for key, name in (
        ("hamming_accuracy", "decisions right"),
        ("balanced_accuracy", "balanced accuracy"),
        ("macro_f1", "macro F1"),
        ("micro_f1", "micro F1"),
        ("mean_average_precision", "mean average precision"),
        ("roc_auc", "area under ROC curve"),
        ("ece", "calibration error"),
        ("nll", "negative log-likelihood"),
    ):
        if result.get(key) is not None:
            table.add_row(name, f"{result[key]:.4f}")
    output.print(table)
    classes = Table()
    columns = {"precision": "precision", "recall": "recall", "f1": "F1"}
    columns |= {"average_precision": "average precision"} if several else {}
    for column in ("class", "pictures", *columns.values()):
        classes.add_column(column, justify="left" if column == "class" else "right")
    for name, row in result["per_class"].items():
        figures = ["-" if row[key] is None else f"{row[key]:.3f}" for key in columns]
        classes.add_row(escape(name), str(row["n"]), *figures)
    output.print(classes)
    for failure in result["failed"]:
        output.print(f"failed: {escape(failure['image'])}: {escape(failure['reason'])}")


def show_run(run: Path) -> None:
    """Where everything is, and what to type next."""
    results = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    split = "test" if "test" in results else "val"
    result = results[split]
    low, high = (100 * x for x in result["accuracy_interval"])
    name = "all labels right" if result["task"] == "multi-label" else "accuracy"
    output.print(
        f"\n{name} on {split}: [bold]{100 * result['accuracy']:.2f} %[/bold] "
        f"(95 % interval {low:.1f} to {high:.1f}, {result['n']} pictures)"
    )
    output.print(f"run folder   {escape(str(run))}")
    output.print(f"report       {escape(str(run / 'report.html'))}")
    output.print(f"next         lenext predict {escape(str(run))} PICTURE...")
    output.print(f"             lenext evaluate {escape(str(run))}")


def show_models(name: str | None) -> None:
    """The table of architectures, or the layers of one."""
    from lenext import models
    from lenext.models import catalogue

    if name is not None:
        sys.stdout.write(catalogue.describe(name) + "\n")
        return
    wide = output.width >= 118  # a terminal of 80 columns has room for the rest
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    if wide:
        table.add_column("paper", no_wrap=True)
        table.add_column("input", justify="right")
    for column in ("M params", "M mult-adds", "top-1 %"):
        table.add_column(column, justify="right", no_wrap=True)
    if wide:
        table.add_column("says", no_wrap=True)
    table.add_column("weights", no_wrap=True)
    for key in models.list_models():
        entry = models.MODELS[key]
        table.add_row(
            key,
            *((f"{entry.paper.authors} {entry.paper.year}", str(entry.preprocess.image_size)) if wide else ()),
            f"{entry.parameters / 1e6:,.1f}",
            f"{entry.multiply_adds / 1e6:,.0f}",
            "" if entry.top1 is None else f"{entry.top1:.1f}",
            *([entry.source] if wide else []),
            catalogue.weights_note(key),
        )
    output.print(table)
    output.print(
        "Multiply-adds of one image of the network's size. Top-1 on ImageNet, of the public weights where there are "
        "some, and who says so.\nWeights: here, in a Python package, to download, by hand. `lenext models NAME` says "
        "more.",
        soft_wrap=False,
    )
