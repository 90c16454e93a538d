"""`lenext predict`: paths, folders and patterns -> ranked classes, as a table, JSON, CSV or Parquet."""

from __future__ import annotations

import csv
import glob
import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from natsort import natsorted, ns

from lenext import runs, terminal
from lenext.classifier import Prediction, load
from lenext.data.dataset import writable
from lenext.data.decode import EXTENSIONS

log = logging.getLogger("lenext")


def run(
    path: str,
    inputs: Sequence[str],
    *,
    top_k: int,
    form: str,
    out: str | None,
    language: str | None = None,
    views: int | None = None,
) -> int:
    """Predict every picture that `inputs` name and write the answer; returns how many pictures got one."""
    if form == "parquet" and out is None:
        raise ValueError("--format parquet is binary and needs a file: --out answers.parquet")
    if top_k < 1:
        raise ValueError(f"--top-k is {top_k}; at least the best class must be asked for")
    classifier = load(path, language)
    classifier.use_views(views)
    pictures = expand(inputs)
    predictions = []
    with terminal.bar("predicting", len(pictures)) as bar:
        for prediction in classifier.stream(pictures, top_k, expected=len(pictures)):
            predictions.append(replace(prediction, image=writable(prediction.image)))
            bar.advance()
    write(predictions, form, out)
    failed = sum(prediction.error is not None for prediction in predictions)
    if failed:
        log.warning("%d of %d pictures could not be read", failed, len(predictions))
    return len(predictions) - failed


def expand(inputs: Sequence[str]) -> list[str]:
    """The pictures that paths, folders (searched through) and patterns stand for, in the order asked.

    A path that does not exist stays, and becomes a row with an error; a pattern or folder without pictures is a
    ValueError.
    """
    pictures: list[str] = []
    for item in inputs:
        if os.path.isdir(item):
            found = [str(p) for p in Path(item).rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file()]
            if not found:
                raise ValueError(f"the folder {item} holds no pictures")
            pictures += natsorted(found, alg=ns.IC)
        elif glob.has_magic(item) and not os.path.exists(item):
            found = [p for p in glob.glob(item, recursive=True) if os.path.isfile(p)]
            if not found:
                raise ValueError(f"no file fits the pattern {item!r}")
            pictures += natsorted(found, alg=ns.IC)
        else:
            pictures.append(item)
    return pictures


def write(predictions: Sequence[Prediction], form: str, out: str | None) -> None:
    """Write the answer to the file `out` or to standard output."""
    if form == "table":
        if out is None:
            _print_table(predictions)
            return
        form = "csv"  # a file that programs can read
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        assert out is not None
        table = pa.Table.from_pylist([p.to_dict() for p in predictions])
        runs.write_atomically(Path(out), lambda file: pq.write_table(table, file))
        return
    if form == "json":
        text = json.dumps([p.to_dict() for p in predictions], ensure_ascii=False, indent=2) + "\n"
    else:
        text = _csv(predictions)
    if out is None:
        sys.stdout.write(text)
    else:
        runs.write_text(Path(out), text)


def _csv(predictions: Sequence[Prediction]) -> str:
    ranks = max((len(p.top) for p in predictions), default=0)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    ranked = [f"{key}_{rank}" for rank in range(1, ranks + 1) for key in ("label", "probability")]
    several = ["labels"] if _several(predictions) else []
    writer.writerow(["image", "label", "probability", "error", *several, *ranked])
    for p in predictions:
        labels = [json.dumps(p.labels, ensure_ascii=False)] if several else []  # as a manifest writes them
        top = (value for pair in p.top for value in pair)
        writer.writerow([p.image, p.label, p.probability, p.error, *labels, *top])
    return buffer.getvalue()


def _print_table(predictions: Sequence[Prediction]) -> None:
    from rich.markup import escape
    from rich.table import Table

    several = _several(predictions)
    table = Table()
    table.add_column("picture", overflow="fold")
    if several:
        table.add_column("classes", overflow="fold")
    table.add_column("likeliest" if several else "class")
    table.add_column("probability", justify="right")
    table.add_column("next", overflow="fold")
    for p in predictions:
        labels = [escape(", ".join(p.labels or []) or "(none)")] if several else []
        if p.error is not None:
            labels = [""] * len(labels)
            table.add_row(escape(p.image), *labels, "[red]unreadable[/red]", "", escape(p.error))
            continue
        others = ", ".join(f"{label} {100 * probability:.1f} %" for label, probability in p.top[1:])
        share = f"{100 * (p.probability or 0):.1f} %"
        table.add_row(escape(p.image), *labels, escape(str(p.label)), share, escape(others))
    terminal.output.print(table)


def _several(predictions: Sequence[Prediction]) -> bool:
    """Whether a multi-label classifier answered."""
    return any(p.labels is not None for p in predictions)
