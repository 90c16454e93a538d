"""What is left open until the first batches are there: arithmetic, workers, pictures at once, number of epochs."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lenext import runs
from lenext.classifier import Classifier, load
from lenext.config import TrainConfig
from lenext.data.loader import default_workers
from lenext.data.samples import Samples
from lenext.training import devices, prepare
from lenext.training.distillation import Distillation, Goal
from lenext.training.objective import Objective, make_objective
from lenext.training.optim import make_optimizer
from lenext.training.speed import Speed, fastest_arithmetic, fastest_workers, remember, remembered
from lenext.training.step import is_out_of_memory
from lenext.training.task import AT_LAST, Targets, Task
from lenext.version import __version__

log = logging.getLogger("lenext")

# Seconds for drawing, writing and compiling the best model for evaluation at the end.
RESERVE = 20.0
MOST_EPOCHS = 100
# Pixels, and pictures, that a CPU is timed with: more take longer and tell no more.
TIMED_PIXELS, TIMED_PICTURES = 8 * 224 * 224, (8, 64)
# Batches in an epoch from which on it pays to look for the best number of workers.
WORTH_BATCHES = 50
# Of a step, for making its batch: then nothing is gained by helpers.
NEXT_TO_NO_TIME = 0.05


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


def micro_batch_of(config: TrainConfig, world_size: int) -> int:
    """Pictures that go through the network at once on one device, at most."""
    assert config.batch_size is not None
    share = math.ceil(config.batch_size / world_size)
    return min(config.micro_batch or share, share)


def settle(
    config: TrainConfig,
    task: Task | None,
    make_task: Callable[[int], Task],
    targets: Targets,
    goal: Goal,
    fabric: Any,
    *,
    spent: float,
    evaluation: float,
) -> TrainConfig:
    """The configuration with everything settled that has to be timed with real batches, or is off.

    task: what is trained; None where it is `make_task` of a number of workers that is still to be found.
    spent: seconds of the time budget that are gone. evaluation: seconds that measuring the result will take.
    """
    device = fabric.device
    trial = task or make_task(0)
    trial.place(channels_last=False, device=device)
    inputs, index = next(iter(trial.train.epoch(0)))
    x, labels = trial.prepare(inputs, AT_LAST), targets(index)
    speed, micro_batch = _arithmetic(config, trial, x, labels, goal, fabric.world_size)
    config = dataclasses.replace(
        config,
        precision="bfloat16" if speed.bfloat16 else "float32",
        channels_last=speed.channels_last,
        compile=speed.compile,
        micro_batch=micro_batch,
    )
    if task is None and config.workers is None:
        workers = _workers(config, make_task, targets, goal, device, speed.images_per_second)
        config = dataclasses.replace(config, workers=workers)
    if config.epochs is None:
        # A validation picture costs about a third of a training picture: no backward pass.
        work = len(trial.train) * len(index) + trial.val_pictures / 3 / fabric.world_size
        left = config.time_budget - spent - evaluation - RESERVE
        epochs = min(max(int(left * speed.images_per_second / work), 1), MOST_EPOCHS)
        log.info("epochs: %d, as many as fit into %.0f s (--epochs N for another number)", epochs, config.time_budget)
        config = dataclasses.replace(config, epochs=epochs)
    return devices.decide(fabric, lambda: config)


def _arithmetic(
    config: TrainConfig, task: Task, x: Tensor, labels: Tensor, goal: Goal, world_size: int
) -> tuple[Speed, int]:
    """(the fastest arithmetic that agrees with float32, pictures that fit the memory at once)."""
    micro_batch = micro_batch_of(config, world_size)
    wanted: dict[str, Any] = {
        "precision": config.precision, "channels_last": config.channels_last, "compile": config.compile,
    }  # fmt: skip
    if config.start_size is not None and config.compile is None:
        wanted["compile"] = False  # every size of the input would be compiled anew
    if config.speed == "off":
        # Without timing: what is right everywhere on a CPU, and usual on a GPU.
        gpu = x.device.type == "cuda"
        precision = "bfloat16" if gpu and torch.cuda.is_bf16_supported() else "float32"
        wanted["precision"] = precision if config.precision == "auto" else config.precision
        wanted["channels_last"] = True if config.channels_last is None else config.channels_last
        wanted["compile"] = bool(config.compile)
        if config.epochs is not None:
            return Speed(wanted["precision"] == "bfloat16", wanted["channels_last"], wanted["compile"]), micro_batch
    key = _key(config, x, wanted)
    known = remembered(key)
    if known is not None:
        log.info("arithmetic: %s, as measured before on this machine", known)
        if config.epochs is not None:
            return known, min(micro_batch, known.micro_batch or micro_batch)
        wanted = {
            "precision": "bfloat16" if known.bfloat16 else "float32",
            "channels_last": known.channels_last,
            "compile": known.compile,
        }
    while True:
        timed = min(micro_batch, len(x))
        if x.device.type == "cpu" and x.ndim == 4:
            low, high = TIMED_PICTURES
            timed = min(timed, max(low, min(high, TIMED_PIXELS // x[0, 0].numel())))
        try:
            speed = fastest_arithmetic(
                task.module,
                x[:timed],
                lambda outputs: goal(outputs, labels[: len(outputs)], x[: len(outputs)]).mean(),
                remaining=_training_seconds(config, len(task.train) * len(x)),
                **wanted,
            )
            break
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or micro_batch == 1:
                raise
            micro_batch = math.ceil(micro_batch / 2)
    log.info("arithmetic: %s, %.0f images/s", speed, speed.images_per_second)
    speed = dataclasses.replace(speed, micro_batch=micro_batch)
    remember(key, speed)
    return speed, micro_batch


def _training_seconds(config: TrainConfig, pictures: int) -> Callable[[float], float]:
    """images/s -> seconds that the run will take, which tells whether compiling can pay."""
    return lambda rate: config.time_budget if config.epochs is None else config.epochs * pictures / rate


def _workers(
    config: TrainConfig,
    make_task: Callable[[int], Task],
    targets: Targets,
    goal: Goal,
    device: torch.device,
    rate: float,
) -> int:
    """How many processes should prepare batches: what trains fastest, end to end, over a few real batches."""
    task = make_task(0)
    few = default_workers(device, cached=True)
    cores = default_workers(device, cached=False)
    if config.speed == "off" or len(task.train) < WORTH_BATCHES or (few == 0 and _is_fed(task, rate)):
        return few
    task.place(channels_last=bool(config.channels_last), device=device)
    module = copy.deepcopy(task.module).train()

    def step(batch: tuple[Any, Tensor]) -> None:
        inputs, index = batch
        x, labels = task.prepare(inputs, AT_LAST), targets(index)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = goal(module(x), labels, x).mean()
        loss.backward()
        module.zero_grad(set_to_none=True)

    workers = fastest_workers(
        lambda workers: make_task(workers).train.epoch(0), step, sorted({few, (few + cores) // 2, cores})
    )
    log.info("workers: %d (--workers N for another number)", workers)
    return workers


def _is_fed(task: Task, rate: float) -> bool:
    """Whether batches are made in next to no time beside a step at `rate` images/s, without any help."""
    if not rate:
        return False
    batches = task.train.epoch(0)
    _, index = next(batches)
    begin = time.perf_counter()
    next(batches)
    return time.perf_counter() - begin < NEXT_TO_NO_TIME * len(index) / rate


def _key(config: TrainConfig, x: Tensor, wanted: dict[str, Any]) -> dict[str, Any]:
    """What a measurement depends on."""
    return {
        "processor": runs.processor_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if x.device.type == "cuda" else None,
        "torch": torch.__version__,
        "lenext": __version__,
        "model": config.model,
        "arguments": config.arguments,
        "recipe": config.recipe == "auto" and bool(config.pretrained),  # there the upper part alone is trained
        "input": list(x.shape),
        "sam": bool(config.sam),
        **wanted,
    }
