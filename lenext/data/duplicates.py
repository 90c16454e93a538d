"""Which pictures are there twice, told from the thumbnails of a scan.

Two pictures are near duplicates when one is the other encoded again, resized, made a little brighter or darker, or cut
by a few hundredths: where a small grey thumbnail of one is nearly that of the other, or becomes so by a slight move and
stretch. Being merely alike, as photographs of the same kind of thing are, is not enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter

if TYPE_CHECKING:
    from lenext.data.scan import Scan

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


def near_pairs(hashes: np.ndarray) -> np.ndarray:
    """(M, 2) int64: pairs (i < j) of rows whose hashes (N, 32) uint8 differ in few bits.

    Each of several orders sorts the rows by another choice of 64 bits; a row is compared with the next few. A pair
    that agrees on the leading bits of one choice is found, and time and memory grow with N log N whatever the data.
    """
    n, rng = len(hashes), np.random.default_rng(0)
    words, found = as_words(hashes), [np.empty(0, np.int64)]
    low = np.add.outer(np.arange(16), np.arange(16)).ravel()  # low frequencies change least from copy to copy
    for _ in range(ORDERS):
        chosen = np.argsort(low + rng.exponential(6.0, 256))[:64]
        rng.shuffle(chosen)
        keys = [np.packbits(np.unpackbits(part, axis=1)[:, chosen], axis=1) for part in parts(hashes)]
        order = np.argsort(as_words(np.concatenate([np.empty((0, 8), np.uint8), *keys])).ravel())
        ordered = words[order]
        for step in range(1, min(WINDOW, n - 1) + 1):
            bits = np.bitwise_count(ordered[:-step] ^ ordered[step:]).sum(axis=1)
            close = np.flatnonzero(bits <= MAX_BITS)
            a, b = order[close], order[close + step]
            found.append(np.minimum(a, b) * n + np.maximum(a, b))
        found = [np.unique(np.concatenate(found))]
    return np.stack(np.divmod(found[0], max(n, 1)), axis=1)


def are_near(seen: Scan, pairs: np.ndarray) -> np.ndarray:
    """(M,) bool: whether the pictures of each pair are near duplicates."""
    answers = [_compare(seen, *part.T) for part in parts(pairs, 2048)]
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
    flat = len(a), (a.shape[1] - 2) ** 2
    strength = np.maximum(abs(fine[0]), abs(fine[1]))[:, 1:-1, 1:-1].reshape(flat)
    signs = (np.sign(fine[0]) == np.sign(fine[1]))[:, 1:-1, 1:-1].reshape(flat)
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


def numbers_of(groups: np.ndarray) -> np.ndarray:
    """(N,) int64: numbers from 0 for the groups of several rows, -1 for a row that is alone."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    several = counts > 1
    return np.where(several, np.cumsum(several) - 1, -1)[inverse].astype(np.int64)


def as_words(rows: np.ndarray) -> np.ndarray:
    """(N, B) uint8 as (N, B / 8) uint64."""
    return np.ascontiguousarray(rows).view(np.uint64)


def parts(rows: np.ndarray, size: int = 65_536) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
