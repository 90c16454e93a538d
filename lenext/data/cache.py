"""Pictures decoded once: packed in one memory-mapped file that later epochs, runs and processes share.

Reading the pictures first has two gains: training never waits for a decoder, and a broken file is known by name
before the run starts instead of killing it in the night. A pack lies in the user's cache folder under a key made of
the pictures' content, so that a changed picture makes another pack:

    lenext/packed/<key>/lock       held shared by those who use the pack, alone by who builds or removes it
    lenext/packed/<key>/pixels     the pictures, one after the other
    lenext/packed/<key>/index.npz  where each lies; written last, so that a folder without it is no pack

The system releases a lock when its holder dies, whatever it died of. Nothing here fails for want of disk space or
permissions: what cannot be packed is decoded on demand.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import weakref
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lenext import runs
from lenext.data import packs
from lenext.data.decode import UnreadableImage, decode, read_bytes
from lenext.data.region import as_regions
from lenext.data.samples import Samples
from lenext.data.transforms import resize

log = logging.getLogger("lenext")

# Part of the key: raise it when the decoder or the format of a pack changes.
VERSION = 1
LIMIT_BYTES = 20 * 10**9
UNREADABLE, PIXELS, ENCODED = range(3)
# Pictures by which the size of a pack is estimated.
_PROBES = 256

T = TypeVar("T")
Progress = Callable[[int], None]


class PackedImages(ABC):
    """Decoded pictures by number, uint8 (H, W, 3), read-only where they are packed.

    reasons: {number: why the picture gives no pixels}; asking for one of these raises UnreadableImage.
    """

    cached = False  # whether the pixels lie decoded in a file

    def __init__(self, n: int, short_side: int, reasons: dict[int, str]) -> None:
        self.n, self.short_side, self.reasons = n, short_side, reasons

    def __len__(self) -> int:
        return self.n

    @abstractmethod
    def __getitem__(self, index: int) -> np.ndarray: ...

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    @property
    def readable(self) -> np.ndarray:
        """Numbers of the pictures that give pixels."""
        readable = np.ones(self.n, dtype=bool)
        readable[list(self.reasons)] = False
        return np.flatnonzero(readable)


class _OnDemand(PackedImages):
    """Every access decodes: JPEG at the smallest scale that keeps the short side, and no further resizing.

    Where only a part of a JPEG can be decoded, what is returned does so when it is sliced.
    """

    def __init__(self, samples: Samples, short_side: int, reasons: dict[int, str]) -> None:
        super().__init__(len(samples), short_side, reasons)
        self.samples = samples

    def __getitem__(self, index: int) -> np.ndarray:
        try:
            content = self.samples.read(index)
            if isinstance(content, np.ndarray):
                return content
            data = read_bytes(content) if isinstance(content, Path) else content
            regions = as_regions(data, self.short_side)
            return decode(data, shrink_to=self.short_side) if regions is None else regions  # type: ignore[return-value]
        except UnreadableImage as error:
            raise UnreadableImage(f"{self.samples.images[index]}: {error}") from None


class _Mapped(PackedImages):
    """A pack in use. It may be forked and pickled: another process opens it anew."""

    cached = True

    def __init__(self, folder: Path, short_side: int, index: _Index, lock: int) -> None:
        super().__init__(len(index.kinds), short_side, index.reasons)
        self.folder, self.index = folder, index
        weakref.finalize(self, os.close, lock)
        size = int(index.offsets[-1])
        # Read-only: a private writable mapping would count against the system's memory limit.
        self.data = np.asarray(np.memmap(folder / packs.DATA, np.uint8, "r")) if size else np.empty(0, np.uint8)

    def __getitem__(self, index: int) -> np.ndarray:
        start, end = self.index.offsets[index : index + 2].tolist()
        kind = self.index.kinds[index]
        if kind == UNREADABLE:
            raise UnreadableImage(self.reasons[index])
        content = self.data[start:end]
        if kind == ENCODED:
            return decode(content.tobytes(), shrink_to=self.short_side)
        return content.reshape(*self.index.shapes[index].tolist(), 3)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.folder, self.short_side)


@dataclass(frozen=True)
class _Index:
    """offsets: (N + 1,) int64 bytes; shapes: (N, 2) int32 height and width; kinds: (N,) uint8."""

    offsets: np.ndarray
    shapes: np.ndarray
    kinds: np.ndarray
    reasons: dict[int, str]


def pack(
    samples: Samples,
    short_side: int,
    *,
    digests: np.ndarray | None = None,
    reasons: dict[int, str] | None = None,
    cache: bool = True,
    limit_bytes: int = LIMIT_BYTES,
    progress: Progress = lambda n: None,
) -> PackedImages:
    """All pictures, decoded once in parallel or found decoded; a short side above `short_side` is shrunk to it.

    digests: (N, 16) uint8, the content of the pictures; if not given, files are known by name, size and time.
    reasons: the unreadable pictures, if they are known; else all are decoded once to find them.
    cache: False: decode on demand. limit_bytes: how much all packs together may take; those used least recently go
    first, and none that a living process uses. Pictures that take less space encoded stay so if all would be too many.
    progress: told the number of finished pictures.
    """
    if cache and len(samples):
        try:
            return _open_or_build(samples, short_side, digests, limit_bytes, progress)
        except OSError as error:
            why = error.strerror or str(error)
            log.warning("pictures are decoded anew each time they are needed: no cache (%s)", why)
    if reasons is None:
        results = _in_order(lambda i: _attempt(samples, i, short_side), len(samples))
        reasons = {}
        for i, result in enumerate(results):
            if isinstance(result, str):
                reasons[i] = result
            progress(i + 1)
    return _OnDemand(samples, short_side, reasons)


def _open_or_build(
    samples: Samples, short_side: int, digests: np.ndarray | None, limit_bytes: int, progress: Progress
) -> PackedImages:
    folder = runs.cache_folder("packed") / _key(samples, short_side, digests)
    while True:
        if packed := _open(folder, short_side):
            os.utime(folder / packs.INDEX)  # the time of last use
            progress(len(samples))
            return packed
        lock = packs.hold(folder, fcntl.LOCK_EX)
        try:
            if _read_index(folder) is None:
                _build(folder, samples, short_side, limit_bytes, progress)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            os.close(lock)


def _open(folder: Path, short_side: int) -> _Mapped | None:
    """The pack, held so that nobody removes it; None where there is no whole one."""
    if not folder.exists():
        return None
    lock = packs.hold(folder, fcntl.LOCK_SH)
    index = _read_index(folder)
    if index is None:
        os.close(lock)
        return None
    return _Mapped(folder, short_side, index, lock)


def _reopen(folder: Path, short_side: int) -> _Mapped:
    packed = _open(folder, short_side)
    if packed is None:
        raise RuntimeError(f"the packed pictures in {folder} were removed or damaged while they were in use")
    return packed


def _key(samples: Samples, short_side: int, digests: np.ndarray | None) -> str:
    key = hashlib.blake2b(repr((VERSION, short_side, len(samples))).encode(), digest_size=16)
    if digests is not None:
        key.update(digests.tobytes())
        return key.hexdigest()
    for i in range(len(samples)):
        key.update(_identity(samples, i))
    return key.hexdigest()


def _identity(samples: Samples, i: int) -> bytes:
    try:
        content = samples.read(i)
        if isinstance(content, Path):
            status = content.stat()
            return repr((os.path.abspath(content), status.st_size, status.st_mtime_ns)).encode()
    except (UnreadableImage, OSError) as error:
        return repr((samples.images[i], str(error))).encode()
    data = content.tobytes() if isinstance(content, np.ndarray) else content
    return repr(np.shape(content)).encode() + hashlib.blake2b(data).digest()


# ------------------------------------------------------------------------------------------------- building a pack


def _build(folder: Path, samples: Samples, short_side: int, limit_bytes: int, progress: Progress) -> None:
    """Write the pack. Raises OSError if there is no room for it."""
    sizes = _estimate(samples, short_side)
    for kind, size in zip((PIXELS, ENCODED), sizes):
        room = packs.make_room(folder, size, limit_bytes)
        if size <= room:
            try:
                _write(folder, samples, short_side, kind, room, progress)
                return
            except _TooLarge:
                continue
    raise OSError(
        errno.ENOSPC, f"{min(sizes) / 1e9:.1f} GB are needed and {room / 1e9:.1f} GB allowed in {folder.parent}"
    )


class _TooLarge(Exception):
    """The pictures take more than was estimated."""


def _write(folder: Path, samples: Samples, short_side: int, kind: int, room: int, progress: Progress) -> None:
    n = len(samples)
    offsets, shapes = np.zeros(n + 1, np.int64), np.zeros((n, 2), np.int32)
    kinds, reasons = np.full(n, UNREADABLE, np.uint8), {}

    def load(i: int) -> np.ndarray | bytes | str:
        image = _attempt(samples, i, short_side)
        if isinstance(image, str):
            return image
        if kind == ENCODED and _encoded_size(samples, i) < image.shape[0] * image.shape[1] * 3:
            content = samples.read(i)
            return content.read_bytes() if isinstance(content, Path) else bytes(content)
        return _shrink(image, short_side)

    with open(folder / packs.DATA, "wb") as file:
        for i, item in enumerate(_in_order(load, n)):
            offsets[i + 1] = offsets[i]
            if isinstance(item, str):
                reasons[i] = item
            else:
                content = memoryview(item)  # type: ignore[arg-type]
                offsets[i + 1] += content.nbytes
                kinds[i] = PIXELS if isinstance(item, np.ndarray) else ENCODED
                shapes[i] = item.shape[:2] if isinstance(item, np.ndarray) else 0
                if offsets[i + 1] > room:
                    raise _TooLarge
                file.write(content)
            progress(i + 1)
        file.flush()
        os.fsync(file.fileno())

    def write_index(path: Path) -> None:
        with open(path, "wb") as file:
            why = np.array(list(reasons.values()), dtype=str)
            unreadable = np.array(list(reasons), dtype=np.int64)
            np.savez(file, offsets=offsets, shapes=shapes, kinds=kinds, unreadable=unreadable, why=why)

    runs.write_atomically(folder / packs.INDEX, write_index)


def _read_index(folder: Path) -> _Index | None:
    """The index of a whole pack. The zip format's own checksums find a damaged one, its sizes a cut data file."""
    try:
        with np.load(folder / packs.INDEX, allow_pickle=False) as file:
            reasons = dict(zip(file["unreadable"].tolist(), file["why"].tolist()))
            index = _Index(file["offsets"], file["shapes"], file["kinds"], reasons)
        whole = (folder / packs.DATA).stat().st_size == index.offsets[-1]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return index if whole else None


