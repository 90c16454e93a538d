"""Pictures from files in batches, several decoded at once, and the next ones while the last are being worked on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from torch import Tensor

from lenext.data.decode import UnreadableImage

Item = TypeVar("Item")
# Decoders let go of Python's lock, so that threads are enough.
THREADS = min(os.cpu_count() or 1, 16)


def read_batches(
    items: Iterable[Item], read: Callable[[Item], Tensor], size: int
) -> Iterator[list[tuple[Item, Tensor | str]]]:
    """(item, its picture, or the reason why it cannot be read) in the order given, `size` at a time.

    read: an item -> its picture; it raises UnreadableImage. Items are taken as they are needed: there may be millions.
    """

    def attempt(item: Item) -> tuple[Item, Tensor | str]:
        try:
            return item, read(item)
        except UnreadableImage as error:
            return item, str(error)

    remaining = iter(items)
    pool = ThreadPoolExecutor(THREADS)
    try:
        following = [pool.submit(attempt, item) for item in islice(remaining, size)]
        while following:
            current = following
            following = [pool.submit(attempt, item) for item in islice(remaining, size)]
            yield [task.result() for task in current]
    finally:  # of one that is left early, what nobody waits for is not begun any more
        pool.shutdown(cancel_futures=True)
