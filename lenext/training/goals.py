"""What is minimised, and by what, as the configuration says."""

from __future__ import annotations

import torch
from torch import nn

from lenext.classifier import Classifier, load
from lenext.config import TrainConfig
from lenext.data.samples import Samples
from lenext.training import prepare
from lenext.training.distillation import Distillation, Goal
from lenext.training.objective import Objective, make_objective
from lenext.training.optim import make_optimizer


def goal_of(config: TrainConfig, classifier: Classifier, train_set: Samples) -> Goal:
    """What is minimised."""
    assert config.loss is not None
    objective = make_objective(
        config.loss,
        len(classifier.classes),
        several=train_set.sets is not None,
        counts=torch.from_numpy(train_set.class_counts()),
        label_smoothing=config.label_smoothing,
        focal_gamma=config.focal_gamma,
        class_weights=config.class_weights,
        logit_adjustment=config.logit_adjustment,
    )
    if config.teacher is None:
        return objective
    return Distillation(
        objective,
        load(config.teacher),
        classes=classifier.classes,
        preprocess=classifier.preprocess,
        kind=config.distillation,
        weight=config.distillation_weight,
        temperature=config.distillation_temperature,
    )


def plain_goal(config: TrainConfig, classifier: Classifier) -> Objective:
    """What the validation loss is: that loss without any of its means against overfitting and imbalance."""
    assert config.loss is not None
    several = classifier.task == "multi-label"
    return make_objective(config.loss, len(classifier.classes), several=several, focal_gamma=config.focal_gamma)


def optimizer_of(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a network that lies where it will be trained."""
    assert config.lr is not None
    return make_optimizer(
        network,
        config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fresh=prepare.fresh_head(config, network),
        layer_decay=config.layer_decay,
    )
