"""Pictures with several labels, from the classifier to the report, against independent implementations."""

import csv
import json
import os
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy.special import expit

import lenext
from lenext import predict, runs, terminal
from lenext.classifier import Classifier, Prediction
from lenext.data import dataset, sources
from lenext.data.dataset import DataOptions
from lenext.data.transforms import eval_transform, normalise
from lenext.evaluation import figures
from lenext.evaluation.calibration import fit_temperature, reliability
from lenext.evaluation.evaluate import evaluate_run, finish_run, match_classes
from lenext.evaluation.metrics import evaluate
from lenext.evaluation.predictions import mistake_title, prediction_rows, surest_mistakes
from lenext.evaluation.report import write_report
from lenext.models import default_preprocess
from lenext.models.pooled import build_network
from tests.evaluation.test_report import read
from tests.pictures import crop

CLASSES = ("bird", "cat<b>", "狗", "猫")


def random_case(N, K, seed=0):
    """(probabilities, targets) of decisions that are right more often than not; every class mixed, K >= 2."""
    rng = np.random.default_rng(seed)
    targets = rng.random((N, K)) < np.linspace(0.1, 0.6, K)
    targets[0], targets[1] = True, False
    return expit(rng.normal(size=(N, K)) + 2 * targets - 1), targets


# ------------------------------------------------------------------------------------------------------ numbers


def test_three_pictures_by_hand():
    probabilities = [[0.9, 0.2, 0.6], [0.4, 0.5, 0.1], [0.3, 0.1, 0.2]]
    targets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
    result = evaluate(probabilities, targets, ["a", "b", "c"])
    assert result["task"] == "multi-label"
    assert result["accuracy"] == 1 / 3  # the last picture has no label, and gets none
    assert result["hamming_accuracy"] == pytest.approx(7 / 9)
    assert result["per_class"]["a"] == {
        "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "average_precision": 1.0, "n": 2
    }  # fmt: skip
    nothing = {"precision": None, "recall": None, "f1": None, "average_precision": None, "n": 0}
    assert result["per_class"]["c"] == nothing
    assert result["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))  # "c" of the first picture counts
    assert (result["mean_average_precision"], result["roc_auc"]) == (1.0, 1.0)
    said = [0.9, 0.8, 0.4, 0.4, 0.5, 0.9, 0.7, 0.9, 0.8]  # of what is so
    assert result["nll"] == pytest.approx(-np.log(said).mean())
    assert result["top5"] is None
    assert "confusion" not in result


@pytest.mark.parametrize("K", [2, 7, 40])
def test_agrees_with_torchmetrics(K):
    from torchmetrics.functional import classification as reference

    probabilities, targets = random_case(400, K)
    result = evaluate(probabilities, targets, [str(k) for k in range(K)])
    p, y = torch.from_numpy(probabilities), torch.from_numpy(targets).long()
    expected = {
        "accuracy": reference.multilabel_exact_match(p, y, K),
        "hamming_accuracy": 1 - reference.multilabel_hamming_distance(p, y, K, average="micro"),
        "macro_f1": reference.multilabel_f1_score(p, y, K, average="macro"),
        "micro_f1": reference.multilabel_f1_score(p, y, K, average="micro"),
        "mean_average_precision": reference.multilabel_average_precision(p, y, K, average="macro"),
        "roc_auc": reference.multilabel_auroc(p, y, K, average="macro"),
        "ece": reference.binary_calibration_error(p.ravel(), y.ravel(), n_bins=15, norm="l1"),
        "nll": torch.nn.functional.binary_cross_entropy(p, y.double()),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value.numpy(), rtol=1e-5, err_msg=name)
    columns = {
        "precision": reference.multilabel_precision(p, y, K, average="none"),
        "recall": reference.multilabel_recall(p, y, K, average="none"),
        "average_precision": reference.multilabel_average_precision(p, y, K, average="none"),
    }
    for name, column in columns.items():
        ours = [row[name] for row in result["per_class"].values()]
        np.testing.assert_allclose(ours, column.numpy(), rtol=1e-5, err_msg=name)


@settings(max_examples=40, deadline=None)
@given(N=st.integers(1, 8), K=st.integers(2, 6), seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_always_strict_json_and_never_a_warning(N, K, seed, share):
    rng = np.random.default_rng(seed)
    probabilities = expit(rng.choice([1.0, 90.0]) * rng.normal(size=(N, K))).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # matplotlib leaves its fonts open
        result = evaluate(probabilities, rng.random((N, K)) < share, [str(k) for k in range(K)])
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["nll"] >= 0
    if share == 0:
        assert result["macro_f1"] is result["micro_f1"] is result["mean_average_precision"] is result["roc_auc"] is None


@pytest.mark.parametrize(("value", "message"), [(np.nan, "Row 1 .* NaN"), (-0.1, "Row 1"), (1.1, "Row 1 .* greater")])
def test_wrong_probabilities_are_named(value, message):
    with pytest.raises(ValueError, match=message):
        evaluate([[0.1, 0.9], [0.5, value]], np.ones((2, 2), bool), ["a", "b"])


# -------------------------------------------------------------------------------------------------- calibration


@pytest.mark.parametrize("temperature", [0.4, 3.0])
def test_recovers_a_known_temperature(temperature):
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(5000, 6)) - 1
    targets = rng.random(logits.shape) < expit(logits)
    assert fit_temperature(logits * temperature, targets) == pytest.approx(temperature, rel=0.04)


def test_temperature_is_the_minimum_of_the_binary_likelihood():
    probabilities, targets = random_case(3000, 5)
    logits = torch.from_numpy(np.log(probabilities / (1 - probabilities)))
    sharpness = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([sharpness], max_iter=50)

    def closure():
        optimizer.zero_grad()
        truth = torch.from_numpy(targets).double()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits * sharpness, truth)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert fit_temperature(logits.numpy(), targets) == pytest.approx(1 / sharpness.item(), rel=2e-3)


