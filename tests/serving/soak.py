"""Many requests to a server that is a process of its own: none lost, and its memory as flat as at the start."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import psutil

from lenext.inference.backends import PLAIN
from tests.data import corpus
from tests.serving.test_abuse import requests
from tests.serving.test_command import serving

SENDERS = 32
FLAT = 40_000_000  # bytes that allocators may have kept since the first of the requests
JPEG = corpus.good()["plain.jpg"]


def request(body: bytes, kind: str = "image/jpeg") -> bytes:
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def send_all(address: str, bodies: Iterable[bytes], senders: int) -> Counter[int]:
    """How often each status was the answer to these requests, of so many senders at a time."""
    host, _, port = address.removeprefix("http://").partition(":")
    waiting, seen = iter(bodies), Counter[int]()

    async def sender() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for body in waiting:
            if writer.is_closing() or reader.at_eof():
                reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            answer = await reader.readexactly(length)
            status = int(head.split()[1])
            seen[status] += 1
            assert status == 200 or b'"error"' in answer
            if "connection: close" in head:
                writer.close()
        writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(senders):
            group.create_task(sender())
    return seen


def memory(process: psutil.Process) -> int:
    return process.memory_info().rss


def damaged(number: int) -> Iterator[tuple[bytes, str]]:
    """(body, type)."""
    rng, good = np.random.default_rng(1), requests()
    for _ in range(number):
        headers, body = good[rng.integers(len(good))]
        yield corpus.mutated(body, rng), headers["content-type"]


def soak(run: Path, kind: str, *, first: int, then: int, padding: int = 0) -> None:
    """Send good or damaged requests to a server of the run: `first` of them, after which it has what it needs, and
    `then` those in which its memory may not grow.

    padding: bytes behind each body, which change nothing but show sooner where one is kept.
    """

    def bodies(count: int) -> Iterator[bytes]:
        each = itertools.repeat((JPEG, "image/jpeg"), count) if kind == "good" else damaged(count)
        return (request(body + b" " * padding, type_) for body, type_ in each)

    with serving(run, "--no-page", "--backend", PLAIN) as (process, address, _):
        watched = psutil.Process(process.pid)
        seen = asyncio.run(send_all(address, bodies(first), SENDERS))
        before = memory(watched)
        seen += asyncio.run(send_all(address, bodies(then), SENDERS))
        assert memory(watched) - before < FLAT
        assert seen.total() == first + then
        assert seen.keys() <= ({200} if kind == "good" else {200, 400, 403, 413, 415, 422})
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
