"""Probable label errors: pictures whose label a classifier that never saw it would not give.

A network only describes the pictures; a logistic regression on its features is trained on four fifths of them and asked
about the last fifth, in turn, so that no label is judged by what learned it. Equal and nearly equal pictures stay in
one fifth. Confident learning (Northcutt, Jiang and Chuang, 2021, https://arxiv.org/abs/1911.00068; package cleanlab)
then says how many labels of each class are wrong, and which. It is cautious where few labels are wrong; those that are
given hardly any probability are listed too.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lenext import terminal
from lenext.classifier import Classifier, load
from lenext.data import splits
from lenext.data.check import Finding
from lenext.data.decode import UnreadableImage
from lenext.data.samples import Samples
from lenext.data.transforms import eval_transform
from lenext.inference.backends import Backend
from lenext.inference.choose import fastest_backend
from lenext.models.pooled import CombinedNetwork, PooledNetwork, choose_taps
from lenext.models.weights import head_names

log = logging.getLogger("lenext")

FOLDS = 5
BATCH = 32
# Principal components of the features, and the pictures that they are computed from: memory stays bounded.
COMPONENTS, FITTED_ON = 256, 10_000
PENALTY = 0.01  # of the squared weights, against the mean cross-entropy
SUSPICIOUS = 0.8  # 1 - probability of the label
# Features in bfloat16 describe a picture as well.
FEATURE_ERROR = 0.15


@dataclass(frozen=True)
class LabelError:
    """row: of the picture. suggested: the class that it probably shows. suspicion: 1 - probability of its label."""

    row: int
    suggested: str
    suspicion: float


def find_label_errors(
    run: str | Path, samples: Samples, rows: np.ndarray, together: np.ndarray
) -> tuple[list[LabelError], list[Finding]]:
    """(probable errors among the labels of the pictures at `rows`, the most suspicious first; what to say of it).

    run: a run folder, a classifier file, or the name of a network with ImageNet weights.
    together: (N,) cluster numbers of equal and nearly equal pictures, -1 for none.
    """
    classifier = load(run)
    if samples.sets is not None:
        return [], [_note("Label errors are looked for where every picture has one label, and these have several.")]
    if importlib.util.find_spec("cleanlab") is None:
        text = "Label errors were not looked for: cleanlab is not installed."
        return [], [_note(text, "pip install 'lenext[check]'")]
    enough = samples.class_counts(rows) >= FOLDS  # of smaller classes nothing can be said
    rows = rows[enough[samples.labels[rows]]]
    if enough.sum() < 2:
        return [], [_note(f"Label errors were not looked for: two classes of {FOLDS} pictures are needed.")]
    features, rows = describe(classifier, samples, rows)
    fold = splits.folds(samples.take(rows), FOLDS, seed=0, together=together[rows])
    classes, labels = np.unique(samples.labels[rows], return_inverse=True)
    found = rank(features, labels, fold)
    errors = [LabelError(int(rows[i]), samples.classes[classes[k]], suspicion) for i, k, suspicion in found]
    if not errors:
        return [], []
    worst = errors[0]
    text = f"{len(errors)} of {len(rows)} labels look wrong, such as {samples.images[worst.row]}: "
    text += f"{samples.label_text(worst.row)!r}, probably {worst.suggested!r}."
    mend = "Look through them in the page of --html, the most suspicious first, and mend the labels in the data."
    return errors, [Finding("label_errors", "warn", text, mend, np.array([error.row for error in errors]))]


def rank(features: np.ndarray, labels: np.ndarray, fold: np.ndarray) -> list[tuple[int, int, float]]:
    """(row, suggested label, suspicion) of probable label errors, the most suspicious first.

    features: (N, D). labels: (N,) from 0 to K - 1, each there. fold: (N,) what is held out together.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_self_confidence_for_each_label
    from sklearn.linear_model import LogisticRegression

    probabilities = np.zeros((len(labels), labels.max() + 1))
    with terminal.bar("judging labels", FOLDS) as bar:
        for held_out in np.unique(fold):
            others, mine = fold != held_out, fold == held_out
            model = LogisticRegression(C=1 / (PENALTY * others.sum()), max_iter=300)
            model.fit(features[others], labels[others])
            probabilities[np.ix_(mine, model.classes_)] = model.predict_proba(features[mine])
            bar.advance()
    suggested = probabilities.argmax(1)
    suspicion = 1 - get_self_confidence_for_each_label(labels, probabilities)
    wrong = find_label_issues(labels, probabilities, n_jobs=1) | (suspicion > SUSPICIOUS)
    rows = np.flatnonzero(wrong & (suggested != labels))
    rows = rows[np.argsort(-suspicion[rows], kind="stable")]
    return [(int(i), int(suggested[i]), float(suspicion[i])) for i in rows]


