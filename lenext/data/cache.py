"""Decode every picture once: pixels packed in memory, and the list of files that give none.

Reading the files first has two gains: training never waits for a decoder, and a broken file is known by name
before the run starts instead of killing it in the night.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from lenext.data.decode import UnreadableImage, decode

# Of the memory that is free: the rest belongs to the network, its gradients and the other programs.
MEMORY_SHARE = 0.35


@dataclass(frozen=True)
class PackedImages:
    """Decoded pictures, or the way to decode them again where they do not fit into memory.

    paths: the files; pixels: uint8 (H, W, 3) for each file, None where it is decoded on demand or unreadable;
    reasons: {index: why the file gives no pixels}.
    """

    paths: tuple[Path, ...]
    pixels: list[np.ndarray | None]
    reasons: dict[int, str]
    short_side: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        stored = self.pixels[index]
        return stored if stored is not None else _load(self.paths[index], self.short_side)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    @property
    def readable(self) -> np.ndarray:
        """Indices of the files that give pixels."""
        return np.array([i for i in range(len(self)) if i not in self.reasons], dtype=np.int64)


def pack(paths: Sequence[Path], short_side: int, progress: Callable[[int], None] = lambda n: None) -> PackedImages:
    """Decode all files in parallel; pictures whose short side exceeds `short_side` are shrunk to it (antialiased).

    Reports the number of finished files to `progress`. Past a share of the free memory, further pictures are only
    checked and will be decoded again when they are needed.
    """
    budget = psutil.virtual_memory().available * MEMORY_SHARE
    pixels: list[np.ndarray | None] = [None] * len(paths)
    reasons: dict[int, str] = {}

    def load(index: int) -> np.ndarray | str:
        try:
            return _load(paths[index], short_side)
        except UnreadableImage as error:
            return str(error)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for index, result in enumerate(pool.map(load, range(len(paths)))):
            if isinstance(result, str):
                reasons[index] = result
            elif result.nbytes <= budget:
                pixels[index] = result
                budget -= result.nbytes
            progress(index + 1)
    return PackedImages(tuple(paths), pixels, reasons, short_side)


def _load(path: Path, short_side: int) -> np.ndarray:
    image = decode(path, shrink_to=short_side)
    height, width, _ = image.shape
    if min(height, width) <= short_side:
        return image
    scale = short_side / min(height, width)
    size = (max(round(width * scale), short_side), max(round(height * scale), short_side))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0))
