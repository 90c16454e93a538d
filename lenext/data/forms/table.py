"""What every form of data gives: the columns of its pictures, with class names as the data writes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lenext.data.samples import SPLITS, UNSPLIT, Names, Store

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(kw_only=True)
class Table:
    """Pictures of one data set, before classes are put in order and splits are filled.

    labels: (N,) int64, indices into `names`; of multi-label data (M,), one after the other.
    names: class names in any order; two spellings of one name are made one later.
    splits: (N,) int8, see `split_code`; None where the data names no split.
    offsets: (N + 1,) int64 of multi-label data: picture i has labels[offsets[i]:offsets[i + 1]].
    weights, groups, places: as in `Samples`; None where the data does not say.
    """

    store: Store
    images: Names
    labels: np.ndarray
    names: list[str]
    splits: np.ndarray | None = None
    offsets: np.ndarray | None = None
    weights: np.ndarray | None = None
    groups: np.ndarray | None = None
    places: np.ndarray | None = None


def split_code(name: str) -> int:
    """The place of a split in SPLITS, by any of its usual names; UNSPLIT for "". Raises KeyError."""
    return SPLITS.index(SPLIT_NAMES[name.strip().lower()]) if name.strip() else UNSPLIT


def here_or_below(folder: Path, holds: Callable[[Path], object]) -> Path | None:
    """The folder that `holds` a form of data: `folder` itself, or its only sub-folder that does."""
    if holds(folder):
        return folder
    below = [Path(entry) for entry in os.scandir(folder) if os.path.isdir(entry) and holds(Path(entry))]
    return below[0] if len(below) == 1 else None
