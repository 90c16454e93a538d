"""The pictures of a study: curves, comparisons, accuracy against cost, overfitting, main effects.

Up to eight cells differ in colour, more in line and marker too. A cell without a finished run is in no picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from lenext.evaluation.figures import BLUE, DPI, GREY, INK, ORANGE, PERCENT
from lenext.evaluation.fonts import columns, figure_fonts, printable, shorten
from lenext.study import wording
from lenext.study.findings import Answer, Findings, Row, corrected_effects
from lenext.study.statistics import Mean, Verdict

# Okabe and Ito's, but for their yellow, which is too light for a line on white.
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222", GREY)
STYLES, MARKERS = ("-", "--", ":", "-."), "osD^vPX*"
SAID: dict[Verdict, str] = {
    "confirmed": "#009E73", "refuted": ORANGE, "undecided": GREY, "a difference": BLUE, "no difference shown": GREY,
}  # fmt: skip
PANELS = (
    ("train_accuracy", "training accuracy"), ("val_accuracy", "validation accuracy"),
    ("train_loss", "training loss"), ("val_loss", "validation loss"),
)  # fmt: skip
LONGEST = 46  # columns of a name


def draw(findings: Findings, folder: Path) -> dict[str, dict[str, Any]]:
    """Write a file for each picture that the runs suffice for; {name: {"path", "width" in CSS pixels}}.

    A picture that was drawn once and that they no longer suffice for is removed.
    """
    rows = [row for row in findings.rows if row.accuracy]
    answers = [answer for answer in findings.answers if answer.effect]
    makers: dict[str, Callable[[], Figure] | None] = {
        "curves": (lambda: _curves(findings.rows)) if any(one.history for row in rows for one in row.done) else None,
        "comparisons": (lambda: _comparisons(answers)) if answers else None,
        "cost": (lambda: _cost(findings.rows)) if any(map(_has_learned, rows)) else None,
        "overfitting": (lambda: _overfitting(rows)) if any(row.overfitting for row in rows) else None,
        "effects": (lambda: _effects(findings)) if "accuracy" in findings.effects else None,
    }
    factors = [text for factor in findings.study.factors for text in (factor.name, *factor.levels)]
    texts = [*factors, *(answer.comparison.change for answer in answers)]
    pictures = {}
    folder.mkdir(parents=True, exist_ok=True)
    with figure_fonts(map(printable, texts)):
        for name, make in makers.items():
            path = folder / f"{name}.png"
            path.unlink(missing_ok=True)
            if make:
                figure = make()
                figure.savefig(path, dpi=DPI, metadata={"Software": None})
                pictures[name] = {"path": path, "width": round(figure.get_figwidth() * 96)}
    return pictures


def _curves(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(9.6, 7 + _legend_height(rows)), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    alpha = 0.16 if len(rows) <= 8 else 0.07
    losses: list[float] = []  # the highest of each line
    for axes, (key, title) in zip(panels.flat, PANELS):
        highest = []
        for i, row in enumerate(rows):
            epochs, mean, low, high = _band([one.history for one in row.done], key)
            if not epochs:
                continue
            look = _look(i)
            axes.fill_between(epochs, low, high, color=look["color"], alpha=alpha, linewidth=0)
            marker = look["marker"] if len(epochs) == 1 else None
            axes.plot(epochs, mean, **look | {"marker": marker}, linewidth=1.7, markersize=5)
            highest.append(max(high))
        if not highest:
            axes.text(0.5, 0.5, "not measured", ha="center", color=GREY, transform=axes.transAxes)
        _plain(axes, title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if key.endswith("accuracy"):
            _percent(axes.yaxis)
        else:
            losses += highest
    if losses:  # one that blew up would flatten all others
        panels[1, 0].set_ylim(top=min(panels[1, 0].get_ylim()[1], 3 * float(np.median(losses))))
    for axes in panels[1]:
        axes.set_xlabel("epoch", fontsize=10)
    _legend(figure, rows)
    return figure


def _band(
    histories: Sequence[Sequence[dict[str, Any]]], key: str
) -> tuple[list[int], list[float], list[float], list[float]]:
    """(epochs, mean, lowest, highest) over the seeds that have a number for an epoch."""
    values: dict[int, list[float]] = {}
    for history in histories:
        for row in history:
            if row.get(key) is not None:
                values.setdefault(row["epoch"], []).append(row[key])
    epochs = sorted(values)
    parts = [values[epoch] for epoch in epochs]
    return epochs, [math.fsum(part) / len(part) for part in parts], list(map(min, parts)), list(map(max, parts))


def _comparisons(answers: Sequence[Answer]) -> Figure:
    figure = Figure(figsize=(9.6, 1.1 + 0.42 * len(answers)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=1)
    named: dict[str, Any] = {}
    for place, answer in enumerate(answers):
        effect = answer.effect
        assert effect is not None
        colour = SAID[answer.verdict]
        if effect.low is not None and effect.high is not None:
            axes.plot([100 * effect.low, 100 * effect.high], [place, place], color=colour, linewidth=2.4)
        (point,) = axes.plot([100 * effect.difference], [place], "o", color=colour, markersize=7)
        named.setdefault(answer.verdict, point)
        if answer.published is not None:
            look: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": INK, "markersize": 9, "zorder": 4}
            (point,) = axes.plot([100 * answer.published], [place], "D", **look)
            named.setdefault("published", point)
    _plain(axes, xlabel="difference, percentage points")
    _names(axes, ["\n".join(filter(None, label)) for label in wording.labels(answers)])
    figure.legend(named.values(), named.keys(), frameon=False, fontsize=9, ncols=4, loc="outside upper right")
    return figure


def _has_learned(row: Row) -> bool:
    """Whether any seed of a cell is better than guessing; the others' accuracy has nothing to do with their cost."""
    return row.chance < len(row.done)


