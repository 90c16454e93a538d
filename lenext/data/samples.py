"""Samples: which pictures there are, where their bytes lie, what their labels are, and the split each belongs to.

Every form of data becomes this one table, and everything after it knows nothing of forms. It is columns, not rows: a
data set of ten million pictures takes its names and some twenty bytes a picture.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array

from lenext.data.decode import UnreadableImage, decode, read_size

SPLITS = ("train", "val", "test")
UNSPLIT = -1


class Store(Protocol):
    """Where the pictures of a data set lie."""

    def read(self, name: str, place: int) -> Path | bytes | np.ndarray:
        """The file, its encoded bytes, or uint8 pixels (H, W, 3) of one picture. Raises UnreadableImage."""
        ...


@dataclass(frozen=True)
class Files:
    """Pictures that are files of their own; names are relative to `root` or absolute."""

    root: Path

    def read(self, name: str, place: int) -> Path:
        return self.root / name


class Names(Sequence[str]):
    """Many short texts in one Arrow buffer: each takes its length and 8 bytes, a Python string 57 more."""

    CHUNK = 65_536

    def __init__(self, texts: Iterable[str] | pa.Array) -> None:
        if isinstance(texts, pa.Array):
            self._array = texts
            return
        content, ends = bytearray(), array("q", [0])
        for text in texts:
            content += text.encode("utf-8", "surrogateescape")  # file names may hold bytes that are no text
            ends.append(len(content))
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(content)]
        self._array = pa.Array.from_buffers(pa.large_binary(), len(ends) - 1, buffers)

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Names(self._array.take(pa.array(np.arange(*index.indices(len(self))))))
        return self._array[int(index)].as_py().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), self.CHUNK):
            for text in self._array.slice(start, self.CHUNK).to_pylist():
                yield text.decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Names) and self._array.equals(other._array)

    __hash__ = None  # type: ignore[assignment]

    @property
    def nbytes(self) -> int:
        return self._array.nbytes

    def take(self, rows: np.ndarray) -> Names:
        return Names(self._array.take(pa.array(rows)))


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Pictures with their labels; row i of every column is picture i.

    store: where the pictures lie.
    images: (N,) names as the user wrote or keeps them.
    labels: (N,) int64, indices into `classes`; of multi-label data, indices into the rows of `sets`.
    splits: (N,) int8, indices into SPLITS, UNSPLIT where the data does not say.
    weights: (N,) float32, the importance of each picture in the training loss.
    classes: K names, in natural order.
    sets: (S, K) the sets of classes that occur in multi-label data; None where every picture has one label.
    groups: (N,) int64, pictures of one group (a patient, a video) stay in one split; None where the data names none.
    places: (N,) int64, where in `store` a picture lies; None where its name says it.
    """

    store: Store
    images: Names
    labels: np.ndarray
    splits: np.ndarray
    weights: np.ndarray
    classes: tuple[str, ...]
    sets: csr_array | None = None
    groups: np.ndarray | None = None
    places: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def nbytes(self) -> int:
        """Memory of all columns, bytes."""
        columns = (self.labels, self.splits, self.weights, self.groups, self.places)
        stored = [column for column in columns if column is not None and column.strides != (0,)]  # not of one value
        return self.images.nbytes + sum(column.nbytes for column in stored)

    def read(self, index: int) -> Path | bytes | np.ndarray:
        """The file, encoded bytes or pixels of picture `index`."""
        place = int(index if self.places is None else self.places[index])
        return self.store.read(self.images[index], place)

    def decode(self, index: int, *, shrink_to: int | None = None) -> np.ndarray:
        """uint8 pixels (H, W, 3) of picture `index`; `shrink_to` as `decode` takes it. Raises UnreadableImage."""
        content = self.read(index)
        return content if isinstance(content, np.ndarray) else decode(content, shrink_to=shrink_to)

    def hold_pixels(self) -> bool:
        """Whether the data holds pixels, which need no decoding."""
        try:
            return len(self) > 0 and isinstance(self.read(0), np.ndarray)
        except UnreadableImage:
            return False

    def size(self, index: int) -> tuple[int, int] | None:
        """(width, height) from the header of picture `index`; None where it cannot be told."""
        try:
            content = self.read(index)
        except UnreadableImage:
            return None
        return content.shape[1::-1] if isinstance(content, np.ndarray) else read_size(content)

    def path(self, index: int) -> Path:
        """The file of picture `index`, of data whose pictures are files."""
        file = self.read(index)
        assert isinstance(file, Path), "only some forms of data have a file a picture"
        return file

    def take(self, indices: np.ndarray | Sequence[int]) -> Samples:
        """The rows at `indices`, in that order; classes stay as they are."""
        rows = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            images=self.images.take(rows),
            labels=self.labels[rows],
            splits=self.splits[rows],
            weights=self.weights[rows],
            groups=None if self.groups is None else self.groups[rows],
            places=None if self.places is None else self.places[rows],
        )

    def in_split(self, name: str) -> np.ndarray:
        """(N,) bool: whether each picture is in the split."""
        return self.splits == SPLITS.index(name)

    def split(self, name: str) -> Samples:
        return self.take(np.flatnonzero(self.in_split(name)))

    def targets(self) -> csr_array:
        """(N, K) bool, sparse: the classes of each picture."""
        if self.sets is not None:
            return self.sets[self.labels]
        one = np.ones(len(self), dtype=bool)
        shape = (len(self), len(self.classes))
        return csr_array((one, self.labels, np.arange(len(self) + 1)), shape=shape)

    def label_text(self, index: int) -> str:
        """The label of picture `index` for people: of several, joined by commas."""
        label = self.labels[index]
        if self.sets is None:
            return self.classes[label]
        return ", ".join(self.classes[i] for i in self.sets[[label]].indices) or "(none)"

    def class_counts(self, rows: np.ndarray | None = None) -> np.ndarray:
        """(K,) pictures of each class, of all rows or of those that the mask or the indices `rows` choose."""
        labels = self.labels if rows is None else self.labels[rows]
        if self.sets is None:
            return np.bincount(labels, minlength=len(self.classes))
        return np.asarray(np.bincount(labels, minlength=self.sets.shape[0]) @ self.sets.astype(np.int64))

    def counts(self) -> dict[str, dict[str, int]]:
        """{split: {class: number of pictures}} for the splits that have pictures."""
        return {
            split: dict(zip(self.classes, self.class_counts(inside).tolist()))
            for split in SPLITS
            if (inside := self.in_split(split)).any()
        }
