"""Limits on who may ask, how much and how slowly, over real connections where these matter."""

from __future__ import annotations

import base64
import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from starlette.testclient import TestClient

from lenext.serving import connections, limits
from lenext.serving.engine import Engine
from lenext.serving.limits import hosts_of
from tests.data import corpus
from tests.serving.servers import BASE, answer, app_of, ask, connect, served

JPEG = corpus.good()["plain.jpg"]
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(JPEG) + JPEG


@pytest.fixture(scope="module")
def port(engine: Engine) -> Iterator[int]:
    with served(app_of(engine, hosts=hosts_of("127.0.0.1"))) as port:
        yield port


def test_headers_of_every_answer(client: TestClient) -> None:
    for reply in (client.get("/healthz"), client.get("/nothing"), client.post("/v1/predict", content=JPEG)):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
        assert "access-control-allow-origin" not in reply.headers
    assert client.get("/healthz").headers["content-security-policy"].startswith("default-src 'none'")
    assert client.options("/v1/predict", headers={"origin": "http://a.b"}).status_code == 405


def test_no_answer_says_what_serves(port: int) -> None:
    for request in (WHOLE, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"nonsense\r\n\r\n"):
        _, headers, content = ask(port, request)
        assert "server" not in headers
        assert headers["content-type"] == "application/json"
        assert "uvicorn" not in str(content).lower()


# ---- who may ask


def test_the_key_is_asked_for_in_any_of_its_forms(engine: Engine) -> None:
    with TestClient(app_of(engine, key="s3cret"), BASE) as client:
        basic = base64.b64encode(b"anyone:s3cret").decode()
        for headers in (
            {"authorization": "Bearer s3cret"},
            {"authorization": "bearer s3cret"},
            {"authorization": f"Basic {basic}"},
            {"x-api-key": "s3cret"},
        ):
            assert client.get("/v1/model", headers=headers).status_code == 200
        wrong: list[dict[str, Any]] = [
            {},
            {"authorization": "Bearer s3cre"},
            {"authorization": "Bearer "},
            {"authorization": "Basic %%%"},
            {"authorization": b"Basic \xe9"},
            {"authorization": b"Basic /////w=="},
            {"authorization": b"Bearer \xe9"},
            {"authorization": "s3cret"},
            {"x-api-key": "S3CRET"},
            {"x-api-key": ""},
        ]
        for headers in wrong:
            for path in ("/v1/model", "/metrics", "/openapi.json", "/", "/nothing"):
                refused = client.get(path, headers=headers)
                assert refused.status_code == 401
                assert "API key" in refused.json()["error"]
                assert refused.headers["www-authenticate"].startswith("Basic")
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_a_foreign_name_does_not_lead_to_a_loopback_server(port: int) -> None:
    for host in (b"evil.example", b"127.0.0.1.evil.example", b"", b"[::1].evil.example", b"localhost.:80@evil.example"):
        status, _, content = ask(port, WHOLE.replace(b"Host: 127.0.0.1", b"Host: " + host))
        assert status == 400
        assert "Host header" in content["error"]
    for host in (b"127.0.0.1:8000", b"localhost", b"LOCALHOST:1", b"[::1]:8000"):
        assert ask(port, WHOLE.replace(b"Host: 127.0.0.1", b"Host: " + host))[0] == 200


def test_which_hosts_a_server_answers_to() -> None:
    assert hosts_of("0.0.0.0") is None
    assert hosts_of("192.168.1.2") is None
    assert hosts_of("127.0.0.2") == ["localhost", "127.0.0.1", "[::1]", "127.0.0.2"]
    assert hosts_of("::1") == hosts_of("localhost") == ["localhost", "127.0.0.1", "[::1]"]


def test_foreign_web_pages_may_not_send(client: TestClient) -> None:
    refused = client.post("/v1/predict", content=JPEG, headers={"sec-fetch-site": "cross-site"})
    assert refused.status_code == 403
    assert client.post("/v1/predict", content=JPEG, headers={"sec-fetch-site": "same-origin"}).status_code == 200
    assert client.get("/healthz", headers={"sec-fetch-site": "cross-site"}).status_code == 200


# ---- how much


def test_a_large_body_is_refused_by_its_length_before_it_is_read(port: int) -> None:
    status, headers, content = ask(port, HEAD + b"Expect: 100-continue\r\nContent-Length: 999999999999\r\n\r\n")
    assert status == 413
    assert content == {"error": "the request has more than the limit of 1 MB"}
    assert headers["connection"] == "close"


def test_the_limit_holds_for_the_page_too(client: TestClient) -> None:
    refused = client.post("/gradio_api/upload", content=b"x" * 1_000_001)
    assert (refused.status_code, refused.json()) == (413, {"error": "the request has more than the limit of 1 MB"})


