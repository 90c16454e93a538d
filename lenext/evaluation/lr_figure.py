"""The picture of a search for the learning rate: loss by rate, the suggestion marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lenext.evaluation.figures import BLUE, DPI, GREY, ORANGE


def draw_lr_search(search: Any, path: Path) -> None:
    """Loss by learning rate, on a logarithmic axis; the explosion of the loss is cut off.

    search: what `find_lr` returns: rates, losses and smoothed (each of N numbers), and suggestion and cautious, rates
    to mark with a line or None.
    """
    rates, losses, smoothed = (np.asarray(values) for values in (search.rates, search.losses, search.smoothed))
    low, high = min(losses.min(), smoothed.min()), losses[: max(1, len(losses) // 10)].max()
    margin = 0.15 * (high - low) or 0.1
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color=GREY, linewidth=0.8, alpha=0.7, label="loss of a batch")
    axes.plot(rates, smoothed, color=BLUE, linewidth=2, label="smoothed")
    title = "The loss falls at no rate"
    if search.suggestion is not None:
        title = f"Suggested learning rate: {search.suggestion:.1e}"
        axes.axvline(search.suggestion, color=ORANGE, linewidth=1.8, label="the loss falls most steeply")
    if search.cautious is not None:
        label = f"a tenth of the rate of the least loss: {search.cautious:.1e}"
        axes.axvline(search.cautious, color=ORANGE, linewidth=1.2, linestyle=":", label=label)
    axes.set_xscale("log")
    axes.set_ylim(low - margin, high + 2 * margin)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("learning rate", fontsize=10)
    axes.set_ylabel("training loss", fontsize=10)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
