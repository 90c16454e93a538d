"""The scan: one look at every picture of a data set, and from it the pictures that are there twice.

What is known of a file is kept in the user's cache under its path, size and time of change, so that only new and
changed files are looked at again; pictures inside containers are known by their bytes.

Two pictures are near duplicates when one is the other encoded again, resized, made a little brighter or darker, or cut
by a few hundredths: where a small grey thumbnail of one is nearly that of the other, or becomes so by a slight move and
stretch. Being merely alike, as photographs of the same kind of thing are, is not enough.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lenext import runs
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

# Candidates: of N pictures put in order by some bits of their hashes, those that stand close, in several such orders.
ORDERS, WINDOW = 24, 6
MAX_BITS = 56  # of 256 that may differ

# Of a near duplicate. Residuals are root mean squares in units of the contrast of a picture (its standard deviation).
MIN_CONTRAST = 3.0  # grey levels; with less, a thumbnail is mostly rounding
MAX_RESIDUAL = 0.035
MAX_CUT_RESIDUAL, MAX_CUT_SHARE = 0.08, 0.4  # what a move and stretch may leave, and leave of the difference
MAX_MOVE = 0.06  # of the width or height
# Of the faint detail: the weaker share of it, from a quarter of a grey level on, where copies agree in sign.
FAINT_SHARE, MIN_FAINT, MIN_AGREEMENT = 0.6, 0.25, 0.78
SURE_RESIDUAL = 0.01  # where nothing else is asked: what coding alone does
MIN_CUT_SIDE = 64  # pixels; below, a cut of a few hundredths is about one pixel
MAX_GAIN, MAX_SHIFT = 1.5, 48  # change of contrast, and of brightness in grey levels
MAX_COLOUR = 24  # levels of Cb or Cr, anywhere in the picture
MAX_ASPECT = 1.08

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
            for part in _parts(self.grey)
        ]
        return np.concatenate(parts) if parts else np.empty((0, 32), np.uint8)

    @cached_property
    def brightness(self) -> np.ndarray:
        """(N,) float32: mean grey level, 0 to 255."""
        return self.grey.mean((1, 2), dtype=np.float32)

    @cached_property
    def contrast(self) -> np.ndarray:
        """(N,) float32: standard deviation of `grey`, in grey levels."""
        return np.concatenate([part.std((1, 2), dtype=np.float32) for part in _parts(self.grey)] or [np.empty(0)])

    def exact_duplicates(self) -> np.ndarray:
        """(N,) int64: pictures of equal bytes have equal numbers, from 0; -1 for a picture that is alone."""
        return _number(self._first_of_equals())

    def near_duplicates(self) -> np.ndarray:
        """(N,) int64: equal and nearly equal pictures have equal numbers, from 0; -1 for a picture that is alone."""
        first = self._first_of_equals()
        rows = np.flatnonzero((first == np.arange(len(self))) & (self.contrast >= MIN_CONTRAST))
        pairs = rows[near_pairs(self.hashes[rows])]
        a, b = pairs[_are_near(self, pairs)].T
        a, b = np.append(a, np.arange(len(self))), np.append(b, first)
        graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(self), len(self)))
        return _number(connected_components(graph, directed=False)[1])

    def _first_of_equals(self) -> np.ndarray:
        """(N,) int64: the first picture of the same bytes; of an unreadable one, itself."""
        first = np.arange(len(self))
        rows = np.flatnonzero(self.digests.any(axis=1))
        _, place, group = np.unique(_words(self.digests[rows]), axis=0, return_index=True, return_inverse=True)
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


# ---------------------------------------------------------------------------------------------- duplicates


def near_pairs(hashes: np.ndarray) -> np.ndarray:
    """(M, 2) int64: pairs (i < j) of rows whose hashes (N, 32) uint8 differ in few bits.

    Each of several orders sorts the rows by another choice of 64 bits; a row is compared with the next few. A pair
    that agrees on the leading bits of one choice is found, and time and memory grow with N log N whatever the data.
    """
    n, rng = len(hashes), np.random.default_rng(0)
    words, found = _words(hashes), [np.empty(0, np.int64)]
    low = np.add.outer(np.arange(16), np.arange(16)).ravel()  # low frequencies change least from copy to copy
    for _ in range(ORDERS):
        chosen = np.argsort(low + rng.exponential(6.0, 256))[:64]
        rng.shuffle(chosen)
        keys = [np.packbits(np.unpackbits(part, axis=1)[:, chosen], axis=1) for part in _parts(hashes)]
        order = np.argsort(_words(np.concatenate([np.empty((0, 8), np.uint8), *keys])).ravel())
        ordered = words[order]
        for step in range(1, min(WINDOW, n - 1) + 1):
            bits = np.bitwise_count(ordered[:-step] ^ ordered[step:]).sum(axis=1)
            close = np.flatnonzero(bits <= MAX_BITS)
            a, b = order[close], order[close + step]
            found.append(np.minimum(a, b) * n + np.maximum(a, b))
        found = [np.unique(np.concatenate(found))]
    return np.stack(np.divmod(found[0], max(n, 1)), axis=1)


def _are_near(seen: Scan, pairs: np.ndarray) -> np.ndarray:
    """(M,) bool: whether the pictures of each pair are near duplicates."""
    answers = [_compare(seen, *part.T) for part in _parts(pairs, 2048)]
    return np.concatenate(answers) if answers else np.empty(0, bool)


def _compare(seen: Scan, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """(P,) bool, of P pairs (i, j)."""
    ratio = seen.contrast[i] / seen.contrast[j]
    aspect = np.divide(*seen.sizes[i].T) / np.divide(*seen.sizes[j].T)
    colour_i, colour_j = (seen.colour[k].astype(np.int16).reshape(len(k), -1) - 128 for k in (i, j))
    # A copy without colour is a copy still.
    grey = np.minimum(abs(colour_i).max(axis=1), abs(colour_j).max(axis=1)) <= 2
    near = (
        (np.maximum(ratio, 1 / ratio) <= MAX_GAIN)
        & (abs(seen.brightness[i] - seen.brightness[j]) <= MAX_SHIFT)
        & (np.maximum(aspect, 1 / aspect) <= MAX_ASPECT)
        & (grey | (abs(colour_i - colour_j).max(axis=1) <= MAX_COLOUR))
    )
    near[near] = _same(seen, i[near], j[near])
    return near


def _same(seen: Scan, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """(P,) bool: whether the thumbnails of each pair are the same, but for gain and level, or but for a cut."""
    a, b = _normalised(seen.grey[i]), _normalised(seen.grey[j])
    difference = _rms((a - b)[:, 1:-1, 1:-1])
    same = difference <= MAX_RESIDUAL
    sides = np.minimum(seen.sizes[i], seen.sizes[j]).min(axis=1)
    cut = np.flatnonzero(~same & (sides >= MIN_CUT_SIDE))
    rest, move = _fit_cut(a[cut], b[cut])
    same[cut] = (rest <= np.minimum(MAX_CUT_RESIDUAL, MAX_CUT_SHARE * difference[cut])) & (move <= MAX_MOVE)
    rows = np.flatnonzero(same)
    agreement, enough = _fine_agreement(seen.grey[i[rows]], seen.grey[j[rows]])
    same[rows] = (difference[rows] <= SURE_RESIDUAL) | (enough & (agreement >= MIN_AGREEMENT))
    return same


def _fine_agreement(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,) share of pixels whose fine detail has the same sign in both thumbnails, (P,) whether there are enough.

    Two drawings of one thing before different skies agree in their strong edges, which outweigh all else in a residual;
    in the faint rest of the picture only copies agree, and unlike pictures do by chance, one time in two.
    """
    fine = [
        grey - gaussian_filter(grey, (0, 1, 1), mode="nearest") for grey in (a.astype(np.float32), b.astype(np.float32))
    ]
    strength = np.maximum(abs(fine[0]), abs(fine[1]))[:, 1:-1, 1:-1].reshape(len(a), (GREY - 2) ** 2)
    signs = (np.sign(fine[0]) == np.sign(fine[1]))[:, 1:-1, 1:-1].reshape(len(a), (GREY - 2) ** 2)
    strong = np.quantile(strength, FAINT_SHARE, axis=1, keepdims=True) if len(a) else strength
    faint = (strength <= strong) & (strength > MIN_FAINT)
    count = faint.sum(axis=1)
    return (signs & faint).sum(axis=1) / np.maximum(count, 1), count >= 30


