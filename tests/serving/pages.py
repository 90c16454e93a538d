"""The web page of a server in this process, and questions to it as its own scripts ask them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from lenext.classifier import load
from lenext.serving.command import make_page
from lenext.serving.lazy_page import LazyPage
from tests.serving.servers import app_of, engine_of, served

NAME = "形状"
MOST_BYTES = 1_000_000
WEB = httpx.Client(verify=False, timeout=60)  # one for all: making one takes longer than most answers


@contextmanager
def page_of(run: Path) -> Iterator[str]:
    """The address of a server with the page of a run, as long as the block."""
    names = ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "GRADIO_ANALYTICS_MAX_EVENTS")
    before = {name: os.environ.get(name) for name in names}
    try:
        with engine_of(load(run), NAME) as engine:
            page = LazyPage(lambda: make_page([engine], [str(run)], MOST_BYTES))
            with served(app_of(engine, most_bytes=MOST_BYTES, page=page)) as port:
                address = f"http://127.0.0.1:{port}"
                for _ in range(600):  # until gradio is imported
                    if WEB.get(address).status_code == 200:
                        break
                    time.sleep(0.1)
                yield address
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})


def upload(address: str, data: bytes, name: str = "a.png") -> httpx.Response:
    return WEB.post(f"{address}/gradio_api/upload", files={"files": (name, data)})


@cache
def functions(address: str) -> dict[str, int]:
    """The numbers of the page's questions by their names."""
    return {f["api_name"]: f["id"] for f in WEB.get(f"{address}/config").json()["dependencies"]}


def question(address: str, picture: Any, session: str = "s") -> dict[str, Any]:
    """The page's own question about a picture."""
    return {"data": [NAME, picture], "fn_index": functions(address)["_answer"], "session_hash": session}


def ask(address: str, picture: Any, session: str = "s") -> httpx.Response:
    return WEB.post(f"{address}/gradio_api/queue/join", json=question(address, picture, session))


def read(address: str, session: str) -> Iterator[str]:
    """What the page would show, one after the other."""
    end = time.monotonic() + 60
    with WEB.stream("GET", f"{address}/gradio_api/queue/data?session_hash={session}") as events:
        for line in events.iter_lines():
            assert time.monotonic() < end, "signs of life come, but no answer"
            message = json.loads(line.removeprefix("data:") or "{}") if line.startswith("data:") else {}
            kind = message.get("msg")
            shown = message["output"].get("data") if kind in ("process_generating", "process_completed") else None
            if shown and isinstance(shown[0], str):
                yield shown[0]
            if kind == "process_completed":
                return
    raise AssertionError("the answer was broken off")


def answer(address: str, picture: Any, session: str) -> str:
    """What the page would show first."""
    assert ask(address, picture, session).status_code == 200
    return next(iter([*read(address, session), ""]))


def file_data(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}, **more}