def test_perfect_separation_claims_no_more_than_the_decisions_show():
    targets = np.arange(24).reshape(8, 3) % 2 == 0
    temperature = fit_temperature(np.where(targets, 1.0, -1.0), targets)
    assert expit(1 / temperature) == pytest.approx(1 - 0.5 / (24 + 2), abs=1e-4)


def test_reliability_is_that_of_scikit_learn():
    from sklearn.calibration import calibration_curve

    probabilities, targets = random_case(300, 4)
    rows = [row for row in reliability(probabilities, targets, bins=10) if row["n"]]
    frequency, confidence = calibration_curve(targets.ravel(), probabilities.ravel(), n_bins=10)
    np.testing.assert_allclose([row["accuracy"] for row in rows], frequency)
    np.testing.assert_allclose([row["confidence"] for row in rows], confidence)


# --------------------------------------------------------------------------------------------- classes and rows


def manifest(folder, rows, name="data.json"):
    (folder / name).write_text(json.dumps(rows), encoding="utf-8")
    return str(folder / name)


def rows_of(labels, split="test"):
    return [{"image": f"{i}.png", "label": label, "split": split} for i, label in enumerate(labels)]


def test_classes_are_matched_by_name(tmp_path):
    labels = [["猫", "bird"], [], ["bird"], ["狗"]]
    samples = sources.open_data(manifest(tmp_path, rows_of(labels)))
    assert samples.classes == ("bird", "狗", "猫")
    matched = match_classes(samples, ("狗", "猫", "新", "bird"), "multi-label")
    expected = [[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    assert matched.targets().toarray().tolist() == np.array(expected, bool).tolist()
    assert [matched.label_text(i) for i in range(2)] == ["猫, bird", "(none)"]
    with pytest.raises(ValueError, match="the class '狗', which the classifier does not know"):
        match_classes(samples, ("bird", "猫"), "multi-label")
    without = match_classes(samples.take([0, 1, 2]), ("bird", "猫"), "multi-label")  # no picture of it is measured
    assert without.targets().toarray().tolist() == [[True, True], [False, False], [True, False]]
    with pytest.raises(ValueError, match="several labels"):
        match_classes(samples, samples.classes, "single-label")


def test_one_label_can_be_measured_as_several(tmp_path):
    samples = sources.open_data(manifest(tmp_path, rows_of(["b", "a", "b"])))
    matched = match_classes(samples, ("b", "x", "a"), "multi-label")
    assert matched.targets().toarray().tolist() == [[True, False, False], [False, False, True], [True, False, False]]


def test_rows_and_surest_mistakes(tmp_path):
    samples = sources.open_data(manifest(tmp_path, rows_of([["a"], ["a", "b"], [], ["b"]])))
    probabilities = np.array([[0.9, 0.7], [0.8, 0.05], [0.1, 0.2], [0.6, 0.45]])
    rows = prediction_rows("test", samples, samples.targets().toarray(), probabilities)
    assert [row["label"] for row in rows] == [["a"], ["a", "b"], [], ["b"]]
    assert [row["prediction"] for row in rows] == [["a", "b"], ["a"], [], ["a"]]
    assert [row["probability"] for row in rows] == [0.9, 0.8, 0.2, 0.6]
    assert [row["mistake"] for row in rows] == ["b", "b", None, "a"]
    assert [row["confidence"] for row in rows] == [0.7, 0.95, None, 0.6]
    assert surest_mistakes(rows, 2) == [1, 0]
    assert [mistake_title(rows[i]) for i in (0, 1)] == ["a\nsaid b, 70 %", "a, b\nnot b, 95 %"]


def test_class_bars_show_the_weakest(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
    row = {"precision": 0.5, "recall": 0.5, "n": 3}
    per_class: dict[str, dict] = {
        f"第{k}类": {**row, "f1": k / 70, "average_precision": 1 - k / 70} for k in range(60, 0, -1)
    }
    per_class["absent"] = {"f1": None, "average_precision": None, "n": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # matplotlib leaves its fonts open
        figures.draw_classes(per_class, tmp_path / "classes.png", most=50)
        FigureCanvasAgg(drawn[0]).draw()
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"第{k}类" for k in range(1, 51)]
    assert axes.get_title(loc="left") == "The weakest 50 of 60 classes"
    f1, precision = ([bar.get_width() for bar in bars] for bars in axes.containers)
    np.testing.assert_allclose(f1, np.arange(1, 51) / 70)
    np.testing.assert_allclose(precision, 1 - np.arange(1, 51) / 70)
    figures.draw_classes({"absent": per_class["absent"]}, tmp_path / "none.png")
    assert len(drawn) == 1


# -------------------------------------------------------------------------------------------------- end to end


def new_classifier(classes=CLASSES, **fields) -> Classifier:
    """LeNet-5 from random weights, its logits spread over both sides of zero on crops of photographs."""
    architecture = {"name": "lenet5", "num_outputs": len(classes), "image_size": 32, "arguments": {}}
    torch.manual_seed(0)
    model = build_network(architecture).eval()
    preprocess, rng = default_preprocess("lenet5"), np.random.default_rng(0)
    *_, head = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    pixels = torch.stack([eval_transform(preprocess)(np.asarray(picture(rng, i))) for i in range(64)])
    with torch.no_grad():
        logits = model(normalise(pixels, preprocess))
        head.weight.mul_((3 / logits.std(0))[:, None])
        head.bias.sub_(logits.mean(0)).mul_(3 / logits.std(0))
    return Classifier(model, architecture, tuple(classes), preprocess, task="multi-label", **fields)


def picture(rng, number):
    return crop(rng, 36, ("china.jpg", "flower.jpg")[number % 2])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(run folder, data folder) of a run that was evaluated; one test picture cannot be read."""
    folder, run = tmp_path_factory.mktemp("several"), tmp_path_factory.mktemp("runs")
    rng, rows, classifier = np.random.default_rng(1), [], new_classifier()
    for i in range(48):
        name = os.fsdecode(b"\xff.png") if i == 47 else f"{i}.png"  # no text
        picture(rng, i).save(folder / name)
        answers = classifier.predict(folder / name).labels
        labels = [name for name in CLASSES if (name in answers) != (rng.random() < 0.2)]  # mostly what it says
        rows.append({"image": name, "label": labels, "split": ("train", "val", "test")[i % 3]})
    (folder / "5.png").write_bytes(b"broken")
    options = DataOptions(check=False)
    data = dataset.read(manifest(folder, rows), options)
    about = {
        "data": data.source,
        "data_options": options.to_dict(),
        "fingerprint": dataset.fingerprint(data.membership()),
    }
    (run / "config.yaml").write_text("model: lenet5\n")
    counts = data.samples.counts()
    content = {"data": data.source, "classes": list(CLASSES), "counts": counts, "unreadable": []}
    runs.write_json(run / "data.json", content)
    finish_run(run, new_classifier(about=about), data.samples)
    write_report(run)
    return run, folder


def test_a_finished_run_against_scikit_learn(finished):
    from sklearn import metrics

    run, folder = finished
    truth = {row["image"]: row for row in json.loads((folder / "data.json").read_text())}
    test = [row for row in truth.values() if row["split"] == "test" and row["image"] != "5.png"]
    classifier = lenext.load(run)
    assert classifier.task == "multi-label"
    answers = [classifier.predict(folder / row["image"], top_k=4) for row in test]
    scores = np.array([[dict(answer.top)[name] for name in CLASSES] for answer in answers])
    targets = np.array([[name in row["label"] for name in CLASSES] for row in test])
    decided = scores >= 0.5
    result = json.loads((run / "evaluation.json").read_text())["test"]
    assert (result["n"], len(result["failed"]), result["failed"][0]["image"]) == (15, 1, "5.png")
    expected = {
        "accuracy": metrics.accuracy_score(targets, decided),
        "hamming_accuracy": 1 - metrics.hamming_loss(targets, decided),
        "macro_f1": metrics.f1_score(targets, decided, average="macro", zero_division=0),
        "micro_f1": metrics.f1_score(targets, decided, average="micro"),
        "mean_average_precision": metrics.average_precision_score(targets, scores, average="macro"),
        "roc_auc": metrics.roc_auc_score(targets, scores, average="macro"),
        "nll": np.mean([metrics.log_loss(targets[:, k], scores[:, k], labels=[0, 1]) for k in range(4)]),
    }
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-5), name
    assert 0.2 < result["accuracy"] < 0.8  # the case is not trivial
    assert classifier.temperature > 1.5  # one answer in five is wrong, and the logits are wide
    again = evaluate_run(str(run))[1]
    assert (again["n"], again["failed"]) == (15, result["failed"])
    for name in expected:
        assert again[name] == pytest.approx(result[name], rel=1e-6), name


def test_what_a_finished_run_shows(finished, capsys):
    run, _ = finished
    assert {path.name for path in (run / "figures").iterdir()} == {
        f"{name}-{split}.png" for name in ("classes", "reliability", "mistakes") for split in ("val", "test")
    }
    rows = pq.read_table(run / "predictions.parquet").to_pylist()
    assert len(rows) == 31
    assert rows[-1]["image"] == "\\udcff.png"
    for row in rows:
        assert row["prediction"] == [name for name, p in zip(CLASSES, row["probabilities"]) if p >= 0.5]
        assert (row["mistake"] is None) == (row["label"] == row["prediction"])
    page = read(run / "report.html")
    for expected in ("test pictures have every label right", "mean average precision", "micro F1", "wrong about", "猫",
                     "cat<b>", "The most confident mistakes", ".labels)"):  # fmt: skip
        assert expected in page.text, expected
    assert "Confusion" not in page.text
    assert page.tags.count("img") == 6
    terminal.show_run(run)
    terminal.show_evaluation("test", json.loads((run / "evaluation.json").read_text())["test"])
    out = capsys.readouterr().out
    for expected in ("all labels right on test", "decisions right", "average precision", "狗", "failed: 5.png"):
        assert expected in out, expected


def test_a_diverged_network_is_no_unreadable_picture(finished, tmp_path):
    _, folder = finished
    samples = dataset.read(str(folder / "data.json"), DataOptions(check=False)).samples
    classifier = new_classifier()
    next(classifier.model.parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="diverged"):
        finish_run(tmp_path, classifier, samples)


def test_probabilities_are_sigmoids(finished):
    _, folder = finished
    classifier = new_classifier(temperature=1.7, views=2)
    logits = np.array([[-3, 0, 40, 1]], np.float32)
    expected = torch.sigmoid(torch.tensor(logits, dtype=torch.float64) / 1.7).numpy()
    np.testing.assert_allclose(classifier.to_probabilities(logits), expected, rtol=1e-12)
    answer, failed = classifier.predict([folder / "0.png", b"no picture"], top_k=2)
    ranked = classifier.predict(folder / "0.png", top_k=4).top
    assert answer.labels == [name for name, probability in ranked if probability >= 0.5]
    assert answer.top == ranked[:2]
    assert (answer.label, answer.probability) == ranked[0]
    assert answer.to_dict()["labels"] == answer.labels
    assert (failed.label, failed.labels) == (None, [])
    assert "labels" not in Prediction("", "a", 1.0, [("a", 1.0)]).to_dict()


@pytest.mark.parametrize("form", ["table", "csv", "json", "parquet"])
def test_predict_names_all_labels(form, finished, tmp_path, capsys):
    run, folder = finished
    pictures = [
        str(folder / "5.png"),
        str(folder / os.fsdecode(b"\xff.png")),
        *(str(folder / f"{i}.png") for i in (0, 1, 2)),
    ]
    expected = [lenext.load(run).predict(path).labels or [] for path in pictures]
    assert sum(map(len, expected)) > 2
    out = tmp_path / "answers" if form == "parquet" else None
    assert predict.run(str(run), pictures, top_k=2, form=form, out=out) == 4
    text = capsys.readouterr().out
    if form == "table":
        assert all(", ".join(labels) in text for labels in expected)
        return
    if form == "parquet":
        rows = pq.read_table(out).to_pylist()
    elif form == "json":
        rows = json.loads(text)
    else:
        rows = [row | {"labels": json.loads(row["labels"])} for row in csv.DictReader(text.splitlines())]
    assert [row["labels"] for row in rows] == expected
    assert rows[1]["image"].endswith("\\udcff.png")


def test_evaluating_on_other_data(finished, tmp_path):
    run, folder = finished
    for i in (0, 1):
        (tmp_path / f"{i}.png").write_bytes((folder / f"{i}.png").read_bytes())
    split, result = evaluate_run(str(run), manifest(tmp_path, rows_of(["猫", "bird"])))
    assert (split, result["task"], result["n"], result["per_class"]["猫"]["n"]) == ("test", "multi-label", 2, 1)
    single = new_classifier(("bird", "猫"))
    single.task = "single-label"
    single.save(tmp_path / "single.safetensors")
    several = manifest(tmp_path, rows_of([["猫"], ["bird", "猫"]]), "several.json")
    with pytest.raises(ValueError, match="several labels"):
        evaluate_run(str(tmp_path / "single.safetensors"), several)
