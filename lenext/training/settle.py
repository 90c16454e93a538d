"""What is left open until the first batches are there: arithmetic, workers, pictures at once, number of epochs."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lenext import runs
from lenext.config import TrainConfig
from lenext.data.loader import default_workers
from lenext.inference.memory import is_out_of_memory
from lenext.training import allocator, devices, prepare
from lenext.training.distillation import Goal
from lenext.training.speed import (
    Speed,
    bytes_for_backward,
    fastest_arithmetic,
    fastest_workers,
    remember,
    remembered,
)
from lenext.training.task import AT_LAST, Targets, Task, augmentation, micro_batch_of
from lenext.version import __version__

log = logging.getLogger("lenext")

# Seconds for drawing, writing and compiling the best model for evaluation at the end.
RESERVE = 25.0
MOST_EPOCHS = 100
# An epoch is taken to last so much longer than its batches did on trial: optimiser, checkpoints, other programs.
SLACK = 1.15
# Of a training picture's time, for one that is only answered: no backward pass.
FORWARD = 1 / 3
# Batches that tell the pace, and seconds after which no more are needed.
PACED, ENOUGH = 4, 4.0
# On a CPU: times what the backward pass needs is what a step takes at its height; and how much of the memory that is
# available it may be.
ROOM, AVAILABLE = 1.5, 0.8
# Pixels, and pictures, that a CPU is timed with: more take longer and tell no more.
TIMED_PIXELS, TIMED_PICTURES = 8 * 224 * 224, (8, 64)
# Batches in an epoch from which on it pays to look for the best number of workers.
WORTH_BATCHES = 50
# Of a step, for making its batch: then nothing is gained by helpers.
NEXT_TO_NO_TIME = 0.05


def settle(
    config: TrainConfig,
    task: Task | None,
    make_task: Callable[[int], Task],
    targets: Targets,
    goal: Goal,
    fabric: Any,
    *,
    started: float,
    answers: int,
    evaluation: float | None,
    say: Callable[[str], None],
) -> TrainConfig:
    """The configuration with everything settled that has to be timed with real batches, or is off.

    task: what is trained; None where it is `make_task` of a number of workers that is still to be found.
    started: when the time budget began, in seconds since the epoch. answers: pictures that the result is measured on,
    times their views. evaluation: seconds that this takes; None, and a run without a quick classifier, where that is
    to be estimated. say: is told every choice, in a sentence.
    Epochs that are not given stay so where a quick classifier is there and not a single one fits into the time.
    """
    device, world_size = fabric.device, fabric.world_size
    trial: Task | None = None
    if devices.divides(config.strategy, world_size):  # no device holds the whole network: nothing can be tried with it
        speed = dataclasses.replace(_usual(config, device), micro_batch=micro_batch_of(config, world_size))
        why = "usual on this kind of processor"
    else:
        trial = task or make_task(0)
        trial.place(channels_last=False, device=device)
        inputs, index = next(iter(trial.train.epoch(0)))
        x, labels = trial.prepare(inputs, AT_LAST), targets(index)
        speed, why = _arithmetic(config, trial, x, labels, goal, world_size)
    say(f"arithmetic {speed}: {why} (--precision, --channels-last and --compile set it)")
    if speed.micro_batch < micro_batch_of(config, world_size):
        say(f"micro-batch {speed.micro_batch}: more pictures at once do not fit the memory (--micro-batch N)")
    config = dataclasses.replace(
        config,
        precision="bfloat16" if speed.bfloat16 else "float32",
        channels_last=speed.channels_last,
        compile=speed.compile,
        micro_batch=speed.micro_batch,
    )
    if task is None and config.workers is None:
        workers, why = default_workers(device, cached=True), "usual on this kind of processor"
        if trial is not None and config.speed != "off":
            workers, why = _workers(config, make_task, targets, goal, device, speed.images_per_second, list(x.shape))
        say(f"workers {workers}: {why} (--workers N for another number)")
        config = dataclasses.replace(config, workers=workers)
    if config.epochs is None:
        assert trial is not None, "a network that will be divided says for how many epochs"
        pace = _pace(config, trial, targets, goal, device)
        if config.compile and speed.images_per_second:  # what is timed for the pace is not compiled
            pace = min(pace, len(index) / speed.images_per_second)
        forward = FORWARD * pace / len(index)
        epoch = SLACK * (len(trial.train) * pace + trial.val_pictures / world_size * forward)
        end = RESERVE + (answers * forward if evaluation is None else evaluation)
        left = config.time_budget - (time.time() - started) - end
        epochs = min(int(left / epoch), MOST_EPOCHS)
        if epochs < 1:
            least = f"one epoch takes about {epoch:.0f} s, measuring and drawing the result {end:.0f} s"
            if evaluation is not None:
                say(f"kept: the quick classifier; {least}: too much for what is left of {config.time_budget:.0f} s")
                return config
            log.warning("%s: too much for what is left of %.0f s", least, config.time_budget)
        epochs = max(epochs, 1)
        say(f"epochs {epochs}: as many as fit into {config.time_budget:.0f} s (--epochs N for another number)")
        config = dataclasses.replace(config, epochs=epochs)
    return devices.decide(fabric, lambda: config)


def _usual(config: TrainConfig, device: torch.device) -> Speed:
    """What is right everywhere on a CPU, and usual on a GPU, where it is not given."""
    bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return Speed(
        bfloat16=bfloat16 if config.precision == "auto" else config.precision == "bfloat16",
        channels_last=True if config.channels_last is None else config.channels_last,
        compile=bool(config.compile),
    )


def _arithmetic(
    config: TrainConfig, task: Task, x: Tensor, labels: Tensor, goal: Goal, world_size: int
) -> tuple[Speed, str]:
    """(the fastest arithmetic that agrees with float32, with the pictures that fit the memory at once; why that)."""

    def loss_of(outputs: Tensor) -> Tensor:
        return goal(outputs, labels[: len(outputs)], x[: len(outputs)]).mean()

    micro_batch = micro_batch_of(config, world_size)
    if x.device.type == "cpu" and config.micro_batch is None:
        micro_batch = _fitting(task.module, x, loss_of, micro_batch, world_size)
    if config.speed == "off":
        return dataclasses.replace(_usual(config, x.device), micro_batch=micro_batch), "nothing is timed"
    wanted: dict[str, Any] = {
        "precision": config.precision, "channels_last": config.channels_last, "compile": config.compile,
    }  # fmt: skip
    if config.start_size is not None and config.compile is None:
        wanted["compile"] = False  # every size of the input would be compiled anew
    key = _key(config, x, wanted)
    known = remembered(key)
    if known is not None:
        fits = min(micro_batch, known.micro_batch or micro_batch)
        return dataclasses.replace(known, micro_batch=fits), "as measured before on this machine"
    while True:
        timed = min(micro_batch, len(x))
        if x.device.type == "cpu" and x.ndim == 4:
            low, high = TIMED_PICTURES
            timed = min(timed, max(low, min(high, TIMED_PIXELS // x[0, 0].numel())))
        try:
            speed = fastest_arithmetic(
                task.module, x[:timed], loss_of, remaining=_training_seconds(config, len(task.train) * len(x)), **wanted
            )
            break
        except RuntimeError as error:
            if not is_out_of_memory(error) or micro_batch == 1:
                raise
            micro_batch = math.ceil(micro_batch / 2)
    # What fits a GPU is known by trying; what a CPU has left is another thing every time.
    remember(key, dataclasses.replace(speed, micro_batch=micro_batch if x.is_cuda else 0))
    why = f"the fastest that agrees with float32, {speed.images_per_second:.0f} images/s"
    return dataclasses.replace(speed, micro_batch=micro_batch), why


def _fitting(
    module: nn.Module, x: Tensor, loss_of: Callable[[Tensor], Tensor], micro_batch: int, processes: int
) -> int:
    """Pictures at once, micro_batch or a half, a quarter of it and so on, for which the memory of the CPU will do."""
    few = x[: TIMED_PICTURES[0]]
    if micro_batch <= len(few):
        return micro_batch
    a_picture = ROOM * bytes_for_backward(module, few, loss_of) / len(few)
    # Beside the weights, which are there: gradients, and at most two averages of them or of the weights.
    standing = 3 * sum(p.numel() * p.element_size() for p in module.parameters())
    available = allocator.memory()[0] * AVAILABLE / processes - standing
    while micro_batch > 1 and micro_batch * a_picture > available:
        micro_batch = math.ceil(micro_batch / 2)
    return micro_batch


def _training_seconds(config: TrainConfig, pictures: int) -> Callable[[float], float]:
    """images/s -> seconds that the run will take, which tells whether compiling can pay."""
    return lambda rate: config.time_budget if config.epochs is None else config.epochs * pictures / rate


def _trial_step(
    config: TrainConfig, task: Task, targets: Targets, goal: Goal, device: torch.device
) -> Callable[[tuple[Any, Tensor]], None]:
    """A training step on a copy of the network: forward and backward as training does them, no weight moves."""
    assert config.micro_batch is not None
    micro_batch = config.micro_batch
    task.place(channels_last=bool(config.channels_last), device=device)
    module = copy.deepcopy(task.module).train()

    def step(batch: tuple[Any, Tensor]) -> None:
        inputs, index = batch
        x, labels = task.prepare(inputs, AT_LAST), targets(index)
        for start in [*range(0, len(x), micro_batch)] * (2 if config.sam else 1):
            part = slice(start, start + micro_batch)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                loss = goal(module(x[part]), labels[part], x[part]).mean()
            loss.backward()
        module.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def _pace(config: TrainConfig, task: Task, targets: Targets, goal: Goal, device: torch.device) -> float:
    """Seconds that a batch takes, from pictures to gradients, now: the middle one of a few.

    task: prepares its batches in this process; where helpers will do that, it does not count.
    """
    step, batches = _trial_step(config, task, targets, goal, device), task.train.epoch(0)
    seconds: list[float] = []
    while len(seconds) < PACED and sum(seconds) < ENOUGH:
        begin = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        begin = time.perf_counter() if config.workers else begin
        step(batch)
        seconds.append(time.perf_counter() - begin)
    return statistics.median_low(seconds)


def _workers(
    config: TrainConfig,
    make_task: Callable[[int], Task],
    targets: Targets,
    goal: Goal,
    device: torch.device,
    rate: float,
    shape: list[int],
) -> tuple[int, str]:
    """(how many processes should prepare batches: what trains fastest, end to end, over a few real batches; why)."""
    task = make_task(0)
    few = default_workers(device, cached=True)
    cores = default_workers(device, cached=False)
    candidates = sorted({few, (few + cores) // 2, cores})
    if len(task.train) < WORTH_BATCHES:
        return few, "an epoch is too short for a search"
    if few == 0 and _is_fed(task, rate):
        return few, "batches are made in next to no time"
    key = {
        "processor": runs.processor_name(), "cores": cores, "gpu": _gpu(device), "torch": torch.__version__,
        "lenext": __version__, "model": config.model, "arguments": config.arguments, "data": config.data,
        "cached": prepare.uses_cache(config), "augmentation": dataclasses.asdict(augmentation(config)),
        "input": shape, "micro_batch": config.micro_batch, "precision": config.precision,
    }  # fmt: skip
    known = runs.recall("workers", key)
    if known in candidates:
        return known, "as measured before on this machine"
    step = _trial_step(config, task, targets, goal, device)
    workers = fastest_workers(lambda workers: make_task(workers).train.epoch(0), step, candidates)
    runs.remember("workers", key, workers)
    return workers, "that trains fastest"


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
        "gpu": _gpu(x.device),
        "torch": torch.__version__,
        "lenext": __version__,
        "model": config.model,
        "arguments": config.arguments,
        "recipe": config.recipe == "auto" and bool(config.pretrained),  # there the upper part alone is trained
        "input": list(x.shape),
        "sam": bool(config.sam),
        **wanted,
    }


def _gpu(device: torch.device) -> str | None:
    return torch.cuda.get_device_name() if device.type == "cuda" else None
