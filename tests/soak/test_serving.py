"""A server over tens of thousands of requests, good and damaged: none lost, and its memory as flat as at the start."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

pytest.importorskip("uvicorn", reason="serving needs lenext[serve]")

from lenext.inference.backends import PLAIN
from tests.data import corpus
from tests.serving.test_abuse import requests
from tests.serving.test_command import serving

REQUESTS = int(os.environ.get("LENEXT_REQUESTS", "50000"))
MUTATIONS = int(os.environ.get("LENEXT_MUTATIONS", "10000"))
SENDERS = 32
FLAT = 40_000_000  # bytes that allocators may have kept since the first tenth of the requests
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


def damaged(number: int) -> Iterator[bytes]:
    rng, good = np.random.default_rng(1), requests()
    for _ in range(number):
        headers, body = good[rng.integers(len(good))]
        yield request(corpus.mutated(body, rng), headers["content-type"])


@pytest.mark.parametrize("kind", ["good", "damaged"])
def test_many_requests(run: Path, kind: str) -> None:
    number = REQUESTS if kind == "good" else MUTATIONS
    first = number // 10

    def bodies(count: int) -> Iterable[bytes]:
        return (request(JPEG) for _ in range(count)) if kind == "good" else damaged(count)

    with serving(run, "--no-page", "--backend", PLAIN) as (process, address, _):
        watched = psutil.Process(process.pid)
        seen = asyncio.run(send_all(address, bodies(first), SENDERS))
        before = memory(watched)
        seen += asyncio.run(send_all(address, bodies(number - first), SENDERS))
        assert memory(watched) - before < FLAT
        assert seen.total() == number
        assert seen.keys() <= ({200} if kind == "good" else {200, 400, 403, 413, 415, 422})
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_thousand_at_once(run: Path) -> None:
    with serving(run, "--no-page", "--backend", PLAIN) as (_, address, _):
        assert asyncio.run(send_all(address, (request(JPEG) for _ in range(5000)), 1000)) == {200: 5000}


def test_the_backend_is_chosen_while_pictures_are_answered(run: Path, tmp_path: Path) -> None:
    def chosen(address: str) -> str:
        for _ in range(600):
            if (name := httpx.get(f"{address}/v1/model").json()["backend"]) != PLAIN:
                break
            assert asyncio.run(send_all(address, [request(JPEG)] * 16, 4)) == {200: 16}
            time.sleep(0.5)
        return name

    pytest.importorskip("openvino")
    with serving(run, "--no-page", XDG_CACHE_HOME=str(tmp_path)) as (_, address, _):
        first = chosen(address)
    with serving(run, "--no-page", XDG_CACHE_HOME=str(tmp_path)) as (_, address, _):
        assert chosen(address) == first != PLAIN
