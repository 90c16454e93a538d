"""From a classifier and pictures to figures and predictions: what the end of a run and `lenext evaluate` measure."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from lenext import runs, terminal
from lenext.classifier import Classifier, Task, load
from lenext.data import dataset, sources
from lenext.data.dataset import DataOptions, Dataset, writable
from lenext.data.reading import read_batches
from lenext.data.samples import SPLITS, Samples
from lenext.data.transforms import eval_transform
from lenext.evaluation import figures
from lenext.evaluation.metrics import evaluate
from lenext.evaluation.predictions import mistake_title, prediction_rows, surest_mistakes
from lenext.inference.backends import Backend
from lenext.inference.choose import fastest_backend

log = logging.getLogger("lenext")
BATCH = 32
DRAWN_MISTAKES = 12


def compute_logits(classifier: Classifier, samples: Samples, title: str) -> tuple[np.ndarray, dict[int, str]]:
    """((N, K) logits before the temperature, {row: reason} of unreadable pictures, whose logits are NaN).

    From the files, on the fastest backend that agrees.
    """
    transform = eval_transform(classifier.preprocess)
    reasons: dict[int, str] = {}
    logits = np.full((len(samples), len(classifier.classes)), np.nan, np.float32)
    backend: Backend | None = None

    def read(index: int) -> Tensor:
        return transform(samples.decode(index, shrink_to=classifier.preprocess.resize))

    with terminal.bar(title, len(samples)) as bar:
        for batch in read_batches(range(len(samples)), read, BATCH):
            reasons |= {i: outcome for i, outcome in batch if isinstance(outcome, str)}
            good = [(i, outcome) for i, outcome in batch if isinstance(outcome, Tensor)]
            if good:
                rows, pixels = [i for i, _ in good], torch.stack([x for _, x in good])
                if backend is None:
                    work = len(samples) * classifier.views
                    name, backend = fastest_backend(classifier.model, classifier.preprocess, pixels, work)
                    log.debug("evaluating with %s", name)
                logits[rows] = classifier.logits(pixels, backend)
            bar.advance(len(batch))
    return logits, reasons


def evaluate_run(
    path: str, data: str | None = None, split: str | None = None, root: str | None = None, views: int | None = None
) -> tuple[str, dict[str, Any]]:
    """(split name, metrics) of a run or classifier file on its own data or on other data.

    root: the folder of the pictures of a manifest. split: test where there is one, else val, if not given.
    views: symmetries averaged for an answer, as the classifier was trained if not given.
    Raises ValueError when the run's own test pictures are not those it was made with, or when other data has a class
    that the classifier does not know.
    """
    if root is not None and data is None:
        raise ValueError(f"--root is for the manifest that DATA names: lenext evaluate {path} MANIFEST --root {root}")
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
        mend = f"or measure on other pictures: lenext evaluate {path} FOLDER"
        require_unchanged(path, own, about["fingerprint"], split, mend)
    part = match_classes(part, classifier.classes, classifier.task)
    logits, reasons = compute_logits(classifier, part, f"evaluating {split}")
    good, failed = _readable(part, np.arange(len(part)), reasons)
    truth = _truth(part.take(good), classifier.task)
    return split, evaluate(classifier.to_probabilities(logits[good]), truth, classifier.classes, failed=failed)


def require_unchanged(path: str, data: Dataset, recorded: dict[str, str], split: str, mend: str) -> None:
    """ValueError, naming the files, where a split is not the one that the classifier of a path was made with.

    recorded: the fingerprints of its splits. mend: what else to do than to put them back.
    """
    membership = data.membership()
    if dataset.fingerprint(membership).get(split) == recorded.get(split):
        return
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    before = runs.read_samples(folder)
    changes = "" if before is None else f" ({dataset.differences(before, membership, split)})"
    raise ValueError(
        f"the {split} pictures of {data.source} are not those the run was made with{changes}. Put them back; {mend}"
    )


def match_classes(samples: Samples, classes: tuple[str, ...], task: Task) -> Samples:
    """The samples with labels that index `classes`: by name, whatever the order or number of classes in the data.

    A multi-label classifier can be measured on data with one label a picture, but not the other way round.
    """
    if samples.sets is not None and task == "single-label":
        raise ValueError("the data gives several labels to a picture, and the classifier was trained to give one")
    unknown = sorted({name for name, n in zip(samples.classes, samples.class_counts()) if n} - set(classes))
    if unknown:
        known = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
        raise ValueError(f"the data has the class {unknown[0]!r}, which the classifier does not know ({known})")
    place = {name: i for i, name in enumerate(classes)}
    index = np.array([place.get(name, -1) for name in samples.classes], np.int64)
    if samples.sets is None:
        return replace(samples, labels=index[samples.labels], classes=classes)
    kept = np.flatnonzero(index >= 0)  # sets of pictures that are not measured may hold other classes
    shape = (len(samples.classes), len(classes))
    renamed = csr_array((np.ones(len(kept), bool), (kept, index[kept])), shape=shape)
    return replace(samples, sets=csr_array(samples.sets @ renamed), classes=classes)


def finish_run(run: Path, classifier: Classifier, samples: Samples) -> None:
    """Temperature from the validation split, then figures and predictions on every split held out."""
    from lenext.evaluation.calibration import fit_temperature

    held_out = samples.take(np.flatnonzero(~samples.in_split("train")))
    logits, reasons = compute_logits(classifier, held_out, "evaluating")
    results, rows = {}, []
    for name in ("val", "test"):
        inside = np.flatnonzero(held_out.in_split(name))
        if not len(inside):
            continue
        good, failed = _readable(held_out, inside, reasons)
        part, part_logits = held_out.take(good), logits[good]
        truth = _truth(part, classifier.task)
        if name == "val":  # comes first: the test figures below are those of the calibrated classifier
            classifier.temperature = fit_temperature(part_logits, truth)
        probabilities = classifier.to_probabilities(part_logits)
        results[name] = evaluate(probabilities, truth, classifier.classes, failed=failed)
        part_rows = prediction_rows(name, part, truth, probabilities)
        _draw_figures(run / "figures", name, results[name], part, truth, probabilities, part_rows)
        rows += part_rows
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


def _readable(samples: Samples, rows: np.ndarray, reasons: dict[int, str]) -> tuple[np.ndarray, list[dict[str, str]]]:
    """(the rows that could be read, the others as {"image", "reason"})."""
    good = np.array([row for row in rows.tolist() if row not in reasons], np.int64)
    return good, [{"image": writable(samples.images[i]), "reason": reasons[i]} for i in rows.tolist() if i in reasons]


def _truth(samples: Samples, task: Task) -> np.ndarray:
    """(N,) class indices, or (N, K) bool for a multi-label classifier."""
    return samples.targets().toarray() if task == "multi-label" else samples.labels


def _draw_figures(
    folder: Path,
    split: str,
    result: dict[str, Any],
    samples: Samples,
    truth: np.ndarray,
    probabilities: np.ndarray,
    rows: list[dict[str, Any]],
) -> None:
    """What is taken for what, or how well each class is told where there are several; reliability; mistakes."""
    if result["task"] == "multi-label":
        figures.draw_classes(result["per_class"], folder / f"classes-{split}.png")
    else:
        figures.draw_confusion(result["confusion"], samples.classes, folder / f"confusion-{split}.png")
    figures.draw_reliability(probabilities, truth, folder / f"reliability-{split}.png")
    worst = surest_mistakes(rows, DRAWN_MISTAKES)
    images = [samples.decode(i, shrink_to=256) for i in worst]
    figures.draw_mistakes(images, [mistake_title(rows[i]) for i in worst], folder / f"mistakes-{split}.png")
