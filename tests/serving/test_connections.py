"""Connections: what is no HTTP, and requests behind others that are still to be answered."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from starlette.responses import JSONResponse

from lenext.serving import connections
from lenext.serving.engine import Engine
from lenext.serving.limits import hosts_of
from tests.serving.servers import answer, app_of, ask, connect, served
from tests.serving.test_limits import HEAD, JPEG, WHOLE, send_on


@pytest.fixture(scope="module")
def port(engine: Engine) -> Iterator[int]:
    with served(app_of(engine, hosts=hosts_of("127.0.0.1"))) as port:
        yield port


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"A: %s\r\n" % (b"b" * 1000) * 70, 431),
        (b"GET /" + b"a" * 70_000, 431),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # somebody tries https
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400),
        (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /v1/models/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"BREW /v1/predict HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 200),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" + b"a: b\r\n" * 100_000, 431),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\na: " + b"b" * 1_000_000, 431),
    ],
)
def test_requests_that_are_no_good_http(port: int, request_: bytes, status: int) -> None:
    got, _, content = ask(port, request_)
    assert got == status, content
    assert status == 200 or content["error"]
    assert ask(port, WHOLE)[0] == 200


# As curl --http2 begins, and the HTTP client of Java every request.
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(JPEG), JPEG)


@pytest.mark.parametrize("body", [WHOLE.removeprefix(HEAD), CHUNKED], ids=["length", "chunks"])
@pytest.mark.parametrize("cut", [0, 40, -1000, -1])
def test_an_offer_of_another_protocol_is_declined(port: int, body: bytes, cut: int) -> None:
    request = HEAD + OFFER + body
    with connect(port) as connection:
        connection.sendall(request[: len(HEAD + OFFER) + cut] if cut >= 0 else request[:cut])
        time.sleep(0.1)
        connection.sendall(request[len(HEAD + OFFER) + cut :] if cut >= 0 else request[cut:])
        status, headers, content = answer(connection)
        assert (status, headers["connection"]) == (200, "close"), content
        assert content == ask(port, WHOLE)[2]


def test_a_body_after_an_offer_is_not_read_as_a_request(port: int) -> None:
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connect(port) as connection:
        connection.sendall(HEAD + OFFER + b"Content-Length: %d\r\n\r\n" % len(hidden))
        time.sleep(0.1)
        connection.sendall(hidden + hidden)
        status, _, content = answer(connection)
        assert (status, "not an image" in content["error"]) == (422, True)
        assert connection.recv(1) == b""


def test_connections_are_limited(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections.Connection, "most_connections", 0)
    status, headers, content = ask(port, b"")
    assert (status, headers["retry-after"], content) == (503, "2", {"error": "too many connections"})


def test_requests_on_one_connection_are_answered_in_order(port: int) -> None:
    paths = [b"/healthz", b"/v1/models", b"/nothing", b"/readyz"]
    with connect(port) as connection:
        connection.sendall(b"".join(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path for path in paths))
        data, begin = b"", time.monotonic()
        while data.count(b"HTTP/1.1") < 4 or not data.endswith(b"}"):
            data += connection.recv(65536)
            assert time.monotonic() - begin < 20
    bodies = [json.loads(reply.partition(b"\r\n\r\n")[2]) for reply in data.split(b"HTTP/1.1")[1:]]
    assert [next(iter(body)) for body in bodies] == ["status", "models", "error", "status"]


@pytest.fixture
def slow_port(engine: Engine) -> Iterator[tuple[int, threading.Event]]:
    """A server whose /slow is answered when the event is set."""
    permission = threading.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        while not permission.is_set():
            with suppress(TimeoutError):  # as an endless answer looks whether its reader has gone
                await asyncio.wait_for(receive(), 0.01)
        await JSONResponse({"slow": True})(scope, receive, send)

    app = app_of(engine)
    app.app.router.default = slow  # type: ignore[attr-defined]
    with served(app) as port:
        yield port, permission
        permission.set()


SLOW = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("line", [b"A: " + b"b" * 5000 + b"\r\n", b"b" * 5000], ids=["lines", "one line"])
def test_headers_are_limited_while_an_answer_is_pending(slow_port: tuple[int, threading.Event], line: bytes) -> None:
    with connect(slow_port[0]) as connection:
        connection.sendall(SLOW + b"GET / HTTP/1.1\r\nA: ")
        with pytest.raises(ConnectionError):
            send_on(connection, line, 50_000_000)  # more than the system keeps


def test_requests_behind_a_pending_answer_are_not_collected(slow_port: tuple[int, threading.Event]) -> None:
    with connect(slow_port[0]) as connection:
        connection.sendall(SLOW)
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            send_on(connection, SLOW * 100, 50_000_000)


def test_headers_are_timed_while_an_answer_is_pending(
    slow_port: tuple[int, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)
    with connect(slow_port[0]) as connection:
        connection.sendall(SLOW + b"GET / HTTP/1.1\r\nA: ")
        assert answer(connection)[0] == 0  # nothing is said, which would be taken for the answer to the first


def test_headers_that_are_not_listened_to_are_not_late(
    slow_port: tuple[int, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two requests the server does not read on; the third may come whenever it does."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    port, permission = slow_port
    whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connect(port) as connection:
        connection.sendall(SLOW + whole + whole[:20])
        time.sleep(1)
        permission.set()
        connection.sendall(whole[20:])
        data = b""
        while data.count(b"HTTP/1.1 200") < 3:
            piece = connection.recv(65536)
            assert piece, data
            data += piece