def _cost(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(9.6, 3.8 + _legend_height(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    longest = max((row.seconds.mean for row in rows if row.seconds), default=0.0)
    unit, name = (1, "seconds") if longest < 120 else (60, "minutes") if longest < 7200 else (3600, "hours")
    for i, row in enumerate(rows):
        if not row.accuracy or not _has_learned(row):
            continue
        y = row.accuracy.mean
        spread: Any = None if row.accuracy.high is None else row.accuracy.high - y
        look: dict[str, Any] = _look(i) | {"linestyle": "none", "capsize": 3, "markersize": 7, "elinewidth": 1.4}
        if row.multiply_adds:
            left.errorbar(row.multiply_adds / 1e6, y, yerr=spread, **look)
        if row.seconds and row.seconds.mean > 0:
            right.errorbar(row.seconds.mean / unit, y, yerr=spread, **look)
    for axes, label in ((left, "multiply-adds of one picture, million"), (right, f"training time of a run, {name}")):
        _plain(axes, xlabel=label)
        _log(axes)
    bottom, top = left.get_ylim()
    left.set_ylim(max(bottom, -0.02), min(top, 1.02))  # few seeds give intervals that no accuracy can have
    left.set_ylabel("accuracy", fontsize=10)
    _percent(left.yaxis)
    _legend(figure, rows, points=True)
    return figure


def _overfitting(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(9.6, 0.9 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        if row.overfitting:
            _bar(axes, place, row.overfitting, [one.overfitting for one in row.done if one.overfitting is not None])
    axes.axvline(0, color=INK, linewidth=1)
    _plain(axes, xlabel="training minus validation accuracy in the last epoch, percentage points")
    _names(axes, [row.cell.name for row in rows])
    return figure


def _bar(axes: Axes, place: int, mean: Mean, values: Sequence[float]) -> None:
    """A bar with its interval and, on it, each seed."""
    axes.barh(place, 100 * mean.mean, 0.62, color="#7CC4EC")
    if mean.low is not None and mean.high is not None:
        axes.plot([100 * mean.low, 100 * mean.high], [place, place], color=INK, linewidth=1.4)
    axes.plot([100 * value for value in values], [place] * len(values), "o", color=BLUE, markersize=3.5)


def _effects(findings: Findings) -> Figure:
    known = [one for one, _ in corrected_effects(findings, "accuracy") if one.difference is not None]
    figure = Figure(figsize=(9.6, 1.1 + 0.38 * max(len(known), 1)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=1)
    for place, one in enumerate(known):
        assert one.difference is not None
        if one.low is not None and one.high is not None:
            axes.plot([100 * one.low, 100 * one.high], [place, place], color=BLUE, linewidth=2.4)
        axes.plot([100 * one.difference], [place], "o", color=BLUE, markersize=7)
    _plain(axes, xlabel="main effect on accuracy against the first level of the factor, percentage points")
    _names(axes, [f"{one.factor}: {one.level}" for one in known])
    return figure


def _look(i: int) -> dict[str, Any]:
    """Colour, line and marker of the cell i."""
    turn, place = divmod(i, len(COLOURS))
    return {
        "color": COLOURS[place],
        "linestyle": STYLES[turn % len(STYLES)],
        "marker": MARKERS[(place + 3 * turn) % len(MARKERS)],
    }


def _legend_columns(rows: Sequence[Row]) -> int:
    widest = max(columns(shorten(printable(row.cell.name), LONGEST)) for row in rows)
    return max(1, min(4, 110 // (widest + 8), len(rows)))


def _legend_height(rows: Sequence[Row]) -> float:
    """Inches that the legend of the cells needs below a figure."""
    return 0.25 + 0.2 * math.ceil(len(rows) / _legend_columns(rows))


def _legend(figure: Figure, rows: Sequence[Row], *, points: bool = False) -> None:
    """Name every cell that has a run below the figure, as a line or as a point."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], **_look(i) | ({"linestyle": "none"} if points else {"marker": None}),
               label=shorten(printable(row.cell.name), LONGEST))
        for i, row in enumerate(rows)
        if row.accuracy and (_has_learned(row) or not points)
    ]  # fmt: skip
    figure.legend(handles=handles, frameon=False, fontsize=9, ncols=_legend_columns(rows), loc="outside lower center")


def _names(axes: Axes, names: Sequence[str]) -> None:
    """Name the places 0, 1, ... from the top downwards."""
    lines = [[shorten(printable(line), LONGEST) for line in name.splitlines()] for name in names]
    axes.set_yticks(range(len(names)), ["\n".join(part) for part in lines])
    axes.set_ylim(max(len(names), 1) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _log(axes: Axes) -> None:
    """A logarithmic scale of x with plain numbers, also where it spans less than a power of ten."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.15, high * 1.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,), numticks=9))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _percent(axis: Any) -> None:
    axis.set_major_formatter(PercentFormatter(1, symbol=PERCENT))
    axis.set_major_locator(MaxNLocator(nbins=7))


def _plain(axes: Axes, *, title: str = "", xlabel: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(xlabel, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
