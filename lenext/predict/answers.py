"""Answers, one after the other -> a table for people; JSON, JSON Lines, CSV or Parquet for programs.

An answer is what `Prediction.to_dict` gives. No form holds all of them in memory.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from lenext import terminal

Answer = dict[str, Any]
Form = Literal["table", "json", "jsonl", "csv", "parquet"]
PAGE = 1_000  # rows of a table whose columns are made to fit
GROUP = 5_000  # rows of Parquet that are written together


@dataclass(frozen=True)
class Layout:
    """ranks: how many classes an answer names. several: whether the classifier is a multi-label one."""

    ranks: int
    several: bool


def form_of(out: str | None) -> Form:
    """The form that a file's ending names; a table where there is no file, or its ending says nothing."""
    ending = Path(out or "").suffix.lower()
    return next((form for form in get_args(Form) if ending == f".{form}"), "table")


def show(answers: Iterable[Answer], form: Form, layout: Layout) -> None:
    """To standard output, as they come; a table page by page."""
    if form == "table":
        remaining = iter(answers)
        while page := list(islice(remaining, PAGE)):
            _print_table(page, layout)
        return
    stream = sys.stdout  # a progress bar that begins with the first answer borrows the name
    for text in _texts(answers, form, layout):
        stream.write(text)
        stream.flush()


def write(answers: Iterable[Answer], form: Form, layout: Layout, file: Path) -> None:
    """To a file; a table as CSV, which programs can read."""
    if form == "parquet":
        _write_parquet(answers, layout, file)
        return
    with open(file, "w", encoding="utf-8", newline="") as stream:
        stream.writelines(_texts(answers, "csv" if form == "table" else form, layout))


def _texts(answers: Iterable[Answer], form: Form, layout: Layout) -> Iterator[str]:
    """The text piece by piece, the first with the first answer: where there is none, nothing was said too early."""
    if form == "csv":
        yield from _csv(answers, layout)
    elif form == "jsonl":
        for answer in answers:
            yield json.dumps(answer, ensure_ascii=False) + "\n"
    else:
        before = "[\n"
        for answer in answers:
            yield before + json.dumps([answer], ensure_ascii=False, indent=2)[2:-2]
            before = ",\n"
        yield "[]\n" if before == "[\n" else "\n]\n"


def _csv(answers: Iterable[Answer], layout: Layout) -> Iterator[str]:
    ranked = [f"{key}_{rank}" for rank in range(1, layout.ranks + 1) for key in ("label", "probability")]
    header = ["image", "label", "probability", "error", *(["labels"] if layout.several else []), *ranked]
    before = _csv_line(header)
    for answer in answers:
        # Several labels in one cell are JSON, as in a manifest.
        labels = [json.dumps(answer["labels"], ensure_ascii=False)] if layout.several else []
        top = [entry[key] for entry in answer["top"] for key in ("label", "probability")]
        row = [answer["image"], answer["label"], answer["probability"], answer["error"], *labels, *top]
        yield before + _csv_line(row + [None] * (len(header) - len(row)))  # a broken picture has no classes
        before = ""


def _csv_line(row: list[Any]) -> str:
    """Ends as Unix has it; but the writer quotes a carriage return, which names may have, only where lines end so."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(row)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _write_parquet(answers: Iterable[Answer], layout: Layout, file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    entry = pa.struct({"label": pa.string(), "probability": pa.float64()})
    schema = pa.schema(
        {
            "image": pa.string(),
            "label": pa.string(),
            "probability": pa.float64(),
            "top": pa.list_(entry),
            "error": pa.string(),
        }
        | ({"labels": pa.list_(pa.string())} if layout.several else {})
    )
    remaining = iter(answers)
    with pq.ParquetWriter(file, schema) as writer:
        while group := list(islice(remaining, GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def _print_table(answers: Iterable[Answer], layout: Layout) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("picture", overflow="fold")
    if layout.several:
        table.add_column("classes", overflow="fold")
    table.add_column("likeliest" if layout.several else "class")
    table.add_column("probability", justify="right")
    table.add_column("next", overflow="fold")
    for answer in answers:
        image = escape(answer["image"])
        if answer["error"] is not None:
            labels = [""] if layout.several else []
            table.add_row(image, *labels, "[red]unreadable[/red]", "", escape(answer["error"]))
            continue
        labels = [escape(", ".join(answer["labels"]) or "(none)")] if layout.several else []
        named = answer["top"] if answer["label"] != answer["top"][0]["label"] else answer["top"][1:]
        others = ", ".join(f"{entry['label']} {100 * entry['probability']:.1f} %" for entry in named)
        share = f"{100 * answer['probability']:.1f} %"
        table.add_row(image, *labels, escape(answer["label"]), share, escape(others))
    terminal.output.print(table)
