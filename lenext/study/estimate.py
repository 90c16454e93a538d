"""How long the runs of a study take on this machine: a few steps of each network, timed once and remembered."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from lenext import models, runs
from lenext.config import TrainConfig
from lenext.study.design import Cell
from lenext.training import begin
from lenext.training.choose import FROM_SCRATCH, small_arguments
from lenext.training.devices import device_of
from lenext.version import __version__

STEPS = 2  # timed ones, after one that builds kernels
ENOUGH = 1.0  # seconds of steps after which no more are needed: slow ones vary little, and kernels are a small part
PIXELS = 32 * 32 * 32  # of a timed batch on a CPU, about: more take longer and tell no more
STARTED = 25.0  # seconds that a run takes besides its steps: to begin, and to measure and draw the result


@dataclass(frozen=True)
class Estimate:
    """Of one run, in its place beside others: seconds, training pictures a second, parameters of the network."""

    seconds: float
    images_per_second: float
    parameters: int


def estimate(cell: Cell, pictures: int, classes: int) -> Estimate:
    """How long a cell takes with so many training pictures of so many classes.

    Raises ValueError for a network that cannot be built.
    """
    config = begin.configure(dict(cell.settings))
    network = Network.of(config, classes)
    rate = images_per_second(network, config.batch_size or 64, config.precision, config.accelerator)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in network.build().parameters())
    if config.epochs is None:
        return Estimate(config.time_budget, rate, parameters)
    work = config.epochs * pictures * config.train_fraction
    return Estimate(STARTED + work / rate, rate, parameters)


@dataclass(frozen=True)
class Network:
    """What is built for a cell: as training would choose it, but for what only the pictures tell."""

    name: str
    classes: int
    image_size: int
    arguments: dict[str, Any]

    @classmethod
    def of(cls, config: TrainConfig, classes: int) -> Network:
        name = config.model or FROM_SCRATCH
        size = config.image_size or models.default_preprocess(name).image_size
        return cls(name, classes, size, small_arguments(name, size, bool(config.pretrained), config.arguments))

    def build(self) -> nn.Module:
        return models.create_model(self.name, self.classes, image_size=self.image_size, **self.arguments)


def images_per_second(network: Network, batch_size: int, precision: str = "auto", accelerator: str = "auto") -> float:
    """Training pictures a second, as remembered or timed now on random ones, in the arithmetic of a study's runs."""
    device, size = device_of(accelerator), network.image_size
    usual = device.type == "cuda" and torch.cuda.is_bf16_supported()
    bfloat16 = usual if precision == "auto" else precision == "bfloat16"
    batch = batch_size if device.type == "cuda" else min(batch_size, PIXELS // size**2)
    batch = max(batch, 2)  # a batch norm needs two
    key: dict[str, Any] = {
        "processor": runs.processor_name(),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "torch": torch.__version__,
        "lenext": __version__,
        "batch": batch,
        "bfloat16": bfloat16,
        **asdict(network),
    }
    known = runs.recall("steps", key)
    if isinstance(known, float) and known > 0:
        return known
    pictures = torch.randn(batch, 3, size, size, device=device)
    rate = batch / _step_seconds(network.build().to(device), pictures, bfloat16=bfloat16)
    runs.remember("steps", key, rate)
    return rate


def _step_seconds(model: nn.Module, x: torch.Tensor, *, bfloat16: bool) -> float:
    """Of a forward and a backward pass, channels-last."""
    model, x = model.train().to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    seconds: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many runs as there are cores go side by side
    try:
        while len(seconds) <= STEPS and sum(seconds) < ENOUGH:
            start = time.perf_counter()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
                outputs = model(x)
            outputs.float().square().mean().backward()
            if x.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            model.zero_grad(set_to_none=True)
    finally:
        torch.set_num_threads(threads)
    return min(seconds[1:] or seconds)
