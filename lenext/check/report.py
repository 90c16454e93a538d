"""What the check found, for the terminal, for programs and as one HTML page without scripts."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from lenext.check import Check
from lenext.check.pictures import KINDS, small
from lenext.data.check import Finding, effective_number
from lenext.data.decode import UnreadableImage
from lenext.data.samples import SPLITS
from lenext.evaluation.figures import percent
from lenext.evaluation.fonts import printable
from lenext.evaluation.page import write_page
from lenext.terminal import output

STYLES = {"stop": "bold red", "warn": "yellow", "note": "dim"}
# What the page shows at most: with thumbnails of some 5 kB it stays below 4 MB.
SHOWN_SETS, SHOWN_OF_SET, SHOWN_ERRORS, SHOWN_PICTURES, SHOWN_ROWS = 40, 6, 200, 24, 200
BARS = 16
# Kinds of findings that are about single pictures, for the gallery, the gravest first.
GALLERIES = ("tiny", "blank", *KINDS, "odd_shapes", "odd_sizes")


def to_dict(check: Check) -> dict[str, Any]:
    """Everything, for JSON."""
    findings = check.findings
    samples, images = findings.samples, findings.samples.images

    def sets(rows: Iterable[np.ndarray]) -> list[list[str]]:
        return [[images[int(row)] for row in one] for one in rows]

    counts = samples.class_counts(samples.in_split("train"))
    return {
        "data": check.data,
        "worthless": findings.worthless,
        "pictures": len(samples),
        "counts": samples.counts(),
        "findings": [
            {"kind": one.kind, "severity": one.severity, "pictures": len(one.rows), "text": one.text, "mend": one.mend}
            for one in findings.found
        ],
        "unreadable": [{"image": images[i], "reason": why} for i, why in sorted(findings.scanned.reasons.items())],
        "exact_duplicates": sets(findings.exact),
        "near_duplicates": sets(findings.near),
        "across_splits": sets(findings.across),
        "missing_classes": findings.missing,
        "label_conflicts": [
            [{"image": images[int(row)], "label": samples.label_text(int(row))} for row in rows]
            for rows in findings.conflicts
        ],
        "effective_classes": effective_number(counts),
        "odd_pictures": {
            one.kind: [images[int(row)] for row in one.rows] for one in findings.found if one.kind in GALLERIES
        },
        "label_errors": [
            {
                "image": images[error.row],
                "label": samples.label_text(error.row),
                "suggested": error.suggested,
                "suspicion": error.suspicion,
            }
            for error in check.label_errors
        ],
    }


def show(check: Check) -> None:
    """What is wrong first, then how much there is, on standard output."""
    findings = check.findings
    samples, found = findings.samples, findings.found
    if not found:
        output.print(f"{escape(check.data)}: nothing wrong was found in {len(samples)} pictures.")
    else:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for column in ("", "found", "what to do"):
            table.add_column(column, overflow="fold")
        for one in found:
            style = STYLES[one.severity]
            table.add_row(f"[{style}]{one.severity}[/]", escape(printable(one.text)), escape(one.mend))
        output.print(table)
    counts = samples.counts()
    sizes = ", ".join(f"{split} {sum(of_class.values())}" for split, of_class in counts.items())
    drawn = " (what the data does not name is divided as training would)" if divided(check) else ""
    output.print(f"\n{len(samples)} pictures of {len(samples.classes)} classes: {sizes}{drawn}")
    if findings.worthless:
        output.print("[bold red]A result would be worthless: mend what says stop first.[/]")


def divided(check: Check) -> bool:
    """Whether some splits are not the data's own."""
    return not np.array_equal(check.named, check.findings.samples.splits)


def write_html(check: Check, path: str | Path) -> None:
    """Write the page: self-contained, with thumbnails of what was found."""
    write_page(Path(path), "lenext.check", "check.html.j2", _Page(check).content(), {"percent": percent})


