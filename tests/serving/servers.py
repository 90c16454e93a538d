"""A server in this process, on a real port, and senders who keep to HTTP or do not."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lenext.classifier import Classifier
from lenext.inference.backends import PLAIN
from lenext.serving.app import Api, make_app
from lenext.serving.engine import Engine
from lenext.serving.limits import Gate
from lenext.serving.server import Server, listen

BASE = "http://127.0.0.1:8000"


@contextmanager
def engine_of(classifier: Classifier, name: str = "shapes", **options: Any) -> Iterator[Engine]:
    engine = Engine(classifier, name, **{"backend": PLAIN} | options)
    try:
        yield engine
    finally:
        engine.close()


def app_of(*engines: Engine, most_bytes: int = 1_000_000, allow_urls: bool = False, **limits: Any) -> Gate:
    return make_app(Api(engines, most_bytes=most_bytes, allow_urls=allow_urls), most_bytes=most_bytes, **limits)


@contextmanager
def served(app: Gate) -> Iterator[int]:
    """The port of a server of this app, which runs in a thread as long as the block."""
    ready = threading.Event()
    server = Server(app, ready=ready.set, is_busy=lambda: app.in_flight > 0)
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        assert ready.wait(20)
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def answer(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """(status, headers, what the JSON says) of one answer; status 0 where the connection ended without one."""
    data = b""
    try:
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            if not piece:
                return 0, {}, None
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            body += connection.recv(65536)
    except ConnectionError:
        return 0, {}, None
    return int(status.split()[1]), headers, json.loads(body) if body else None


def ask(port: int, request: bytes) -> tuple[int, dict[str, str], Any]:
    """What the server says to these bytes, as they are."""
    with connect(port) as connection:
        with suppress(ConnectionError):  # it may have answered before it has read all
            connection.sendall(request)
        return answer(connection)
