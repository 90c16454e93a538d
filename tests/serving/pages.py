"""The web page of a server in this process, and questions to it as its own scripts ask them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from lenext.classifier import load
from lenext.serving.command import make_page
from lenext.serving.lazy_page import LazyPage
from tests.serving.servers import app_of, engine_of, served

NAME = "形状"
MOST_BYTES = 1_000_000


@contextmanager
def page_of(run: Path) -> Iterator[str]:
    """The address of a server with the page of a run, as long as the block."""
    before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")}
    try:
        with engine_of(load(run), NAME) as engine:
            page = LazyPage(lambda: make_page([engine], [str(run)], MOST_BYTES))
            with served(app_of(engine, most_bytes=MOST_BYTES, page=page)) as port:
                address = f"http://127.0.0.1:{port}"
                for _ in range(600):  # until gradio is imported
                    if httpx.get(address).status_code == 200:
                        break
                    time.sleep(0.1)
                yield address
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})


def upload(address: str, data: bytes, name: str = "a.png") -> httpx.Response:
    return httpx.post(f"{address}/gradio_api/upload", files={"files": (name, data)})


def ask(address: str, picture: Any, session: str = "s") -> httpx.Response:
    """The page's own question about a picture."""
    functions = httpx.get(f"{address}/config").json()["dependencies"]
    number = next(f["id"] for f in functions if len(f["inputs"]) == 2)
    question = {"data": [NAME, picture], "fn_index": number, "session_hash": session}
    return httpx.post(f"{address}/gradio_api/queue/join", json=question)


def answer(address: str, picture: Any, session: str) -> str:
    """What the page would show."""
    assert ask(address, picture, session).status_code == 200
    last = ""
    with httpx.stream("GET", f"{address}/gradio_api/queue/data?session_hash={session}", timeout=30) as events:
        for line in events.iter_lines():
            message = json.loads(line.removeprefix("data:") or "{}") if line.startswith("data:") else {}
            if message.get("msg") == "process_generating":
                last = last or message["output"]["data"][0]
            if message.get("msg") == "process_completed":
                return last
    raise AssertionError("the answer was broken off")


def file_data(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}, **more}
