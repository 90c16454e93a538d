"""Connections that cannot be held for nothing: limits on how many there are, and on how long they take.

uvicorn waits for ever for the headers of a request and for a reader who does not read. Here both end, and what is
refused before there is a request is refused in JSON as everything else. Nor does it bear the offer of another protocol
beside a body, which some clients make with every request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sized
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 10.0
READER_SECONDS = 20.0
MOST_HEADER_BYTES = 65_536
MOST_CONNECTIONS = 2048


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with these limits."""

    most_connections = MOST_CONNECTIONS
    _head_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0  # of headers, and of trailers: all since the last that were a body's

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        if len(self.connections) > self.most_connections:
            self._refuse(503, "too many connections", retry_after=2)
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        if not self._is_answering:
            self._await_head()
        self._unset_keepalive_if_required()
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade()
            self.data_received(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(400, "this is not a valid HTTP request")
        else:
            # What begins amid these bytes is counted from the next ones on: no more come at once than a read gives.
            if self._head_bytes > MOST_HEADER_BYTES and not self.transport.is_closing():
                self._refuse(431, f"the request's headers have more than {MOST_HEADER_BYTES} bytes")

    def _decline_upgrade(self) -> None:
        """Go on in HTTP/1.1, until the end of this request: the parser takes its body for the other protocol."""
        self.cycle.keep_alive = False
        framing = [line for line in self.headers if line[0] in (b"content-length", b"transfer-encoding")]
        self.parser = httptools.HttpRequestParser(_Body(self))
        self.parser.feed_data(b"".join([b"POST / HTTP/1.1\r\n", *(b"%s: %s\r\n" % line for line in framing), b"\r\n"]))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()  # also of a request that is sent before the one in front of it is answered

    def on_headers_complete(self) -> None:
        self._stop(self._head_timer)
        self._head_timer, self._head_bytes = None, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader_timer = self.loop.call_later(READER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop(self._reader_timer)

    def timeout_keep_alive_handler(self) -> None:
        # Where the loop was held up, the next request may have come in time and not been read.
        self.timeout_keep_alive_task = self.loop.call_later(0.1, self._close_idle)

    def _close_idle(self) -> None:
        if self.transport.get_write_buffer_size():  # an answer that nobody reads would keep a closed connection
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop(self._head_timer)
        super().connection_lost(exc)
        self._stop(self._reader_timer)

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._head_timer = None
        if self.flow.read_paused:  # it is we who do not listen: requests before it are still to be answered
            self._await_head()
        elif not self.transport.is_closing():
            self._refuse(408, "the request's headers came too slowly")

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _owes_another_answer(self) -> bool:
        """Whether what is said now would be read as the answer to a request before, or as a part of one."""
        is_whole = self._is_answering and (self.cycle.response_started or not self.cycle.more_body)
        return is_whole or bool(self.pipeline)

    def _refuse(self, status: int, reason: str, **headers: Any) -> None:
        if self._owes_another_answer:
            self.transport.abort()
            return
        body = json.dumps({"error": reason}).encode()
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


class _Body:
    """Of what a parser finds, only what belongs to the body of the request that a connection has."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._is_whole = connection, False

    def on_body(self, body: bytes) -> None:
        if not self._is_whole:
            self._connection.on_body(body)

    def on_message_complete(self) -> None:
        self._is_whole = True
        self._connection.on_message_complete()


class _Flow(FlowControl):
    """Reads nothing more while there are `requests` behind the one that is being answered, whoever waits for it."""

    def __init__(self, transport: asyncio.Transport, requests: Sized) -> None:
        super().__init__(transport)
        self._requests = requests

    def resume_reading(self) -> None:
        if not self._requests:
            super().resume_reading()
