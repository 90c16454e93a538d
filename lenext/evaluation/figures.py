"""The pictures of a run: curves, samples, confusion matrix or classes, reliability diagram, mistakes.

Every function takes plain arrays and writes one file. Colours are of the palette of Okabe and Ito, which
people with colour-blindness can tell apart (https://jfly.uni-koeln.de/color/).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike
from PIL import Image

from lenext.evaluation.calibration import expected_calibration_error, reliability
from lenext.evaluation.fonts import columns, figure_fonts, printable, shorten

DPI = 144  # pixels per inch
PERCENT = "\N{NO-BREAK SPACE}%"
BLUE, SKY, ORANGE, GREY, INK = "#0072B2", "#7CC4EC", "#D55E00", "#8A8A8A", "#222222"


def draw_curves(history: Sequence[dict[str, Any]], path: Path, *, best: int | None = None) -> None:
    """Loss and accuracy by epoch, training and validation, the best epoch marked.

    history: rows with epoch, train_loss, train_accuracy, val_loss, val_accuracy, where a value may be None or
    absent; of several rows of an epoch the last counts.
    best: the epoch whose model was kept; by default the one of `best_epoch`.
    """
    rows = [row for _, row in sorted({row["epoch"]: row for row in history}.items())]
    if not rows:
        raise ValueError("There is no epoch to draw: the training ended before its first epoch did.")
    epochs = [row["epoch"] for row in rows]
    best = best_epoch(rows) if best is None else best
    with figure_fonts([]):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for split, label, colour in (("train", "training", BLUE), ("val", "validation", ORANGE)):
                values = [_number(row.get(f"{split}_{name}")) for row in rows]
                if not np.isfinite(values).any():
                    continue
                marker = "o" if len(rows) <= 30 else None
                axes.plot(epochs, values, color=colour, label=label, linewidth=1.8, marker=marker, markersize=4)
                if split == "val" and best in epochs:
                    value = values[epochs.index(best)]
                    text = percent(value) if name == "accuracy" else f"{value:.3g}"
                    star: dict[str, Any] = {"color": colour, "markersize": 13, "markeredgecolor": "white"}
                    axes.axvline(best, color=GREY, linewidth=1, linestyle=":")
                    axes.plot([best], [value], "*", label=f"best epoch: {best} ({text})", **star)
            _plain(axes, title=name.capitalize(), xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            if name == "accuracy":
                axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=PERCENT))
            if len(rows) == 1:  # two points: show them from zero upwards
                axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
                axes.set_xticks(epochs)
                axes.set_ylim(0, 1.05 if name == "accuracy" else 1.2 * axes.get_ylim()[1])
            if axes.lines:
                axes.legend(frameon=False, fontsize=9, loc="best")
            else:
                axes.text(0.5, 0.5, "not measured", ha="center", color=GREY, transform=axes.transAxes)
                axes.set(xticks=[], yticks=[], xlabel="")
                axes.spines[:].set_visible(False)
        _save(figure, path)


def best_epoch(history: Sequence[dict[str, Any]]) -> int | None:
    """The first epoch of the highest validation accuracy, among equals of the lowest loss; None without."""
    scored = [row for row in history if np.isfinite(_number(row.get("val_accuracy")))]
    if not scored:
        return None
    return max(scored, key=lambda row: (row["val_accuracy"], -_number(row.get("val_loss"))))["epoch"]


def draw_samples(images: Sequence[np.ndarray], titles: Sequence[str], path: Path) -> None:
    """A grid of pictures (each H x W x 3, uint8, any size) under their titles; no file without pictures."""
    _draw_grid(images, titles, path, per_row=6)


def draw_mistakes(images: Sequence[np.ndarray], titles: Sequence[str], path: Path) -> None:
    """As draw_samples, larger: a title may have several lines, such as label, prediction and probability."""
    _draw_grid(images, titles, path, per_row=4)


def draw_confusion(matrix: ArrayLike, classes: Sequence[str], path: Path) -> None:
    """Rows are labels, columns predictions, colours the share of the row.

    matrix: (K, K) counts. Up to 12 classes, a cell holds its count and its share; up to 32, its count; above,
    colour alone speaks, and above 100 not every class is named.
    """
    counts = np.asarray(matrix)
    K = len(classes)
    assert counts.shape == (K, K)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few, numbered = K <= 12, K <= 32
    gamma = 1 if few else 0.5  # of many classes a mistake is a small share of its row: its root shows it
    cell = max(0.68, 2.6 / K) if few else 0.33 if numbered else min(max(0.11, 9 / K), 16 / K)  # inches
    fontsize = 9.5 if few else 7.5 if numbered else 6
    names = [shorten(printable(name), 20 if few else 24) for name in classes]
    named = range(0, K, math.ceil(K / 100))
    upright = few and max(map(columns, names)) * fontsize * 0.62 / 72 < cell
    with figure_fonts(names):
        figure = Figure(figsize=(cell * K, cell * K))
        axes = figure.add_axes((0, 0, 1, 1))  # the names lie outside, and _save makes room for them
        picture = axes.imshow(share, cmap="Blues", norm=PowerNorm(gamma, 0, 1))
        slanted = {"rotation": 45, "ha": "right", "va": "top", "rotation_mode": "anchor"}
        turn: dict[str, Any] = {} if upright else slanted if few else {"rotation": 90}
        axes.set_yticks(named, [names[k] for k in named], fontsize=fontsize)
        axes.set_xticks(named, [names[k] for k in named], fontsize=fontsize, **turn)
        axes.tick_params(length=0 if numbered else 2, pad=4)
        axes.set_xlabel("predicted", fontsize=10)
        axes.set_ylabel("label", fontsize=10)
        axes.spines[:].set_visible(not numbered)
        if numbered:
            for edge in np.arange(K + 1) - 0.5:
                axes.axhline(edge, color="white", linewidth=1)
                axes.axvline(edge, color="white", linewidth=1)
            for i, j in np.argwhere(counts):
                text = f"{counts[i, j]}\n{percent(share[i, j], 0)}" if few else f"{counts[i, j]}"
                size = 8.5 if few else min(7.5, 18 / len(text))
                colour = "white" if share[i, j] ** gamma > 0.55 else INK
                axes.text(j, i, text, ha="center", va="center", fontsize=size, color=colour)
        side = cell * K
        height = min(1, 4 / side)
        scale = axes.inset_axes((1 + 0.15 / side, 1 - height, 0.16 / side, height))
        bar = figure.colorbar(picture, cax=scale, format=PercentFormatter(1, decimals=0, symbol=PERCENT))
        bar.set_label("share of the label's pictures", fontsize=9)
        bar.set_ticks([0, 0.25, 0.5, 0.75, 1] if few else [0, 0.05, 0.2, 0.5, 1])
        bar.ax.tick_params(labelsize=8, length=2)
        bar.outline.set_visible(False)
        _save(figure, path, bbox_inches="tight")


def draw_classes(per_class: dict[str, dict[str, Any]], path: Path, *, most: int = 50) -> None:
    """F1 and average precision of each class as bars, the lowest F1 on top.

    per_class: {class: {"f1", "average_precision"}}; classes where these are None, having no pictures, are left out.
    Of more than `most` classes the weakest are drawn. No file without classes.
    """
    rows = sorted(((row["f1"], row["average_precision"], name) for name, row in per_class.items() if row["n"]))
    if not rows:
        return
    f1, precision, _ = zip(*rows[:most])
    names = [shorten(printable(name), 24) for *_, name in rows[:most]]
    places = np.arange(len(names))
    with figure_fonts(names):
        figure = Figure(figsize=(6.4, 0.9 + 0.34 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.barh(places - 0.18, f1, 0.34, color=BLUE, label="F1")
        axes.barh(places + 0.18, precision, 0.34, color=SKY, label="average precision")
        for value, place in [*zip(f1, places - 0.18), *zip(precision, places + 0.18)]:
            axes.text(value + 0.01, place, percent(value, 0), va="center", fontsize=7, color=INK)
        _plain(axes, title="" if len(rows) <= most else f"The weakest {most} of {len(rows)} classes")
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, 1.08)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=PERCENT))
        axes.grid(visible=False, axis="y")
        figure.legend(frameon=False, fontsize=9, ncols=2, loc="outside upper right")
        _save(figure, path)


def draw_reliability(probabilities: ArrayLike, labels: ArrayLike, path: Path, *, bins: int = 15) -> None:
    """Accuracy by confidence, with the gap to the diagonal, above how many pictures each bin holds.

    probabilities: (N, K). labels: (N,) class indices; or (N, K) bool: then how often a picture has a class, by its
    probability, above how many decisions each bin holds.
    """
    accuracy_name, confidence_name, unit = "accuracy", "confidence (probability of the predicted class)", "pictures"
    if np.ndim(labels) == 2:
        accuracy_name, confidence_name, unit = "share that has the class", "probability of a class", "decisions"
    rows = [row for row in reliability(probabilities, labels, bins=bins) if row["n"]]
    middle = [(row["low"] + row["high"]) / 2 for row in rows]
    confidence, accuracy = ([row[key] for row in rows] for key in ("confidence", "accuracy"))
    with figure_fonts([]):
        figure = Figure(figsize=(5.6, 5.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
        bar: dict[str, Any] = {"width": 1 / bins, "edgecolor": "white", "linewidth": 0.8}
        hatched: dict[str, Any] = {"width": 1 / bins, "edgecolor": ORANGE, "color": "none", "hatch": "////"}
        gap = np.subtract(confidence, accuracy)
        above.bar(middle, accuracy, color=SKY, label=accuracy_name, **bar)
        above.bar(middle, gap, bottom=accuracy, label="gap", **hatched)
        above.plot([0, 1], [0, 1], color=INK, linewidth=1.2, linestyle="--", label="perfect")
        error = percent(expected_calibration_error(rows))
        _plain(above, ylabel=accuracy_name)
        above.set_title(f"Expected calibration error {error}", loc="left", fontsize=11, color=INK, pad=24)
        above.set_ylim(0, 1.02)
        above.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=PERCENT))
        above.legend(frameon=False, fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 0.99))
        below.bar(middle, [row["n"] for row in rows], color=GREY, **bar)
        _plain(below, xlabel=confidence_name, ylabel=unit)
        below.set_xlim(0, 1)
        below.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=PERCENT))
        below.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
        figure.align_ylabels()
        _save(figure, path)


def _draw_grid(images: Sequence[np.ndarray], titles: Sequence[str], path: Path, *, per_row: int) -> None:
    assert len(images) == len(titles)
    if not images:
        return
    across = min(per_row, len(images))
    rows = math.ceil(len(images) / across)
    cell = 8.6 / per_row  # inches
    texts = [[shorten(printable(line), round(cell * 13)) for line in title.splitlines()] for title in titles]
    heading = 0.1 + 0.17 * max(map(len, texts))
    # A row is as high as its highest picture, at most a square.
    ratios = [min(1.0, image.shape[0] / image.shape[1]) for image in images]
    heights = [heading + cell * max(ratios[row * across : (row + 1) * across]) for row in range(rows)]
    side = cell - 0.08
    with figure_fonts(line for lines in texts for line in lines):
        figure = Figure(figsize=(cell * across, sum(heights)))
        for k, (image, lines) in enumerate(zip(images, texts, strict=True)):
            row, column = divmod(k, across)
            H, W, _ = image.shape
            small = Image.fromarray(image)
            small.thumbnail((round(side * DPI), round(side * DPI)))
            width, height = (side * length / max(H, W) for length in (W, H))
            left, top = column * cell + (cell - width) / 2, sum(heights[:row]) + heading
            x, y = figure.get_size_inches()
            axes = figure.add_axes((left / x, 1 - (top + height) / y, width / x, height / y))
            axes.set_axis_off()
            axes.imshow(small, aspect="auto", interpolation="nearest" if max(H, W) < 64 else "antialiased")
            axes.set_title("\n".join(lines), fontsize=8.5, color=INK, pad=3)
        _save(figure, path)


def _plain(axes: Axes, *, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(xlabel, fontsize=10)
    axes.set_ylabel(ylabel, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def percent(share: float, digits: int = 1) -> str:
    """0.914 as 91.4 %, its sign kept on the line; "<1 %" for what would round to nothing."""
    text = f"{100 * share:.{digits}f}"
    return ("<1" if share > 0 and not digits and text == "0" else text) + PERCENT


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _save(figure: Figure, path: Path, **arguments: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, **arguments)
