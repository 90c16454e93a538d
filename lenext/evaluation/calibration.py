"""Do the probabilities mean what they say? Temperature scaling, and the data of a reliability diagram.

Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, https://arxiv.org/abs/1706.04599.
Deviation: the targets of the fit are smoothed as in Platt scaling (see `fit_temperature`).

Labels are (N,) class indices where a picture has one class, and (N, K) bool where it may have several; each of these
N * K decisions then counts as one sample of a yes or a no.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

TEMPERATURES = (0.05, 20.0)


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The scalar T for which the probabilities have the lowest negative log-likelihood on held-out samples.

    logits: (N, K). labels: (N,) class indices for softmax(logits / T), or (N, K) bool for sigmoid(logits / T).
    The answer lies within TEMPERATURES.

    Where every one of N samples is right, the likelihood alone would push T to zero and claim certainty on their
    evidence. So the target of the true class is 1 - 1/(N + 2), as in Platt, "Probabilistic Outputs for Support Vector
    Machines", 1999, and the rest is spread over all classes, or over yes and no: that keeps the optimum finite, and
    vanishes as N grows.
    """
    from scipy.optimize import minimize_scalar

    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if len(scores) == 0:
        raise ValueError("The temperature cannot be fitted without samples: give at least one validation picture.")
    if not np.isfinite(scores).all():
        raise ValueError(
            "The logits hold NaN or infinity: the training diverged. Train again with a lower learning rate."
        )
    loss_at = _binary_loss(scores, truth) if truth.ndim == 2 else _categorical_loss(scores, truth)

    def loss(log_temperature: float) -> float:
        return loss_at(np.exp(-log_temperature))

    # The loss is convex in 1/T, so it has a single minimum in log T as well.
    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def _categorical_loss(scores: np.ndarray, truth: np.ndarray) -> Callable[[float], float]:
    """Of a sharpness 1/T: the mean negative log-likelihood of the smoothed labels under softmax(scores / T)."""
    from scipy.special import logsumexp

    N, K = scores.shape
    assert truth.shape == (N,)
    assert np.isin(truth, np.arange(K)).all(), "labels are class indices"
    smoothing = 1 / (N + 2)
    expected = (1 - smoothing) * scores[np.arange(N), truth].mean() + smoothing * scores.mean()
    return lambda sharpness: float(logsumexp(scores * sharpness, axis=1).mean() - sharpness * expected)


def _binary_loss(scores: np.ndarray, truth: np.ndarray) -> Callable[[float], float]:
    """The same of all decisions under sigmoid(scores / T)."""
    assert truth.shape == scores.shape
    smoothing = 1 / (truth.size + 2)
    expected = (((1 - smoothing) * truth + smoothing / 2) * scores).mean()
    return lambda sharpness: float(np.logaddexp(0, scores * sharpness).mean() - sharpness * expected)


def reliability(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> list[dict[str, Any]]:
    """Confidence against accuracy, in equal-width bins of the probability of the predicted class.

    probabilities: (N, K). labels: (N,) class indices; or (N, K) bool: then every probability is a sample, and its
    accuracy is how often the picture has the class.
    Returns one {"low", "high", "n", "confidence", "accuracy"} per bin, lowest first; "confidence" and
    "accuracy" are means over the bin's samples, None in an empty bin. A bin holds low <= confidence < high,
    the last one 1.0 too.
    """
    scores, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if truth.ndim == 2:
        confidence, correct = scores.ravel(), truth.ravel()
    else:
        confidence, correct = scores.max(axis=1), scores.argmax(axis=1) == truth
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1)
    rows = []
    for i in range(bins):
        inside = index == i
        n = int(inside.sum())
        means = (float(confidence[inside].mean()), float(correct[inside].mean())) if n else (None, None)
        rows.append(
            {
                "low": float(edges[i]),
                "high": float(edges[i + 1]),
                "n": n,
                "confidence": means[0],
                "accuracy": means[1],
            }
        )
    return rows


def expected_calibration_error(rows: list[dict[str, Any]]) -> float:
    """The mean distance of accuracy from confidence over the samples, from the rows of `reliability`."""
    N = sum(row["n"] for row in rows)
    return sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows if row["n"]) / N
