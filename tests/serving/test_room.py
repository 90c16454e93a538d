"""Pixels that are decoded at a time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from lenext.serving.room import Room
from tests.data import corpus

SIDES = ((40, 30), (10, 10), (60, 20), (25, 40), (64, 64), (100, 100))  # the last is larger than the room


def test_pictures_side_by_side_never_have_more_pixels_than_there_is_room_for() -> None:
    room, held, most = Room(5000), 0, 0
    together = threading.Lock()

    def decode(side: tuple[int, int], data: bytes) -> None:
        nonlocal held, most
        with room.of(data):
            with together:
                held += min(side[0] * side[1], 5000)
                most = max(most, held)
            time.sleep(0.005)
            with together:
                held -= min(side[0] * side[1], 5000)

    files = [(side, corpus.encoded(corpus.picture(*side), "PNG")) for side in SIDES]
    with ThreadPoolExecutor(8) as pool:
        for task in [pool.submit(decode, *files[i % len(files)]) for i in range(60)]:
            task.result()
    assert 2500 < most <= 5000  # several at once, and never too many
    assert room.taken == 0


def test_what_is_no_picture_takes_no_room_and_what_fails_gives_it_back() -> None:
    room = Room(5000)
    with room.of(b"no picture"):
        assert room.taken == 0
    try:
        with room.of(corpus.encoded(corpus.picture(40, 30), "JPEG")):
            assert room.taken == 1200
            raise OSError
    except OSError:
        assert room.taken == 0
