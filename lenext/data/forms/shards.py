"""WebDataset shards: tar files in which the files of a sample follow one another and share a name up to its first dot.

    000017.jpg  000017.cls            a label that is a number or text
    000018.png  000018.json           {"label": name, number or list}, "image", "split", "weight", "group"
    000019.jpg  000019.txt            a label that is text

An index is made of the tars' headers alone, so that pictures are read at random and no archive is ever unpacked. The
split of a sample is what its .json says, or else the word train, val or test in the name of the shard or its folder.
`classes.txt` (a name a line) or `classes.json` (a list) beside the shards says what the numbers mean.
"""

from __future__ import annotations

import glob
import itertools
import json
import logging
import mmap
import os
import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from natsort import natsorted

from lenext.data.decode import EXTENSIONS, UnreadableImage
from lenext.data.forms.folder import is_hidden
from lenext.data.forms.table import SPLIT_NAMES, Table, split_code
from lenext.data.forms.tar import Member, members
from lenext.data.samples import UNSPLIT, Names

log = logging.getLogger("lenext")
COMPRESSED = {
    ".tar.gz": "gunzip", ".tgz": "gunzip", ".tar.zst": "zstd -d", ".tar.xz": "unxz", ".tar.bz2": "bunzip2",
}  # fmt: skip
MOST_OPEN = 256
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True, eq=False)
class Shards:
    """Where the pictures lie in the tars: (N,) number of the shard, first byte, length in bytes."""

    paths: tuple[Path, ...]
    shards: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    _open: dict[int, _Descriptor] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return Shards, (self.paths, self.shards, self.offsets, self.sizes)

    def read(self, name: str, place: int) -> bytes:
        shard, size = int(self.shards[place]), int(self.sizes[place])
        try:
            file = self._open.get(shard)
            if file is None:
                if len(self._open) >= MOST_OPEN:
                    self._open.clear()  # a file that another thread reads from stays open until it is done
                file = self._open[shard] = _Descriptor(self.paths[shard])
            content = os.pread(file.number, size, int(self.offsets[place]))
        except OSError as error:
            raise UnreadableImage(f"{self.paths[shard]} cannot be read ({error.strerror or error})") from None
        if len(content) != size:
            raise UnreadableImage(f"{self.paths[shard]} was changed after it was opened")
        return content


class _Descriptor:
    """An open file without a position, which threads and forked processes may therefore share."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def is_shards(text: str) -> bool:
    """Whether DATA names tar files, by a pattern or by a folder of nothing else."""
    if _is_tar(text):
        return True
    return os.path.isdir(text) and bool(_tars_in(text) or _tars_below(text))


def _is_tar(name: str) -> bool:
    return name.lower().endswith((".tar", *COMPRESSED))


def _tars_in(folder: str) -> list[str]:
    """The tars of a folder; none where pictures or further folders lie beside them."""
    tars = []
    for entry in os.scandir(folder):
        if is_hidden(entry.name):
            continue
        if os.path.isdir(entry.path) or os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            return []
        if _is_tar(entry.name):
            tars.append(entry.path)
    return natsorted(tars)


def _tars_below(folder: str) -> list[str]:
    """The tars of the folders train, val and test, where there is nothing else."""
    folders = [entry for entry in os.scandir(folder) if not is_hidden(entry.name) and os.path.isdir(entry.path)]
    if any(entry.name.lower() not in SPLIT_NAMES for entry in folders):
        return []
    each = [_tars_in(entry.path) for entry in folders]
    return natsorted(itertools.chain(*each)) if all(each) else []


def find(text: str) -> list[Path]:
    """The shards that a pattern or a folder names. Raises ValueError for missing and for compressed ones."""
    if os.path.isdir(text):
        paths = [Path(path) for path in _tars_in(text) or _tars_below(text)]
    else:
        paths = []
        for name in _expand(text):
            found = [name] if os.path.exists(name) else natsorted(glob.glob(name))
            if not found:
                raise ValueError(f"the shard {name} does not exist")
            paths += map(Path, found)
    for path in paths:
        for ending, command in COMPRESSED.items():
            if path.name.lower().endswith(ending):
                raise ValueError(
                    f"{path} is compressed, so its pictures cannot be read one by one; unpack the shards "
                    f"with `{command}` (pictures are compressed already, a plain .tar is hardly larger)"
                )
    return list(dict.fromkeys(paths))


def _expand(pattern: str) -> list[str]:
    """shards-{000..127}.tar and {train,val}.tar, written out as a shell does."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last, words = match.groups()
    if words is not None:
        choices = words.split(",")
    else:
        if int(last) < int(first):
            raise ValueError(f"{match[0]} in {pattern} counts backwards")
        choices = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + choice + rest for choice in choices for rest in _expand(tail)]


