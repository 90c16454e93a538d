"""The quick classifier: frozen pretrained features, extracted once, and a linear layer on them.

It needs one pass of the network over the pictures on the fastest inference backend of the machine, and seconds of
logistic regression. It is good enough to use, and it is where everything else starts: then the same pictures
mirrored and turned are tried as further views, and kept if the validation pictures say so.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenext import runs, terminal
from lenext.classifier import Classifier
from lenext.data.cache import PackedImages
from lenext.data.transforms import dihedral, eval_transform
from lenext.inference import fastest_backend
from lenext.models.pooled import PooledNetwork, choose_taps
from lenext.preprocess import Preprocess

log = logging.getLogger("lenext")

QUICK = "quick.safetensors"
BATCH = 32
# Strengths of the penalty that are tried, strong to weak: each fit starts where the stronger one ended.
PENALTIES = (0.5, 0.2, 0.08, 0.03)


class Extractor:
    """Pooled features of pictures in any of the eight views, each computed once.

    pictures, rows: what to read and in which order.
    """

    def __init__(self, network: PooledNetwork, preprocess: Preprocess, pictures: PackedImages, rows: np.ndarray) -> None:
        self.pictures, self.rows = pictures, rows
        self.transform = eval_transform(preprocess)
        sample = torch.stack([self.transform(pictures[int(i)]) for i in rows[:16]])
        self.backend_name, self.backend = fastest_backend(
            _Features(network), preprocess, sample, len(rows), tolerance=5e-2
        )
        self._views: dict[int, Tensor] = {}

    def view(self, view: int) -> Tensor:
        """(N, D) float32 features of every picture, mirrored and turned as `view` says."""
        if view not in self._views:
            parts = []
            with terminal.bar(f"reading features, view {view + 1}", len(self.rows)) as bar:
                for start in range(0, len(self.rows), BATCH):
                    chunk = self.rows[start : start + BATCH]
                    x = torch.stack([dihedral(self.transform(self.pictures[int(i)]), view) for i in chunk])
                    parts.append(self.backend(x))
                    bar.advance(len(chunk))
            self._views[view] = torch.cat(parts)
        return self._views[view]


class _Features(nn.Module):
    def __init__(self, network: PooledNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.features(x)


def fit_linear(x: Tensor, y: Tensor, weights: Tensor, num_classes: int, penalty: float, start: Tensor | None = None) -> Tensor:
    """Penalised softmax regression: (D + 1, K) weights with the bias in the last row.

    Minimises the weighted mean cross-entropy plus penalty / 2 times the squared weights (not the bias), by L-BFGS.
    x: (N, D), standardised. y: (N,) int64. weights: (N,). start: an earlier solution to begin from.
    """
    theta = torch.zeros(x.shape[1] + 1, num_classes) if start is None else start.clone()
    theta.requires_grad_()
    weights = weights / weights.sum()
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=60, history_size=10, line_search_fn="strong_wolfe", tolerance_grad=1e-5
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = F.cross_entropy(x @ theta[:-1] + theta[-1], y, reduction="none")
        loss = (losses * weights).sum() + penalty / 2 * (theta[:-1] ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return theta.detach()


def train_quick(
    run: Path,
    classifier: Classifier,
    pictures: PackedImages,
    rows: dict[str, np.ndarray],
    labels: dict[str, Tensor],
    weights: Tensor,
    *,
    clock: Callable[[], float],
    deadline: float,
) -> Classifier:
    """A classifier on frozen features, saved as soon as it is usable, then with as many views as help.

    rows, labels: of "train" and "val". weights: of the training pictures. clock: seconds since the run began;
    further views are tried while they fit before `deadline`.
    """
    taps, dims = choose_taps(classifier.model, classifier.preprocess.image_size)
    architecture = {**classifier.architecture, "taps": list(taps), "dims": list(dims)}
    outputs = architecture["num_outputs"]
    network = PooledNetwork(classifier.model, taps=taps, dims=dims, num_classes=outputs).eval()
    extractor = Extractor(network, classifier.preprocess, pictures, np.concatenate([rows["train"], rows["val"]]))
    log.info("quick classifier: frozen features of %d stages, read with %s", len(taps), extractor.backend_name)
    best: dict[str, Any] = {}
    start: Tensor | None = None
    seconds = 0.0
    for views in (1, 2, 4):
        begin = clock()
        if views > 1 and begin + seconds * (views // 2) > deadline:
            log.info("%d views are not tried: no time is left for them", views)
            break
        features = [extractor.view(view) for view in range(views)]
        fitted = _fit_views(features, len(rows["train"]), labels, weights, len(classifier.classes), start)
        seconds = clock() - begin
        log.info(
            "%d view%s: val loss %.4f  val accuracy %.4f  penalty %.2g  (%.0f s)",
            views, "s" * (views > 1), fitted["val_loss"], fitted["val_accuracy"], fitted["penalty"], clock(),
        )  # fmt: skip
        if best and fitted["val_loss"] >= best["val_loss"]:
            break
        best, start = fitted | {"views": views}, fitted["theta"]
        _install(network, fitted, outputs)
        figures = {"val_loss": fitted["val_loss"], "val_accuracy": fitted["val_accuracy"], "epoch": 0}
        classifier = dataclasses.replace(
            classifier,
            model=network,
            architecture=architecture,
            views=views,
            about=classifier.about | {"validation": figures},
        )
        classifier.save(run / runs.CLASSIFIER)
        if views == 1:
            classifier.save(run / QUICK)
    return classifier


def _fit_views(
    features: list[Tensor], n_train: int, labels: dict[str, Tensor], weights: Tensor, num_classes: int, start: Tensor | None
) -> dict[str, Any]:
    """The penalty, weights and validation figures of the best fit on the views of the training pictures."""
    x = torch.cat([view[:n_train] for view in features])
    shift, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    x = (x - shift) / scale
    val = [(view[n_train:] - shift) / scale for view in features]
    y, w = labels["train"].repeat(len(features)), weights.repeat(len(features))
    best: dict[str, Any] = {}
    for penalty in PENALTIES:
        start = fit_linear(x, y, w, num_classes, penalty, start)
        logits = torch.stack([view @ start[:-1] + start[-1] for view in val]).mean(0)
        loss = float(F.cross_entropy(logits, labels["val"]))
        if not best or loss < best["val_loss"]:
            accuracy = float((logits.argmax(1) == labels["val"]).float().mean())
            best = {"theta": start, "shift": shift, "scale": scale, "penalty": penalty}
            best |= {"val_loss": loss, "val_accuracy": accuracy}
        else:
            break  # weaker penalties only fit the noise
    return best


def _install(network: PooledNetwork, fitted: dict[str, Any], outputs: int) -> None:
    """Write a fit into the network's head; one output is the logit of the second class against the first."""
    theta = fitted["theta"]
    theta = theta[:, 1:] - theta[:, :1] if outputs == 1 else theta
    with torch.no_grad():
        network.shift.copy_(fitted["shift"])
        network.scale.copy_(fitted["scale"])
        network.head.weight.copy_(theta[:-1].T)
        network.head.bias.copy_(theta[-1])


def metrics_of(classifier: Classifier) -> dict[str, float] | None:
    """Validation figures of the classifier so far, None before the first."""
    return classifier.about.get("validation")