class _Page:
    """What the template shows; every picture is read once, however often it is shown."""

    def __init__(self, check: Check) -> None:
        self.check, self.findings, self.samples = check, check.findings, check.findings.samples
        self.thumbnails: dict[int, str | None] = {}

    def content(self) -> dict[str, Any]:
        check, findings, samples = self.check, self.findings, self.samples
        counts = samples.counts()
        across = {int(rows[0]) for rows in findings.across}
        conflicts = {int(rows[0]) for rows in findings.conflicts}
        copies = [rows for rows in [*findings.exact, *findings.near] if int(rows[0]) not in across | conflicts]
        by_kind = {one.kind: one for one in findings.found}
        return {
            "data": check.data,
            "command": f"lenext check {shlex.quote(check.data)}",
            "found": findings.found,
            "anchors": ANCHORS,
            "worthless": findings.worthless,
            "pictures": len(samples),
            "classes": samples.classes,
            "counts": counts,
            "largest": {split: max(of_class.values(), default=0) for split, of_class in counts.items()},
            "divided": divided(check),
            "unreadable": [
                {"image": samples.images[i], "reason": why}
                for i, why in sorted(findings.scanned.reasons.items())[:SHOWN_ROWS]
            ],
            "more_unreadable": max(len(findings.scanned.reasons) - SHOWN_ROWS, 0),
            "across": self._sets(findings.across),
            "conflicts": self._sets(findings.conflicts),
            "copies": self._sets(copies),
            "errors": [
                {**self._card(error.row), "suggested": error.suggested, "suspicion": error.suspicion}
                for error in check.label_errors[:SHOWN_ERRORS]
            ],
            "more_errors": max(len(check.label_errors) - SHOWN_ERRORS, 0),
            "galleries": [self._gallery(by_kind[kind]) for kind in GALLERIES if kind in by_kind],
            "histograms": self._histograms(),
        }

    def _sets(self, sets: list[np.ndarray]) -> dict[str, Any]:
        shown = [
            {"cards": [self._card(int(row)) for row in rows[:SHOWN_OF_SET]], "more": max(len(rows) - SHOWN_OF_SET, 0)}
            for rows in sets[:SHOWN_SETS]
        ]
        return {"n": len(sets), "shown": shown}

    def _gallery(self, finding: Finding) -> dict[str, Any]:
        rows = finding.rows[:SHOWN_PICTURES]
        return {
            "text": finding.text,
            "kind": finding.kind,
            "cards": [self._card(int(row)) for row in rows],
            "more": len(finding.rows) - len(rows),
        }

    def _card(self, row: int) -> dict[str, Any]:
        width, height = self.findings.scanned.sizes[row]
        split = int(self.samples.splits[row])
        return {
            "image": self.samples.images[row],
            "label": self.samples.label_text(row),
            "split": SPLITS[split],
            "size": f"{width} x {height}",
            "uri": self._thumbnail(row),
        }

    def _thumbnail(self, row: int) -> str | None:
        if row not in self.thumbnails:
            try:
                file = io.BytesIO()
                small(self.samples, row).save(file, "WEBP", quality=70)
                self.thumbnails[row] = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")
            except UnreadableImage:
                self.thumbnails[row] = None
        return self.thumbnails[row]

    def _histograms(self) -> list[dict[str, Any]]:
        """Short side and shape of the readable pictures, each as bars {"low", "high", "n", "share" of the largest}."""
        sizes = self.findings.scanned.sizes[self.findings.readable]
        if not len(sizes):
            return []
        short, ratio = sizes.min(1), sizes[:, 0] / sizes[:, 1]
        return [
            {"title": "Short side, pixels", "bars": _bars(short, "{:.0f}")},
            {"title": "Width / height", "bars": _bars(ratio, "{:.2f}")},
        ]


# The section of the page that shows what a finding is about.
ANCHORS = {
    "unreadable": "unreadable",
    "across_splits": "across",
    "exact_duplicates": "copies",
    "near_duplicates": "copies",
    "label_conflicts": "conflicts",
    "label_errors": "errors",
    **dict.fromkeys(("missing_classes", "few_pictures", "imbalance", "one_class", "class_names"), "classes"),
    **{kind: kind for kind in GALLERIES},
}


def _bars(values: np.ndarray, form: str) -> list[dict[str, Any]]:
    """A histogram with edges at equal ratios; one bar where all are the same."""
    low, high = float(values.min()), float(values.max())
    edges = np.geomspace(low, high, BARS + 1) if high > low else np.array([low, high])
    counts = np.histogram(values, edges)[0] if high > low else np.array([len(values)])
    return [
        {"low": form.format(a), "high": form.format(b), "n": int(n), "share": n / counts.max()}
        for a, b, n in zip(edges[:-1], edges[1:], counts)
    ]
