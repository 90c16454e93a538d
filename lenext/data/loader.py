"""(seed, epoch, index) -> batches: the same pictures, altered in the same way, whatever the number of workers.

A worker is a process that fills whole batches in shared memory which it uses over and over: the system takes longer to
hand out fresh pages than a picture takes to resize. torch's DataLoader starts the workers, keeps them over the epochs,
feeds them ahead of time, and notices when one dies.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from lenext.data.decode import UnreadableImage
from lenext.data.transforms import Transform

Sampling = Literal["shuffled", "balanced", "weighted"]

MOST_WORKERS = 16
# Batches that a worker prepares ahead.
AHEAD = 2


class Pictures(Protocol):
    """Anything that gives uint8 pixels (H, W, 3) by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> np.ndarray: ...


def default_workers(device: torch.device, *, cached: bool) -> int:
    """How many processes should prepare batches: none where decoded pictures train on the CPU, whose cores are busy."""
    if device.type == "cpu" and cached:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, so that neighbouring parts give unrelated streams."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def epoch_order(
    n: int,
    seed: int,
    epoch: int,
    *,
    repeats: int = 1,
    labels: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """(n,) the pictures of an epoch: a permutation that depends on (seed, epoch) alone.

    repeats: every picture comes so many times in a row, and a share of 1 / repeats of the pictures comes at all.
    weights: (n,) pictures come in proportion to these, each as often as its share says, rounded up or down.
    labels: (n,) every class comes equally often, give or take one: a large one in part, a small one repeatedly.
    """
    rng = np.random.default_rng(derive_seed("order", seed, epoch))
    order, distinct = rng.permutation(n), -(-n // repeats)
    if labels is not None:
        _, label, size = np.unique(labels, return_inverse=True, return_counts=True)
        weights = 1 / size[label]
        order = order[np.argsort(label[order], kind="stable")]  # a class in one piece: equal pieces get equal counts
    if weights is None:
        order = order[:distinct]
    else:
        # Systematic sampling: equidistant marks on a line where every picture takes the length of its weight.
        edges = np.cumsum(weights[order], dtype=np.float64)
        marks = (np.arange(distinct) + rng.random()) / distinct * edges[-1]
        order = rng.permutation(order[np.searchsorted(edges, marks, side="right").clip(max=n - 1)])
    return np.repeat(order, repeats)[:n]


class _Job(NamedTuple):
    """One batch: which pictures, how many times each has come before in the epoch, and the numbers they go by."""

    epoch: int
    pictures: np.ndarray
    earlier: np.ndarray
    numbers: np.ndarray


class _Batch(Dataset[Any]):
    """A job -> its pictures (B, 3, S, S), or the error that one of them gave."""

    def __init__(self, pictures: Pictures, transform: Transform, batch_size: int, seed: int) -> None:
        self.pictures, self.transform, self.batch_size, self.seed = pictures, transform, batch_size, seed
        self.ring: list[Tensor] = []

    def __getitem__(self, job: _Job) -> Tensor | UnreadableImage:
        batch: Tensor | None = None
        for row, (index, earlier) in enumerate(zip(job.pictures.tolist(), job.earlier.tolist())):
            rng = np.random.default_rng(derive_seed("augment", self.seed, job.epoch, index, earlier))
            try:
                x = self.transform(self.pictures[index], rng)
            except UnreadableImage as error:
                return error
            if batch is None:
                batch = self._buffer(len(job.pictures), *x.shape)
            batch[row] = x
        assert batch is not None
        return batch

    def _buffer(self, B: int, C: int, H: int, W: int) -> Tensor:
        """uint8 (B, C, H, W) in channels-last memory; in a worker, memory that the training process sees too.

        A worker is asked for its next batch when an earlier one is taken, just before that one is copied: one buffer
        more than it prepares ahead is enough.
        """
        size = C * H * W
        if get_worker_info() is None:
            flat = torch.empty(B * size, dtype=torch.uint8)
        elif len(self.ring) <= AHEAD:
            flat = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(self.batch_size * size))
            self.ring.append(flat)
        else:
            flat = self.ring.pop(0)
            self.ring.append(flat)
        return flat[: B * size].view(B, H, W, C).permute(0, 3, 1, 2)


