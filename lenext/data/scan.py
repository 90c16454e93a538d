"""The scan: one look at every picture of a data set, and from it the pictures that are there twice.

What is known of a file is kept in the user's cache under its path, size and time of change, so that only new and
changed files are looked at again; pictures inside containers are known by their bytes.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lenext import runs
from lenext.data import duplicates
from lenext.data.decode import UnreadableImage, decode, read_bytes, read_size
from lenext.data.samples import Files, Samples
from lenext.version import __version__

log = logging.getLogger("lenext")

GREY, COLOUR = 24, 6  # sides of the thumbnails, pixels
# JPEG files of a short side of twice this and more are decoded at a part of their size. Much less than this and the
# thumbnail would show how it was decoded.
SHRINK_TO = 256
BLOCK = 32  # pictures that a thread looks at in one go
CACHE_BYTES = 2_000_000_000

ROW = np.dtype(
    [
        ("key", "V16"),
        ("digest", np.uint8, 16),
        ("size", np.int32, 2),
        ("grey", np.uint8, (GREY, GREY)),
        ("colour", np.uint8, (COLOUR, COLOUR, 2)),
    ]
)


@dataclass(frozen=True)
class Scan:
    """What one look at every picture tells; row i belongs to sample i, and is zero where the picture is unreadable.

    digests: (N, 16) uint8, BLAKE2b of the encoded bytes, or of the pixels where the data holds pixels.
    sizes: (N, 2) int32, width and height the right way up.
    grey: (N, 24, 24) uint8, the picture without colour, squeezed into a square.
    colour: (N, 6, 6, 2) uint8, its Cb and Cr.
    reasons: {index: why the picture gives no pixels}.
    """

    digests: np.ndarray
    sizes: np.ndarray
    grey: np.ndarray
    colour: np.ndarray
    reasons: dict[int, str]

    def __len__(self) -> int:
        return len(self.digests)

    def take(self, rows: np.ndarray) -> Scan:
        """What it tells of the samples at `rows`, in that order."""
        reasons = {i: self.reasons[row] for i, row in enumerate(rows.tolist()) if row in self.reasons}
        return Scan(self.digests[rows], self.sizes[rows], self.grey[rows], self.colour[rows], reasons)

    @cached_property
    def hashes(self) -> np.ndarray:
        """(N, 32) uint8: perceptual hashes, the signs of the 16 x 16 lowest frequencies of `grey`."""
        parts = [
            np.packbits(dctn(part.astype(np.float32), axes=(1, 2))[:, :16, :16].reshape(len(part), -1) > 0, axis=1)
            for part in duplicates.parts(self.grey)
        ]
        return np.concatenate(parts) if parts else np.empty((0, 32), np.uint8)

    @cached_property
    def brightness(self) -> np.ndarray:
        """(N,) float32: mean grey level, 0 to 255."""
        return self.grey.mean((1, 2), dtype=np.float32)

    @cached_property
    def contrast(self) -> np.ndarray:
        """(N,) float32: standard deviation of `grey`, in grey levels."""
        return np.concatenate(
            [part.std((1, 2), dtype=np.float32) for part in duplicates.parts(self.grey)] or [np.empty(0)]
        )

    def exact_duplicates(self) -> np.ndarray:
        """(N,) int64: pictures of equal bytes have equal numbers, from 0; -1 for a picture that is alone."""
        return duplicates.numbers_of(self._first_of_equals())

    def near_duplicates(self) -> np.ndarray:
        """(N,) int64: equal and nearly equal pictures have equal numbers, from 0; -1 for a picture that is alone."""
        first = self._first_of_equals()
        rows = np.flatnonzero((first == np.arange(len(self))) & (self.contrast >= duplicates.MIN_CONTRAST))
        pairs = rows[duplicates.near_pairs(self.hashes[rows])]
        a, b = pairs[duplicates.are_near(self, pairs)].T
        a, b = np.append(a, np.arange(len(self))), np.append(b, first)
        graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(self), len(self)))
        return duplicates.numbers_of(connected_components(graph, directed=False)[1])

    def _first_of_equals(self) -> np.ndarray:
        """(N,) int64: the first picture of the same bytes; of an unreadable one, itself."""
        first = np.arange(len(self))
        rows = np.flatnonzero(self.digests.any(axis=1))
        _, place, group = np.unique(
            duplicates.as_words(self.digests[rows]), axis=0, return_index=True, return_inverse=True
        )
        first[rows] = rows[place[group.ravel()]]
        return first


def scan(samples: Samples, progress: Callable[[int], None] = lambda n: None) -> Scan:
    """Decode every picture once, in threads; reports the number of finished pictures to `progress`."""
    n, path = len(samples), _cache_path(samples)
    kept = np.zeros(0, ROW) if path is None else _read_cache(path)
    known = {key: row for row, key in enumerate(kept["key"].tolist())}
    found, reasons = np.zeros(n, ROW), {}

    def look(start: int) -> int:
        stop = min(start + BLOCK, n)
        for i in range(start, stop):
            try:
                found[i] = _look(samples, i, known, kept)
            except UnreadableImage as error:
                reasons[i] = str(error)
        return stop

    pool = ThreadPoolExecutor(max_workers=os.cpu_count())
    try:
        for done in pool.map(look, range(0, n, BLOCK)):
            progress(done)
    finally:  # interrupted, what was seen so far is kept
        pool.shutdown(cancel_futures=True)
        if path is not None:
            _write_cache(path, found, kept, known)
    return Scan(found["digest"], found["size"], found["grey"], found["colour"], dict(sorted(reasons.items())))


def _look(samples: Samples, index: int, known: dict[bytes, int], kept: np.ndarray) -> np.ndarray:
    """One row: from the cache, or from a look at the picture. Raises UnreadableImage."""
    row = np.zeros((), ROW)
    content = samples.read(index)
    if isinstance(content, np.ndarray):
        digest = _digest(repr(content.shape).encode(), np.ascontiguousarray(content))
        key = _digest(digest, __version__.encode()).tobytes()
        if key in known:
            return kept[known[key]]
        pixels, row["size"] = content, content.shape[1::-1]
    else:
        key = _file_key(content) if isinstance(content, Path) else _digest(content, __version__.encode()).tobytes()
        if key in known:
            return kept[known[key]]
        data = read_bytes(content) if isinstance(content, Path) else content
        pixels = decode(data, shrink_to=SHRINK_TO)
        digest, row["size"] = _digest(data), read_size(data) or pixels.shape[1::-1]
    row["key"], row["digest"] = key, digest
    small = Image.fromarray(pixels).resize((GREY, GREY), Image.Resampling.BILINEAR, reducing_gap=3.0).convert("YCbCr")
    row["grey"] = np.asarray(small)[:, :, 0]
    row["colour"] = np.asarray(small.resize((COLOUR, COLOUR), Image.Resampling.BOX))[:, :, 1:]
    return row


def _digest(*parts: Any) -> np.ndarray:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return np.frombuffer(state.digest(), np.uint8)


def _file_key(path: Path) -> bytes:
    """What a file is known by: its place, size and time of change, and the version that looked at it."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return b""  # the decoder gives the reason
    text = f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}\0{__version__}"
    return _digest(text.encode("utf-8", "surrogateescape")).tobytes()