def test_a_large_body_without_a_length_is_counted(port: int) -> None:
    piece = b"%x\r\n" % 65_536 + b"\0" * 65_536 + b"\r\n"
    body = piece * 20 + b"0\r\n\r\n"
    status, _, content = ask(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    assert status == 413
    assert "limit of 1 MB" in content["error"]


LARGE = b"\0" * 10_000_000


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v1/predict", {"x-api-key": "wrong"}, 401),
        ("POST", "/v1/predict", {"host": "evil.example"}, 400),
        ("POST", "/v1/predict", {"sec-fetch-site": "cross-site"}, 403),
        ("POST", "/v1/predict", {"content-type": "text/plain"}, 415),
        ("POST", "/v1/predict?topk=3", {}, 400),
        ("POST", "/v1/models/none/predict", {}, 404),
        ("POST", "/nothing", {}, 404),
        ("PUT", "/v1/predict", {}, 405),
        ("GET", "/healthz", {}, 200),
    ],
)
def test_an_early_answer_reaches_who_sends_all_before_it_reads(
    engine: Engine, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    with served(app_of(engine, most_bytes=len(LARGE), key="k", hosts=hosts_of("127.0.0.1"))) as port:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
            for _ in range(2):  # the connection is whole afterwards
                connection.request(method, path, LARGE, {"content-type": "image/png", "x-api-key": "k"} | headers)
                answer = connection.getresponse()
                assert (answer.status, answer.headers["connection"]) == (status, None)
                answer.read()


def test_a_body_without_end_is_not_listened_to_for_ever(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LISTENING_SECONDS", 0.2)
    piece = b"%x\r\n" % 65_536 + b"\0" * 65_536 + b"\r\n"
    with connect(port) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(ConnectionError):
            send_on(connection, piece)


def send_on(connection: socket.socket, piece: bytes, size: int = 13 * 10**9) -> None:
    """Send the same again and again, so many bytes: 13 GB are more than any patience."""
    for _ in range(size // len(piece)):
        connection.sendall(piece)


def test_bodies_that_are_held_together_are_limited(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_of(engine)
    monkeypatch.setattr(limits, "MOST_HELD", 0)
    monkeypatch.setattr(limits, "MOST_LARGE", 0)
    with TestClient(app, BASE) as client:
        answer = client.post("/v1/predict", content=JPEG)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "2"
        assert app.held == 0
        monkeypatch.setattr(limits, "MOST_LARGE", 8)
        assert client.post("/v1/predict", content=JPEG).status_code == 200
        assert app.held == app.in_flight == 0


# ---- how slowly


def test_slow_senders_give_up_their_place(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.2)
    with served(app_of(engine)) as port:
        beginnings = [(b"", b""), (b"GET /hea", b""), (HEAD, b""), (WHOLE, b"\r\n"), (WHOLE + b"GET /", b"x")]
        for beginning, more in beginnings:
            with connect(port) as connection:
                connection.sendall(beginning)
                if more:
                    assert answer(connection)[0] == 200
                    connection.sendall(more)
                status, _, content = answer(connection)
                assert (status, content) == (408, {"error": "the request's headers came too slowly"}), beginning
        for body in (b"Content-Length: 500\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc"):
            status, headers, content = ask(port, HEAD + body)
            assert (status, content) == (408, {"error": "the request's body came too slowly"})
            assert headers["connection"] == "close"
        assert ask(port, WHOLE)[0] == 200


def test_a_byte_now_and_then_is_too_slow(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.2)
    with served(app_of(engine)) as port, connect(port) as connection:
        connection.sendall(HEAD + b"Content-Length: 500\r\n\r\n")
        connection.settimeout(0.02)
        for _ in range(400):
            try:
                connection.sendall(b"\0")
                status, _, content = answer(connection)
                break
            except TimeoutError:
                continue
        assert status == 408
        assert content == {"error": "the request's body came too slowly"}


def test_who_was_fast_may_not_be_silent(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.2)
    with served(app_of(engine)) as port, connect(port) as connection:
        connection.sendall(HEAD + b"Content-Length: 900000\r\n\r\n" + b"\0" * 800_000)
        connection.settimeout(8)  # of the 16 that so many bytes could have taken
        assert answer(connection)[0] == 408


def test_who_does_not_read_an_answer_is_left(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READER_SECONDS", 0.2)
    left = threading.Event()

    async def large(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(64):  # more than any buffer holds
            await send({"type": "http.response.body", "body": b"\0" * 1_000_000, "more_body": True})
        left.set()

    app = app_of(engine)
    app.app.router.default = large  # type: ignore[attr-defined]
    with served(app) as port, connect(port) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert left.wait(20)