def describe(classifier: Classifier, samples: Samples, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((M, D) float32 principal components of the network's features, (M,) the rows that they are of).

    Rows that cannot be read any more are left out.
    """
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    order = np.random.default_rng(0).permutation(rows)  # so that the first ones stand for all
    with terminal.bar("reading features", len(order)) as bar:
        batches = _features(classifier, samples, order, bar)
        first: list[tuple[np.ndarray, np.ndarray]] = []
        for batch in batches:
            first.append(batch)
            if sum(len(batch[1]) for batch in first) >= FITTED_ON:
                break
        if not first:
            raise ValueError("no picture can be read any more")
        features, read = (np.concatenate(column) for column in zip(*first))
        reduce = make_pipeline(StandardScaler(), PCA(min(COMPONENTS, *features.shape), random_state=0))
        parts, kept = [reduce.fit_transform(features)], [read]
        for features, read in batches:
            parts.append(reduce.transform(features))
            kept.append(read)
    reduced, where = np.concatenate(parts).astype(np.float32), np.concatenate(kept)
    # One scale for all: the penalty of the regression then means the same for every network.
    reduced /= reduced[:, :1].std() + 1e-9
    order = np.argsort(where)
    return reduced[order], where[order]


def _features(
    classifier: Classifier, samples: Samples, rows: np.ndarray, bar: terminal.Bar
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """((B, D) float32 features, (B,) their rows), batch after batch; the next is decoded meanwhile."""
    transform, size = eval_transform(classifier.preprocess), classifier.preprocess.resize
    backend: Backend | None = None

    def read(row: int) -> Tensor | None:
        try:
            return transform(samples.decode(int(row), shrink_to=size))
        except UnreadableImage:
            return None

    chunks = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        following = pool.map(read, chunks[0])
        for number, chunk in enumerate(chunks):
            pixels = list(following)
            if number + 1 < len(chunks):
                following = pool.map(read, chunks[number + 1])
            bar.advance(len(chunk))
            there = np.array([x is not None for x in pixels])
            if not there.any():
                continue
            x = torch.stack([x for x in pixels if x is not None])
            if backend is None:
                network = feature_network(classifier.model, classifier.preprocess.image_size)
                name, backend = fastest_backend(network, classifier.preprocess, x, len(rows), tolerance=FEATURE_ERROR)
                log.debug("features with %s", name)
            yield backend(x).flatten(1).numpy(), chunk[there]


def feature_network(model: nn.Module, image_size: int) -> nn.Module:
    """(B, 3, S, S) -> (B, D): statistics of the maps at several depths; of a network without stages, what its last
    linear layer reads.

    The deeper a layer of a network that was trained on these labels, the more it tells the label, wrong or not, instead
    of the picture; earlier maps do not. Frozen features of another network have never seen the labels.
    """
    if isinstance(model, CombinedNetwork):
        model = model.quick
    if hasattr(model, "stages"):
        taps, dims = choose_taps(model, image_size)
        model = PooledNetwork(model, taps=taps, dims=dims, num_classes=1).eval()
    if isinstance(model, PooledNetwork):
        return _Pooled(model)
    network = copy.deepcopy(model)
    for name in head_names(network):
        network.set_submodule(name, nn.Identity())
    return network


class _Pooled(nn.Module):
    def __init__(self, network: PooledNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.features(x)


def _note(text: str, mend: str = "Nothing has to be done.") -> Finding:
    return Finding("not_looked_for", "note", text, mend, np.zeros(0, np.int64))
