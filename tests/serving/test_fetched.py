"""Addresses in a request: fetched beside one another, within one limit on their bytes and one on their time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from starlette.testclient import TestClient

from lenext.data import urls
from lenext.data.decode import UnreadableImage
from lenext.serving import limits, uploads
from lenext.serving.engine import Engine
from lenext.serving.limits import Gate
from tests.data import corpus
from tests.serving.servers import BASE, app_of
from tests.serving.test_app import encoded

JPEG = corpus.good()["plain.jpg"]
Fetch = Callable[..., bytes]


@pytest.fixture
def app(engine: Engine) -> Gate:
    return app_of(engine, allow_urls=True)


@pytest.fixture
def client(app: Gate) -> Iterator[TestClient]:
    with TestClient(app, BASE) as client:
        yield client


def rows(client: TestClient, *addresses: str) -> list[dict]:
    return client.post("/v1/predict", json={"urls": list(addresses)} | encoded(JPEG)).json()["predictions"]


def test_pictures_come_in_the_order_of_their_addresses(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(url: str, *, most_bytes: int, seconds: float, count: Callable[[int], None]) -> bytes:
        asked.append((url, most_bytes))
        if "gone" in url:
            raise UnreadableImage("404")
        return JPEG

    monkeypatch.setattr(urls, "fetch", fetch)
    found = rows(client, "http://a.b/c.jpg", "http://a.b/gone")
    assert [row["image"] for row in found] == ["", "http://a.b/c.jpg", "http://a.b/gone"]
    assert [row["error"] for row in found] == [None, None, "404"]
    assert sorted(asked) == [("http://a.b/c.jpg", 1_000_000), ("http://a.b/gone", 1_000_000)]


def parts(*sizes: int, then: Callable[[], object] = lambda: None) -> Fetch:
    """A server that gives parts of these sizes."""

    def fetch(url: str, *, most_bytes: int, seconds: float, count: Callable[[int], None]) -> bytes:
        for size in sizes:
            count(size)
        then()
        return JPEG

    return fetch


def test_one_limit_holds_for_all_addresses_together(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "fetch", parts(*[60_000] * 4))  # of a megabyte, four times of ten
    errors = [row["error"] for row in rows(client, *(f"http://a.b/{i}" for i in range(10)))]
    assert errors.count(None) == 1 + 4
    assert set(errors) == {None, "the addresses give more than the 1 MB that are allowed together"}


def test_what_was_fetched_is_counted_with_what_all_requests_hold(
    app: Gate, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    monkeypatch.setattr(urls, "fetch", parts(300_000, 300_000, then=lambda: held.append(app.held)))
    assert rows(client, "http://a.b/c")[1]["error"] is None
    assert 600_000 < held[0] < 610_000
    assert app.held == 0
    monkeypatch.setattr(limits, "MOST_HELD", 500_000)
    monkeypatch.setattr(limits, "MOST_LARGE", 0)
    refused = client.post("/v1/predict", json={"urls": ["http://a.b/c"]})
    assert (refused.status_code, refused.json()) == (503, {"error": "too many large requests at once"})
    assert app.held == 0


def test_one_limit_holds_for_the_time_of_all_addresses(
    app: Gate, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    permission, late = threading.Event(), []

    def silent(url: str, *, most_bytes: int, seconds: float, count: Callable[[int], None]) -> bytes:
        assert seconds <= 0.3
        permission.wait(20)
        try:
            count(1000)
        except Exception as error:
            late.append(error)
            raise
        return JPEG

    monkeypatch.setattr(uploads, "URLS_SECONDS", 0.3)
    monkeypatch.setattr(urls, "fetch", silent)
    errors = [row["error"] for row in rows(client, *(f"http://a.b/{i}" for i in range(50)))]
    assert errors == [None] + ["the addresses did not give everything within 0.3 seconds"] * 50
    permission.set()
    uploads.FETCHERS.submit(lambda: None).result(20)
    while len(late) < uploads.FETCHED_TOGETHER:
        threading.Event().wait(0.01)
    assert app.held == 0  # what comes after the answer is kept no more


def test_strangers_servers_hold_up_no_other_request(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even those of one sender who names as many as may be named."""
    permission, waiting = threading.Event(), threading.Semaphore(0)

    def fetch(url: str, *, most_bytes: int, seconds: float, count: Callable[[int], None]) -> bytes:
        if "silent" in url:
            waiting.release()
            permission.wait(20)
        return JPEG

    monkeypatch.setattr(urls, "fetch", fetch)
    slow = threading.Thread(target=lambda: rows(client, *["http://a.b/silent"] * 100))
    slow.start()
    for _ in range(uploads.FETCHED_TOGETHER):
        assert waiting.acquire(timeout=20)
    assert [row["error"] for row in rows(client, "http://a.b/c")] == [None, None]
    assert slow.is_alive()
    permission.set()
    slow.join(20)
