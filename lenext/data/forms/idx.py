"""IDX files, plain or compressed with gzip: MNIST (LeCun, Cortes and Burges), Fashion-MNIST, KMNIST and EMNIST.

    train-images-idx3-ubyte  train-labels-idx1-ubyte  t10k-images-idx3-ubyte  t10k-labels-idx1-ubyte
    emnist-balanced-train-images-idx3-ubyte  emnist-balanced-test-...  emnist-balanced-mapping.txt

A file is two zero bytes, the type of its values, the number of its dimensions, each dimension as a big-endian int32,
and the values. EMNIST stores its pictures with rows and columns exchanged; they are put upright here.
"""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lenext.data.forms.table import Table, here_or_below, split_code
from lenext.data.samples import Names

log = logging.getLogger("lenext")
EMNIST = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class GreyPictures:
    """Grey pictures in IDX files: plain ones are mapped into memory, compressed ones unpacked, by each process.

    starts: (F + 1,) the place of each file's first picture. transposed: whether rows and columns are exchanged.
    """

    files: tuple[Path, ...]
    starts: np.ndarray
    transposed: bool
    _open: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return GreyPictures, (self.files, self.starts, self.transposed)

    def read(self, name: str, place: int) -> np.ndarray:
        number = int(np.searchsorted(self.starts, place, side="right")) - 1
        if number not in self._open:
            self._open[number] = read_idx(self.files[number], 3)
        grey = self._open[number][place - self.starts[number]]
        return np.repeat((grey.T if self.transposed else grey)[:, :, None], 3, axis=2)


def is_here(path: Path) -> bool:
    return here_or_below(path, _variants) is not None


def read(path: Path) -> Table:
    """Training and test pictures. Raises ValueError for files that are missing, cut, or do not belong together."""
    root = here_or_below(path, _variants)
    assert root is not None
    variants = _variants(root)
    if len(variants) > 1:
        raise ValueError(
            f"{root} holds several data sets ({', '.join(name or 'MNIST' for name in variants)}); move the files of "
            "each into a folder of its own"
        )
    variant = variants[0]
    halves = ("train", "test") if variant else ("train", "t10k")
    files, pictures, labels = [], [], []
    for half in halves:
        image_file, label_file = (_find(root, variant, half, what) for what in ("images", "labels"))
        if image_file is None and label_file is None and half != "train":
            continue
        if image_file is None or label_file is None:
            missing = "images-idx3" if image_file is None else "labels-idx1"
            raise ValueError(f"{root} lacks the file {variant}{half}-{missing}-ubyte")
        files.append(image_file)
        pictures.append(read_idx(image_file, 3))
        labels.append(read_idx(label_file, 1).astype(np.int64))
        if len(pictures[-1]) != len(labels[-1]):
            raise ValueError(
                f"{image_file} holds {len(pictures[-1])} pictures but {label_file.name} {len(labels[-1])} labels"
            )
    counts = [len(column) for column in labels]
    starts = np.cumsum([0, *counts])
    store = GreyPictures(tuple(files), starts, bool(variant), dict(enumerate(pictures)))
    every = np.concatenate(labels)
    if not len(every):
        raise ValueError(f"{root} holds IDX files without a picture in them")
    names = _class_names(root, variant, int(every.max()))
    sides = [split_code("train"), split_code("test")][: len(counts)]
    return Table(
        store=store,
        images=Names(f"{half}/{i}" for half, n in zip(("train", "test"), counts) for i in range(n)),
        labels=every,
        names=names,
        splits=np.repeat(sides, counts).astype(np.int8) if len(counts) == 2 else None,
        places=np.arange(len(every)),
    )


def _variants(folder: Path) -> list[str]:
    """What the names of the data sets in a folder begin with: "" of MNIST and those that share its file names."""
    prefixes = ["", *(f"emnist-{name}-" for name in EMNIST)]
    return [prefix for prefix in prefixes if _find(folder, prefix, "train", "images")]


def _find(folder: Path, prefix: str, half: str, what: str) -> Path | None:
    for joint in "-.":
        for ending in ("", ".gz"):
            path = folder / f"{prefix}{half}-{what}{joint}idx{3 if what == 'images' else 1}-ubyte{ending}"
            if path.is_file():
                return path
    return None


def read_idx(file: Path, dimensions: int) -> np.ndarray:
    """The uint8 values of an IDX file of so many dimensions. Raises ValueError with what is wrong with the file."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
            head = stream.read(4 + 4 * dimensions)
            if head[:2] != b"\0\0" or len(head) < 4 + 4 * dimensions:
                raise ValueError(f"{file} is not an IDX file: it begins with {head[:4].hex(' ') or 'nothing'}")
            if head[2] != 8 or head[3] != dimensions:
                raise ValueError(
                    f"{file} holds values of type 0x{head[2]:02x} in {head[3]} dimensions; bytes (0x08) in "
                    f"{dimensions} are read"
                )
            shape = tuple(np.frombuffer(head, ">u4", offset=4).tolist())
            wanted = math.prod(shape)
            if file.suffix == ".gz":
                content = stream.read(wanted + 1)
                _require_length(file, shape, wanted, len(content))
                return np.frombuffer(content, np.uint8).reshape(shape)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{file} is cut off or damaged ({error}); download it again") from None
    _require_length(file, shape, wanted, file.stat().st_size - len(head))
    if not wanted:
        return np.empty(shape, np.uint8)
    return np.memmap(file, np.uint8, "r", offset=len(head), shape=shape)


def _require_length(file: Path, shape: tuple[int, ...], wanted: int, found: int) -> None:
    if found != wanted:
        size = " x ".join(map(str, shape))
        many = "more" if found > wanted else f"{found}"
        raise ValueError(f"{file} is cut off or damaged: {size} values are {wanted} bytes, it has {many}")


def _class_names(root: Path, variant: str, highest: int) -> list[str]:
    mapping = root / f"{variant}mapping.txt"
    if variant and mapping.exists():
        # A line is the label and the character code of its class, two of them where capital and small are one class.
        rows = [[int(word) for word in line.split()] for line in mapping.read_text().splitlines() if line.strip()]
        known = {label: "".join(map(chr, codes)) for label, *codes in rows}
        if highest not in known:
            raise ValueError(f"{mapping} does not say what the label {highest} means")
        return [known.get(label, str(label)) for label in range(highest + 1)]
    if not variant and highest < len(FASHION) and "fashion" in f"{root.parent.name}/{root.name}".lower():
        log.info("%s: taken for Fashion-MNIST, so the classes are %s", root, ", ".join(FASHION))
        return list(FASHION[: highest + 1])
    return [str(label) for label in range(highest + 1)]
