"""From probabilities and labels to every number that a run reports, ready for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lenext.classifier import THRESHOLD
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

    probabilities: (N, K). labels: (N,) indices into the K classes, where rows of probabilities sum to 1; or (N, K)
    bool, where a picture may have several classes or none.
    failed: pictures that could not be read; they are listed in the result and are in no denominator.
    seed: of the bootstrap.

    Classes without a single sample have n = 0 and None for the other figures of "per_class", and are left out of
    every mean over classes, which is None where no class is left; a class with samples that is never predicted has
    precision 0 and F1 0. "accuracy_interval" is that of `accuracy_interval`, "nll" in nats.

    One label, "task" is "single-label": "top5" is the accuracy of the first min(5, K) guesses. "brier" follows
    scikit-learn: in [0, 1] for two classes, in [0, 2] for more. With two classes, "roc_auc" and "average_precision"
    (positive: the second class) are added, None where the labels hold one class only.

    Several labels, "task" is "multi-label": "accuracy" is the share of pictures of which every class is decided right
    (exact match), "hamming_accuracy" the share of decisions, of which a picture has K. "micro_f1" counts all decisions
    together, "mean_average_precision" and "roc_auc" are means over classes, the latter over those that some pictures
    have and some have not. "nll" and "ece" are of decisions. "top5" has no meaning and is None.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    scores, truth = np.array(probabilities, dtype=np.float64), np.asarray(labels)
    _check(scores, truth, classes, len(failed))
    N, K = scores.shape
    several = truth.ndim == 2
    predicted = scores >= THRESHOLD if several else scores.argmax(axis=1)
    right = int((predicted == truth).reshape(N, -1).all(axis=1).sum())

    every = np.arange(K)
    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted, labels=every, zero_division=0)
    present = support > 0
    columns = {"precision": precision, "recall": recall, "f1": f1}
    if several:
        figures, columns["average_precision"] = _of_decisions(scores, truth, predicted, support)
    else:
        figures = _of_one_label(scores, truth, recall, present)
    result = {
        "task": "multi-label" if several else "single-label",
        "accuracy": right / N,
        "accuracy_interval": accuracy_interval(right, N, seed=seed),
        "macro_f1": _mean(f1[present]),
        **figures,
        "ece": expected_calibration_error(reliability(scores, truth)),
        "n": N,
        "failed": list(failed),
        "per_class": {
            name: {
                **{key: float(column[k]) if present[k] else None for key, column in columns.items()},
                "n": int(support[k]),
            }
            for k, name in enumerate(classes)
        },
    }
    return result if several else result | {"confusion": confusion_matrix(truth, predicted, labels=every).tolist()}


def _of_one_label(scores: np.ndarray, truth: np.ndarray, recall: np.ndarray, present: np.ndarray) -> dict[str, Any]:
    """scores: (N, K). truth: (N,) indices. recall: (K,). present: (K,) whether the labels hold each class."""
    from sklearn import metrics

    # Rows of float32 miss 1 by more than scikit-learn accepts.
    scores = scores / scores.sum(axis=1, keepdims=True)
    _, K = scores.shape
    every = np.arange(K)
    figures: dict[str, Any] = {
        "top5": 1.0 if K <= 5 else float(metrics.top_k_accuracy_score(truth, scores, k=5, labels=every)),
        "balanced_accuracy": _mean(recall[present]),
        "nll": float(metrics.log_loss(truth, scores, labels=every)),
        "brier": float(metrics.brier_score_loss(truth, scores, labels=every)),
    }
    if K == 2:
        both = bool(present.all())
        figures["roc_auc"] = float(metrics.roc_auc_score(truth, scores[:, 1])) if both else None
        figures["average_precision"] = float(metrics.average_precision_score(truth, scores[:, 1])) if both else None
    return figures


def _of_decisions(
    scores: np.ndarray, truth: np.ndarray, predicted: np.ndarray, support: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """(figures, average precision of each class); all (N, K), but for support, (K,) pictures of each class."""
    from sklearn import metrics

    N, K = scores.shape
    occurring, mixed = np.flatnonzero(support), np.flatnonzero((support > 0) & (support < N))
    average_precision = np.zeros(K)
    for k in occurring:
        average_precision[k] = metrics.average_precision_score(truth[:, k], scores[:, k])
    figures = {
        "top5": None,
        "hamming_accuracy": float((predicted == truth).mean()),
        "micro_f1": float(metrics.f1_score(truth, predicted, average="micro")) if len(occurring) else None,
        "mean_average_precision": _mean(average_precision[occurring]),
        "roc_auc": _mean(np.array([metrics.roc_auc_score(truth[:, k], scores[:, k]) for k in mixed])),
        "nll": float(metrics.log_loss(truth.ravel(), scores.ravel(), labels=[False, True])),
    }
    return figures, average_precision


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


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
    N, K = scores.shape
    assert truth.shape in ((N,), (N, K))
    if K < 2:
        raise ValueError("A classifier needs at least two classes: add a second class folder.")
    if len(classes) != K:
        raise ValueError(f"There are {K} probabilities per picture, but {len(classes)} class names: give one for each.")
    if truth.ndim == 2:
        assert truth.dtype == bool
        _require(scores.min(axis=1) >= 0, "is negative or NaN", "sigmoid")
        _require(scores.max(axis=1) <= 1, "is greater than 1", "sigmoid")
        return
    if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= K:
        raise ValueError(f"Labels must be whole numbers from 0 to {K - 1}, places in the list of classes.")
    sums_to_one = np.abs(scores.sum(axis=1) - 1) < 1e-2
    _require((scores.min(axis=1) >= 0) & sums_to_one, "is negative, NaN or does not sum to 1", "softmax")


def _require(sound: np.ndarray, what: str, function: str) -> None:
    """ValueError naming the first row that is not sound; NaN fails every comparison, so it is caught here too."""
    if not sound.all():
        raise ValueError(
            f"Row {np.argmin(sound)} of the probabilities {what}: give the {function} of the logits; "
            "NaN means that the training diverged."
        )
