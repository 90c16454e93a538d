"""The two steps of a run with pretrained weights: the quick classifier, then a network to tune that starts from it."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lenext.classifier import Classifier
from lenext.config import TrainConfig
from lenext.data.loader import Pictures
from lenext.data.samples import Samples
from lenext.inference.backends import require
from lenext.models.pooled import CombinedNetwork
from lenext.training import frozen, quick
from lenext.training.checkpoint import Checkpoint, Progress
from lenext.training.objective import frequency_weights
from lenext.training.settle import RESERVE
from lenext.training.task import Task

log = logging.getLogger("lenext")

# Of the time budget: until when the quick classifier may try further views.
QUICK_SHARE = 0.5
# Times the frozen pass over a picture is what an answer takes: through both branches, and in float32 where the pass is
# in bfloat16.
BRANCHES, FLOAT32 = 1.5, 1.7


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
    say: Callable[[str], None],
) -> tuple[Task | None, float]:
    """(what to fine-tune, seconds that measuring the result will take); None where that is not the upper part alone.

    Where the augmentation allows, only the upper part is tuned, on stored activations, and `classifier` becomes the
    combination of both. A run that has begun reads what it needs from `progress`; one that has not trains and saves
    the quick classifier and notes there what a resumed run must know. say: is told what is chosen, in a sentence.
    """
    if saved is not None and not progress.quick["stored"]:  # the whole network is tuned, and nothing is extracted
        classifier.views = config.views or min(progress.quick["views"], quick.ANSWER_VIEWS)
        return None, 0.0
    labels = {name: torch.from_numpy(samples.labels[index]) for name, index in rows.items()}
    network, pooled = quick.pooled_network(classifier)
    if saved is not None:
        network.load_state_dict(saved.part("model.quick"))  # as it was pretrained; the file it came from may be gone
    both = np.concatenate([rows["train"], rows["val"]])
    store = progress.quick.get("stored", False if config.alters_pictures or config.recipe == "probe" else None)
    extractor = quick.Extractor(
        network, classifier.preprocess, pictures, both, store=store, backend=_as_before(progress.quick.get("backend"))
    )
    held_out = int((~samples.in_split("train")).sum())

    def end(views: int) -> float:
        """Seconds for measuring and drawing the result."""
        times = BRANCHES * (FLOAT32 if "bfloat16" in extractor.backend_name else 1.0)
        return RESERVE + times * extractor.seconds_per_picture * views * held_out

    if saved is None:
        least = time.time() - started + extractor.seconds_per_picture * extractor.n + end(1)
        if config.epochs is None and least > config.time_budget:
            log.warning(
                "reading the features and measuring the result ends after about %.0f s: more than the time budget of "
                "%.0f s", least, config.time_budget,
            )  # fmt: skip
        share = 1.0 if config.recipe == "probe" else QUICK_SHARE
        counts = torch.from_numpy(samples.take(rows["train"]).class_counts())
        weights = torch.from_numpy(samples.weights[rows["train"]])
        if config.class_weights != "none":
            weights = weights * frequency_weights(counts, config.class_weights)[labels["train"]].to(weights)
        first = quick.train_quick(
            run, classifier, network, pooled, extractor, labels, weights,
            shift=config.logit_adjustment * (counts.clamp_min(1) / counts.sum()).log(), answer_views=config.views,
            clock=lambda: time.time() - started,
            deadline=min(share * config.time_budget, config.time_budget - end(quick.ANSWER_VIEWS)),
        )  # fmt: skip
        if config.views is None:
            seen = "the picture as it is" if first.views == 1 else "the average over a picture and its mirror image"
            say(f"views {first.views}: an answer takes {seen}, by what helped to learn (--views N for another number)")
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
    evaluation = end(classifier.views) - RESERVE
    if not extractor.boundary:
        return None, evaluation
    combined = CombinedNetwork(network, copy.deepcopy(classifier.model), boundary=extractor.boundary)
    classifier.architecture, classifier.model = {**pooled, "boundary": extractor.boundary}, combined
    if saved is not None:
        saved.restore(combined)
    return frozen.stored_task(config, combined, extractor, labels, views), evaluation


def _as_before(backend: str | None) -> str | None:
    """The backend that a run began with, where this machine has it."""
    if backend is not None:
        try:
            require(backend)
        except ValueError as error:
            log.warning("%s: the run goes on with the fastest there is, and last digits may differ", error)
            return None
    return backend
