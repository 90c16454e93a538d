"""(seed, epoch, index) -> batches: the same pictures, altered in the same way, whatever the number of workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lenext.data.transforms import Transform


class Pictures(Protocol):
    """Anything that gives uint8 pixels (H, W, 3) by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> np.ndarray: ...


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, so that neighbouring parts give unrelated streams."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """(n,) a permutation that depends on (seed, epoch) alone."""
    return np.random.default_rng(derive_seed("order", seed, epoch)).permutation(n)


class _Augmented(Dataset[tuple[Tensor, int]]):
    """Item (epoch, index) -> (picture (3, S, S), index), its randomness drawn from (seed, epoch, index) alone."""

    def __init__(self, pictures: Pictures, transform: Transform, seed: int) -> None:
        self.pictures, self.transform, self.seed = pictures, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        torch.manual_seed(derive_seed("augment", self.seed, epoch, index))
        return self.transform(self.pictures[index]), index


class Batches:
    """Batches (x: uint8 (B, 3, S, S), index: int64 (B,)) of pictures; `index` leads to labels and weights.

    A training epoch drops the last batch if it is smaller than half a batch, where batch norm would be noisy.
    rank and world_size share every global batch among processes: the global order is the same for any number.
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
    ) -> None:
        self.dataset = _Augmented(pictures, transform, seed)
        self.n, self.batch_size, self.seed, self.workers = len(pictures), batch_size, seed, workers
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        """Batches in a training epoch."""
        full, rest = divmod(self.n, self.batch_size)
        return max(full + (2 * rest >= self.batch_size), 1)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of one epoch, shuffled."""
        order = epoch_order(self.n, self.seed, epoch)
        chunks = [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self))]
        return self._load(epoch, [chunk[self.rank :: self.world_size] for chunk in chunks])

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every picture once, in order: for evaluation."""
        starts = range(0, self.n, self.batch_size)
        return self._load(0, [np.arange(start, min(start + self.batch_size, self.n)) for start in starts])

    def _load(self, epoch: int, chunks: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        batches = [[(epoch, int(index)) for index in chunk] for chunk in chunks if len(chunk)]
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=batches,
                num_workers=self.workers,
                pin_memory=torch.cuda.is_available(),
            )
        )
