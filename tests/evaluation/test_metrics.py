"""Every number against hand-computed cases and independent implementations."""

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lenext.evaluation.metrics import accuracy_interval, evaluate


def random_case(N, K, seed=0, dtype=np.float64):
    """(probabilities, labels) of a classifier that is right more often than not, every class present."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(K), generator.integers(0, K, N - K)])
    logits = generator.normal(size=(N, K)) + 2 * np.eye(K)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.astype(dtype), labels


def test_three_classes_by_hand():
    probabilities = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]
    result = evaluate(probabilities, [0, 1, 1, 2], ["a", "b", "c"])
    assert result["n"] == 4
    assert result["accuracy"] == 0.75
    assert result["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert result["per_class"]["a"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "n": 1}
    assert result["per_class"]["b"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "n": 2}
    assert result["per_class"]["c"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "n": 1}
    assert result["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert result["balanced_accuracy"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert result["top5"] == 1.0
    assert result["nll"] == pytest.approx(-np.log([0.7, 0.6, 0.3, 0.8]).mean())
    squares = [0.09 + 0.04 + 0.01, 0.01 + 0.16 + 0.09, 0.25 + 0.49 + 0.04, 0.01 + 0.01 + 0.04]
    assert result["brier"] == pytest.approx(np.mean(squares))
    # Each confidence has a bin of its own: gaps of 0.3, 0.4, 0.5 (the wrong one) and 0.2.
    assert result["ece"] == pytest.approx((0.3 + 0.4 + 0.5 + 0.2) / 4)
    assert "roc_auc" not in result


def test_two_classes_by_hand():
    result = evaluate([[0.9, 0.1], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]], [0, 0, 1, 1], ["no", "yes"])
    assert result["roc_auc"] == 0.75  # three of the four (negative, positive) pairs are in order
    assert result["average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert result["brier"] == pytest.approx(np.mean([0.1**2, 0.4**2, 0.65**2, 0.2**2]))


@pytest.mark.parametrize("K", [2, 6, 40])
def test_agrees_with_torchmetrics(K):
    import torch
    from torchmetrics.functional import classification as reference

    probabilities, labels = random_case(500, K)
    result = evaluate(probabilities, labels, [str(k) for k in range(K)])
    p, y = torch.from_numpy(probabilities), torch.from_numpy(labels)
    expected = {
        "accuracy": reference.multiclass_accuracy(p, y, K, average="micro"),
        "balanced_accuracy": reference.multiclass_accuracy(p, y, K, average="macro"),
        "macro_f1": reference.multiclass_f1_score(p, y, K, average="macro"),
        "top5": reference.multiclass_accuracy(p, y, K, average="micro", top_k=min(5, K)),
        "ece": reference.multiclass_calibration_error(p, y, K, n_bins=15, norm="l1"),
        "nll": torch.nn.functional.nll_loss(p.log(), y),
        "confusion": reference.multiclass_confusion_matrix(p, y, K),
    }
    if K == 2:
        expected["roc_auc"] = reference.binary_auroc(p[:, 1], y)
        expected["average_precision"] = reference.binary_average_precision(p[:, 1], y)
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value.numpy(), rtol=1e-5, err_msg=name)


def test_agrees_with_scikit_learn_on_the_present_classes():
    from sklearn.metrics import balanced_accuracy_score, f1_score

    probabilities, labels = random_case(300, 8)
    keep = labels < 6
    probabilities, labels = probabilities[keep], labels[keep]
    result = evaluate(probabilities, labels, list("abcdefgh"))
    predicted = probabilities.argmax(axis=1)
    assert set(predicted) > set(labels)  # some predictions fall on the absent classes
    expected = f1_score(labels, predicted, labels=range(6), average="macro")
    assert result["macro_f1"] == pytest.approx(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert result["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert result["per_class"]["h"] == {"precision": None, "recall": None, "f1": None, "n": 0}


def test_a_class_that_is_never_predicted_scores_zero():
    result = evaluate([[0.9, 0.1], [0.8, 0.2]], [0, 1], ["a", "b"])
    assert result["per_class"]["b"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "n": 1}


def test_one_class_in_the_labels_gives_no_ranking():
    result = evaluate([[0.9, 0.1], [0.8, 0.2]], [0, 0], ["a", "b"])
    assert result["roc_auc"] is None
    assert result["average_precision"] is None


@settings(max_examples=40, deadline=None)
@given(
    N=st.integers(1, 12),
    K=st.integers(2, 9),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.0, 1.0, 90.0]),
)
def test_always_strict_json_and_never_a_warning(N, K, seed, scale):
    generator = np.random.default_rng(seed)
    logits = scale * generator.normal(size=(N, K))
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluate(probabilities, generator.integers(0, K, N), [str(k) for k in range(K)], seed=seed)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    low, high = result["accuracy_interval"]
    assert 0 <= low <= result["accuracy"] <= high <= 1
    assert 0 <= result["ece"] <= 1
    assert result["nll"] >= 0


def test_failed_pictures_are_listed_and_not_counted():
    failed = [{"image": "a.jpg", "reason": "empty file"}]
    result = evaluate([[0.9, 0.1]], [0], ["a", "b"], failed=failed)
    assert result["failed"] == failed
    assert result["n"] == 1
    assert result["accuracy"] == 1.0


def test_the_bootstrap_is_that_of_scipy():
    from scipy.stats import bootstrap

    correct = np.arange(150) < 120
    reference = bootstrap((correct,), np.mean, method="percentile", n_resamples=5000, rng=0).confidence_interval
    np.testing.assert_allclose(accuracy_interval(120, 150), reference, atol=0.007)  # one sample is 0.0067
    assert accuracy_interval(120, 150, seed=3) == accuracy_interval(120, 150, seed=3)


@pytest.mark.parametrize(("n", "accuracy"), [(100, 0.8), (400, 0.95), (2000, 0.6)])
def test_the_interval_covers_the_true_accuracy_as_often_as_it_says(n, accuracy):
    from scipy.stats import binomtest

    draws = np.random.default_rng(1).binomial(n, accuracy, size=400)
    intervals = [accuracy_interval(int(k), n, seed=i) for i, k in enumerate(draws)]
    covered = np.mean([low <= accuracy <= high for low, high in intervals])
    assert 0.91 < covered < 0.985
    middle = int(n * accuracy)
    wilson = binomtest(middle, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(accuracy_interval(middle, n), (wilson.low, wilson.high), atol=1.7 / n + 0.002)


def test_all_right_on_few_pictures_is_no_certainty():
    low, high = accuracy_interval(20, 20)
    assert low == pytest.approx(0.025 ** (1 / 20))  # the accuracy at which 20 of 20 happens in 2.5 % of tries
    assert high == 1.0
    assert accuracy_interval(0, 20) == pytest.approx([0.0, 1 - low])


@pytest.mark.parametrize(
    ("probabilities", "labels", "classes", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), ["a", "b"], "no picture to evaluate"),
        ([[0.5, 0.5]], [0], ["a", "b", "c"], "3 class names"),
        ([[1.0]], [0], ["a"], "at least two classes"),
        ([[0.5, 0.5]], [2], ["a", "b"], "from 0 to 1"),
        ([[0.5, 0.5]], [-1], ["a", "b"], "from 0 to 1"),
        ([[0.5, 0.5], [math.nan, 1.0]], [0, 1], ["a", "b"], "Row 1"),
        ([[2.0, -1.0]], [0], ["a", "b"], "softmax"),
    ],
)
def test_wrong_input_is_named(probabilities, labels, classes, message):
    with pytest.raises(ValueError, match=message):
        evaluate(probabilities, labels, classes)
