"""Temperature scaling recovers known temperatures; the reliability diagram counts right."""

import numpy as np
import pytest
from scipy.optimize import brute
from scipy.special import log_softmax, softmax

from lenext.evaluation.calibration import (
    TEMPERATURES,
    expected_calibration_error,
    fit_temperature,
    reliability,
)


def calibrated(N, K, seed=0):
    """Logits, and labels drawn with just the probabilities that the logits say."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(N, K))
    draws = generator.random((N, 1)) > softmax(logits, axis=1).cumsum(axis=1)
    return logits, draws.sum(axis=1).clip(max=K - 1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("K", [2, 10])
def test_recovers_a_known_temperature(temperature, K):
    logits, labels = calibrated(20_000, K)
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.04)


def test_is_the_minimum_of_the_likelihood():
    logits, labels = calibrated(5000, 5)

    def loss(t):
        return -log_softmax(2 * logits / t, axis=1)[np.arange(len(labels)), labels].mean()

    (expected,) = brute(lambda t: loss(t[0]), [slice(0.5, 4, 0.05)])
    assert fit_temperature(2 * logits, labels) == pytest.approx(expected, rel=0.01)


def test_makes_the_probabilities_mean_what_they_say():
    logits, labels = calibrated(10_000, 4)
    before = reliability(softmax(3 * logits, axis=1), labels)
    after = reliability(softmax(3 * logits / fit_temperature(3 * logits, labels), axis=1), labels)
    assert expected_calibration_error(before) > 0.1
    assert expected_calibration_error(after) < 0.02


@pytest.mark.parametrize("N", [4, 40, 400])
def test_perfect_separation_claims_no_more_than_the_samples_show(N):
    labels = np.arange(N) % 2
    logits = np.where(np.arange(2) == labels[:, None], 1.0, -1.0)
    temperature = fit_temperature(logits, labels)
    assert TEMPERATURES[0] < temperature < 1
    # The targets are 1 - 1/(N + 2), of which half of the rest falls to the true class.
    assert softmax(logits / temperature, axis=1).max() == pytest.approx(1 - 0.5 / (N + 2), abs=1e-4)


def test_stays_within_its_bounds():
    labels = np.zeros(50, int)
    wrong = np.tile([-9.0, 9.0], (50, 1))
    assert TEMPERATURES[0] <= fit_temperature(wrong, labels) <= TEMPERATURES[1]
    assert fit_temperature(wrong, labels) > 15
    assert TEMPERATURES[0] <= fit_temperature(np.zeros((50, 3)), labels) <= TEMPERATURES[1]


def test_shifting_the_logits_changes_nothing():
    logits, labels = calibrated(500, 3)
    shifted = logits + np.linspace(-50, 900, 500)[:, None]
    assert fit_temperature(shifted, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-3)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="without samples"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, int))
    with pytest.raises(ValueError, match="diverged"):
        fit_temperature([[np.nan, 0.0]], [0])


def test_reliability_by_hand():
    probabilities = [[1.0, 0.0], [0.9, 0.1], [0.3, 0.7], [0.75, 0.25], [0.35, 0.65]]
    rows = reliability(probabilities, [0, 1, 1, 0, 0], bins=5)
    assert [row["n"] for row in rows] == [0, 0, 0, 3, 2]
    assert rows[0] == {"low": 0.0, "high": 0.2, "n": 0, "confidence": None, "accuracy": None}
    assert rows[3]["confidence"] == pytest.approx((0.7 + 0.75 + 0.65) / 3)
    assert rows[3]["accuracy"] == pytest.approx(2 / 3)
    assert rows[4]["confidence"] == pytest.approx(0.95)
    assert rows[4]["accuracy"] == 0.5
    expected = 3 / 5 * abs(2 / 3 - 2.1 / 3) + 2 / 5 * 0.45
    assert expected_calibration_error(rows) == pytest.approx(expected)


@pytest.mark.parametrize("bins", [5, 15, 100])
def test_calibration_error_is_that_of_torchmetrics(bins):
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits, labels = calibrated(2000, 7)
    probabilities = softmax(2 * logits, axis=1)
    reference = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), 7, n_bins=bins)
    assert expected_calibration_error(reliability(probabilities, labels, bins=bins)) == pytest.approx(
        reference.item(), rel=1e-5
    )
