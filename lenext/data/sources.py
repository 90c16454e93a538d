"""Every form of data -> samples: pictures, labels by name, and the split each belongs to. Nothing is decoded here."""

from __future__ import annotations

import itertools
import logging
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from natsort import natsorted, ns
from scipy.sparse import csr_array

from lenext.data import splits
from lenext.data.forms import cifar, folder, hub, idx, manifest, shards, tiny_imagenet
from lenext.data.forms.table import Table
from lenext.data.samples import SPLITS, UNSPLIT, Samples

log = logging.getLogger("lenext")


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How pictures that the data gives no split are divided, and how many of those for training are used; the settings
    of the same names in `TrainConfig`."""

    seed: int = 0
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    train_fraction: float = 1.0
    val_as_test: bool = False
    folds: int = 0
    fold: int = 0


def open_data(data: str | Path, root: str | Path | None = None) -> Samples:
    """The pictures of any form of data, with the splits that the data itself names.

    data: a folder, a manifest, a data set as it is distributed, shards (`shards-{000000..000127}.tar`), or `hf:NAME`.
    root: the folder that the pictures of a manifest lie in; the manifest's own if not given.
    Raises ValueError where nothing can be read from it.
    """
    name, path = str(data), Path(data)
    if root is not None and not (path.is_file() and path.suffix.lower() in manifest.MANIFESTS):
        raise ValueError(f"--root is for manifests; {data} is none")
    if name.startswith("hf:"):
        return to_samples(hub.read(name))
    if shards.is_shards(name):
        return to_samples(shards.read(name))
    if path.is_dir():
        for form in (tiny_imagenet, cifar, idx):
            if form.is_here(path):
                return to_samples(form.read(path))
        return to_samples(folder.read(path))
    if not path.exists():
        raise ValueError(f"{path} does not exist: DATA is a folder of pictures, a manifest, shards, or hf:NAME")
    if path.suffix.lower() not in manifest.MANIFESTS:
        raise ValueError(f"{path} is neither a folder nor a manifest ({', '.join(sorted(manifest.MANIFESTS))})")
    return to_samples(manifest.read(path, None if root is None else Path(root)))


def read(
    data: str | Path,
    options: SplitOptions | None = None,
    *,
    root: str | Path | None = None,
    together: np.ndarray | None = None,
) -> Samples:
    """Samples to train on, each with its split.

    Where the data names no validation (or no test) split, shares of each class are held out, see `splits.assign`.
    together: (N,) int64, pictures with equal numbers (of at least 0) are kept on one side.

    Raises ValueError when there is nothing to learn from: no pictures, one class, a class without training pictures.
    """
    options = options or SplitOptions()
    samples = divide(open_data(data, root), data, options, together)
    return samples.take(used(samples, options)) if options.train_fraction < 1 else samples


def divide(samples: Samples, data: str | Path, options: SplitOptions, together: np.ndarray | None = None) -> Samples:
    """The samples with a split for each; ValueError where there is nothing to learn from."""
    if len(samples.classes) < 2:
        only = f"one class only ({samples.classes[0]!r})" if samples.classes else "no labels"
        raise ValueError(f"{data} holds {only}; a classifier needs at least two classes")
    samples = fill_splits(samples, options, together)
    _require_trainable(samples, data)
    return samples


def used(samples: Samples, options: SplitOptions) -> np.ndarray:
    """The rows, rising, of divided samples without what `train_fraction` leaves out.

    Of the training pictures some of each class; all others.
    """
    train = samples.in_split("train")
    train[train] = splits.part(samples.split("train"), options.train_fraction, options.seed)
    return np.flatnonzero(train | ~samples.in_split("train"))


def read_for_evaluation(data: str | Path, options: SplitOptions, root: str | Path | None = None) -> Samples:
    """Samples of data that a finished classifier is measured on: one class is enough, nothing has to be trainable.

    Data without splits is the split "test" as a whole.
    """
    samples = open_data(data, root)
    if (samples.splits == UNSPLIT).all():
        return replace(samples, splits=np.full(len(samples), SPLITS.index("test"), np.int8))
    return fill_splits(samples, replace(options, test_fraction=0.0, folds=0))


def absolute(data: str | Path) -> str:
    """The same data named so that it is found from any folder."""
    name = str(data)
    if name.startswith("hf:"):
        local = name.removeprefix("hf:")
        return f"hf:{os.path.abspath(local)}" if os.path.exists(local) else name
    return os.path.abspath(name)


def to_samples(table: Table) -> Samples:
    """Classes by name (in NFC, natural order; those without a picture are left out) and labels that index them."""
    used = np.bincount(table.labels, minlength=len(table.names)) > 0
    spelled = [unicodedata.normalize("NFC", name) for name in table.names]
    present = {name for name, any_ in zip(spelled, used) if any_}
    classes = tuple(natsorted(sorted(present), alg=ns.IC))  # sorted twice, for names that differ in case only
    place = {name: i for i, name in enumerate(classes)}
    recode = np.array([place.get(name, -1) for name in spelled], np.int64)
    labels, sets = recode[table.labels] if len(recode) else table.labels, None
    n = len(table.images)
    if table.offsets is not None:
        labels, sets = _label_sets(labels, table.offsets, len(classes))
    return Samples(
        store=table.store,
        images=table.images,
        labels=labels,
        splits=np.broadcast_to(np.int8(UNSPLIT), n) if table.splits is None else table.splits,
        weights=np.broadcast_to(np.float32(1), n) if table.weights is None else table.weights,
        classes=classes,
        sets=sets,
        groups=table.groups,
        places=table.places,
    )


def _label_sets(labels: np.ndarray, offsets: np.ndarray, num_classes: int) -> tuple[np.ndarray, csr_array]:
    """((N,) number of the set of each picture, (S, K) the sets)."""
    known: dict[tuple[int, ...], int] = {}
    rows = [tuple(sorted(set(labels[a:b].tolist()))) for a, b in itertools.pairwise(offsets.tolist())]
    numbers = np.array([known.setdefault(row, len(known)) for row in rows], np.int64)
    ends = np.cumsum([0, *(len(row) for row in known)])
    indices = np.array([i for row in known for i in row], np.int64)
    return numbers, csr_array((np.ones(len(indices), bool), indices, ends), shape=(len(known), num_classes))


def fill_splits(samples: Samples, options: SplitOptions, together: np.ndarray | None = None) -> Samples:
    """Give every picture without a split one; a split that the data names itself is left as it is."""
    val, test = options.val_fraction, options.test_fraction
    for name, fraction in (("val_fraction", val), ("test_fraction", test)):
        if not 0 <= fraction < 1:
            raise ValueError(f"{name} is {fraction}; it must be at least 0 and less than 1")
    if val + test >= 1:
        raise ValueError(f"val_fraction {val} and test_fraction {test} leave nothing to train on")
    VAL, TRAIN = SPLITS.index("val"), SPLITS.index("train")
    sides = samples.splits.copy()
    if options.val_as_test:
        _require_val_only(sides)
        sides[sides == VAL] = SPLITS.index("test")
    if (sides == UNSPLIT).all():
        rows, shares = np.arange(len(samples)), {"val": val, "test": test}
    elif (sides == UNSPLIT).any():
        raise ValueError("some rows name a split and some do not; fill the column 'split' for all rows or for none")
    elif (sides == VAL).any():
        if options.folds:
            raise ValueError("--folds divides data by itself, and this data names its validation pictures")
        return samples
    else:
        rows, shares = np.flatnonzero(sides == TRAIN), {"val": val}
    sides[rows] = splits.assign(samples.take(rows), shares, options.seed, _rows(together, rows))
    if options.folds:  # they divide what is not for testing, so that all of them share the test pictures
        rows = rows[sides[rows] != SPLITS.index("test")]
        fold = splits.folds(samples.take(rows), options.folds, options.seed, _rows(together, rows))
        sides[rows] = np.where(fold == options.fold, VAL, TRAIN)
    return replace(samples, splits=sides)


def _require_val_only(sides: np.ndarray) -> None:
    """ValueError where the data's validation pictures cannot become its test pictures."""
    if not (sides == SPLITS.index("val")).any():
        raise ValueError("--val-as-test true: the data has no validation pictures of its own; leave it out")
    if (sides == SPLITS.index("test")).any():
        raise ValueError("--val-as-test true: the data has test pictures already; leave it out")