# ---------------------------------------------------------------------------------------------- cache


def _cache_path(samples: Samples) -> Path | None:
    """One file for all pictures below a folder; of containers, one for each list of names. None: no place for it."""
    try:
        folder = runs.cache_folder("scan")
    except OSError as error:
        log.info("the scan is not kept for the next time: %s", error)
        return None
    names = [os.path.abspath(samples.store.root)] if isinstance(samples.store, Files) else samples.images
    state = hashlib.blake2b(digest_size=16)
    for name in names:
        state.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return folder / f"{state.hexdigest()}.npz"


def _read_cache(path: Path) -> np.ndarray:
    """(M,) rows that earlier scans left; none where there are none or the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            rows = file["rows"]
        if rows.dtype != ROW:
            raise ValueError("another form of rows")
        os.utime(path)  # the least recently used are removed first
    except FileNotFoundError:
        pass
    except Exception as error:  # zip and numpy raise whatever their parsers raise on damaged input
        log.info("%s cannot be used (%s): every picture is looked at again", path, error)
    else:
        return rows
    return np.zeros(0, ROW)


def _write_cache(path: Path, found: np.ndarray, kept: np.ndarray, known: dict[bytes, int]) -> None:
    """Keep the rows that were found beside those of other pictures; without room or permission, keep nothing."""
    empty = b"\0" * 16
    keys = found["key"].tolist()
    if all(key in known or key == empty for key in keys):
        return
    rows = found[[i for i, key in enumerate(keys) if key != empty]]
    if rows.nbytes > CACHE_BYTES:
        return
    if rows.nbytes + kept.nbytes <= CACHE_BYTES:
        fresh = set(keys)
        rows = np.concatenate([rows, kept[[row for key, row in known.items() if key not in fresh]]])

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, rows=rows)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        runs.write_atomically(path, write)
        _make_room(path.parent)
    except OSError as error:
        log.info("the scan is not kept for the next time: %s", error)


def _make_room(folder: Path) -> None:
    """Remove the files that were not used for longest, until the rest takes no more than CACHE_BYTES."""
    files = []
    for entry in os.scandir(folder):
        try:
            files.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        except FileNotFoundError:
            continue  # another process was faster
    total = 0
    for _, size, file in sorted(files, reverse=True):
        total += size
        if total > CACHE_BYTES:
            Path(file).unlink(missing_ok=True)
