"""Statistics over seeds against scipy, closed forms and published examples."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lenext.study.statistics import (
    Effect,
    holm,
    is_chance,
    main_effects,
    mean_interval,
    paired,
    picture_error,
    verdict,
)

TWO_BY_THREE = {"norm": ["batch", "layer"], "act": ["relu", "gelu", "silu"]}
pytestmark = pytest.mark.filterwarnings("error")


def cross(factors):
    """{cell: {factor: level}} of every cell."""
    levels = [dict(zip(factors, choice)) for choice in itertools.product(*factors.values())]
    return {", ".join(one.values()): one for one in levels}


def fit(values, cells, factors) -> Any:
    return main_effects(values, cells, factors)


def draw(cells, seeds=3, spread=0.01):
    rng = np.random.default_rng(1)
    return {(cell, seed): 0.5 + 0.02 * seed + spread * rng.standard_normal() for cell in cells for seed in range(seeds)}


def test_the_interval_of_a_mean_is_scipys():
    values = [0.71, 0.74, 0.70, 0.73]
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 3, np.mean(values), stats.sem(values)))
    assert found.mean == pytest.approx(0.72)


def test_one_seed_gives_no_interval_and_equal_ones_an_empty_interval():
    one = mean_interval([0.7])
    assert (one.mean, one.low, one.high, one.n) == (0.7, None, None, 1)
    same = mean_interval([0.1, 0.1, 0.1])
    assert (same.mean, same.low, same.high) == (0.1, 0.1, 0.1)


def test_a_paired_effect_is_scipys_over_the_seeds_that_both_have():
    values, against = {0: 0.71, 1: 0.74, 2: 0.75, 4: 0.1}, {2: 0.71, 0: 0.69, 1: 0.70, 3: 0.9}
    found: Any = paired(values, against)
    a, b = [0.71, 0.74, 0.75], [0.69, 0.70, 0.71]
    test = stats.ttest_rel(a, b)
    low, high = test.confidence_interval(0.95)
    assert found.n == 3
    assert (found.difference, found.low, found.high, found.p) == pytest.approx(
        (np.mean(np.subtract(a, b)), low, high, test.pvalue)
    )


def test_a_paired_effect_without_spread_is_certain():
    # Equal but for rounding: 0.7 - 0.6 is not 0.8 - 0.7 in floating point.
    assert paired({0: 0.7, 1: 0.8, 2: 0.9}, {0: 0.6, 1: 0.7, 2: 0.8}) == Effect(0.1, 0.1, 0.1, 3, 0.0)
    assert paired({0: 0.7, 1: 0.8}, {0: 0.7, 1: 0.8}) == Effect(0.0, 0.0, 0.0, 2, 1.0)


def test_a_paired_effect_of_one_seed_has_no_p_and_of_none_is_none():
    assert paired({0: 0.7, 1: 0.8}, {0: 0.6}) == Effect(0.1, None, None, 1, None)
    assert paired({0: 0.7}, {1: 0.6}) is None


def test_holm_is_as_by_hand():
    # p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") of R; 0.04 rises to what 0.03 has become.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("difference", "p", "expected", "said"),
    [
        (-0.05, 0.01, "less", "confirmed"),
        (-0.05, 0.01, "more", "refuted"),
        (-0.05, 0.06, "less", "undecided"),
        (-0.05, None, "less", "undecided"),
        (-0.05, 0.01, None, "a difference"),
        (-0.05, 0.06, None, "no difference shown"),
    ],
)
def test_a_verdict_needs_significance_and_the_expected_sign(difference, p, expected, said):
    assert verdict(Effect(difference, -0.06, -0.04, 3, p), p, expected) == said


def test_without_common_seeds_nothing_is_measured():
    assert verdict(None, None, "more") == "not measured"


def test_the_error_of_so_many_pictures_is_the_binomial_one():
    assert picture_error(0.5, 10_000) == pytest.approx(0.005)
    assert is_chance(0.10, 10, 10_000)
    assert is_chance(0.02, 10, 10_000)
    assert not is_chance(0.11, 10, 10_000)
    assert is_chance(0.11, 10, 1_000)


def test_main_effects_are_those_of_the_analysis_of_variance():
    cells, seeds = cross(TWO_BY_THREE), 4
    values = draw(cells, seeds)
    found = fit(values, cells, TWO_BY_THREE)

    y = np.array([[values[cell, seed] for seed in range(seeds)] for cell in cells])  # (2 x 3 cells, seeds)
    residual = y - y.mean(axis=1, keepdims=True) - y.mean(axis=0, keepdims=True) + y.mean()
    degrees = (len(cells) - 1) * (seeds - 1)
    variance = (residual**2).sum() / degrees
    y = y.reshape(2, 3, seeds)
    expected = {
        "layer": (y[1].mean() - y[0].mean(), 2 / (3 * seeds)),
        "gelu": (y[:, 1].mean() - y[:, 0].mean(), 2 / (2 * seeds)),
        "silu": (y[:, 2].mean() - y[:, 0].mean(), 2 / (2 * seeds)),
    }
    assert (found.degrees, found.runs, found.cells, found.seeds) == (degrees, 24, 6, 4)
    for one in found.effects:
        difference, share = expected[one.level]
        error = math.sqrt(variance * share)
        half = stats.t.ppf(0.975, degrees) * error
        assert (one.difference, one.low, one.high) == pytest.approx((difference, difference - half, difference + half))
        assert one.p == pytest.approx(2 * stats.t.sf(abs(difference) / error, degrees))


def test_interaction_is_the_f_test_of_the_analysis_of_variance():
    cells, seeds = cross(TWO_BY_THREE), 4
    values = draw(cells, seeds)
    y = np.array([[values[cell, seed] for seed in range(seeds)] for cell in cells])
    residual = y - y.mean(axis=1, keepdims=True) - y.mean(axis=0, keepdims=True) + y.mean()
    mean = y.mean(axis=1).reshape(2, 3)
    joint = mean - mean.mean(axis=1, keepdims=True) - mean.mean(axis=0, keepdims=True) + mean.mean()
    f = (seeds * (joint**2).sum() / 2) / ((residual**2).sum() / 15)
    assert fit(values, cells, TWO_BY_THREE).interaction_p == pytest.approx(stats.f.sf(f, 2, 15))


def test_a_half_fraction_gives_the_orthogonal_contrasts():
    factors = {name: ["-", "+"] for name in "ABC"}
    cells = {name: one for name, one in cross(factors).items() if name.count("+") % 2}  # C = AB
    values = draw(cells, spread=0.05)
    found = fit(values, cells, factors)
    for one in found.effects:
        on, off = ([v for (cell, _), v in values.items() if cells[cell][one.factor] == level] for level in "+-")
        assert one.difference == pytest.approx(np.mean(on) - np.mean(off))
    assert found.interaction_p is None  # three effects of four cells leave nothing over


def test_missing_runs_do_not_move_main_effects_where_factors_interact():
    cells = cross(TWO_BY_THREE)
    means = dict(zip(cells, (0.50, 0.52, 0.54, 0.60, 0.57, 0.20)))  # the last cell does not learn
    whole = {(cell, seed): mean + 0.01 * seed for cell, mean in means.items() for seed in range(3)}
    part = {key: value for key, value in whole.items() if key not in {("batch, relu", 0), ("layer, gelu", 2)}}
    complete, less = (fit(values, cells, TWO_BY_THREE) for values in (whole, part))
    assert [one.difference for one in less.effects] == pytest.approx([one.difference for one in complete.effects])
    assert less.runs == 16
    # Cells differ alike with every seed, so nothing is left to chance.
    assert all(one.low == one.high == one.difference and one.p == 0 for one in less.effects)


def test_a_missing_cell_is_made_up_for_by_least_squares():
    factors = {"A": ["a", "b"], "B": ["c", "d"]}
    cells = cross(factors)
    values = {("a, c", 0): 0.5, ("b, c", 0): 0.6, ("a, d", 0): 0.8, ("a, c", 1): 0.5}
    found = fit(values, cells, factors)
    assert [one.difference for one in found.effects] == pytest.approx([0.1, 0.3])
    assert found.degrees == 0
    assert found.effects[0].low is None


def test_a_level_that_was_not_run_cannot_be_told():
    cells = cross(TWO_BY_THREE)
    values = {key: value for key, value in draw(cells).items() if "silu" not in key[0]}
    layer, gelu, silu = fit(values, cells, TWO_BY_THREE).effects
    assert (silu.level, silu.difference, silu.low, silu.p) == ("silu", None, None, None)
    assert layer.low < layer.difference < layer.high
    assert gelu.p is not None


def test_factors_that_move_together_cannot_be_told_apart():
    factors = {"A": ["a", "b"], "B": ["c", "d"]}
    cells = {"a, c": {"A": "a", "B": "c"}, "b, d": {"A": "b", "B": "d"}}
    assert [one.difference for one in fit(draw(cells), cells, factors).effects] == [None, None]


def test_cells_without_a_common_seed_cannot_be_compared():
    factors = {"A": ["a", "b"]}
    cells = cross(factors)
    assert fit({("a", 0): 0.5, ("b", 1): 0.6}, cells, factors).effects[0].difference is None
    assert main_effects({}, cells, factors) is None
