"""Who trains, who validates, who tests: splits that hold still while a data set grows.

Each picture draws a lot from its own name and the seed, and the lot alone says on which side it falls. Pictures that
must not be parted (equal or nearly equal ones, those of one group) share the smallest lot among them. Only where the
lots of a class fall further from its share than one standard deviation of such a draw, or leave a split without it,
are the pictures nearest to the border moved over, so that every class is split alike.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np

from lenext.data.samples import SPLITS, Samples


def assign(samples: Samples, shares: dict[str, float], seed: int, together: np.ndarray | None = None) -> np.ndarray:
    """(N,) int8 indices into SPLITS for every picture.

    shares: {"val": 0.15, "test": 0.15}: the rest trains. together: (N,) int64, pictures with equal numbers (of at least
    0) stay on one side; so do those of one group in `samples`.
    """
    names = [name for name in ("val", "test") if shares.get(name)]
    bounds = np.cumsum([shares[name] for name in names])
    parts = partition(samples, bounds, f"{seed}", together)
    codes = np.array([*(SPLITS.index(name) for name in names), SPLITS.index("train")], np.int8)
    return codes[parts]


def folds(samples: Samples, count: int, seed: int, together: np.ndarray | None = None) -> np.ndarray:
    """(N,) int64: the fold, from 0 to count - 1, that each picture is in."""
    return partition(samples, np.arange(1, count) / count, f"{seed} folds", together)


def part(samples: Samples, share: float, seed: int) -> np.ndarray:
    """(N,) bool: the pictures of a share, in (0, 1), of each class; a larger share holds all that a smaller one does.

    At least one picture of each class is in it. Groups are parted: what is left out is on no other side.
    """
    key = f"{seed} part"
    chosen = partition(replace(samples, groups=None), np.array([share]), key, None) == 0
    # The first by lot of each class are in every share, or a class might have no picture in some.
    order = np.argsort(draw_lots(samples, key), kind="stable")
    place, label = samples.targets()[order].nonzero()
    chosen[order[place[np.unique(label, return_index=True)[1]]]] = True
    return chosen


def partition(samples: Samples, bounds: np.ndarray, key: str, together: np.ndarray | None) -> np.ndarray:
    """(N,) int64: how many of the rising `bounds` in (0, 1) lie at or below the lot of each picture."""
    clusters = _clusters(len(samples), samples.groups, together)
    lots = np.full(clusters.max(initial=-1) + 1, np.inf)
    np.minimum.at(lots, clusters, draw_lots(samples, key))
    parts = np.searchsorted(bounds, lots, side="right")
    sizes = np.bincount(clusters)
    strata = _strata(samples, clusters)
    order = np.lexsort((lots, strata))
    for mine in np.split(order, np.flatnonzero(np.diff(strata[order])) + 1):
        parts[mine] = _even_out(parts[mine], sizes[mine], bounds)
    return parts[clusters]


def _strata(samples: Samples, clusters: np.ndarray) -> np.ndarray:
    """The class that each cluster counts for: the most frequent in it, of a picture's several labels the rarest."""
    main = samples.labels
    if samples.sets is not None:
        rank = np.argsort(np.argsort(samples.class_counts(), kind="stable"))
        rarest = [
            min(row, key=lambda k: rank[k], default=-1)
            for row in np.split(samples.sets.indices, samples.sets.indptr[1:-1])
        ]
        main = np.array(rarest)[samples.labels]
    if len(clusters) and clusters.max() == len(clusters) - 1:
        strata = np.empty(len(clusters), np.int64)
        strata[clusters] = main
        return strata
    pairs, counts = np.unique(np.stack([clusters, main]), axis=1, return_counts=True)
    strata = np.empty(clusters.max(initial=-1) + 1, np.int64)
    order = np.argsort(counts, kind="stable")
    strata[pairs[0, order]] = pairs[1, order]  # the last one written is the most frequent
    return strata


def _even_out(parts: np.ndarray, sizes: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The parts of one class's clusters, by rising lot, with some moved over a border so that each part has its share.

    A share is the expected number of pictures give or take one standard deviation, and at least one picture.
    """
    parts = parts.copy()
    n, borders, before = int(sizes.sum()), len(bounds), 0
    for border, bound in enumerate(bounds):
        share = bound - (bounds[border - 1] if border else 0.0)
        wide = max(math.sqrt(n * bound * (1 - bound)), 0.5)  # of all pictures up to this border
        narrow = max(math.sqrt(n * share * (1 - share)), 0.5)  # of those of this part
        expected = before + n * share
        low = max(math.ceil(max(n * bound - wide, expected - narrow)), min(before + 1, n - 1))
        high = max(min(math.floor(min(n * bound + wide, expected + narrow)), n - borders + border), low)
        below = int(sizes[parts <= border].sum())
        for cluster in np.flatnonzero(parts > border) if below < low else ():
            after = below + sizes[cluster]
            lonely = below == before and sizes[cluster] <= n / 2 and after < n
            if after < n and (after <= high or lonely or after - high < low - below):
                parts[cluster], below = border, after
                if below >= low:
                    break
        for cluster in np.flatnonzero(parts == border)[::-1] if below > high else ():
            after = below - sizes[cluster]
            last = after == before and below < n and sizes[cluster] <= n / 2
            if not last and max(low - after, 0) < below - high:
                parts[cluster], below = border + 1, after
                if below <= high:
                    break
        before = below
    return parts


def draw_lots(samples: Samples, key: str) -> np.ndarray:
    """(N,) float64 in [0, 1), each from the picture's name and the key alone."""
    lots = np.empty(len(samples))
    for i, name in enumerate(samples.images):
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8, key=key.encode()).digest()
        lots[i] = int.from_bytes(digest) / 2**64
    return lots


def _clusters(n: int, *keys: np.ndarray | None) -> np.ndarray:
    """(N,) int64 cluster numbers from 0: rows that share a key (of at least 0) in any column are in one cluster."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges: list[tuple[np.ndarray, np.ndarray]] = []
    for key in keys:
        if key is None:
            continue
        rows = np.flatnonzero(key >= 0)
        order = rows[np.argsort(key[rows], kind="stable")]
        same = key[order[1:]] == key[order[:-1]]
        edges.append((order[:-1][same], order[1:][same]))
    if not edges:
        return np.arange(n)
    a, b = (np.concatenate(column) for column in zip(*edges))
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)
