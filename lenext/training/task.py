"""What is trained and on what: augmented pictures through the whole network, in batches with their targets."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lenext.classifier import Classifier
from lenext.config import TrainConfig
from lenext.data.loader import Batches, Pictures
from lenext.data.samples import Samples
from lenext.data.transforms import PRESETS, Augmentation, eval_transform, normalise, train_transform
from lenext.inference.memory import in_parts
from lenext.training import devices

# Of the run: until when the input grows from start_size to image_size, and in which steps, pixels.
GROWING, GRAIN = 2 / 3, 4
# An epoch by which every input has grown, however long the run.
AT_LAST = sys.maxsize


class Source(Protocol):
    """Batches (inputs, index): those of an epoch from batch number `start` on, or all in order.

    Several processes share the pictures, and an index beyond the last one is a filler's, which counts nothing.
    """

    def __len__(self) -> int: ...
    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Any, Tensor]]: ...
    def in_order(self) -> Iterator[tuple[Any, Tensor]]: ...


@dataclass
class Layout:
    """Where and how inputs and weights lie."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    format: torch.memory_format = torch.contiguous_format

    def place(self, network: nn.Module, *, channels_last: bool, device: torch.device, divided: bool = False) -> None:
        """Move a network there; what is prepared follows. A network that will be divided stays: it fits no device."""
        self.device, self.format = device, devices.memory_format(network, device, channels_last=channels_last)
        if not divided:
            network.to(device=device)
            network.to(memory_format=self.format)

    def put(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=self.format) if x.ndim == 4 else x


@dataclass
class Task:
    """What the loop trains and on what. `module` shares its parameters with the classifier's network.

    prepare: (a training batch as the source gives it, epoch) -> the module's input on the device.
    predict: a validation batch as the source gives it -> outputs.
    place: moves module and prepared batches to a memory format and a device; see `Layout.place`.
    """

    module: nn.Module
    train: Source
    val: Source
    val_pictures: int
    prepare: Callable[[Any, int], Tensor]
    predict: Callable[[Any], Tensor]
    place: Callable[..., None]


class Targets:
    """What pictures show, by their index: int64 (B,), or of several labels a picture float (B, K).

    Indices beyond the last picture are those of fillers, and begin anew.
    """

    def __init__(self, samples: Samples, device: torch.device) -> None:
        self.several, self.device = samples.sets is not None, device
        self.classes = len(samples.classes)
        self.table = samples.targets() if self.several else torch.from_numpy(samples.labels).to(device)

    def __call__(self, index: Tensor) -> Tensor:
        index = index % len(self)
        if isinstance(self.table, Tensor):
            return self.table[index.to(self.device)]
        return torch.from_numpy(self.table[index.numpy()].toarray().astype(np.float32)).to(self.device)

    def __len__(self) -> int:
        return self.table.shape[0]

    def shares(self, targets: Tensor) -> Tensor:
        """Targets as float (B, K), ready to be mixed."""
        return targets if self.several else F.one_hot(targets, self.classes).float()


def image_task(
    config: TrainConfig,
    classifier: Classifier,
    samples: Samples,
    pictures: Pictures,
    rows: dict[str, np.ndarray],
    *,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
) -> Task:
    """Training of the whole network on augmented pictures."""
    assert config.batch_size is not None
    preprocess, layout = classifier.preprocess, Layout()
    # The parts of a divided network are asked for by all processes equally often: none may halve a batch for itself.
    answer = classifier.model if devices.divides(config.strategy, world_size) else in_parts(classifier.model)

    def prepare(x: Tensor, epoch: int) -> Tensor:
        x = x.to(layout.device, non_blocking=True)
        size = input_size(epoch, config.epochs, config.start_size, preprocess.image_size)
        if size != x.shape[-1]:
            x = x.float() if x.is_cuda else x  # a GPU shrinks no bytes
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
        return layout.put(normalise(x, preprocess))

    def source(name: str, transform: Any, batch_size: int, **options: Any) -> Batches:
        return Batches(
            _Rows(pictures, rows[name]), transform, batch_size=batch_size, rank=rank, world_size=world_size,
            pinned=devices.device_of(config.accelerator).type == "cuda", **options,
        )  # fmt: skip

    return Task(
        module=classifier.model,
        train=source(
            "train",
            train_transform(preprocess, augmentation(config)),
            config.batch_size,
            seed=config.seed,
            workers=workers,
            repeats=config.repeats,
            sampling=config.sampling,
            labels=samples.labels[rows["train"]],
            weights=samples.weights[rows["train"]],
        ),
        val=source("val", eval_transform(preprocess), 2 * micro_batch_of(config, world_size)),  # without gradients
        val_pictures=len(rows["val"]),
        prepare=prepare,
        predict=lambda x: answer(layout.put(normalise(x.to(layout.device, non_blocking=True), preprocess))),
        place=lambda **where: layout.place(classifier.model, **where),
    )


def micro_batch_of(config: TrainConfig, world_size: int) -> int:
    """Pictures that go through the network at once on one device, at most."""
    assert config.batch_size is not None
    share = math.ceil(config.batch_size / world_size)
    return min(config.micro_batch or share, share)


def augmentation(config: TrainConfig) -> Augmentation:
    """The preset of the configuration, with the single steps that it sets."""
    names = ("crop_scale", "flip", "policy", "color_jitter", "erasing")
    given = {name: value for name in names if (value := getattr(config, name)) is not None}
    return dataclasses.replace(PRESETS[config.augment or "light"], **given)


def input_size(epoch: int, epochs: int | None, start: int | None, final: int) -> int:
    """Side of the input in an epoch counted from 1: it grows evenly over two thirds of the run, then stays.

    Progressive resizing: the first epochs learn what is coarse, at a fraction of the arithmetic (Howard 2018, fast.ai's
    entry to DAWNBench; Tan and Le 2021, https://arxiv.org/abs/2104.00298).
    """
    if start is None or epochs is None:
        return final
    share = min((epoch - 1) / max(GROWING * epochs, 1), 1.0)
    return min(start + round(share * (final - start) / GRAIN) * GRAIN, final) if share < 1 else final


@dataclass(frozen=True)
class _Rows:
    """Some of the pictures, numbered from 0."""

    pictures: Pictures
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.pictures[int(self.rows[index])]
