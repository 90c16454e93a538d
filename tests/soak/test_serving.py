"""A server over tens of thousands of requests, good and damaged: none lost, and its memory as flat as at the start."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import httpx
import pytest

pytest.importorskip("uvicorn", reason="serving needs lenext[serve]")

from lenext.inference.backends import PLAIN
from tests.serving.soak import JPEG, request, send_all, soak
from tests.serving.test_command import serving

REQUESTS = int(os.environ.get("LENEXT_REQUESTS", "50000"))
MUTATIONS = int(os.environ.get("LENEXT_MUTATIONS", "10000"))


@pytest.mark.parametrize("kind", ["good", "damaged"])
def test_many_requests(run: Path, kind: str) -> None:
    number = REQUESTS if kind == "good" else MUTATIONS
    soak(run, kind, first=number // 10, then=number - number // 10)


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