def _rows(column: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if column is None else column[rows]


def _require_trainable(samples: Samples, data: str | Path) -> None:
    counts = samples.counts()
    train = counts.get("train", {})
    if not any(train.values()):
        raise ValueError(f"{data}: no picture is in the train split, only in {' and '.join(counts)}")
    empty = [name for name in samples.classes if not train.get(name)]
    if empty:
        where = [split for split in counts if any(counts[split][name] for name in empty)]
        raise ValueError(
            f"{data}: {listed(empty)} has pictures in {' and '.join(where)} but none in train; add training "
            "pictures or take the class out"
        )
    if "val" not in counts:
        few = [name for name, n in train.items() if n < 2]
        hint = f" ({listed(few)} has a single picture)" if few else " (val_fraction is 0)"
        raise ValueError(f"{data}: no picture is left for validation{hint}; the best model could not be chosen")
    for split in ("val", "test"):
        missing = [name for name in samples.classes if split in counts and not counts[split][name]]
        if missing:
            log.warning("%s has no picture of %s; its figures say nothing about that", split, listed(missing))


def listed(names: Sequence[str], most: int = 5) -> str:
    """Class names for a sentence: class 'a', 'b' and 3 more."""
    shown = ", ".join(f"class {name!r}" if i == 0 else repr(name) for i, name in enumerate(names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
