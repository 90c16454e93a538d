"""Writing shards: the pictures of any form of data, or of a stream, as tar files that every WebDataset reader takes."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lenext.data.decode import EXTENSIONS, UnreadableImage
from lenext.data.samples import SPLITS, UNSPLIT, Samples

log = logging.getLogger("lenext")
SHARD_BYTES = 1_000_000_000


@dataclass
class Sample:
    """One picture to be written. labels: one name, or a list of them in multi-label data."""

    image: str
    content: bytes
    label: str | list[str]
    split: str | None = None
    weight: float = 1.0
    group: int | None = None


def write(
    samples: Samples,
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Path]:
    """Write samples of any form as shards into a new folder, one series a split, and return the shards.

    The pictures' own bytes are kept; pixels are written as PNG. Pictures that cannot be read are left out and named in
    the log. progress: told the number of finished pictures. Nothing is seen of the folder before it is complete.
    """
    return write_samples(_contents(samples, progress), folder, list(samples.classes), shard_bytes=shard_bytes)


def _contents(samples: Samples, progress: Callable[[int], None]) -> Iterator[Sample]:
    failed: list[str] = []
    for split in (*range(len(SPLITS)), UNSPLIT):
        for i in np.flatnonzero(samples.splits == split).tolist():
            image = samples.images[i]
            progress(1)
            try:
                content = samples.read(i)
                if isinstance(content, np.ndarray):
                    content = _png(content)
                elif isinstance(content, Path):
                    content = content.read_bytes()
            except (UnreadableImage, OSError) as error:
                failed.append(f"{image} ({error})")
                continue
            label: str | list[str]
            if samples.sets is None:
                label = samples.classes[samples.labels[i]]
            else:
                label = [samples.classes[k] for k in samples.sets[[samples.labels[i]]].indices]
            name = None if split == UNSPLIT else SPLITS[split]
            group = None if samples.groups is None or samples.groups[i] < 0 else int(samples.groups[i])
            yield Sample(image, content, label, name, float(samples.weights[i]), group)
    if failed:
        log.warning("%d pictures cannot be read and are left out: %s", len(failed), ", ".join(failed[:5]))


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_samples(
    samples: Iterable[Sample], folder: Path, classes: Sequence[str] = (), *, shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Write pictures as they come into a new folder of shards, which appears when it is complete.

    classes: those known beforehand, in their order; others follow as they come.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; name a new folder for the shards")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an earlier attempt that was killed
    partial.mkdir()
    numbers = {name: i for i, name in enumerate(classes)}
    series: dict[str | None, _Series] = {}
    try:
        for i, sample in enumerate(samples):
            if sample.split not in series:
                series[sample.split] = _Series(partial, sample.split or "shards", shard_bytes)
            series[sample.split].add(f"{i:09d}", sample, numbers)
        for one in series.values():
            one.close()
        (partial / "classes.json").write_text(json.dumps(list(numbers), ensure_ascii=False), encoding="utf-8")
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return [folder / name for one in series.values() for name in one.names]


class _Series:
    """Shards of one split, the next begun when the last has reached its size."""

    def __init__(self, folder: Path, stem: str, shard_bytes: int) -> None:
        self.folder, self.stem, self.shard_bytes = folder, stem, shard_bytes
        self.names: list[str] = []
        self._tar: tarfile.TarFile | None = None

    def add(self, key: str, sample: Sample, numbers: dict[str, int]) -> None:
        if self._tar is None or self._tar.offset >= self.shard_bytes:
            self.close()
            self.names.append(f"{self.stem}-{len(self.names):06d}.tar")
            self._tar = tarfile.TarFile(self.folder / self.names[-1], "w")
        record = {"image": sample.image, "label": sample.label, "split": sample.split, "weight": sample.weight}
        record |= {} if sample.group is None else {"group": sample.group}
        parts = {_ending(sample): sample.content, ".json": json.dumps(record).encode()}
        if isinstance(sample.label, str):
            parts[".cls"] = str(numbers.setdefault(sample.label, len(numbers))).encode()
        for ending, content in parts.items():
            info = tarfile.TarInfo(key + ending)
            info.size = len(content)
            self._tar.addfile(info, io.BytesIO(content))

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            with open(self.folder / self.names[-1], "rb") as file:
                os.fsync(file.fileno())


def _ending(sample: Sample) -> str:
    """.jpg, .png and so on: what the name says, or else what the content is."""
    ending = os.path.splitext(sample.image)[1].lower()
    if ending in EXTENSIONS:
        return ending
    try:
        with Image.open(io.BytesIO(sample.content)) as image:
            ending = f".{(image.format or '').lower()}"
    except Exception:  # the decoder names the reason when the picture is read
        ending = ""
    return ending if ending in EXTENSIONS else ".jpg"
