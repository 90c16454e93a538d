"""From a classifier and pictures to figures, predictions and the report: the end of a run, and `lenext evaluate`."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenext import runs, terminal
from lenext.classifier import Classifier, load, softmax
from lenext.data import dataset, sources
from lenext.data.dataset import DataOptions, Dataset
from lenext.data.decode import UnreadableImage
from lenext.data.samples import SPLITS, Samples
from lenext.data.transforms import eval_transform
from lenext.evaluation import figures
from lenext.evaluation.metrics import evaluate
from lenext.inference import fastest_backend

log = logging.getLogger("lenext")
BATCH = 32


def compute_logits(classifier: Classifier, samples: Samples, title: str) -> tuple[np.ndarray, list[dict[str, str]]]:
    """((N, K) logits before the temperature, failed pictures), from the files, on the fastest backend that agrees.

    Rows of unreadable pictures are NaN; they are listed as {"image", "reason"}.
    """
    transform = eval_transform(classifier.preprocess)
    failed: list[dict[str, str]] = []
    logits = np.full((len(samples), len(classifier.classes)), np.nan, np.float32)

    def read(index: int) -> Tensor | str:
        try:
            return transform(samples.decode(index, shrink_to=classifier.preprocess.resize))
        except UnreadableImage as error:
            return str(error)

    backend = None
    with ThreadPoolExecutor(2) as pool, terminal.bar(title, len(samples)) as bar:
        chunks = [range(i, min(i + BATCH, len(samples))) for i in range(0, len(samples), BATCH)]
        following = pool.map(read, chunks[0]) if chunks else iter(())
        for number, chunk in enumerate(chunks):
            results = list(following)
            if number + 1 < len(chunks):  # decode the next batch while the network works on this one
                following = pool.map(read, chunks[number + 1])
            failed += [{"image": samples.images[i], "reason": r} for i, r in zip(chunk, results) if isinstance(r, str)]
            good = [(i, r) for i, r in zip(chunk, results) if not isinstance(r, str)]
            if good:
                rows, pixels = [i for i, _ in good], torch.stack([x for _, x in good])
                if backend is None:
                    work = len(samples) * classifier.views
                    name, backend = fastest_backend(classifier.model, classifier.preprocess, pixels, work)
                    log.debug("evaluating with %s", name)
                logits[rows] = classifier.logits(pixels, backend)
            bar.advance(len(chunk))
    return logits, failed


def evaluate_run(
    path: str, data: str | None = None, split: str | None = None, root: str | None = None, views: int | None = None
) -> tuple[str, dict[str, Any]]:
    """(split name, metrics) of a run or classifier file on its own data or on other data.

    root: the folder of the pictures of a manifest. split: test where there is one, else val, if not given.
    views: symmetries averaged for an answer, as the classifier was trained if not given.
    Raises ValueError when the run's own test pictures are not those it was made with, or when other data has a class
    that the classifier does not know.
    """
    classifier = load(path)
    classifier.use_views(views)
    about = classifier.about
    if data is None and "data_options" not in about:
        raise ValueError(f"{path} does not say which data it was trained on; give DATA")
    source = data or about["data"]
    options = DataOptions(**about.get("data_options", {}))
    if data is None:
        own = dataset.read(source, options)
        samples = own.samples
    else:
        samples = sources.read_for_evaluation(source, options, root)
    available = [name for name in SPLITS if samples.in_split(name).any()]
    if split is None:
        split = next((name for name in ("test", "val") if name in available), available[0])
    if split not in available:
        raise ValueError(f"{source} has no split {split!r}; it has {', '.join(available)}")
    part = samples.split(split)
    if data is None:
        _require_unchanged(path, own, about["fingerprint"], split)
    part = match_classes(part, classifier.classes)
    logits, failed = compute_logits(classifier, part, f"evaluating {split}")
    good = ~np.isnan(logits).any(1)
    probabilities = softmax(logits[good] / classifier.temperature)
    return split, evaluate(probabilities, part.labels[good], classifier.classes, failed=failed)


def _require_unchanged(path: str, data: Dataset, recorded: dict[str, str], split: str) -> None:
    """ValueError, naming the files, where a split is not the one that the classifier was made with."""
    membership = data.membership()
    if dataset.fingerprint(membership).get(split) == recorded.get(split):
        return
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    before = runs.read_samples(folder)
    changes = "" if before is None else f" ({dataset.differences(before, membership, split)})"
    raise ValueError(
        f"the {split} pictures of {data.source} are not those the run was made with{changes}. Put them "
        f"back; or measure on other pictures: lenext evaluate {path} FOLDER"
    )


def match_classes(samples: Samples, classes: tuple[str, ...]) -> Samples:
    """The samples with labels that index `classes`: by name, whatever the order or number of classes in the data."""
    if samples.sets is not None:
        raise ValueError("the data gives several labels to a picture, and the classifier was trained to give one")
    unknown = sorted({samples.classes[i] for i in np.unique(samples.labels)} - set(classes))
    if unknown:
        known = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
        raise ValueError(f"the data has the class {unknown[0]!r}, which the classifier does not know ({known})")
    index = {name: i for i, name in enumerate(classes)}
    labels = np.array([index[samples.classes[label]] for label in samples.labels], dtype=np.int64)
    return replace(samples, labels=labels, classes=classes)


def finish_run(run: Path, classifier: Classifier, samples: Samples) -> None:
    """Temperature from the validation split, then figures, predictions and report on every split held out."""
    from lenext.evaluation.calibration import fit_temperature
    from lenext.evaluation.report import write_report

    held_out = samples.take(np.flatnonzero(~samples.in_split("train")))
    all_logits, all_failed = compute_logits(classifier, held_out, "evaluating")
    results, rows = {}, []
    for name in ("val", "test"):
        inside = held_out.in_split(name)
        if not inside.any():
            continue
        part, logits = held_out.take(np.flatnonzero(inside)), all_logits[inside]
        failed = [failure for failure in all_failed if failure["image"] in set(part.images)]
        good = np.flatnonzero(~np.isnan(logits).any(1))
        if name == "val":  # comes first: the test figures below are those of the calibrated classifier
            classifier.temperature = fit_temperature(logits[good], part.labels[good])
        probabilities = softmax(logits[good] / classifier.temperature)
        results[name] = evaluate(probabilities, part.labels[good], classifier.classes, failed=failed)
        rows += _prediction_rows(name, part, good, probabilities)
        figures.draw_confusion(results[name]["confusion"], classifier.classes, run / f"figures/confusion-{name}.png")
        figures.draw_reliability(probabilities, part.labels[good], run / f"figures/reliability-{name}.png")
        _draw_mistakes(run / f"figures/mistakes-{name}.png", part, good, probabilities)
    classifier.about["evaluation"] = {
        name: {key: result[key] for key in ("accuracy", "accuracy_interval", "n")} for name, result in results.items()
    }
    classifier.save(run / runs.CLASSIFIER)
    runs.write_json(run / "evaluation.json", results)
    runs.write_predictions(run, rows)
    history = runs.read_metrics(run)
    if history:
        best = classifier.about.get("validation", {}).get("epoch")
        figures.draw_curves(history, run / "figures/curves.png", best=best)
    write_report(run)


def _prediction_rows(split: str, part: Samples, good: np.ndarray, probabilities: np.ndarray) -> list[dict[str, Any]]:
    winners = probabilities.argmax(1)
    return [
        {
            "split": split,
            "image": part.images[i],
            "label": part.classes[part.labels[i]],
            "prediction": part.classes[winner],
            "probability": float(row[winner]),
            "probabilities": row.tolist(),
        }
        for i, winner, row in zip(good, winners, probabilities)
    ]


def _draw_mistakes(path: Path, part: Samples, good: np.ndarray, probabilities: np.ndarray, most: int = 12) -> None:
    """The errors that the classifier was surest of, with label, answer and probability."""
    labels, winners = part.labels[good], probabilities.argmax(1)
    wrong = np.flatnonzero(winners != labels)
    worst = wrong[np.argsort(-probabilities[wrong, winners[wrong]], kind="stable")][:most]
    titles = [
        f"{part.classes[labels[i]]}\nsaid {part.classes[winners[i]]}, {100 * probabilities[i, winners[i]]:.0f} %"
        for i in worst
    ]
    if len(worst):
        figures.draw_mistakes([part.decode(int(good[i]), shrink_to=256) for i in worst], titles, path)
