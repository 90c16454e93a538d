"""Every input form -> samples: pictures, labels by name, and the split each belongs to.

Forms: `root/<class>/**/*`, `root/{train,val,test}/<class>/**/*`, and manifests (CSV, TSV, JSON, JSON Lines,
Parquet) with the columns `image`, `label` and optionally `split` and `weight`. Nothing is decoded here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from natsort import natsorted, ns

from lenext.data.decode import EXTENSIONS
from lenext.data.manifest import MANIFESTS, SPLIT_NAMES, read_manifest

SPLITS = ("train", "val", "test")
log = logging.getLogger("lenext")


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Pictures with their labels; row i of every field is picture i.

    root: folder that relative names start from.
    images: names as the user wrote or keeps them, relative to `root` or absolute.
    labels: (N,) int64, indices into `classes`.
    splits: (N,) "train", "val" or "test"; "" where the data does not say.
    weights: (N,) float32, the importance of each picture in the training loss.
    """

    root: Path
    images: tuple[str, ...]
    labels: np.ndarray
    splits: np.ndarray
    weights: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> Path:
        return self.root / self.images[index]

    def take(self, indices: np.ndarray | Sequence[int]) -> Samples:
        """The rows at `indices`, in that order; classes stay as they are."""
        rows = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            images=tuple(self.images[i] for i in rows),
            labels=self.labels[rows],
            splits=self.splits[rows],
            weights=self.weights[rows],
        )

    def split(self, name: str) -> Samples:
        return self.take(np.flatnonzero(self.splits == name))

    def counts(self) -> dict[str, dict[str, int]]:
        """{split: {class: number of pictures}} for the splits that have pictures."""
        return {
            split: {
                name: int(n)
                for name, n in zip(
                    self.classes, np.bincount(self.labels[self.splits == split], minlength=len(self.classes))
                )
            }
            for split in SPLITS
            if (self.splits == split).any()
        }


def read_for_evaluation(data: str | Path, options: dict[str, Any]) -> Samples:
    """Samples of data that a finished classifier is measured on: one class is enough, nothing has to be trainable.

    Data without splits is the split "test" as a whole.
    """
    samples = _read_any(Path(data))
    if set(samples.splits.tolist()) == {""}:
        return replace(samples, splits=np.full(len(samples), "test", dtype="<U5"))
    return _fill_splits(samples, options.get("seed", 0), options.get("val_fraction", 0.0), 0.0)


def read(data: str | Path, *, seed: int = 0, val_fraction: float = 0.15, test_fraction: float = 0.15) -> Samples:
    """Samples of a folder or manifest, each with its split.

    Where the data names no validation (or no test) split, `val_fraction` (and `test_fraction`, if the data names
    no split at all) of each class are held out: which pictures depends on their names and `seed` alone, and
    files with the same bytes stay together.

    Raises ValueError when there is nothing to learn from: no pictures, one class, a class without training pictures.
    """
    path = Path(data)
    samples = _read_any(path)
    if len(samples.classes) < 2:
        raise ValueError(
            f"{path} holds one class only ({samples.classes[0]!r}); a classifier needs at least two classes"
        )
    samples = _fill_splits(samples, seed, val_fraction, test_fraction)
    _require_trainable(samples, path)
    return samples


def _read_any(path: Path) -> Samples:
    """Samples with the splits that the data itself names."""
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: DATA is a folder of pictures or a manifest file")
    if path.suffix.lower() not in MANIFESTS:
        raise ValueError(f"{path} is neither a folder nor a manifest ({', '.join(sorted(MANIFESTS))})")
    return _samples(path.resolve().parent, *read_manifest(path))


# ----------------------------------------------------------------------------------------------------- folders


def _read_folder(root: Path) -> Samples:
    folders = [entry.name for entry in os.scandir(root) if entry.is_dir() and not _hidden(entry.name)]
    splits = {name: SPLIT_NAMES[name.lower()] for name in folders if name.lower() in SPLIT_NAMES}
    if splits and len(splits) == len(folders):
        rows = [(*row, split) for name, split in splits.items() for row in _class_rows(root, name)]
    else:
        rows = [(*row, "") for row in _class_rows(root, ".")]
    if not rows:
        loose = next(_pictures(root), None)
        if loose:
            raise ValueError(
                f"{root} holds pictures but no class folders: put the pictures of each class into a folder named "
                f"after it, such as {root / 'cat' / Path(loose).name}, or give a manifest with labels"
            )
        raise ValueError(f"{root} holds no pictures ({', '.join(sorted(EXTENSIONS))}) in class folders")
    return _samples(root, rows)


def _class_rows(root: Path, below: str) -> Iterator[tuple[str, str]]:
    """(image relative to root, class name) for every picture in the class folders of root/below."""
    base = root / below
    for folder in natsorted((e.name for e in os.scandir(base) if e.is_dir() and not _hidden(e.name)), alg=ns.IC):
        names = list(_pictures(base / folder))
        if not names:
            log.warning("the folder %s holds no pictures; it is not taken as a class", base / folder)
        for name in names:
            yield os.path.normpath(os.path.join(below, folder, name)), folder


