"""Whoever asks the page and does not fetch the answers fills no memory, and holds up nobody else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the web page needs lenext[serve]")

from lenext.serving import page, page_answers, page_view
from lenext.serving.limits import Refused
from lenext.serving.page_answers import MOST_MESSAGES, MOST_UNREAD, Answers
from tests.data import corpus
from tests.serving.pages import WEB, answer, ask, file_data, page_of, read, upload

PICTURE = corpus.good()["plain.jpg"]


class Watched(Answers):
    """The answers of the page's newest server, for the tests to look at."""

    newest: Watched

    def __init__(self, queues: Any) -> None:
        super().__init__(queues)
        Watched.newest = self

    def unread(self) -> int:
        return sum(len(ids) for queue in self._queues for ids in queue.pending_event_ids_session.values())

    def messages(self) -> int:
        return sum(each.qsize() for queue in self._queues for each in queue.pending_messages_per_session.values())

    def waiting(self) -> int:
        return sum(len(queue) for queue in self._queues)


@pytest.fixture(scope="module")
def address(run) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "Answers", Watched)
        patch.setattr(page, "LOOKED_AFTER_SECONDS", 0.1)
        patch.setattr(page, "UNREAD_SECONDS", 600)
        with page_of(run) as address:
            yield address


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test leaves is forgotten after it."""
    yield
    monkeypatch.setattr(page, "UNREAD_SECONDS", 0)
    until(lambda: Watched.newest.unread() == 0)


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def ask_many(address: str, sessions: list[str], picture: Any) -> Counter[int]:
    """How often each status was the answer."""

    def send(session: str) -> int:
        reply = ask(address, picture, session)
        assert reply.status_code == 200 or reply.json()["error"]
        return reply.status_code

    with ThreadPoolExecutor(8) as senders:
        return Counter(senders.map(send, sessions))


@pytest.mark.usefixtures("forgotten")
def test_a_session_fetches_its_answers_before_it_asks_more(address: str) -> None:
    picture = file_data(upload(address, PICTURE).json()[0])
    statuses = ask_many(address, ["greedy"] * 300, picture)
    assert statuses.keys() == {200, 503}
    assert 1 < statuses[200] == Watched.newest.unread() <= MOST_UNREAD
    assert Watched.newest.messages() < 10 * MOST_UNREAD
    for _ in range(MOST_UNREAD):
        refused = ask(address, picture, "greedy")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
    assert "waiting to be fetched" in refused.json()["error"]
    assert "lx-ranked" in answer(address, picture, "another")
    while Watched.newest._queues[0].pending_event_ids_session.get("greedy"):
        list(read(address, "greedy"))
    assert ask(address, picture, "greedy").status_code == 200


@pytest.mark.usefixtures("forgotten")
def test_all_sessions_together_are_limited(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_answers, "MOST_UNREAD_TOGETHER", 20)
    picture = file_data(upload(address, PICTURE).json()[0])
    statuses = ask_many(address, [f"one-{i}" for i in range(60)], picture)
    assert 1 < statuses[200] <= 20
    assert statuses[503] == 60 - statuses[200]


def test_what_nobody_fetches_is_forgotten(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = file_data(upload(address, PICTURE).json()[0])
    assert ask(address, picture, "left").status_code == 200
    assert Watched.newest.knows("left")
    monkeypatch.setattr(page, "UNREAD_SECONDS", 0)
    until(lambda: not Watched.newest.knows("left"))
    assert Watched.newest.unread() == Watched.newest.messages() == 0
    reply = WEB.get(f"{address}/gradio_api/queue/data?session_hash=left")
    assert reply.status_code == 404
    assert "too long ago" in reply.json()["error"]
    monkeypatch.setattr(page, "UNREAD_SECONDS", 600)
    assert "lx-ranked" in answer(address, picture, "left")  # it may come back


@pytest.mark.usefixtures("forgotten")
def test_a_slow_heat_map_holds_up_no_prediction_and_the_queue_has_an_end(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    permission, explained = threading.Event(), []

    def slow(classifier: Any, pixels: Any) -> dict[str, Any]:
        assert permission.wait(60)
        explained.append(1)
        return {}

    monkeypatch.setattr(page_view, "heat_pictures", slow)
    picture = file_data(upload(address, PICTURE).json()[0])
    try:
        # More than there are threads, and fewer than the library has workers.
        assert ask_many(address, [f"slow-{i}" for i in range(35)], picture) == {200: 35}
        assert ask(address, picture, "quick").status_code == 200
        assert "lx-ranked" in next(read(address, "quick"))
        assert upload(address, PICTURE).status_code == 200
        statuses = ask_many(address, [f"more-{i}" for i in range(120)], picture)
        assert statuses[503] > 0
        assert statuses[200] <= 5 + page.QUEUE + 1
        assert Watched.newest.waiting() <= page.QUEUE
    finally:
        permission.set()
    until(lambda: Watched.newest.waiting() == 0)
    assert explained


# ---- without a server


class Queue:
    """As much of the library's queue as is used."""

    def __init__(self) -> None:
        self.pending_messages_per_session: dict[str, Any] = {}
        self.pending_event_ids_session: dict[str, set[str]] = {}
        self.meanwhile: Callable[[], object] = lambda: None

    def put(self, session: str, messages: int = 1) -> None:
        self.pending_messages_per_session[session] = SimpleNamespace(qsize=lambda: messages)
        self.pending_event_ids_session[session] = {"event"}

    async def clean_events(self, *, session_hash: str) -> None:
        self.meanwhile()


def test_a_session_that_is_read_or_comes_back_is_not_forgotten() -> None:
    queue = Queue()
    answers = Answers([queue])
    for session in ("read", "back", "left"):
        with answers.asking(session):
            queue.put(session)

    def come_back() -> None:
        with answers.asking("back"):
            pass

    queue.meanwhile = come_back
    with answers.reading("read"), answers.reading("read"), answers.asking("asks"):
        queue.put("asks")
        asyncio.run(answers.forget(time.monotonic()))
        assert answers.knows("read")
        assert answers.knows("asks")
        assert answers.knows("back")
        assert not answers.knows("left")
    queue.meanwhile = lambda: None
    asyncio.run(answers.forget(time.monotonic() - 60))  # it has just read
    assert answers.knows("read")
    asyncio.run(answers.forget(time.monotonic() + 1))
    assert not queue.pending_messages_per_session
    assert not queue.pending_event_ids_session
    assert not answers._seen


def test_the_messages_of_a_session_are_limited() -> None:
    queue = Queue()
    answers = Answers([Queue(), queue])
    queue.put("s", MOST_MESSAGES)
    with pytest.raises(Refused, match="too many messages"), answers.asking("s"):
        pass
    with pytest.raises(Refused, match="too many messages"):
        answers.require_quiet("s")
    answers.require_quiet("another")
