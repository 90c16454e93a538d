"""What stands before the loop: data that is sound, pictures that are read, and what a run folder says of them."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path

import numpy as np
from torch import nn

from lenext import models, runs, terminal
from lenext.classifier import Classifier
from lenext.config import TrainConfig
from lenext.data import check
from lenext.data.cache import PackedImages, pack
from lenext.data.dataset import DataOptions, Dataset
from lenext.data.decode import UnreadableImage
from lenext.data.samples import Samples
from lenext.evaluation import figures
from lenext.models.weights import head_names
from lenext.preprocess import Preprocess

log = logging.getLogger("lenext")

# Random crops gain from a little more than the network's input; more than this only costs memory.
TRAIN_MARGIN = 1.15


def require_sound(data: Dataset, max_unreadable: float) -> None:
    """Say what is odd about the data; ValueError, with the mend, where it would make the result worthless."""
    if data.scanned is not None:
        found = check.find(data.samples, data.scanned, data.source, max_unreadable, data.near)
        check.require_sound(found, data.source)


def read_pictures(config: TrainConfig, data: Dataset, preprocess: Preprocess) -> PackedImages:
    """All pictures, decoded or ready to be; those that cannot be read are named in it."""
    samples, scanned = data.samples, data.scanned
    with terminal.bar("reading pictures", len(samples)) as bar:
        return pack(
            samples,
            math.ceil(preprocess.resize * TRAIN_MARGIN),
            digests=None if scanned is None else scanned.digests,
            reasons=None if scanned is None else scanned.reasons,
            cache=uses_cache(config) and not samples.hold_pixels(),
            limit_bytes=int(config.cache_limit * 1e9),
            progress=bar.to,
        )


def report_unreadable(run: Path, classifier: Classifier, samples: Samples, pictures: PackedImages) -> None:
    """data.json and the log name the pictures that cannot be read."""
    unreadable = [{"image": samples.images[i], "reason": why} for i, why in sorted(pictures.reasons.items())]
    write_data(run, classifier, samples, unreadable)
    for entry in unreadable[:10]:
        log.warning("left out: %s: %s", entry["image"], entry["reason"])
    if len(unreadable) > 10:
        log.warning("and %d more, all named in %s", len(unreadable) - 10, run / runs.DATA)


def readable_rows(run: Path, samples: Samples, pictures: PackedImages, max_unreadable: float) -> dict[str, np.ndarray]:
    """{train, val: the pictures that can be read}. ValueError where too many cannot, or none of a class can."""
    readable = np.zeros(len(samples), dtype=bool)
    readable[pictures.readable] = True
    share = len(pictures.reasons) / len(samples)
    if share > max_unreadable:
        first, why = min(pictures.reasons.items())
        raise ValueError(
            f"{len(pictures.reasons)} of {len(samples)} pictures ({100 * share:.0f} %) cannot be read, such as "
            f"{samples.images[first]} ({why}); all are named in {run / runs.DATA}. Mend them, or "
            f"allow more with --max-unreadable {math.ceil(100 * share) / 100}"
        )
    rows = {}
    for split in ("train", "val"):
        inside = samples.in_split(split)
        gone = np.flatnonzero((samples.class_counts(inside) > 0) & (samples.class_counts(inside & readable) == 0))
        if len(gone):
            name = samples.classes[gone[0]]
            raise ValueError(f"class {name!r} has no readable picture in {split}; see {run / runs.DATA}")
        rows[split] = np.flatnonzero(readable & inside)
    return rows


def uses_cache(config: TrainConfig) -> bool:
    """Whether decoded pictures are kept: as the user says, else where they are read more than once."""
    if config.cache is not None:
        return config.cache
    return config.epochs != 1 or (config.recipe in ("auto", "probe") and bool(config.pretrained))


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
            titles.append(train_set.label_text(i))
        except UnreadableImage:  # read a moment ago; gone since
            continue
    figures.draw_samples(images, titles, run / "figures/samples.png")


def preprocess_of(config: TrainConfig) -> Preprocess:
    """The network's preprocessing at the size of the run, keeping the whole short side of the picture."""
    assert config.model is not None
    assert config.image_size is not None
    default = models.default_preprocess(config.model)
    return dataclasses.replace(
        default,
        image_size=config.image_size,
        crop_fraction=1.0,
        mean=_three(config.mean) if config.mean else default.mean,
        std=_three(config.std) if config.std else default.std,
    )


def _three(channels: list[float]) -> tuple[float, float, float]:
    red, green, blue = channels
    return red, green, blue


def fresh_head(config: TrainConfig, module: nn.Module) -> nn.Module | None:
    """The last layers of what is trained, if they start from random weights on top of pretrained ones."""
    names = head_names(module) if config.pretrained else ()
    return nn.ModuleList(module.get_submodule(name) for name in names) if names else None


def data_options(config: TrainConfig) -> DataOptions:
    return DataOptions(**{field.name: getattr(config, field.name) for field in dataclasses.fields(DataOptions)})