class Batches:
    """Batches (x: uint8 (B, 3, S, S) in channels-last memory, index: int64 (B,)); `index` leads to labels and weights.

    A training epoch drops the last batch if it is smaller than half a batch, where batch norm would be noisy.
    workers: processes that prepare batches, kept until the object goes; 0: the calling process does it.
    rank and world_size share every global batch among processes: the global order is the same for any number. All of
    them get equally many pictures, or they would wait for one another in vain; where that takes fillers, their index is
    N or more: they must not be counted.
    repeats: repeated augmentation (Hoffer et al. 2020, https://arxiv.org/abs/1901.09335): every picture of a global
    batch comes so many times, each time altered anew, and an epoch has as many pictures as ever.
    sampling: shuffled: every picture once; balanced: every class of `labels` (N,) equally often; weighted: in
    proportion to `weights` (N,).
    pinned: whether batches lie in memory that a GPU reads by itself.
    """

    def __init__(
        self,
        pictures: Pictures,
        transform: Transform,
        *,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 1,
        sampling: Sampling = "shuffled",
        labels: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        pinned: bool = False,
    ) -> None:
        if batch_size % repeats:
            raise ValueError(
                f"batch_size {batch_size} is not a multiple of repeats {repeats}: the copies of a picture belong in "
                "one batch"
            )
        assert labels is not None or sampling != "balanced"
        assert weights is not None or sampling != "weighted"
        self.n, self.batch_size, self.seed = len(pictures), batch_size, seed
        self.rank, self.world_size, self.repeats = rank, world_size, repeats
        self.labels = labels if sampling == "balanced" else None
        self.weights = weights if sampling == "weighted" else None
        self._jobs = _Jobs()
        self._loader: DataLoader[Any] = DataLoader(
            _Batch(pictures, transform, batch_size, seed),
            batch_size=None,  # an item is a batch
            sampler=self._jobs,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            collate_fn=_as_it_is,
            pin_memory=pinned,
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # the global one is the training's
        )

    def __len__(self) -> int:
        """Batches in a training epoch."""
        full, rest = divmod(self.n, self.batch_size)
        return max(full + (2 * rest >= self.batch_size), 1)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of one epoch, from batch number `start` on."""
        order = epoch_order(
            self.n, self.seed, epoch, repeats=self.repeats, labels=self.labels, weights=self.weights
        )  # fmt: skip
        earlier = _earlier(order)
        jobs = []
        for number in range(start, len(self)):
            first = number * self.batch_size
            B = min(self.batch_size, self.n - first)
            place = self._share(B)
            rows = first + place % B
            jobs.append(_Job(epoch, order[rows], earlier[rows], order[rows] + self.n * (place >= B)))
        return self._load(jobs)

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every picture once, in order, for evaluation, shared among the ranks as the training batches are."""
        share = self._share(self.n)
        chunks = [share[start : start + self.batch_size] for start in range(0, len(share), self.batch_size)]
        jobs = [_Job(0, chunk.clip(max=self.n - 1), np.zeros_like(chunk), chunk) for chunk in chunks]
        return self._load(jobs)

    def _share(self, n: int) -> np.ndarray:
        """Which of n places are this process's; places from n on are for fillers."""
        return np.arange(self.rank, -(-n // self.world_size) * self.world_size, self.world_size)

    def _load(self, jobs: list[_Job]) -> Iterator[tuple[Tensor, Tensor]]:
        """Raises UnreadableImage if a picture has become unreadable, RuntimeError if a worker was killed."""
        self._jobs.now = jobs
        try:
            for job, x in zip(jobs, self._loader):
                if isinstance(x, UnreadableImage):
                    raise x
                shared = self._loader.num_workers and not self._loader.pin_memory
                yield x.clone() if shared else x, torch.from_numpy(job.numbers)
                assert self._jobs.now is jobs, "another epoch was begun before this one ended"
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            # A worker that dies is noticed as such, or when the memory it has filled is asked for. What a living one
            # raises is handed on as "Caught ...".
            noticed = "DataLoader worker (pid" in str(error)
            missed = self._loader.num_workers and not isinstance(error, RuntimeError) and "Caught" not in str(error)
            if not noticed and not missed:
                raise
            raise RuntimeError(
                f"a process that prepares pictures was killed ({error}). If the memory ran out, fewer of them "
                "(--workers) or a smaller --batch-size need less; in a container, /dev/shm may be too small"
            ) from None


class _Jobs:
    """What the loader is to do next."""

    now: list[_Job]

    def __iter__(self) -> Iterator[_Job]:
        return iter(self.now)

    def __len__(self) -> int:
        return len(self.now)


def _earlier(order: np.ndarray) -> np.ndarray:
    """(n,) how often the same value stands before each position."""
    by_value = np.argsort(order, kind="stable")
    ordered = order[by_value]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    position = np.arange(len(order))
    earlier = np.empty_like(position)
    earlier[by_value] = position - np.maximum.accumulate(np.where(first, position, 0))
    return earlier


def _start_worker(_: int) -> None:
    # Ctrl-C reaches the whole group of processes; the training process ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(item: Any) -> Any:
    return item
