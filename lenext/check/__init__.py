"""The dataset check: what is wrong with a data set, shown and mended before anything is trained on it.

What samples and one look at every picture tell is `lenext.data.check`, which training runs too. Here is the rest:
badly taken pictures, probable label errors, the report, and the cleaned copy of the data's list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lenext import terminal
from lenext.check.pictures import look, other_files
from lenext.data import sources
from lenext.data.check import MAX_UNREADABLE, Findings, find
from lenext.data.scan import scan
from lenext.data.sources import SplitOptions

if TYPE_CHECKING:
    from lenext.check.labels import LabelError


@dataclass(frozen=True, kw_only=True)
class Check:
    """data: as it was given. named: (N,) int8, the splits that the data itself names, UNSPLIT where it names none.
    label_errors: the most suspicious first; empty where they were not looked for."""

    data: str
    findings: Findings
    named: np.ndarray
    label_errors: list[LabelError] = field(default_factory=list)


def check_data(
    data: str | Path,
    *,
    root: str | Path | None = None,
    run: str | Path | None = None,
    options: SplitOptions | None = None,
    max_unreadable: float = MAX_UNREADABLE,
) -> Check:
    """Look at every picture of a data set and say what is wrong. Nothing of the data is changed.

    root: the folder that a manifest's pictures lie in. run: a run folder, classifier file or network with ImageNet
    weights whose view of the pictures tells probable label errors. options: how training would divide the data.
    Raises ValueError where there are no pictures at all.
    """
    opened = sources.open_data(data, root)
    with terminal.bar("looking at pictures", len(opened)) as bar:
        scanned = scan(opened, bar.to)
    near = scanned.near_duplicates()
    samples = sources.fill_splits(opened, options or SplitOptions(), near)
    findings = find(samples, scanned, str(data), max_unreadable, near)
    rows = np.flatnonzero(findings.readable)
    blank = np.concatenate([np.zeros(0, np.int64), *(one.rows for one in findings.found if one.kind == "blank")])
    more = look(samples, np.setdiff1d(rows, blank))
    if Path(data).is_dir():
        more += other_files(samples)
    errors: list[LabelError] = []
    if run is not None:
        from lenext.check.labels import find_label_errors

        errors, about = find_label_errors(run, samples, rows, near)
        more += about
    return Check(data=str(data), findings=findings.with_more(more), named=opened.splits, label_errors=errors)