def read(text: str) -> Table:
    """The pictures of all shards that `text` names. Raises ValueError with the shard and what is wrong with it."""
    paths = find(text)
    if not paths:
        raise ValueError(f"{text} names no shards")
    above = Path(os.path.commonpath([path.parent for path in paths]))
    classes = _read_classes(above)
    columns = _Columns(classes)
    for number, path in enumerate(paths):
        within = path.relative_to(above).with_suffix("").as_posix()
        columns.split = _split_in_name(within)
        with open(path, "rb") as file:
            if not os.path.getsize(path):
                raise ValueError(f"{path} is empty (0 bytes)")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
                seen: set[str] = set()
                for key, files in itertools.groupby(members(path, memory), lambda member: _key(member.name)[0]):
                    if key in seen:
                        raise ValueError(f"{path} holds the sample {key!r} twice; names must differ within a shard")
                    seen.add(key)
                    if not os.path.basename(key).startswith("__"):  # notes of the tool that wrote the shard
                        columns.add(path, number, within, key, list(files), memory)
    return columns.table(paths, text)


def _key(name: str) -> tuple[str, str]:
    """("dir/000017", ".jpg") of "dir/000017.jpg"; the name ends at the first dot after the last slash."""
    slash = name.rfind("/") + 1
    dot = name.find(".", slash + 1)
    return (name, "") if dot < 0 else (name[:dot], name[dot:].lower())


