"""Tiny-ImageNet-200 as Stanford's CS231n distributes it: 200 classes, 64 x 64, 500 training and 50 validation pictures
of each.

    wnids.txt  words.txt  train/<wnid>/images/*.JPEG  val/images/*.JPEG  val/val_annotations.txt  test/images/*.JPEG

`wnids.txt` lists the classes by their WordNet numbers and `words.txt` says what these mean. The labels of the test
pictures were never published: results are those on the validation pictures, and the test pictures are left out.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np

from lenext.data.forms.folder import pictures
from lenext.data.forms.table import Table, here_or_below, split_code
from lenext.data.samples import Files, Names

log = logging.getLogger("lenext")


def is_here(path: Path) -> bool:
    return here_or_below(path, _holds) is not None


def _holds(folder: Path) -> bool:
    return (folder / "wnids.txt").is_file() and (folder / "train").is_dir()


def read(path: Path) -> Table:
    """Training and validation pictures. Raises ValueError where a class has none or an annotation makes no sense."""
    root = here_or_below(path, _holds)
    assert root is not None
    wnids = _lines(root / "wnids.txt")
    numbers = {wnid: i for i, wnid in enumerate(wnids)}
    images: list[str] = []
    labels: list[int] = []
    for wnid in wnids:
        if not (root / "train" / wnid).is_dir():
            raise ValueError(f"{root / 'train' / wnid} is missing, a class of wnids.txt; unpack the data set once more")
        found = pictures(root / "train" / wnid)
        images += (f"train/{wnid}/{name}" for name in found)
        labels += [numbers[wnid]] * len(found)
    trained = len(images)
    annotations = root / "val" / "val_annotations.txt"
    for number, line in enumerate(_lines(annotations) if annotations.exists() else [], start=1):
        name, wnid = f"{line}\t".split("\t")[:2]
        if wnid not in numbers or os.path.basename(name) != name:
            raise ValueError(f"{annotations}, line {number}: {line!r} is not a file name and a class of wnids.txt")
        images.append(f"val/images/{name}")
        labels.append(numbers[wnid])
    splits = np.full(len(images), split_code("val"), np.int8)
    splits[:trained] = split_code("train")
    if (root / "test").is_dir() and (left_out := len(pictures(root / "test"))):
        log.info("Tiny-ImageNet's %d test pictures have no labels and are left out", left_out)
    return Table(
        store=Files(root),
        images=Names(images),
        labels=np.array(labels, np.int64),
        names=_class_names(root / "words.txt", wnids),
        splits=splits,
    )


def _class_names(words: Path, wnids: list[str]) -> list[str]:
    """The first name of each class; where two classes share it (two kinds of crane), the number too."""
    meanings = dict(line.split("\t", 1) for line in _lines(words) if "\t" in line) if words.exists() else {}
    names = [meanings.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    shared = Counter(names)
    return [name if shared[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(names, wnids)]


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
