"""Training steps on trial: what the search for a learning rate takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lenext.classifier import Classifier
from lenext.config import TrainConfig
from lenext.data.dataset import Dataset
from lenext.training import goals, prepare
from lenext.training.step import Step
from lenext.training.task import AT_LAST, Targets, image_task, micro_batch_of


def trial_step(
    run: Path, config: TrainConfig, data: Dataset, classifier: Classifier, fabric: Any
) -> Callable[[float], float]:
    """A function that trains one step at a learning rate, batch after batch, and returns the loss before it.

    A loss whose gradients are not finite is infinite. run: for what is said of unreadable pictures.
    """
    samples = data.samples
    pictures = prepare.read_pictures(config, data, classifier.preprocess)
    rows = prepare.readable_rows(run, samples, pictures, config.max_unreadable)
    train_set = samples.take(rows["train"])
    task = image_task(config, classifier, samples, pictures, rows, workers=config.workers or 0)
    task.place(channels_last=config.channels_last is not False, device=fabric.device)
    module = fabric.setup_module(task.module)
    optimizer = goals.optimizer_of(config, task.module)
    targets, weights = Targets(train_set, fabric.device), torch.from_numpy(train_set.weights)
    goal = goals.goal_of(config, classifier, train_set).to(fabric.device)
    step = Step(
        fabric, module, task.module, fabric.setup_optimizers(optimizer), goal,
        micro_batch=micro_batch_of(config, 1), bfloat16=config.precision == "bfloat16",
        clip_norm=config.clip_norm, sam=config.sam, several=targets.several,
    )  # fmt: skip
    batches = (batch for epoch in itertools.count(1) for batch in task.train.epoch(epoch))

    def train_one(lr: float) -> float:
        inputs, index = next(batches)
        task.module.train()
        labels = targets(index)
        x = task.prepare(inputs, AT_LAST)
        outcome = step.compute(x, labels, labels, weights[index].to(fabric.device), seed=config.seed)
        if not outcome.finite:
            return math.inf
        step.apply(lr)
        return outcome.loss / outcome.seen

    return train_one
