"""CIFAR-10 and CIFAR-100, the binary versions of https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky, 2009).

    CIFAR-10:  data_batch_1.bin ... data_batch_5.bin  test_batch.bin  batches.meta.txt
    CIFAR-100: train.bin  test.bin  fine_label_names.txt  coarse_label_names.txt

A picture is one byte of label (of CIFAR-100 two, the coarse and the fine one, of which the fine one is taken) and 3072
bytes of pixels: 32 x 32 of red, then of green, then of blue.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lenext.data.forms.table import Table, here_or_below, split_code
from lenext.data.samples import Names

PIXELS = 3 * 32 * 32


@dataclass(frozen=True, eq=False)
class Records:
    """Pictures in files of equal records, which are mapped into memory by each process that reads them.

    record: bytes of a record, of which the last 3072 are pixels. starts: (F + 1,) the place of each file's first one.
    """

    files: tuple[Path, ...]
    record: int
    starts: np.ndarray
    _maps: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return Records, (self.files, self.record, self.starts)

    def read(self, name: str, place: int) -> np.ndarray:
        number = int(np.searchsorted(self.starts, place, side="right")) - 1
        pixels = self.map(number)[place - self.starts[number], -PIXELS:].reshape(3, 32, 32)
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))

    def map(self, number: int) -> np.ndarray:
        """(n, record) uint8: a whole file."""
        if number not in self._maps:
            whole = np.memmap(self.files[number], np.uint8, "r")
            self._maps[number] = whole.reshape(-1, self.record)
        return self._maps[number]


def is_here(path: Path) -> bool:
    return here_or_below(path, _holds) is not None


def _holds(folder: Path) -> bool:
    return _holds_pickles(folder) or any((folder / name).is_file() for name in ("data_batch_1.bin", "train.bin"))


def _holds_pickles(folder: Path) -> bool:
    if (folder / "data_batch_1").is_file():
        return True
    return (folder / "meta").is_file() and (folder / "train").is_file()


def read(path: Path) -> Table:
    """Training and test pictures. Raises ValueError for the Python version, and for files that are missing or cut."""
    root = here_or_below(path, _holds)
    assert root is not None
    if _holds_pickles(root):
        raise ValueError(
            f"{root} holds the Python version of CIFAR: pickles, which can run any code when they are read. Take the "
            "binary version instead (cifar-10-binary.tar.gz or cifar-100-binary.tar.gz)"
        )
    if (root / "train.bin").exists():
        train, test, record = ["train.bin"], "test.bin", 2 + PIXELS
        meta = root / "fine_label_names.txt"
    else:
        train, test, record = [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin", 1 + PIXELS
        meta = root / "batches.meta.txt"
    files = tuple(root / name for name in [*train, test])
    counts = [_count(file, record) for file in files]
    store = Records(files, record, np.cumsum([0, *counts]))
    labels = np.concatenate([store.map(i)[:, record - PIXELS - 1] for i in range(len(files))]).astype(np.int64)
    names = [name.strip() for name in meta.read_text(encoding="utf-8").splitlines()] if meta.exists() else []
    names = [name for name in names if name] or [str(i) for i in range(labels.max() + 1)]
    if labels.max() >= len(names):
        place = int(labels.argmax())
        file = files[np.searchsorted(store.starts, place, side="right") - 1]
        raise ValueError(f"{file} has the label {labels[place]}, but {meta.name} names {len(names)} classes only")
    trained = int(store.starts[-2])
    splits = np.full(len(labels), split_code("train"), np.int8)
    splits[trained:] = split_code("test")
    return Table(
        store=store,
        images=Names(f"train/{i}" if i < trained else f"test/{i - trained}" for i in range(len(labels))),
        labels=labels,
        names=names,
        splits=splits,
        places=np.arange(len(labels)),
    )


def _count(file: Path, record: int) -> int:
    if not file.is_file():
        raise ValueError(f"{file} is missing; unpack the data set once more")
    size = file.stat().st_size
    if size == 0 or size % record:
        raise ValueError(
            f"{file} is cut off: {size} bytes are not whole pictures of {record} bytes; download the data set again"
        )
    return size // record
