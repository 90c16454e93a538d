"""The API does not wait for the page, and goes on where there is none."""

from __future__ import annotations

import threading
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from lenext.serving.engine import Engine
from lenext.serving.lazy_page import LazyPage
from tests.serving.servers import BASE, app_of


def page_after(wait: Callable[[], object]) -> Callable[[], Starlette]:
    def make() -> Starlette:
        wait()
        page = Starlette()
        page.mount("/", PlainTextResponse("the page"))
        return page

    return make


def test_the_page_comes_when_it_is_ready(engine: Engine) -> None:
    permission, over = threading.Event(), threading.Event()
    page = LazyPage(page_after(lambda: permission.wait(20)), over.set)
    with TestClient(app_of(engine, page=page), BASE) as client:
        coming = client.get("/")
        assert (coming.status_code, coming.headers["retry-after"]) == (503, "1")
        assert "页面正在打开" in coming.text
        assert client.get("/healthz").status_code == 200
        permission.set()
        assert over.wait(20)
        shown = client.get("/anything")
        assert (shown.status_code, shown.text) == (200, "the page")
        assert "default-src 'self'" in shown.headers["content-security-policy"]
        # Addresses of the API stay the API's.
        assert client.get("/v1/predict").status_code == 405
        assert client.get("/v1/nothing").json()["error"].startswith("there is nothing at /v1/nothing")


def test_a_page_that_cannot_be_made_leaves_the_api(engine: Engine) -> None:
    def fail() -> None:
        raise RuntimeError("no page today")

    over = threading.Event()
    with TestClient(app_of(engine, page=LazyPage(page_after(fail), over.set)), BASE) as client:
        assert over.wait(20)
        assert client.get("/").status_code == 500
        assert client.get("/healthz").status_code == 200
