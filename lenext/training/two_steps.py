"""The two steps of a run with pretrained weights: the quick classifier, then a network to tune that starts from it."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenext.classifier import Classifier
from lenext.config import TrainConfig
from lenext.data.loader import Pictures
from lenext.data.samples import Samples
from lenext.models.pooled import CombinedNetwork
from lenext.training import checkpoint, frozen, prepare, quick

# Of the time budget: until when the quick classifier may try further views.
QUICK_SHARE = 0.5


def quick_then_tuned(
    run: Path,
    config: TrainConfig,
    classifier: Classifier,
    samples: Samples,
    pictures: Pictures,
    rows: dict[str, np.ndarray],
    labels: dict[str, Tensor],
    progress: dict[str, Any],
    *,
    started: float,
) -> tuple[prepare.Task, float]:
    """(what to fine-tune, seconds that measuring the result will take).

    Where the augmentation allows, only the upper part is tuned, on stored activations, and `classifier` becomes the
    combination of both. A run that has begun reads what it needs from `progress`; one that has not trains and saves
    the quick classifier and notes there what a resumed run must know.
    """
    begun = checkpoint.exists(run)
    network, pooled = quick.pooled_network(classifier)
    both = np.concatenate([rows["train"], rows["val"]])
    store = progress.get("stored", False if config.alters_pictures else None)
    extractor = quick.Extractor(
        network, classifier.preprocess, pictures, both, store=store, backend=progress.get("backend")
    )
    if not begun:
        weights = torch.from_numpy(samples.weights[rows["train"]])
        first = quick.train_quick(
            run, classifier, network, pooled, extractor, labels, weights,
            clock=lambda: time.time() - started, deadline=config.time_budget * QUICK_SHARE,
        )  # fmt: skip
        progress |= {"best": quick.bar_for_tuning(first), "views": first.about["validation"]["training_views"]}
        progress |= {"backend": extractor.backend_name, "stored": extractor.boundary > 0}
    classifier.views = min(progress["views"], quick.ANSWER_VIEWS)
    # In float32, and through both branches: about 2.5 times the frozen pass.
    evaluation = 2.5 * extractor.seconds_per_picture * classifier.views * int((~samples.in_split("train")).sum())
    if not extractor.boundary:
        return prepare.image_task(config, classifier, samples, pictures, rows), evaluation
    combined = CombinedNetwork(network, copy.deepcopy(classifier.model), boundary=extractor.boundary)
    classifier.architecture, classifier.model = {**pooled, "boundary": extractor.boundary}, combined
    if begun:
        checkpoint.restore(run, combined)
    return frozen.stored_task(config, combined, extractor, labels, progress["views"]), evaluation
