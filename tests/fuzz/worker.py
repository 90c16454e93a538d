"""Decodes the files named on standard input, one a line, and answers each with what became of it.

A process of its own, because a decoder that crashes or hangs takes its process with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import psutil

from lenext.data.decode import UnreadableImage, decode, read_size


def judge(path: Path, shrink_to: int | None) -> str:
    """`pixels`, `unreadable`, or what is wrong with the answer."""
    try:
        pixels = decode(path, shrink_to=shrink_to)
    except UnreadableImage as error:
        return "unreadable" if str(error) else "no reason given"
    except BaseException as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")
    size = read_size(path)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        return f"{type(pixels).__name__} {getattr(pixels, 'dtype', '')} {getattr(pixels, 'shape', '')}"
    if not pixels.flags.writeable or not pixels.flags.c_contiguous or not pixels.size:
        return "the pixels are read-only, not contiguous or none"
    if size is None or (shrink_to is None and size != pixels.shape[1::-1]):
        return f"the header says {size}, the pixels are {pixels.shape[1::-1]}"
    if shrink_to is not None and min(pixels.shape[:2]) < min(shrink_to, *size):
        return f"{pixels.shape[1::-1]} of {size} is less than {shrink_to}"
    return "pixels"


def main() -> None:
    process = psutil.Process()
    for line in sys.stdin:
        shrink_to, path = line.rstrip("\n").split(" ", 1)
        answer = judge(Path(path), int(shrink_to) or None)
        print(process.memory_info().rss >> 20, answer, flush=True)


if __name__ == "__main__":
    main()
