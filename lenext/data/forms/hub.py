"""Hugging Face datasets: `hf:NAME` or `hf:NAME:CONFIG`, NAME being a data set of the hub or a folder on this machine.

A folder may be one that `save_to_disk` wrote, one of Parquet files, or any other that `datasets` loads. Pictures are
read one at a time from Arrow files on the disk and decoded by our decoder. A data set too large for that is read once
as a stream, shrunk on the way, and kept as shards (see `shards`).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lenext import runs
from lenext.data.decode import UnreadableImage, decode, read_size
from lenext.data.forms import shards
from lenext.data.forms.shard_writing import Sample, write_samples
from lenext.data.forms.table import SPLIT_NAMES, Table, split_code
from lenext.data.samples import SPLITS, Names
from lenext.terminal import bar

if TYPE_CHECKING:
    import datasets

log = logging.getLogger("lenext")
# Beyond this many bytes, or half of the free disk, a data set is streamed into shards instead of being downloaded.
LARGE = 50_000_000_000
SHORT_SIDE = 512
QUALITY = 95
CHUNK = 256
SIMPLE = ("string", "large_string", "int", "uint", "bool")


@dataclass(frozen=True, eq=False)
class Rows:
    """Pictures in the rows of data sets, one for each split, which hold nothing but the column `image`.

    starts: (F + 1,) the place of each data set's first row.
    """

    parts: tuple[datasets.Dataset, ...]
    starts: np.ndarray

    def read(self, name: str, place: int) -> Path | bytes:
        part = int(np.searchsorted(self.starts, place, side="right")) - 1
        (value,) = self.parts[part][int(place - self.starts[part])].values()
        return _content(value)


def _content(value: dict[str, Any] | None) -> Path | bytes:
    if value and value.get("bytes"):
        return value["bytes"]
    if value and value.get("path"):
        return Path(value["path"])
    raise UnreadableImage("the data set holds no picture in this row")


def read(text: str) -> Table:
    """The pictures of `hf:NAME[:CONFIG]`; names are "train/0", "train/1", ...

    Where the data set has the split "train" only, as those have that nobody divided, it counts as not divided.
    Raises ValueError where it cannot be loaded or its columns or splits are not understood.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{text} needs the package datasets: pip install 'lenext[hub]'") from None
    name = text.removeprefix("hf:")
    config = None
    if not os.path.exists(name):
        name, _, config = name.partition(":")
    try:
        if os.path.isdir(name) and any(os.path.exists(os.path.join(name, mark)) for mark in _SAVED):
            data = datasets.load_from_disk(name)
            return _table(text, data if isinstance(data, dict) else {"train": data})
        builder = datasets.load_dataset_builder(name, config or None)
        size = _size(builder)
        if size > LARGE or size > shutil.disk_usage(_existing(builder.cache_dir)).free / 2:
            return shards.read(str(_streamed(text, builder, size)))
        builder.download_and_prepare()
        return _table(text, builder.as_dataset())
    except (OSError, datasets.exceptions.DatasetsError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{text} cannot be loaded: {lines[0]}") from error


_SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves in a folder


def _existing(folder: str) -> Path:
    return next(path for path in [Path(folder), *Path(folder).absolute().parents] if path.exists())


def _size(builder: datasets.DatasetBuilder) -> int:
    """Bytes to download: what the data set says, or else those of its files."""
    import fsspec

    if builder.info.download_size:
        return builder.info.download_size
    total = 0
    for files in (builder.config.data_files or {}).values():
        for file in files:
            system, path = fsspec.core.url_to_fs(file)
            total += system.size(path) or 0
    return total


def _table(text: str, parts: dict[str, datasets.Dataset]) -> Table:
    import datasets

    image, label = _columns(text, parts)
    classes: dict[str, int] = {}
    columns = {name: _labels(text, part, label, classes) for name, part in parts.items()}
    starts = np.cumsum([0, *(len(part) for part in parts.values())])
    places, images, splits = [], [], []
    for (name, (_, lengths)), start in zip(columns.items(), starts):
        labelled = np.flatnonzero(lengths >= 0)
        if left_out := len(lengths) - len(labelled):
            log.warning("%s: %d of %d pictures of %s have no label; left out", text, left_out, len(lengths), name)
        places.append(labelled + start)
        images += [f"{name}/{row}" for row in labelled.tolist()]
        splits.append(np.full(len(labelled), split_code(name), np.int8))
    if not images:
        raise ValueError(f"{text} holds no picture with a label")
    sides = np.concatenate(splits)
    lengths = np.concatenate([lengths[lengths >= 0] for _, lengths in columns.values()])
    several = _is_list(next(iter(parts.values())).features[label])
    pictures = [
        part.select_columns([image]).cast_column(image, datasets.Image(decode=False)) for part in parts.values()
    ]
    return Table(
        store=Rows(tuple(pictures), starts),
        images=Names(images),
        labels=np.concatenate([labels for labels, _ in columns.values()]),
        names=list(classes),
        splits=None if (sides == split_code("train")).all() else sides,
        offsets=np.cumsum([0, *lengths]) if several else None,
        places=np.concatenate(places),
    )


def _columns(text: str, parts: Mapping[str, datasets.Dataset | datasets.IterableDataset]) -> tuple[str, str]:
    """The columns of the picture and of its label. Raises ValueError where they, or the splits, are not understood."""
    import datasets

    unknown = [name for name in parts if name.strip().lower() not in SPLIT_NAMES]
    if unknown:
        raise ValueError(
            f"{text} has the split {unknown[0]!r} among {', '.join(map(repr, parts))}; train, validation and test are "
            "understood: save the data set with these (DatasetDict.save_to_disk) and give the folder"
        )
    features = next(iter(parts.values())).features or {}
    for name, part in parts.items():
        if part.features != features:
            raise ValueError(f"{text}: the split {name!r} has other columns than {next(iter(parts))!r}")

    def only(what: str, found: list[str], usual: tuple[str, ...]) -> str:
        found = [name for name in found if name in usual][:1] if len(found) > 1 else found
        if not found:
            raise ValueError(
                f"{text}: which of its columns is the {what}? They are {', '.join(map(repr, features))}; name one "
                f"{usual[0]!r} (Dataset.rename_column), save the data set (save_to_disk) and give the folder"
            )
        return found[0]

    image = only("picture", [name for name, f in features.items() if isinstance(f, datasets.Image)], ("image",))
    classed = [name for name, f in features.items() if isinstance(_inner(f), datasets.ClassLabel)]
    simple = [name for name, f in features.items() if str(getattr(_inner(f), "dtype", "")).startswith(SIMPLE)]
    usual = ("label", "labels")
    return image, only("label", classed or [name for name in simple if name in usual] or simple, usual)


def _is_list(feature: Any) -> bool:
    import datasets

    return isinstance(feature, (datasets.List, datasets.LargeList))


def _inner(feature: Any) -> Any:
    return feature.feature if _is_list(feature) else feature


def _name(value: Any, feature: Any) -> str | None:
    """The class that a value of the label column stands for; None where it stands for no label."""
    import datasets

    if value is None or value == "" or (isinstance(value, int) and value < 0):
        return None
    if isinstance(feature, datasets.ClassLabel):
        return feature.int2str(value)
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _labels(text: str, part: datasets.Dataset, label: str, classes: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers of all labelled rows, one after the other, and (N,) how many each row has, -1 without a label."""
    import pyarrow as pa
    import pyarrow.compute as pc

    feature = part.features[label]
    column = part.select_columns([label]).with_format("arrow")[:][label]
    flat = pc.list_flatten(column) if _is_list(feature) else column
    encoded = pa.chunked_array(flat).combine_chunks().dictionary_encode()
    names = [_name(value, _inner(feature)) for value in encoded.dictionary.to_pylist()]
    meanings = np.array([-1 if name is None else classes.setdefault(name, len(classes)) for name in [*names, None]])
    codes = meanings[encoded.indices.fill_null(len(names)).to_numpy()]
    if not _is_list(feature):
        return codes[codes >= 0], np.where(codes >= 0, 1, -1)
    if (codes < 0).any():
        raise ValueError(f"{text}: a list of labels in the column {label!r} has an empty label in it")
    return codes, pc.list_value_length(column).fill_null(-1).to_numpy()


def _streamed(text: str, builder: datasets.DatasetBuilder, size: int) -> Path:
    """The folder of shards of a large data set, made now if it is not there."""
    from filelock import FileLock

    cache = runs.cache_folder("shards")
    version = hashlib.blake2b(builder.cache_dir.encode(), digest_size=6).hexdigest()  # names the revision of the data
    folder = cache / "-".join([re.sub(r"[^\w.-]+", "_", text.removeprefix("hf:")).strip("_"), version])
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{folder.name}.lock"):
        if not folder.exists():
            log.info("%s has %.1f GB: it is read once as a stream, and kept shrunk in %s", text, size / 1e9, folder)
            _write_stream(text, builder, folder)
    return folder


def _write_stream(text: str, builder: datasets.DatasetBuilder, folder: Path) -> None:
    import datasets

    parts = {name: part._resolve_features() for name, part in builder.as_streaming_dataset().items()}
    image, label = _columns(text, parts)
    feature = next(iter(parts.values())).features[label]
    pictures = {name: part.cast_column(image, datasets.Image(decode=False)) for name, part in parts.items()}
    total = sum(split.num_examples for split in (builder.info.splits or {}).values())
    undivided = list(parts) == ["train"]

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for split, part in pictures.items():
            for number, row in enumerate(part):
                yield f"{split}/{number}", row

    def shrunk(row: tuple[str, dict[str, Any]]) -> Sample | None:
        name, values = row
        value = values[label]
        labels: Any = None if _is_list(feature) else _name(value, feature)
        if _is_list(feature):
            labels = None if value is None else [_name(one, _inner(feature)) for one in value]
            if None in (labels or []):
                raise ValueError(f"{text}: a list of labels in the column {label!r} has an empty label in it")
        if labels is None:
            return None
        split = SPLITS[split_code(name.split("/")[0])]
        return Sample(name, shrink(values[image]), labels, None if undivided else split)

    def samples() -> Iterator[Sample]:
        stream, left_out = rows(), 0
        with bar(f"streaming {text}", total) as progress, ThreadPoolExecutor() as pool:
            while chunk := list(itertools.islice(stream, CHUNK)):
                for sample in pool.map(shrunk, chunk):
                    if sample is not None:
                        yield sample
                    else:
                        left_out += 1
                progress.advance(len(chunk))
        if left_out:
            log.warning("%s: %d pictures have no label; left out", text, left_out)

    write_samples(samples(), folder)


def shrink(value: dict[str, Any]) -> bytes:
    """The picture with a short side of at most 512 pixels; its own bytes where it is no larger, or cannot be read."""
    import fsspec

    content = _content(value)
    if isinstance(content, Path):
        with fsspec.open(value["path"], "rb") as file:  # of a stream, the path may be an address
            content = file.read()
    size = read_size(content)
    if size is None or min(size) <= SHORT_SIDE:
        return content
    try:
        image = Image.fromarray(decode(content, shrink_to=SHORT_SIDE))
    except UnreadableImage:
        return content
    scale = SHORT_SIDE / min(image.size)
    file = io.BytesIO()
    width, height = (max(round(side * scale), 1) for side in image.size)
    image.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
