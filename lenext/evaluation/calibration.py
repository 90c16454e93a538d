"""Do the probabilities mean what they say? Temperature scaling, and the data of a reliability diagram.

Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, https://arxiv.org/abs/1706.04599.
Deviation: the targets of the fit are smoothed as in Platt scaling (see `fit_temperature`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

TEMPERATURES = (0.05, 20.0)


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The scalar T for which softmax(logits / T) has the lowest negative log-likelihood on held-out samples.

    logits: (N, K). labels: (N,) class indices. The answer lies within TEMPERATURES.

    Where every sample is right, the likelihood alone would push T to zero and claim certainty on the evidence
    of N samples. So the target of the true class is 1 - 1/(N + 2), as in Platt, "Probabilistic Outputs for
    Support Vector Machines", 1999, and the rest is spread over all classes: that keeps the optimum finite,
    and vanishes as N grows.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if len(scores) == 0:
        raise ValueError("The temperature cannot be fitted without samples: give at least one validation picture.")
    if not np.isfinite(scores).all():
        raise ValueError(
            "The logits hold NaN or infinity: the training diverged. Train again with a lower learning rate."
        )
    N, K = scores.shape
    assert truth.shape == (N,)
    assert np.isin(truth, np.arange(K)).all(), "labels are class indices"
    smoothing = 1 / (N + 2)
    expected = (1 - smoothing) * scores[np.arange(N), truth].mean() + smoothing * scores.mean()

    def loss(log_temperature: float) -> float:
        sharpness = np.exp(-log_temperature)
        return float(logsumexp(scores * sharpness, axis=1).mean() - sharpness * expected)

    # The loss is convex in 1/T, so it has a single minimum in log T as well.
    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def reliability(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> list[dict[str, Any]]:
    """Confidence against accuracy, in equal-width bins of the probability of the predicted class.

    probabilities: (N, K). labels: (N,) class indices.
    Returns one {"low", "high", "n", "confidence", "accuracy"} per bin, lowest first; "confidence" and
    "accuracy" are means over the bin's samples, None in an empty bin. A bin holds low <= confidence < high,
    the last one 1.0 too.
    """
    scores, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
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
