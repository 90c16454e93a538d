"""Room for pictures while they are decoded: side by side, but never more pixels at once than one picture may have.

A transparent picture of the largest size that is accepted takes 1.1 GiB while it is decoded (measured). 400 kB are
enough to send one, and every thread could have one at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lenext.data.decode import MAX_PIXELS, read_size


class Room:
    """most: pixels of all pictures that are decoded at a time."""

    def __init__(self, most: int = MAX_PIXELS) -> None:
        self.most, self.taken = most, 0
        self._turn = threading.Lock()  # a large picture that waits is not overtaken for ever by small ones
        self._changed = threading.Condition()

    @contextmanager
    def of(self, data: bytes) -> Iterator[None]:
        """Wait until there is room for an encoded picture, and hold it."""
        width, height = read_size(data) or (0, 0)
        pixels = min(width * height, self.most)  # more than that is refused before it takes any memory
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self.taken + pixels <= self.most)
            self.taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self.taken -= pixels
                self._changed.notify_all()
