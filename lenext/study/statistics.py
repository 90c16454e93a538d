"""What runs over several seeds can tell: means, paired effects, main effects, and what becomes of many questions.

Functions of plain numbers. Intervals are of 95 %, by Student's t. Runs of one seed share split, order of pictures and
the weights' seed, so they are compared in pairs: what a seed does to all cells drops out of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Verdict = Literal["confirmed", "refuted", "undecided", "a difference", "no difference shown", "not measured"]
LEVEL = 0.95
SIGNIFICANT = 0.05
# Shares are pictures over pictures; after this many decimals they hold nothing but rounding, and equal is equal.
DECIMALS = 12


@dataclass(frozen=True)
class Mean:
    """Of n values; low, high: its interval, None for a single value."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Effect:
    """A mean difference over n seeds, its interval, and the two-sided p of there being none; None for one seed."""

    difference: float
    low: float | None
    high: float | None
    n: int
    p: float | None


@dataclass(frozen=True)
class LevelEffect:
    """What a level of a factor does against its first level. All None where the runs cannot tell; p not corrected."""

    factor: str
    level: str
    against: str
    difference: float | None
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class MainEffects:
    """The effects of all levels but the first of each factor, and what they rest on.

    runs, cells, seeds: how many of each were used. degrees: degrees of freedom of the residual variance.
    interaction_p: how likely the cells would deviate from the sum of the main effects as much if the factors did not
    interact; None where the design cannot tell.
    """

    effects: tuple[LevelEffect, ...]
    runs: int
    cells: int
    seeds: int
    degrees: int
    interaction_p: float | None


def mean_interval(values: Sequence[float]) -> Mean:
    """The mean of at least one value, and where it would lie over many more seeds."""
    n = len(values)
    rounded = np.round(values, DECIMALS)
    if n == 1:
        return Mean(values[0], None, None, n)
    if np.ptp(rounded) == 0:
        return Mean(values[0], values[0], values[0], n)
    mean = float(np.mean(values))
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Mean(mean, mean - half, mean + half, n)


def paired(values: Mapping[int, float], against: Mapping[int, float]) -> Effect | None:
    """values minus against, {seed: value} both, over the seeds that both have; None if there is no such seed."""
    seeds = [seed for seed in values if seed in against]
    if not seeds:
        return None
    differences = np.round([values[seed] - against[seed] for seed in seeds], DECIMALS)
    mean = mean_interval(differences.tolist())
    if len(seeds) == 1:
        p = None
    elif np.ptp(differences) == 0:
        p = float(mean.mean == 0)
    else:
        p = float(stats.ttest_rel([values[seed] for seed in seeds], [against[seed] for seed in seeds]).pvalue)
    return Effect(mean.mean, mean.low, mean.high, mean.n, p)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """p values corrected for there being several (Holm 1979), in their order; None is no question and stays so."""
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        corrected[i] = highest
    return corrected


def verdict(effect: Effect | None, p: float | None, expected: Literal["more", "less"] | None) -> Verdict:
    """What an effect with its corrected p says about what was expected of it."""
    if effect is None:
        return "not measured"
    if p is None or p >= SIGNIFICANT:
        return "undecided" if expected else "no difference shown"
    if expected is None:
        return "a difference"
    return "confirmed" if (effect.difference > 0) == (expected == "more") else "refuted"


def picture_error(accuracy: float, pictures: int) -> float:
    """Standard error of an accuracy for the number of pictures that it was measured on, a share of 1."""
    return math.sqrt(accuracy * (1 - accuracy) / pictures)


def is_chance(accuracy: float, classes: int, pictures: int) -> bool:
    """Whether guessing among the classes would as well have reached an accuracy on so many pictures."""
    chance = 1 / classes
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    return accuracy <= chance + z * picture_error(chance, pictures)


def main_effects(
    values: Mapping[tuple[str, int], float],
    cells: Mapping[str, Mapping[str, str]],
    factors: Mapping[str, Sequence[str]],
) -> MainEffects | None:
    """The effect of each level against the first of its factor, averaged over the levels of the others.

    values: {(cell, seed): value}; runs may be missing. cells: {cell: {factor: level}}. factors: {factor: levels}.
    None without values.

    Least squares gives each cell its mean, seeds being blocks, and then each level its effect on these means, so that a
    cell counts once, however many of its runs are missing. The residual variance is that of the randomised block
    analysis: how differently the cells do from seed to seed. So interactions do not count as chance; they are averaged,
    and in a fraction of all cells some of them are in the main effects undivided.
    """
    keys = sorted(values)
    if not keys:
        return None
    y = np.array([values[key] for key in keys])
    present = list(dict.fromkeys(cell for cell, _ in keys))
    seeds = _indicators([seed for _, seed in keys])
    blocks = np.hstack([seeds, _indicators([cell for cell, _ in keys])])  # (runs, seeds + cells)
    terms = [(factor, level) for factor, levels in factors.items() for level in levels[1:]]
    levels = np.array([[1.0, *(cells[cell][factor] == level for factor, level in terms)] for cell in present])

    to_cells, to_levels = np.linalg.pinv(blocks), np.linalg.pinv(levels)
    within, degrees = _residual(blocks, y)
    effects = []
    for i, (factor, level) in enumerate(terms, start=1):
        # What is no sum of the rows of a design cannot be told from it (Searle: Linear Models, chapter 5).
        known = np.allclose((to_levels @ levels)[i], np.eye(levels.shape[1])[i], atol=1e-8)
        contrast = np.concatenate([np.zeros(seeds.shape[1]), to_levels[i]])
        weights = contrast @ to_cells  # of the runs
        known &= np.allclose(weights @ blocks, contrast, atol=1e-8)
        error = math.sqrt(within / degrees * float(weights @ weights)) if degrees else None
        numbers = _interval(float(weights @ y), error, degrees) if known else (None, None, None, None)
        effects.append(LevelEffect(factor, level, factors[factor][0], *numbers))

    by_cell = levels[[present.index(cell) for cell, _ in keys]]
    left, more = _residual(np.hstack([seeds, by_cell]), y)
    interaction_p = None
    if within and more > degrees > 0:
        ratio = (left - within) / (more - degrees) / (within / degrees)
        interaction_p = float(stats.f.sf(ratio, more - degrees, degrees))
    return MainEffects(tuple(effects), len(keys), len(present), seeds.shape[1], degrees, interaction_p)


def _interval(
    difference: float, error: float | None, degrees: int
) -> tuple[float, float | None, float | None, float | None]:
    """(difference, low, high, p) for a standard error; without one, the difference alone."""
    difference = round(difference, DECIMALS)
    if error is None:
        return difference, None, None, None
    if error == 0:
        return difference, difference, difference, float(difference == 0)
    half = float(stats.t.ppf((1 + LEVEL) / 2, degrees)) * error
    return difference, difference - half, difference + half, float(2 * stats.t.sf(abs(difference) / error, degrees))


def _residual(design: np.ndarray, y: np.ndarray) -> tuple[float, int]:
    """(sum of squares, degrees of freedom) that a design leaves unexplained."""
    residual = np.round(y - design @ (np.linalg.pinv(design) @ y), DECIMALS)
    return float(residual @ residual), len(y) - int(np.linalg.matrix_rank(design))


def _indicators(labels: Sequence[Hashable]) -> np.ndarray:
    """(N, K): a column of zeros and ones for each different label, in the order in which they appear."""
    different = list(dict.fromkeys(labels))
    return np.array([[float(label == other) for other in different] for label in labels])
