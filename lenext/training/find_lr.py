"""Which learning rate to train with: the learning rate range test.

Leslie N. Smith, "Cyclical learning rates for training neural networks", 2017 (https://arxiv.org/abs/1506.01186), in
the form Sylvain Gugger gave it in fastai: the rate rises by the same factor at every step until the loss explodes.
Where the loss falls fastest the rate is high enough to learn quickly and far from too high. Deviation: the loss is
smoothed with a Gaussian after the test, for a running average would move the curve towards higher rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from lenext import terminal

EXPLODED = 4  # times the least loss so far, both averaged: the test is over
AVERAGED = 0.8  # how much of the running average is kept at a step, for knowing when it is over
WIDTH = 1 / 3  # of the Gaussian that smooths the curve: its standard deviation in decades of the rate
SURE = 4  # standard deviations by which the loss has to fall, or it is noise


@dataclass(frozen=True)
class Search:
    """The result of `find_lr`.

    rates, losses, smoothed: one of each per step, up to the last step with a finite loss.
    suggestion: the rate where the smoothed loss falls most steeply, None where it does not fall beyond its noise.
    cautious: a tenth of the rate of the least smoothed loss, None likewise.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float | None
    cautious: float | None

    def __str__(self) -> str:
        low, high = self.rates[0], self.rates[-1]
        tried = f"learning rates from {low:.1e} to {high:.1e} tried in {len(self.rates)} steps"
        if self.suggestion is None or self.cautious is None:
            return f"{tried}: the loss falls at none of them.\nLook at the labels and the data, or try more steps."
        return (
            f"{tried}: the loss falls most steeply at {self.suggestion:.1e}.\n"
            f"Train with --lr {self.suggestion:.1e}; a tenth of the rate of the least loss is {self.cautious:.1e}."
        )


def find_lr(step: Callable[[float], float], *, lowest: float = 1e-7, highest: float = 10.0, steps: int = 100) -> Search:
    """Train with a rate that rises from `lowest` to `highest`, and say where the loss fell most steeply.

    step: takes one training step with the given rate on the next batch, and returns the loss before it; what it
    changes stays changed. The test ends early when the loss explodes. Raises ValueError if the loss
    is not finite at the lowest rate.
    """
    if not 0 < lowest < highest < math.inf or steps < 10:
        raise ValueError(
            f"the search for a learning rate needs 0 < lowest < highest and 10 steps or more, "
            f"not {lowest}, {highest} and {steps}"
        )
    rates, losses = np.geomspace(lowest, highest, steps), []
    average, least = 0.0, math.inf
    with terminal.bar("learning rate", steps) as bar:
        for number, rate in enumerate(rates.tolist(), start=1):
            loss = step(rate)
            if not math.isfinite(loss):
                break
            losses.append(loss)
            average = AVERAGED * average + (1 - AVERAGED) * loss
            unbiased = average / (1 - AVERAGED**number)
            least = min(least, unbiased)
            bar.advance(note=f"{rate:.1e}  loss {loss:.3f}")
            if unbiased > EXPLODED * least:
                break
    if not losses:
        raise ValueError(
            f"the loss is not a number at the lowest learning rate, {lowest:.1e}: the pictures, the labels or the "
            "weights hold something that is not a number, or a lower rate is needed"
        )
    return _search(rates[: len(losses)], np.array(losses), width=WIDTH * (steps - 1) / math.log10(highest / lowest))


def _search(rates: np.ndarray, losses: np.ndarray, *, width: float) -> Search:
    """width: standard deviation of the smoothing in steps."""
    start = losses[: max(1, len(losses) // 10)]
    # How far the loss explodes says nothing of where it fell, and must not spread to there.
    smoothed = gaussian_filter1d(np.minimum(losses, start.max()), width)
    bottom = int(smoothed.argmin())
    noise = np.median(np.abs(np.diff(losses, prepend=losses[0]))) / (0.6745 * math.sqrt(2))  # deviation of a loss
    doubt = noise * math.hypot(1 / math.sqrt(len(start)), 1 / math.sqrt(2 * math.sqrt(math.pi) * width))
    if bottom < 2 or start.mean() - smoothed[bottom] <= SURE * doubt:
        return Search(rates, losses, smoothed, None, None)
    steepest = int(np.gradient(smoothed)[: bottom + 1].argmin())
    return Search(rates, losses, smoothed, float(rates[steepest]), float(rates[bottom] / 10))
