"""The two steps of a run with pretrained weights: the quick classifier, then a network to tune that starts from it."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import numpy as np
import torch

from lenext.classifier import Classifier
from lenext.config import TrainConfig
from lenext.data.loader import Pictures
from lenext.data.samples import Samples
from lenext.models.pooled import CombinedNetwork
from lenext.training import frozen, quick
from lenext.training.checkpoint import Checkpoint, Progress
from lenext.training.task import Task

# Of the time budget: until when the quick classifier may try further views.
QUICK_SHARE = 0.5


def takes_two_steps(config: TrainConfig, classifier: Classifier) -> bool:
    """Whether a run begins with a quick classifier. Raises ValueError where nothing else was asked for and none can."""
    can = bool(config.pretrained) and hasattr(classifier.model, "stages") and classifier.task == "single-label"
    if config.recipe == "probe" and not can:
        raise ValueError(
            "recipe probe is a linear classifier on pretrained features, for one label a picture: it needs "
            f"--pretrained true and a network of `lenext models`; with {config.model} use --recipe finetune"
        )
    return can and config.recipe in ("auto", "probe") and config.teacher is None


def quick_then_tuned(
    run: Path,
    config: TrainConfig,
    classifier: Classifier,
    samples: Samples,
    pictures: Pictures,
    rows: dict[str, np.ndarray],
    progress: Progress,
    saved: Checkpoint | None,
    *,
    started: float,
) -> tuple[Task | None, float]:
    """(what to fine-tune, seconds that measuring the result will take); None where that is not the upper part alone.

    Where the augmentation allows, only the upper part is tuned, on stored activations, and `classifier` becomes the
    combination of both. A run that has begun reads what it needs from `progress`; one that has not trains and saves
    the quick classifier and notes there what a resumed run must know.
    """
    labels = {name: torch.from_numpy(samples.labels[index]) for name, index in rows.items()}
    network, pooled = quick.pooled_network(classifier)
    both = np.concatenate([rows["train"], rows["val"]])
    store = progress.quick.get("stored", False if config.alters_pictures or config.recipe == "probe" else None)
    extractor = quick.Extractor(
        network, classifier.preprocess, pictures, both, store=store, backend=progress.quick.get("backend")
    )
    if saved is None:
        weights = torch.from_numpy(samples.weights[rows["train"]])
        first = quick.train_quick(
            run, classifier, network, pooled, extractor, labels, weights,
            clock=lambda: time.time() - started,
            deadline=config.time_budget * (1 if config.recipe == "probe" else QUICK_SHARE),
        )  # fmt: skip
        if config.recipe == "probe":
            return None, 0.0
        progress.best = quick.bar_for_tuning(first)
        progress.quick = {
            "views": first.about["validation"]["training_views"],
            "backend": extractor.backend_name,
            "stored": extractor.boundary > 0,
        }
    views = progress.quick["views"]
    classifier.views = config.views or min(views, quick.ANSWER_VIEWS)
    # In float32, and through both branches: about 2.5 times the frozen pass.
    evaluation = 2.5 * extractor.seconds_per_picture * classifier.views * int((~samples.in_split("train")).sum())
    if not extractor.boundary:
        return None, evaluation
    combined = CombinedNetwork(network, copy.deepcopy(classifier.model), boundary=extractor.boundary)
    classifier.architecture, classifier.model = {**pooled, "boundary": extractor.boundary}, combined
    if saved is not None:
        saved.restore(combined)
    return frozen.stored_task(config, combined, extractor, labels, views), evaluation