def _attempt(samples: Samples, i: int, short_side: int) -> np.ndarray | str:
    """The decoded picture, or why there is none."""
    try:
        return samples.decode(i, shrink_to=short_side)
    except UnreadableImage as error:
        return str(error)


def _shrink(image: np.ndarray, short_side: int) -> np.ndarray:
    height, width, _ = image.shape
    if min(height, width) <= short_side:
        return np.ascontiguousarray(image)
    return resize(image, _packed_size(height, width, short_side)).permute(1, 2, 0).contiguous().numpy()


def _packed_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    scale = min(short_side / min(height, width), 1)
    return round(height * scale), round(width * scale)


def _encoded_size(samples: Samples, i: int) -> int:
    content = samples.read(i)
    if isinstance(content, np.ndarray):
        return content.nbytes
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _estimate(samples: Samples, short_side: int) -> tuple[int, int]:
    """Bytes of all pictures as pixels, and with each in the smaller of pixels and its encoded form.

    From the headers of a few hundred pictures; exact where there are no more.
    """
    n = len(samples)
    probes = np.unique(np.linspace(0, n - 1, _PROBES).round().astype(np.int64))
    pixels, smaller = 0, 0
    for i in probes.tolist():
        size = samples.size(i)
        if size is None:
            continue
        height, width = _packed_size(size[1], size[0], short_side)
        pixels += height * width * 3
        smaller += min(height * width * 3, _encoded_size(samples, i))
    return pixels * n // len(probes), smaller * n // len(probes)


def _in_order(function: Callable[[int], T], n: int) -> Iterator[T]:
    """function(0), function(1), ... computed by a thread a core, which decoders and resizing keep busy: they run
    without Python's lock. A few results wait at a time."""
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        waiting = deque(pool.submit(function, i) for i in range(min(4 * cores, n)))
        try:
            for i in range(len(waiting), n + len(waiting)):
                result = waiting.popleft().result()
                if i < n:
                    waiting.append(pool.submit(function, i))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)