def _pictures(folder: Path) -> Iterator[str]:
    """Names of the picture files below a folder, relative to it, in natural order; links are followed once."""
    found, seen = [], set()
    for base, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(base)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not _hidden(name)]
        relative = os.path.relpath(base, folder)
        for name in files:
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not _hidden(name):
                found.append(os.path.normpath(os.path.join(relative, name)))
    yield from natsorted(found, alg=ns.IC)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


# ------------------------------------------------------------------------------------------------------ splits


def _samples(root: Path, rows: Sequence[tuple[str, str, str]], weights: Sequence[float] | None = None) -> Samples:
    names = [unicodedata.normalize("NFC", label) for _, label, _ in rows]
    classes = tuple(natsorted(set(names), alg=ns.IC))
    index = {name: i for i, name in enumerate(classes)}
    return Samples(
        root=root,
        images=tuple(image for image, _, _ in rows),
        labels=np.array([index[name] for name in names], dtype=np.int64),
        splits=np.array([split for _, _, split in rows], dtype="<U5"),
        weights=np.ones(len(rows), np.float32) if weights is None else np.array(weights, np.float32),
        classes=classes,
    )


def _fill_splits(samples: Samples, seed: int, val_fraction: float, test_fraction: float) -> Samples:
    """Give every picture without a split one; a split that the data names itself is left as it is."""
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= fraction < 1:
            raise ValueError(f"{name} is {fraction}; it must be at least 0 and less than 1")
    if val_fraction + test_fraction >= 1:
        raise ValueError(f"val_fraction {val_fraction} and test_fraction {test_fraction} leave nothing to train on")
    named = set(samples.splits.tolist())
    splits = samples.splits.copy()
    if named == {""}:
        open_rows, shares = np.arange(len(samples)), {"val": val_fraction, "test": test_fraction}
    elif "" in named:
        raise ValueError("some rows name a split and some do not; fill the column 'split' for all rows or for none")
    elif "val" in named:
        return samples
    else:
        open_rows, shares = np.flatnonzero(splits == "train"), {"val": val_fraction}
    splits[open_rows] = "train"
    keys = _split_keys(samples, open_rows, seed)
    for label in np.unique(samples.labels[open_rows]):
        rows = sorted((int(i) for i in open_rows if samples.labels[i] == label), key=lambda i: keys[i])
        start = 0
        for split, share in shares.items():
            # A class of a few pictures still shows one in validation, as long as one is left to learn from.
            wanted = max(round(share * len(rows)), 1) if share else 0
            stop = min(start + wanted, len(rows) - 1)
            while start < stop < len(rows) and keys[rows[stop]] == keys[rows[stop - 1]]:
                stop += 1  # files with the same bytes stay on one side
            splits[rows[start:stop]] = split
            start = stop
    return replace(samples, splits=splits)


def _split_keys(samples: Samples, rows: np.ndarray, seed: int) -> dict[int, bytes]:
    """A pseudo-random key a picture, from its name and the seed; equal files get equal keys."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for i in rows.tolist():
        try:
            by_size[os.path.getsize(samples.path(i))].append(i)
        except OSError:
            by_size[-1].append(i)
    keys = {}
    for size, group in by_size.items():
        # Only files of equal length can be equal, so few files need to be read.
        for i in group:
            content = samples.path(i).read_bytes() if size > 0 and len(group) > 1 else samples.images[i].encode()
            keys[i] = hashlib.blake2b(content, digest_size=16, key=str(seed).encode()).digest()
    return keys


def _require_trainable(samples: Samples, path: Path) -> None:
    counts = samples.counts()
    train = counts.get("train", {})
    if not any(train.values()):
        raise ValueError(f"{path}: no picture is in the train split, only in {' and '.join(counts)}")
    empty = [name for name in samples.classes if not train.get(name)]
    if empty:
        where = [split for split in counts if any(counts[split][name] for name in empty)]
        raise ValueError(
            f"{path}: {_listed(empty)} has pictures in {' and '.join(where)} but none in train; add training "
            "pictures or take the class out"
        )
    if "val" not in counts:
        few = [name for name, n in Counter(train).items() if n < 2]
        hint = f" ({_listed(few)} has a single picture)" if few else " (val_fraction is 0)"
        raise ValueError(f"{path}: no picture is left for validation{hint}; the best model could not be chosen")
    for split in ("val", "test"):
        missing = [name for name in samples.classes if split in counts and not counts[split][name]]
        if missing:
            log.warning("%s has no picture of %s; its figures say nothing about that", split, _listed(missing))


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(f"class {name!r}" if i == 0 else repr(name) for i, name in enumerate(names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def fingerprint(samples: Samples) -> dict[str, str]:
    """{split: hash of its pictures' names and labels}: equal exactly when the membership is equal."""
    result = {}
    for split in SPLITS:
        part = samples.split(split)
        lines = sorted(f"{image}\t{part.classes[label]}" for image, label in zip(part.images, part.labels))
        if lines:
            result[split] = hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
    return result