class _Columns:
    """The columns of the table while the shards are read."""

    def __init__(self, classes: list[str]) -> None:
        self.listed = classes
        self.classes = {name: i for i, name in enumerate(classes)}
        self.split = UNSPLIT
        self.images: list[str] = []
        self.shards, self.offsets, self.sizes = array("i"), array("q"), array("q")
        self.labels, self.ends = array("q"), array("q", [0])
        self.splits, self.weights = array("b"), array("f")
        self.groups, self.known_groups = array("q"), dict[str, int]()
        self.several = False
        self.without_label: list[str] = []
        self.without_picture: list[str] = []

    def add(self, path: Path, shard: int, within: str, key: str, files: list[Member], memory: mmap.mmap) -> None:
        parts: dict[str, Member] = {}
        for member in files:
            ending = _key(member.name)[1]
            if ending in parts:
                raise ValueError(f"{path} holds {member.name!r} twice; names must differ within a shard")
            parts[ending] = member
        pictures = [ending for ending in parts if ending in EXTENSIONS]
        pictures = pictures or [ending for ending in parts if f".{ending.rpartition('.')[2]}" in EXTENSIONS]
        where = f"{path}, {key}"
        if not pictures:
            self.without_picture.append(where)
            return
        if len(pictures) > 1:
            raise ValueError(f"{where}: which of the pictures {', '.join(pictures)} is meant? Leave one in each sample")
        texts = {ending: memory[m.offset : m.offset + m.size] for ending, m in parts.items() if ending in _LABELS}
        record = _json(texts[".json"], where) if ".json" in texts else {}
        label = record.get("label")
        if label is None:
            label = next((_text(texts[ending], where) for ending in (".cls", ".txt") if ending in texts), None)
        if label is None or label == "":
            self.without_label.append(where)
            return
        several = isinstance(label, list)
        self.several |= several
        for one in label if several else [label]:
            name = self._name(one, where)
            self.labels.append(self.classes.setdefault(name, len(self.classes)))
        self.ends.append(len(self.labels))
        member = parts[pictures[0]]
        image = record.get("image")
        self.images.append(image if isinstance(image, str) and image else f"{within}/{member.name}")
        self.shards.append(shard)
        self.offsets.append(member.offset)
        self.sizes.append(member.size)
        self.splits.append(self._split(record.get("split"), where))
        self.weights.append(_weight(record.get("weight"), where))
        group = record.get("group")
        known = self.known_groups
        self.groups.append(-1 if group in (None, "") else known.setdefault(str(group), len(known)))

    def _name(self, label: object, where: str) -> str:
        """The class that a number or text stands for."""
        if isinstance(label, bool) or not isinstance(label, (int, str)) or label == "":
            raise ValueError(f"{where}: the label {label!r} is neither a class name nor a number")
        text = str(label)
        if not self.listed or text in self.classes or not (isinstance(label, int) or text.isdecimal()):
            return text
        number = int(text)
        if not 0 <= number < len(self.listed):
            raise ValueError(f"{where}: the label {number} is not the number of one of {len(self.listed)} classes")
        return self.listed[number]

    def _split(self, split: object, where: str) -> int:
        if split in (None, ""):
            return self.split
        try:
            return split_code(str(split))
        except KeyError:
            raise ValueError(f"{where}: split {split!r} is not one of train, val, test") from None

    def table(self, paths: list[Path], text: str) -> Table:
        if self.without_label:
            number = len(self.without_label)
            raise ValueError(
                f'{number} of {number + len(self.images)} samples have no label (.cls, .txt, or .json with "label"), '
                f"such as {self.without_label[0]}"
            )
        if self.without_picture:
            log.warning("%d samples hold no picture, such as %s", len(self.without_picture), self.without_picture[0])
        if not self.images:
            raise ValueError(f"{text}: the shards hold no pictures")
        splits, weights = np.array(self.splits, np.int8), np.array(self.weights, np.float32)
        store = Shards(
            tuple(paths),
            np.array(self.shards, np.int32),
            np.array(self.offsets, np.int64),
            np.array(self.sizes, np.int64),
        )
        return Table(
            store=store,
            images=Names(self.images),
            labels=np.array(self.labels, np.int64),
            names=list(self.classes),
            splits=None if (splits == UNSPLIT).all() else splits,
            offsets=np.array(self.ends, np.int64) if self.several else None,
            weights=None if (weights == 1).all() else weights,
            groups=np.array(self.groups, np.int64) if self.known_groups else None,
            places=np.arange(len(self.images)),
        )


_LABELS = (".json", ".cls", ".txt")


def _json(content: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except ValueError:
        raise ValueError(f"{where}.json is not valid JSON") from None
    return record if isinstance(record, dict) else {}


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{where}: the label is not UTF-8 text") from None


def _weight(value: object, where: str) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError(f"{where}: weight {value!r} is not a number of at least 0")
    return float(value)


def _split_in_name(name: str) -> int:
    """The split that a shard's name says, or else its folder's."""
    for part in reversed(name.lower().split("/")):
        found = {split_code(word) for word in re.split(r"[^a-z]+", part) if word in SPLIT_NAMES}
        if len(found) > 1:
            raise ValueError(f"the name of the shard {name} says more than one split")
        if found:
            return found.pop()
    return UNSPLIT


def _read_classes(folder: Path) -> list[str]:
    text, listed = folder / "classes.txt", folder / "classes.json"
    if listed.exists():
        try:
            names = json.loads(listed.read_text(encoding="utf-8"))
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f'{listed} must hold a list of class names such as ["cat", "dog"]')
        return names
    return [line.strip() for line in text.read_text(encoding="utf-8-sig").splitlines()] if text.exists() else []