def _normalised(grey: np.ndarray) -> np.ndarray:
    """(P, 24, 24) float32 of mean 0 and standard deviation 1, softened so that a move changes it evenly."""
    soft = gaussian_filter(grey.astype(np.float32), (0, 0.7, 0.7), mode="nearest")
    soft -= soft.mean((1, 2), keepdims=True)
    return soft / np.maximum(soft.std((1, 2), keepdims=True), 1e-3)


def _fit_cut(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,) root mean square of what the best small move and stretch leave of a - b; (P,) the largest of these.

    To first order a move changes a picture by its gradient, so that the best one is a least-squares fit (Lucas and
    Kanade 1981), here with one move and stretch along each axis, and a bent line of grey levels.
    """
    P, S, _ = a.shape
    mean = (a + b) / 2
    dy, dx = np.gradient(mean, axis=(1, 2))
    place = ((np.arange(S) - (S - 1) / 2) / S).astype(np.float32)
    columns = (np.ones_like(mean), mean, mean**2, dx, dy, dx * place, dy * place[:, None])
    inner = (slice(None), slice(1, -1), slice(1, -1))  # at the rim, gradients are one-sided
    x = np.stack([column[inner].reshape(P, (S - 2) ** 2) for column in columns], axis=2)  # P, 484, 7
    y = (a - b)[inner].reshape(P, (S - 2) ** 2, 1)
    ridge = 1e-5 * x.shape[1] * np.eye(x.shape[2], dtype=np.float32)
    weights = np.linalg.solve(x.transpose(0, 2, 1) @ x + ridge, x.transpose(0, 2, 1) @ y)
    return _rms(y - x @ weights), abs(weights[:, 3:, 0]).max(axis=1, initial=0) / S


def _rms(rest: np.ndarray) -> np.ndarray:
    """(P, ...) -> (P,)"""
    return np.sqrt((rest**2).mean((1, 2)))


def _number(groups: np.ndarray) -> np.ndarray:
    """(N,) int64: numbers from 0 for the groups of several rows, -1 for a row that is alone."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    several = counts > 1
    return np.where(several, np.cumsum(several) - 1, -1)[inverse].astype(np.int64)


def _words(rows: np.ndarray) -> np.ndarray:
    """(N, B) uint8 as (N, B / 8) uint64."""
    return np.ascontiguousarray(rows).view(np.uint64)


def _parts(rows: np.ndarray, size: int = 65_536) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
