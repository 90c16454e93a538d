"""The pictures of a search: scores trial by trial, as they grew, against each setting, and all settings at once."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from lenext.evaluation.figures import BLUE, DPI, GREY, INK, ORANGE, PERCENT, SKY
from lenext.evaluation.fonts import figure_fonts, printable, shorten
from lenext.tune.space import LR_FACTOR, Choices, Range, Space

if TYPE_CHECKING:
    from lenext.tune.report import Trial

LABELS = {LR_FACTOR: "lr / its default"}
STAR: dict[str, Any] = {"marker": "*", "s": 150, "color": ORANGE, "edgecolor": "white", "zorder": 5}
MOST_AXES = 12  # settings that have room beside one another


def draw(
    trials: Sequence[Trial], best: Trial, space: Space, importances: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """{name: {"uri": the PNG as a data URI, "width": in CSS pixels}} of the figures that the trials suffice for."""
    names = [shorten(printable(str(v)), 18) for s in space.values() if isinstance(s, Choices) for v in s.values]
    scored = [one for one in trials if one.score is not None]
    with figure_fonts(names):
        pictures = {"history": _picture(_history(trials, scored)), "slices": _picture(_slices(scored, best, space))}
        if any(one.curve for one in scored):
            pictures["curves"] = _picture(_curves(scored, best))
        if importances:
            pictures["importances"] = _picture(_importances(importances))
        if len(space) > 1:
            pictures["parallel"] = _picture(_parallel(scored, best, space))
    return pictures


def _history(trials: Sequence[Trial], scored: Sequence[Trial]) -> Figure:
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    axes = figure.subplots()
    done = [one for one in scored if one.state == "done"]
    left = [one for one in scored if one.state != "done"]
    best = np.maximum.accumulate(np.where([one.state == "done" for one in trials], _scores(trials), -math.inf))
    reached = np.isfinite(best)
    numbers = np.array([one.number for one in trials])
    axes.step(numbers[reached], best[reached], where="post", color=ORANGE, linewidth=1.8, label="best so far")
    axes.scatter([one.number for one in done], _scores(done), color=BLUE, s=32, label="done", zorder=3)
    if left:
        axes.scatter(
            [one.number for one in left], _scores(left), color=GREY, s=28, marker="x",
            label="pruned or ended early", zorder=3,
        )  # fmt: skip
    _score(axes)
    axes.set_xlabel("trial (0: the defaults)", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def _curves(scored: Sequence[Trial], best: Trial) -> Figure:
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    axes = figure.subplots()
    for one in sorted(scored, key=lambda one: one.number == best.number):
        kind = "best" if one.number == best.number else "done" if one.state == "done" else "pruned or ended early"
        colour = {"best": ORANGE, "done": SKY}.get(kind, GREY)
        width, style = (2.4, "-") if kind == "best" else (1.1, "-" if kind == "done" else "--")
        axes.plot(
            [tenth / 10 for tenth in one.curve], list(one.curve.values()), color=colour, linewidth=width,
            linestyle=style, label=kind, marker="o", markersize=3,
        )  # fmt: skip
    _score(axes)
    axes.set_xlabel("share of the run", fontsize=10)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=PERCENT))
    handles = dict(zip(*reversed(axes.get_legend_handles_labels())))
    axes.legend(handles.values(), handles.keys(), frameon=False, fontsize=9, loc="lower right")
    return figure


def _importances(importances: dict[str, float]) -> Figure:
    names = list(importances)[::-1]
    figure = Figure(figsize=(8.6, 0.8 + 0.32 * len(names)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([LABELS.get(name, name) for name in names], [importances[name] for name in names], color=BLUE)
    axes.bar_label(bars, [f"{100 * importances[name]:.0f}{PERCENT}" for name in names], padding=4, fontsize=9)
    _plain(axes)
    axes.set_xlim(0, 1.12 * max(importances.values()))
    axes.grid(visible=False)
    axes.xaxis.set_major_locator(NullLocator())
    axes.spines["bottom"].set_visible(False)
    return figure


def _slices(scored: Sequence[Trial], best: Trial, space: Space) -> Figure:
    across = min(4, len(space))
    rows = math.ceil(len(space) / across)
    figure = Figure(figsize=(max(2.15 * across, 3.6), 2.3 * rows), layout="constrained")
    grid = figure.subplots(rows, across, squeeze=False, sharey=True)
    for axes, (name, values) in zip(grid.flat, space.items()):
        for state, style in (("done", {"color": BLUE}), ("other", {"color": GREY, "marker": "x"})):
            chosen = [one for one in scored if (one.state == "done") == (state == "done") and name in one.drawn]
            x = [_place(one.drawn[name], values) for one in chosen]
            axes.scatter(x, _scores(chosen), s=22, alpha=0.8, linewidth=1.2, **style)
        axes.scatter([_place(best.drawn[name], values)], [best.score], **STAR)
        _score(axes)
        axes.set_ylabel("validation accuracy" if axes in grid[:, 0] else "", fontsize=9)
        axes.set_title(LABELS.get(name, name), loc="left", fontsize=10, color=INK)
        ticks = _ticks(values)
        long = isinstance(values, Choices) and max(len(label) for _, label in ticks) * len(ticks) > 16
        turn: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if long else {}
        axes.set_xticks([place for place, _ in ticks], [label for _, label in ticks], fontsize=8, **turn)
        axes.tick_params(axis="y", labelsize=8)
        axes.set_xlim(-0.12, 1.12)
    for axes in grid.flat[len(space) :]:
        axes.set_axis_off()
    return figure


def _parallel(scored: Sequence[Trial], best: Trial, space: Space) -> Figure:
    shown = dict(list(space.items())[:MOST_AXES])
    whole = [one for one in scored if shown.keys() <= one.drawn.keys() and one.score is not None]
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    axes = figure.subplots()
    low, high = min(_scores(whole)), max(_scores(whole))
    for one in sorted(whole, key=lambda one: (one.number == best.number, one.score)):
        assert one.score is not None
        level = (one.score - low) / (high - low) if high > low else 1.0
        y = [_place(one.drawn[name], values) for name, values in shown.items()]
        if one.number == best.number:
            look: dict[str, Any] = {"color": ORANGE, "linewidth": 2.6, "label": "best"}
        elif one.state == "done":
            look = {"color": BLUE, "linewidth": 1.2, "alpha": 0.12 + 0.7 * level}
        else:
            look = {"color": GREY, "linewidth": 1, "alpha": 0.5, "linestyle": "--"}
        axes.plot(range(len(shown) + 1), [*y, level], **look)
    for i, values in enumerate(shown.values()):
        axes.axvline(i, color=INK, linewidth=0.8)
        for place, label in _ticks(values):
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
            axes.text(i + 0.05, place, label, fontsize=7.5, va="center", color=INK, bbox=box, zorder=6)
    axes.axvline(len(shown), color=INK, linewidth=0.8)
    for place, value in ((0.0, low), (1.0, high)) if high > low else ((1.0, high),):
        axes.text(len(shown) + 0.05, place, f"{100 * value:.1f}{PERCENT}", fontsize=8, va="center", color=INK)
    labels = [LABELS.get(name, name).replace("_", "\n") for name in shown]
    axes.set_xticks(range(len(shown) + 1), [*labels, "validation\naccuracy"], fontsize=8.5)
    axes.set_xlim(-0.1, len(shown) + 0.55)
    axes.set_ylim(-0.06, 1.06)
    axes.yaxis.set_major_locator(NullLocator())
    axes.tick_params(axis="x", length=0)
    axes.spines[:].set_visible(False)
    return figure


def _scores(trials: Sequence[Trial]) -> list[float]:
    return [math.nan if one.score is None else one.score for one in trials]


def _place(value: Any, values: Range | Choices) -> float:
    """Where a value lies between the ends of what was searched, 0 to 1."""
    if isinstance(values, Choices):
        return values.values.index(value) / max(len(values.values) - 1, 1)
    if values.log:
        return math.log(value / values.low) / math.log(values.high / values.low)
    return (value - values.low) / (values.high - values.low)


def _ticks(values: Range | Choices) -> list[tuple[float, str]]:
    """(place, text) of every choice; of a range its ends and its middle."""
    if isinstance(values, Choices):
        return [
            (_place(v, values), "default" if v is None else shorten(printable(_text(v)), 18)) for v in values.values
        ]
    middle = math.sqrt(values.low * values.high) if values.log else (values.low + values.high) / 2
    return [(_place(value, values), f"{value:.2g}") for value in (values.low, middle, values.high)]


def _text(value: Any) -> str:
    if value is None:
        return "default"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _score(axes: Axes) -> None:
    _plain(axes)
    axes.set_ylabel("validation accuracy", fontsize=10)
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=PERCENT))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _picture(figure: Figure) -> dict[str, Any]:
    file = io.BytesIO()
    figure.savefig(file, dpi=DPI)
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return {"uri": uri, "width": round(figure.get_figwidth() * 96)}
