"""`lenext serve` as a process: it is ready soon, answers all who ask at once, and ends as it is told."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from lenext.classifier import load
from lenext.inference.backends import PLAIN
from tests.data import corpus
from tests.serving.servers import answer, connect

JPEG = corpus.good()["plain.jpg"]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "lenext.cli", "serve", *map(str, arguments)]


@contextmanager
def serving(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen, str, float]]:
    """(the process, its address, the seconds that it needed by its own account)."""
    with subprocess.Popen(
        command(*arguments, "--port", 0),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            found = re.fullmatch(r"ready at (http://\S+) \((\d+\.\d) s\)\n", line)
            assert found, (line, process.stderr and process.stderr.read())
            yield process, found[1], float(found[2])
        finally:
            process.kill()


def test_the_life_of_a_server(run: Path) -> None:
    expected = load(run).predict(JPEG, backend=PLAIN)

    async def ask_at_once(address: str, number: int) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=address, limits=httpx.Limits(max_connections=64), timeout=60) as client:
            return await asyncio.gather(*(client.post("/v1/predict", content=JPEG) for _ in range(number)))

    with serving(run, "--no-page", LENEXT_API_KEY="") as (process, address, seconds):
        assert 0 < seconds < 60  # of its own clock; how fast it is is measured elsewhere
        answers = asyncio.run(ask_at_once(address, 300))
        assert [reply.status_code for reply in answers] == [200] * 300
        for reply in answers:
            row = reply.json()["predictions"][0]
            assert row["label"] == expected.label
            assert row["probability"] == pytest.approx(expected.probability, abs=1e-3)
        assert httpx.get(f"{address}/").json()["error"].startswith("there is nothing at /")
        # One request is half sent when the server is told to stop; it is answered all the same, a new one is not.
        with connect(int(address.rpartition(":")[2])) as connection:
            head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(JPEG)
            connection.sendall(head + JPEG[:100])
            metrics = httpx.get(f"{address}/metrics").text
            assert 'lenext_pictures_total{model="run",outcome="answered"} 300.0' in metrics
            process.send_signal(signal.SIGTERM)
            for _ in range(1000):
                try:
                    httpx.get(f"{address}/healthz")
                except httpx.NetworkError:  # or it was reset: it waited while the socket was closed
                    break
                time.sleep(0.01)
            else:
                raise AssertionError("new requests are still taken")
            assert process.stderr
            assert any(line.startswith("stopping: ") for line in process.stderr)  # at once, while it still answers
            connection.sendall(JPEG[100:])
            assert answer(connection)[0] == 200
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read()


def test_ctrl_c_and_a_key_from_the_environment(run: Path) -> None:
    with serving(run, run, "--no-page", "--backend", PLAIN, LENEXT_API_KEY="abc") as (process, address, _):
        assert httpx.get(f"{address}/v1/models").status_code == 401
        reply = httpx.get(f"{address}/v1/models", headers={"x-api-key": "abc"})
        assert reply.json() == {"models": ["run", "run-2"]}
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr
        assert process.stderr.read().strip().endswith("interrupted")


def test_requests_that_cannot_be_served(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = {
            ("--port", port): (1, f"port {port} of 127.0.0.1 is in use; choose another with --port"),
            ("--port", 70000): (2, "--port is 70000"),
            ("--host", "203.0.113.1"): (1, "cannot listen on port"),
            ("--backend", "fastest"): (2, "there is no backend 'fastest'"),
            ("--max-upload", 0): (2, "--max-upload is 0"),
            ("--queue", 0): (2, "--queue is 0"),
            ("--api-key", "ключ"): (2, "the API key travels in a header"),
        }
        # They start at the same time: most of each is the start of Python.
        started = {options: subprocess.Popen(command(run, *options), stderr=subprocess.PIPE) for options in cases}
        for options, (status, reason) in cases.items():
            _, said = started[options].communicate(timeout=120)
            assert started[options].returncode == status, (options, said)
            assert reason in said.decode(), options
