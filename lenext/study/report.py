"""`lenext study report`: a study's findings as a page, as Markdown, CSV and LaTeX, and on the terminal.

Everything is made from the run folders alone, holds no date, and comes out the same, bit for bit, when made again.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from lenext import runs, terminal
from lenext.evaluation.fonts import printable
from lenext.evaluation.page import write_page
from lenext.evaluation.report import share
from lenext.study import figures, tables, wording
from lenext.study.design import Study
from lenext.study.findings import Findings, gather

PAGE, MARKDOWN, LATEX, FIGURES = "report.html", "report.md", "report.tex", "figures"


def write(name: str, study: Study, folder: Path, seeds: int) -> Findings:
    """Write the report of a study's runs into its folder, and return what it says.

    report.html, report.md, report.tex, figures/; table.csv: a row a cell; runs.csv: a row a run; comparisons.csv;
    effects.csv where factors are crossed; costs.csv: time and memory.
    """
    findings = gather(name, study, folder, seeds)
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in tables.csv_files(findings).items():
        runs.write_text(folder / file, text)
    pictures = figures.draw(findings, folder / FIGURES)
    links = [f"{FIGURES}/{one['path'].name}" for one in pictures.values()]
    runs.write_text(folder / MARKDOWN, tables.markdown(findings, links))
    runs.write_text(folder / LATEX, tables.latex(findings))
    _write_html(findings, folder, pictures)
    return findings


def _write_html(findings: Findings, folder: Path, pictures: dict[str, dict[str, Any]]) -> None:
    content = {
        "findings": findings,
        "study": findings.study,
        "figures": {name: {"uri": _uri(one["path"]), "width": one["width"]} for name, one in pictures.items()},
        "runs_done": wording.runs_done(findings),
        "tally": wording.tally(findings),
        "best": max((row for row in findings.rows if row.accuracy), key=_accuracy, default=None),
        "answers": [
            {"sentence": wording.capital(wording.sentence(answer)), "verdict": answer.verdict,
             "remark": wording.remark(findings, answer), "question": answer.comparison.question}
            for answer in findings.answers
        ],
        "columns": tables.columns(findings),
        "cells": [tables.cell_texts(findings, row) for row in findings.rows],
        "learning_columns": tables.LEARNING,
        "learning": [tables.learning_texts(row) for row in findings.rows],
        "effect_columns": tables.EFFECTS,
        "effects": {measure: tables.effect_texts(findings, measure) for measure in findings.effects},
        "effect_notes": tables.effect_notes(findings),
        "chance": None if findings.classes is None else 1 / findings.classes,
        "pictures_note": wording.pictures_note(findings),
        "how": tables.how(findings),
    }  # fmt: skip
    write_page(folder / PAGE, "lenext.study", "study.html.j2", content, {"share": share, "interval": wording.interval})


def summary(findings: Findings) -> tuple[Table, list[str]]:
    """The table of cells for a terminal, and a sentence for each comparison and for what was not run."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    published = bool(findings.study.published)
    for column in ("cell", "accuracy %", *(["published %"] if published else []), "runs", ""):
        table.add_column(column, justify="left" if column in ("cell", "") else "right")
    for row in findings.rows:
        table.add_row(
            escape(printable(row.cell.name)),
            wording.with_interval(row.accuracy),
            *([wording.accuracy(row.published)] if published else []),
            f"{len(row.done)}/{len(row.results)}",
            row.learned,
        )
    lines = [printable(wording.whole(findings, answer)) for answer in findings.answers]
    lines += [printable(f"{one.state}: {one.run.name}" + (f": {one.reason}" if one.reason else ""))
              for one in findings.left if one.state != "missing"]  # fmt: skip
    missing = sum(one.state == "missing" for one in findings.left)
    return table, lines + ([f"not begun: {wording.count(missing, 'run')}"] if missing else [])


def show(findings: Findings) -> None:
    """`summary` on standard output, and where the rest is."""
    table, lines = summary(findings)
    terminal.output.print(table)
    for line in lines:
        terminal.output.print(f"- {escape(line)}")
    terminal.output.print(f"report       {escape(str(findings.folder / PAGE))}")


def _accuracy(row: Any) -> float:
    return row.accuracy.mean


def _uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
