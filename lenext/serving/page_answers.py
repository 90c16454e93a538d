"""Answers of the web page that no browser has fetched yet, and limits on them.

The page's library puts the answers for a session, which is a page open in a browser, where the browser fetches them,
and would keep there for ever what is never fetched.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from lenext.serving.limits import Refused

MOST_UNREAD = 16  # answers of a session, those that are still being worked on among them
MOST_UNREAD_TOGETHER = 256
MOST_MESSAGES = 500  # of a session: an answer comes in a few


class Answers:
    """queues: the library's, one for each language of the page."""

    def __init__(self, queues: Sequence[Any]) -> None:
        self._queues = queues
        self._asking, self._readers = Counter[str](), Counter[str]()
        self._seen: dict[str, float] = {}  # when a session asked or read, by time.monotonic

    @contextmanager
    def asking(self, session: str) -> Iterator[None]:
        """As long as a question is handed to the library. Raises Refused where a session, or all of them, should fetch
        answers before it asks again."""
        unread = self._asking.copy()
        for queue in self._queues:
            unread.update({name: len(events) for name, events in queue.pending_event_ids_session.items()})
        if unread[session] >= MOST_UNREAD or unread.total() >= MOST_UNREAD_TOGETHER:
            raise Refused(503, "too many answers are waiting to be fetched; try again later", Retry_After="10")
        self.require_quiet(session)
        with self._counted(self._asking, session):
            yield

    def require_quiet(self, session: str) -> None:
        """Raises Refused where too many messages are waiting for a session."""
        for queue in self._queues:
            messages = queue.pending_messages_per_session.get(session)
            if messages is not None and messages.qsize() >= MOST_MESSAGES:
                raise Refused(503, "too many messages are waiting to be fetched; try again later", Retry_After="10")

    def knows(self, session: str) -> bool:
        return any(session in queue.pending_messages_per_session for queue in self._queues)

    def reading(self, session: str) -> AbstractContextManager[None]:
        """As long as a browser fetches the answers of a session."""
        return self._counted(self._readers, session)

    @contextmanager
    def _counted(self, those: Counter[str], session: str) -> Iterator[None]:
        those[session] += 1
        try:
            yield
        finally:
            self._seen[session] = time.monotonic()
            those[session] -= 1
            if not those[session]:
                del those[session]

    async def forget(self, before: float) -> None:
        """Drop the sessions that nobody has asked or read in since a time of time.monotonic."""

        def is_left(session: str) -> bool:
            is_here = session in self._readers or session in self._asking
            return not is_here and self._seen.get(session, 0) < before

        for queue in self._queues:
            for session in {*queue.pending_messages_per_session, *queue.pending_event_ids_session}:
                if is_left(session):
                    await queue.clean_events(session_hash=session)
                if is_left(session):  # nor has anybody come back meanwhile
                    queue.pending_messages_per_session.pop(session, None)
                    queue.pending_event_ids_session.pop(session, None)
        for session in [session for session in self._seen if is_left(session)]:
            del self._seen[session]
