"""The quick classifier: frozen pretrained features, extracted once, and a linear layer on them.

It needs one pass of the network over the pictures on the fastest inference backend of the machine, and seconds of
logistic regression. It is good enough to use, and it is where everything else starts: then the same pictures
mirrored and turned are tried as further views, and kept if the validation pictures say so.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenext import runs, terminal
from lenext.classifier import Classifier
from lenext.data.loader import Pictures
from lenext.data.transforms import dihedral, eval_transform, normalise
from lenext.inference.choose import fastest_backend
from lenext.models.pooled import PooledNetwork, choose_taps, pool
from lenext.preprocess import Preprocess

log = logging.getLogger("lenext")

QUICK = "quick.safetensors"
# Of the memory that is free, for stored activations: the rest belongs to the network, its gradients and other programs.
MEMORY_SHARE = 0.35
BATCH = 32
# Fine-tuning starts below the two deepest tapped resolutions or widths; what lies under that stays frozen.
TUNED_TAPS = 2
MOST_VIEWS = 4
LEARNED_FROM = {  # number of views: what they are
    1: "the pictures as they are",
    2: "the pictures and their mirror images",
    MOST_VIEWS: f"{MOST_VIEWS} mirrored and turned versions of each picture",
}
# Views to learn from cost time once, views to answer with cost it for every picture: beyond the mirror image they give
# little.
ANSWER_VIEWS = 2
# What is learned from may be rougher than what is answered: bfloat16's rounding, 4 to 11 % of the norm in the middle of
# EfficientNet-Lite0, is small noise to a fit on thousands of pictures. Answers are computed to closer tolerances.
TRAINING_ERROR = 0.15
# Strengths of the penalty that are tried, strong to weak: each fit starts where the stronger one ended. Weaker ones
# fit a few thousand features to a few thousand pictures without error, and a small validation set may like that.
PENALTIES = (0.5, 0.2, 0.1)


class Extractor:
    """Features and stored activations of pictures in any of the eight views, each view computed once.

    network: its backbone is used as it is, frozen. pictures, rows: what to read and in which order.
    store: also keep the activation at the boundary between the lower stages and the two deepest tapped parts; if not
    given, where the memory is enough.
    backend: the name of the backend to use; the fastest that agrees if not given.
    """

    def __init__(
        self,
        network: PooledNetwork,
        preprocess: Preprocess,
        pictures: Pictures,
        rows: np.ndarray,
        *,
        store: bool | None = None,
        backend: str | None = None,
    ) -> None:
        self.pictures, self.rows, self.n = pictures, rows, len(rows)
        self.transform = eval_transform(preprocess)
        self.boundary = network.taps[-TUNED_TAPS - 1] + 1
        self.width = len(network.shift)
        sample = torch.stack([self.transform(pictures[int(i)]) for i in rows[:16]])
        self.shape = _activation_shape(network, self.boundary, normalise(sample[:1], preprocess))
        if store is None:
            store = 2 * math.prod(self.shape) * self.n * MOST_VIEWS < psutil.virtual_memory().available * MEMORY_SHARE
        if not store:
            self.boundary, self.shape = 0, (0,)
        reader = _Reader(network, self.boundary)
        self.backend_name, self.backend = fastest_backend(
            reader, preprocess, sample, self.n * MOST_VIEWS, only=backend, tolerance=TRAINING_ERROR
        )
        # Until a whole view has been read, by a few pictures; the first time is for kernels.
        self.seconds_per_picture = min(_seconds(self.backend, sample) for _ in range(2)) / len(sample)
        self._views: dict[int, tuple[Tensor, Tensor]] = {}

    def features(self, view: int) -> Tensor:
        """(N, D) float32 pooled features of every picture, mirrored and turned as `view` says."""
        return self._read(view)[0]

    def activations(self, view: int) -> Tensor:
        """(N, C, H, W), or (N, tokens, C): the stored activations, float16."""
        return self._read(view)[1]

    def _read(self, view: int) -> tuple[Tensor, Tensor]:
        if view not in self._views:
            begin = time.perf_counter()
            features = torch.empty(self.n, self.width)
            activations = torch.empty(self.n, *self.shape, dtype=torch.float16)
            with terminal.bar(f"reading features, view {view + 1}", self.n) as bar:
                for start in range(0, self.n, BATCH):
                    chunk = self.rows[start : start + BATCH]
                    x = torch.stack([dihedral(self.transform(self.pictures[int(i)]), view) for i in chunk])
                    outputs = self.backend(x)
                    features[start : start + len(chunk)] = outputs[:, : self.width]
                    activations[start : start + len(chunk)] = outputs[:, self.width :].unflatten(1, self.shape)
                    bar.advance(len(chunk))
            self._views[view] = features, activations
            self.seconds_per_picture = (time.perf_counter() - begin) / self.n
        return self._views[view]


class _Reader(nn.Module):
    """(B, 3, S, S) -> (B, D + C * H * W): pooled features, then the activation at the boundary (none at 0)."""

    def __init__(self, network: PooledNetwork, boundary: int) -> None:
        super().__init__()
        self.network, self.boundary = network, boundary

    def forward(self, x: Tensor) -> Tensor:
        pooled, stored = [], x[:, :0]
        for index, stage in enumerate(self.network.backbone.stages()):  # type: ignore[operator]
            x = stage(x)
            if index in self.network.taps:
                pooled.append(pool(x))
            if index + 1 == self.boundary:
                stored = x
            if index == self.network.taps[-1]:
                break
        return torch.cat([*pooled, stored.flatten(1).float()], 1)


def _seconds(backend: Callable[[Tensor], Tensor], sample: Tensor) -> float:
    begin = time.perf_counter()
    backend(sample)
    return time.perf_counter() - begin


def _activation_shape(network: PooledNetwork, boundary: int, x: Tensor) -> tuple[int, ...]:
    with torch.inference_mode():
        for stage in network.backbone.stages()[:boundary]:  # type: ignore[operator]
            x = stage(x)
    return tuple(x.shape[1:])


def fit_linear(
    x: Tensor, y: Tensor, weights: Tensor, num_classes: int, penalty: float, start: Tensor | None = None
) -> Tensor:
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

    optimizer.step(closure)
    return theta.detach()


def pooled_network(classifier: Classifier) -> tuple[PooledNetwork, dict[str, Any]]:
    """(the classifier's network with a linear head on pooled features, its architecture), sharing the weights."""
    taps, dims = choose_taps(classifier.model, classifier.preprocess.image_size)
    architecture = {**classifier.architecture, "taps": list(taps), "dims": list(dims)}
    outputs = architecture["num_outputs"]
    return PooledNetwork(classifier.model, taps=taps, dims=dims, num_classes=outputs).eval(), architecture


def train_quick(
    run: Path,
    classifier: Classifier,
    network: PooledNetwork,
    architecture: dict[str, Any],
    extractor: Extractor,
    labels: dict[str, Tensor],
    weights: Tensor,
    *,
    shift: Tensor,
    answer_views: int | None,
    clock: Callable[[], float],
    deadline: float,
) -> Classifier:
    """A classifier on frozen features, saved as soon as it is usable, then with as many views as help.

    labels: of "train" and "val". weights: of the training pictures. shift: (K,), added to the logits in the loss alone
    (logit adjustment). answer_views: views that an answer averages; what helps if not given. clock: seconds since the
    run began; further views are tried while they fit before `deadline`.
    """
    log.info(
        "quick classifier: frozen features of %d stages, read with %s",
        len(network.taps),
        extractor.backend_name,
    )
    best: dict[str, Any] = {}
    quick, seconds = classifier, 0.0
    for views in LEARNED_FROM:
        begin = clock()
        if views > 1 and begin + seconds * (views // 2) > deadline:
            log.info("learning from %s is not tried: no time is left for it", LEARNED_FROM[views])
            break
        features = [extractor.features(view) for view in range(views)]
        fitted = _fit_views(features, labels, weights, shift, best)
        seconds = clock() - begin
        log.info(
            "learned from %s: val loss %.4f  val accuracy %.4f  penalty on large weights %.2g  (%.0f s)",
            LEARNED_FROM[views], fitted["val_loss"], fitted["val_accuracy"], fitted["penalty"], clock(),
        )  # fmt: skip
        if best and _clearly_worse(fitted["losses"], best["losses"]):
            break
        best = fitted
        _install(network, fitted)
        figures = {key: fitted[key] for key in ("val_loss", "val_accuracy", "error")} | {"epoch": 0}
        figures["training_views"] = views
        about = classifier.about | {"validation": figures, "val_pictures": len(labels["val"]), "seconds": clock()}
        quick = dataclasses.replace(
            classifier, model=network, architecture=architecture, about=about,
            views=answer_views or min(views, ANSWER_VIEWS),
        )  # fmt: skip
        quick.save(run / runs.CLASSIFIER)
        if views == 1:
            quick.save(run / QUICK)
    return quick


def _fit_views(
    features: list[Tensor], labels: dict[str, Tensor], weights: Tensor, shift: Tensor, before: dict[str, Any]
) -> dict[str, Any]:
    """The best fit on the views of the training pictures, with its validation figures.

    before: the fit on fewer views, whose penalty is kept and where this one starts; empty for the first, which tries
    the penalties from strong to weak while the validation loss falls. The bias is free, so that to minimise the loss of
    shifted logits is to minimise that of the logits as they are, and to take the shift off the bias.
    """
    n_train = len(labels["train"])
    x = torch.cat([view[:n_train] for view in features])
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    x = (x - mean) / scale
    val = [(view[n_train:] - mean) / scale for view in features[:ANSWER_VIEWS]]
    y, w = labels["train"].repeat(len(features)), weights.repeat(len(features))
    best: dict[str, Any] = {}
    theta: Tensor | None = before.get("theta")
    for penalty in (before["penalty"],) if before else PENALTIES:
        theta = fit_linear(x, y, w, len(shift), penalty, theta)
        logits = torch.stack([view @ theta[:-1] + theta[-1] - shift for view in val]).mean(0)
        losses = F.cross_entropy(logits, labels["val"], reduction="none")
        loss = float(losses.mean())
        if best and loss >= best["val_loss"]:
            break  # weaker penalties only fit the noise
        accuracy = float((logits.argmax(1) == labels["val"]).float().mean())
        best = {"theta": theta, "mean": mean, "scale": scale, "penalty": penalty, "shift": shift}
        best |= {"val_loss": loss, "val_accuracy": accuracy, "losses": losses, "error": _standard_error(losses)}
    return best


def _clearly_worse(losses: Tensor, before: Tensor) -> bool:
    """Whether the losses of the same pictures rose by more than the standard error of their mean difference.

    More views are better on most pictures that bear them, and a small validation set must not decide by chance.
    """
    difference = losses - before
    return float(difference.mean()) > _standard_error(difference)


def _standard_error(values: Tensor) -> float:
    """Of the mean, (N,) -> a number; 0 for a single value."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _install(network: PooledNetwork, fitted: dict[str, Any]) -> None:
    """Write a fit into the network's head; one output is the logit of the second class against the first."""
    theta = fitted["theta"].clone()
    theta[-1] -= fitted["shift"]
    theta = theta[:, 1:] - theta[:, :1] if network.head.out_features == 1 else theta
    with torch.no_grad():
        network.shift.copy_(fitted["mean"])
        network.scale.copy_(fitted["scale"])
        network.head.weight.copy_(theta[:-1].T)
        network.head.bias.copy_(theta[-1])


def bar_for_tuning(quick: Classifier) -> dict[str, float]:
    """The validation figures that a fine-tuned classifier has to beat: the quick one's, less one standard error.

    Fine-tuning is expected to help, and a lucky draw of the validation pictures must not throw its work away; only
    where it is clearly worse does the quick classifier stay.
    """
    figures = quick.about["validation"]
    accuracy, n = figures["val_accuracy"], quick.about["val_pictures"]
    return {
        "val_loss": figures["val_loss"] + figures["error"],
        "val_accuracy": accuracy - math.sqrt(accuracy * (1 - accuracy) / n),
    }
