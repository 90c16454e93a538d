"""What stands before the loop: pictures read once, the task of image batches, speed and length settled."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lenext import models, runs, terminal
from lenext.classifier import Classifier
from lenext.config import TrainConfig
from lenext.data import check
from lenext.data.cache import PackedImages, pack
from lenext.data.dataset import DataOptions, Dataset
from lenext.data.decode import UnreadableImage
from lenext.data.loader import Batches, Pictures, default_workers
from lenext.data.samples import Samples
from lenext.data.transforms import PRESETS, Augmentation, eval_transform, normalise, train_transform
from lenext.evaluation import figures
from lenext.models.weights import head_names
from lenext.preprocess import Preprocess
from lenext.training.objective import compute_loss
from lenext.training.speed import fastest_speed

log = logging.getLogger("lenext")

# Random crops gain from a little more than the network's input; more than this only costs memory.
TRAIN_MARGIN = 1.15
# Seconds for drawing, writing and compiling the best model for evaluation at the end.
RESERVE = 20.0
MOST_EPOCHS = 100


class Source(Protocol):
    """Batches (inputs, index): shuffled ones of an epoch, or all in order."""

    def __len__(self) -> int: ...
    def epoch(self, epoch: int) -> Iterator[tuple[Any, Tensor]]: ...
    def in_order(self) -> Iterator[tuple[Any, Tensor]]: ...


@dataclass
class Task:
    """What the loop trains and on what. `module` shares its parameters with the classifier's network.

    prepare: a training batch as the source gives it -> the module's input on the device.
    predict: (module, a validation batch as the source gives it) -> outputs.
    use_layout: moves module and prepared batches to a memory format and a device.
    """

    module: nn.Module
    train: Source
    val: Source
    val_pictures: int
    prepare: Callable[[Any], Tensor]
    predict: Callable[[nn.Module, Any], Tensor]
    use_layout: Callable[..., None]


def image_task(
    config: TrainConfig, classifier: Classifier, samples: Samples, pictures: Pictures, rows: dict[str, np.ndarray]
) -> Task:
    """Training of the whole network on augmented pictures."""
    assert config.batch_size is not None
    preprocess = classifier.preprocess
    layout: dict[str, Any] = {"format": torch.contiguous_format, "device": torch.device("cpu")}

    def use_layout(*, channels_last: bool, device: torch.device) -> None:
        layout.update(format=torch.channels_last if channels_last else torch.contiguous_format, device=device)
        classifier.model.to(device=device)
        classifier.model.to(memory_format=layout["format"])

    def prepare(x: Tensor) -> Tensor:
        x = x.to(layout["device"], non_blocking=True)
        return normalise(x, preprocess).contiguous(memory_format=layout["format"])

    return Task(
        module=classifier.model,
        train=Batches(
            _Rows(pictures, rows["train"]),
            train_transform(preprocess, augmentation(config)),
            batch_size=config.batch_size,
            seed=config.seed,
            workers=workers_of(config, samples),
            repeats=config.repeats,
            sampling=config.sampling,
            labels=samples.labels[rows["train"]],
            weights=samples.weights[rows["train"]],
        ),
        val=Batches(_Rows(pictures, rows["val"]), eval_transform(preprocess), batch_size=2 * config.batch_size),
        val_pictures=len(rows["val"]),
        prepare=prepare,
        predict=lambda module, x: module(prepare(x)),
        use_layout=use_layout,
    )


def augmentation(config: TrainConfig) -> Augmentation:
    """The preset of the configuration, with the single steps that it sets."""
    names = ("crop_scale", "flip", "policy", "color_jitter", "erasing")
    given = {name: value for name in names if (value := getattr(config, name)) is not None}
    return dataclasses.replace(PRESETS[config.augment or "light"], **given)


@dataclass(frozen=True)
class _Rows:
    """Some of the pictures, numbered from 0."""

    pictures: Pictures
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.pictures[int(self.rows[index])]


def require_sound(config: TrainConfig, data: Dataset) -> None:
    """Say what is odd about the data; ValueError, with the mend, where it would make the result worthless."""
    if data.samples.sets is not None:
        raise ValueError(
            f"{config.data} gives several labels to a picture; this version trains on one label a picture "
            "(lenext check reads such data)"
        )
    if data.scanned is not None:
        found = check.find(data.samples, data.scanned, data.source, config.max_unreadable, data.near)
        check.require_sound(found, data.source)


def read_pictures(
    run: Path, config: TrainConfig, data: Dataset, classifier: Classifier
) -> tuple[PackedImages, np.ndarray]:
    """(all pictures, decoded or ready to be, (N,) whether each can be trained on), and data.json.

    Unreadable files are named; more than the share the configuration allows stop the run here.
    """
    samples, scanned = data.samples, data.scanned
    with terminal.bar("reading pictures", len(samples)) as bar:
        packed = pack(
            samples,
            math.ceil(classifier.preprocess.resize * TRAIN_MARGIN),
            digests=None if scanned is None else scanned.digests,
            reasons=None if scanned is None else scanned.reasons,
            cache=uses_cache(config) and not samples.hold_pixels(),
            limit_bytes=int(config.cache_limit * 1e9),
            progress=bar.to,
        )
    unreadable = [{"image": samples.images[i], "reason": why} for i, why in sorted(packed.reasons.items())]
    readable = np.zeros(len(samples), dtype=bool)
    readable[packed.readable] = True
    write_data(run, classifier, samples, unreadable)
    for entry in unreadable[:10]:
        log.warning("left out: %s: %s", entry["image"], entry["reason"])
    if len(unreadable) > 10:
        log.warning("and %d more, all named in %s", len(unreadable) - 10, run / runs.DATA)
    share = len(unreadable) / len(samples)
    if share > config.max_unreadable:
        raise ValueError(
            f"{len(unreadable)} of {len(samples)} pictures ({100 * share:.0f} %) cannot be read, such as "
            f"{unreadable[0]['image']} ({unreadable[0]['reason']}); all are named in {run / runs.DATA}. Mend them, or "
            f"allow more with --max-unreadable {math.ceil(100 * share) / 100}"
        )
    for split in ("train", "val"):
        inside = samples.in_split(split)
        gone = np.flatnonzero((samples.class_counts(inside) > 0) & (samples.class_counts(inside & readable) == 0))
        if len(gone):
            name = samples.classes[gone[0]]
            raise ValueError(f"class {name!r} has no readable picture in {split}; see {run / runs.DATA}")
    return packed, readable


def uses_cache(config: TrainConfig) -> bool:
    """Whether decoded pictures are kept: as the user says, else where they are read more than once."""
    if config.cache is not None:
        return config.cache
    return config.epochs != 1 or (config.recipe == "auto" and bool(config.pretrained))


def workers_of(config: TrainConfig, samples: Samples) -> int:
    """Processes that prepare batches."""
    if config.workers is not None:
        return config.workers
    return default_workers(device_of(config), cached=uses_cache(config) or samples.hold_pixels())


def write_data(run: Path, classifier: Classifier, samples: Samples, unreadable: list[dict[str, str]]) -> None:
    """data.json: class names, counts, the fingerprint of every split, and the files that give no pixels."""
    runs.write_json(
        run / runs.DATA,
        {
            "data": classifier.about["data"],
            "classes": list(samples.classes),
            "counts": samples.counts(),
            "fingerprint": classifier.about["fingerprint"],
            "unreadable": unreadable,
        },
    )


def settle_speed(
    config: TrainConfig, task: Task, train_set: Samples, *, spent: float, evaluation: float
) -> TrainConfig:
    """The configuration with precision, memory format and number of epochs settled by timing real steps.

    spent: seconds of the time budget that are gone. evaluation: seconds that measuring the result will take.
    """
    device = device_of(config)
    task.use_layout(channels_last=False, device=device)
    inputs, index = next(iter(task.train.epoch(0)))
    labels = torch.from_numpy(train_set.labels)[index].to(device)
    weights = torch.ones(len(labels), device=device)
    speed = fastest_speed(
        task.module,
        task.prepare(inputs),
        lambda outputs: compute_loss(config.loss, outputs, labels, weights, config.label_smoothing),
        config.precision,
        config.channels_last,
    )
    log.info("arithmetic: %s, %.0f images/s", speed, speed.images_per_second)
    epochs = config.epochs
    if epochs is None:
        # A validation picture costs about a third of a training picture: no backward pass.
        work = len(task.train) * len(index) + task.val_pictures / 3
        seconds = work / speed.images_per_second
        left = config.time_budget - spent - evaluation - RESERVE
        epochs = min(max(int(left / seconds), 1), MOST_EPOCHS)
        log.info(
            "epochs: %d, as many as fit into %.0f s (--epochs N for another number)",
            epochs,
            config.time_budget,
        )
    return dataclasses.replace(
        config,
        precision="bfloat16" if speed.bfloat16 else "float32",
        channels_last=speed.channels_last,
        epochs=epochs,
    )


def draw_samples(run: Path, train_set: Samples, most: int = 18) -> None:
    """A grid of labelled training pictures, evenly from all classes."""
    order = np.random.default_rng(0).permutation(len(train_set))
    rank = np.zeros(len(train_set), dtype=int)  # how many pictures of its class come before a picture
    seen: dict[int, int] = {}
    for i in order:
        label = int(train_set.labels[i])
        rank[i] = seen[label] = seen.get(label, -1) + 1
    chosen = sorted(order, key=lambda i: rank[i])[:most]
    images, titles = [], []
    for i in chosen:
        try:
            images.append(train_set.decode(int(i), shrink_to=160))
            titles.append(train_set.classes[train_set.labels[i]])
        except UnreadableImage:  # read a moment ago; gone since
            continue
    figures.draw_samples(images, titles, run / "figures/samples.png")


def preprocess_of(config: TrainConfig) -> Preprocess:
    """The network's preprocessing at the size of the run, keeping the whole short side of the picture."""
    assert config.model is not None
    assert config.image_size is not None
    default = models.default_preprocess(config.model)
    return dataclasses.replace(default, image_size=config.image_size, crop_fraction=1.0)


def fresh_head(config: TrainConfig, module: nn.Module) -> nn.Module | None:
    """The last layers of what is trained, if they start from random weights on top of pretrained ones."""
    names = head_names(module) if config.pretrained else ()
    return nn.ModuleList(module.get_submodule(name) for name in names) if names else None


def data_options(config: TrainConfig) -> DataOptions:
    return DataOptions(**{field.name: getattr(config, field.name) for field in dataclasses.fields(DataOptions)})


def device_of(config: TrainConfig) -> torch.device:
    if config.accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("--accelerator gpu: no CUDA device is to be seen; leave it out to train on the processor")
    return torch.device("cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def make_fabric(config: TrainConfig) -> Any:
    """Lightning Fabric: devices, precision and process launch behind one plain loop."""
    from lightning_fabric import Fabric

    device = device_of(config)
    return Fabric(
        accelerator=device.type,
        devices=config.devices,
        precision="bf16-mixed" if config.precision == "bfloat16" else "32-true",
    )
