"""From probabilities and labels to every number that a run reports, ready for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lenext.evaluation.calibration import expected_calibration_error, reliability

RESAMPLES = 10_000


def evaluate(
    probabilities: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    *,
    failed: Sequence[dict[str, str]] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Every metric of one evaluation, as a dictionary that JSON can hold: no NaN, no NumPy types.

    probabilities: (N, K), rows summing to 1. labels: (N,) indices into the K classes.
    failed: pictures that could not be read; they are listed in the result and are in no denominator.
    seed: of the bootstrap.

    Classes without a single sample have n = 0 and None for precision, recall and F1, and are left out of
    "macro_f1" and "balanced_accuracy"; a class with samples that is never predicted has precision 0 and F1 0.
    "top5" is the accuracy of the first min(5, K) guesses. "brier" follows scikit-learn: in [0, 1] for two
    classes, in [0, 2] for more. With two classes, "roc_auc" and "average_precision" (positive: the second
    class) are added, None where the labels hold one class only.
    """
    from sklearn import metrics

    scores, truth = np.array(probabilities, dtype=np.float64), np.asarray(labels)
    _check(scores, truth, classes, len(failed))
    # Rows of float32 miss 1 by more than scikit-learn accepts.
    scores /= scores.sum(axis=1, keepdims=True)
    N, K = scores.shape
    every = np.arange(K)
    predicted = scores.argmax(axis=1)
    accuracy = float(metrics.accuracy_score(truth, predicted))

    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        truth, predicted, labels=every, zero_division=0
    )
    present = support > 0
    result: dict[str, Any] = {
        "accuracy": accuracy,
        "accuracy_interval": accuracy_interval(round(accuracy * N), N, seed=seed),
        "top5": 1.0 if K <= 5 else float(metrics.top_k_accuracy_score(truth, scores, k=5, labels=every)),
        "macro_f1": float(f1[present].mean()),
        "balanced_accuracy": float(recall[present].mean()),
        "ece": expected_calibration_error(reliability(scores, truth)),
        "nll": float(metrics.log_loss(truth, scores, labels=every)),
        "brier": float(metrics.brier_score_loss(truth, scores, labels=every)),
        "n": N,
        "failed": list(failed),
        "per_class": {
            name: {
                "precision": float(precision[k]) if present[k] else None,
                "recall": float(recall[k]) if present[k] else None,
                "f1": float(f1[k]) if present[k] else None,
                "n": int(support[k]),
            }
            for k, name in enumerate(classes)
        },
        "confusion": metrics.confusion_matrix(truth, predicted, labels=every).tolist(),
    }
    if K == 2:
        both = bool(present.all())
        result["roc_auc"] = float(metrics.roc_auc_score(truth, scores[:, 1])) if both else None
        result["average_precision"] = float(metrics.average_precision_score(truth, scores[:, 1])) if both else None
    return result


def accuracy_interval(correct: int, n: int, *, seed: int = 0, level: float = 0.95) -> list[float]:
    """[low, high]: the percentile bootstrap interval of an accuracy of `correct` out of `n` samples.

    Drawing n samples with replacement, of which `correct` are right, is a binomial draw, so no sample has to
    be drawn. With all or none right every resample is alike: then it is the exact (Clopper-Pearson) interval.
    """
    assert 0 <= correct <= n
    if correct in (0, n):
        from scipy.stats import binomtest

        low, high = binomtest(correct, n).proportion_ci(level)
    else:
        resampled = np.random.default_rng(seed).binomial(n, correct / n, size=RESAMPLES) / n
        low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def _check(scores: np.ndarray, truth: np.ndarray, classes: Sequence[str], failed: int) -> None:
    if len(scores) == 0:
        raise ValueError(
            f"There is no picture to evaluate ({failed} could not be read): "
            "check the path, the split's name and the files."
        )
    assert len(set(classes)) == len(classes), "class names are unique"
    assert scores.ndim == 2
    assert truth.shape == scores.shape[:1]
    K = scores.shape[1]
    if K < 2:
        raise ValueError("A classifier needs at least two classes: add a second class folder.")
    if len(classes) != K:
        raise ValueError(f"There are {K} probabilities per picture, but {len(classes)} class names: give one for each.")
    if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= K:
        raise ValueError(f"Labels must be whole numbers from 0 to {K - 1}, places in the list of classes.")
    # NaN fails every comparison, so it is caught here too.
    wrong = np.flatnonzero(~((scores.min(axis=1) >= 0) & (np.abs(scores.sum(axis=1) - 1) < 1e-2)))
    if len(wrong):
        raise ValueError(
            f"Row {wrong[0]} of the probabilities is negative, NaN or does not sum to 1: "
            "give the softmax of the logits; NaN means that the training diverged."
        )
