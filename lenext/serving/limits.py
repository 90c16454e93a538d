"""What every request goes through before anything reads it: who may ask, how much, how slowly, and with what headers
the answer leaves.

A body is counted as it arrives and refused before it is kept; a sender who is too slow gives up its place. Nothing here
trusts what a request says of itself.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A sender may be silent for so many seconds, and is never too slow with so many bytes a second. Sending faster at first
# earns no longer silence afterwards.
BODY_SECONDS, BODY_RATE = 10.0, 50_000
# Who is answered before all is sent is listened to for so long: a broken connection would lose the answer.
LISTENING_SECONDS = 2.0
# All bodies that are being read or worked on together, at least this much and this many of the largest.
MOST_HELD, MOST_LARGE = 256_000_000, 8
OPEN = frozenset(("/healthz", "/readyz"))
API = ("/v1/", "/healthz", "/readyz", "/metrics", "/openapi.json")

SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
API_POLICY = "default-src 'none'; frame-ancestors 'none'"
# The web page has its scripts, styles and fonts within; it shows pictures that it made itself and uses the camera.
PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)


class Refused(HTTPException):
    """A request that is answered with {"error": reason} and a status of 4xx or 503."""

    def __init__(self, status: int, reason: str, **headers: str) -> None:
        super().__init__(status, reason, {name.replace("_", "-"): value for name, value in headers.items()})


def error(status: int, reason: str, headers: Any = None) -> JSONResponse:
    """The one form that errors have."""
    return JSONResponse({"error": reason}, status, headers)


@dataclass
class Gate:
    """ASGI middleware around everything that the server answers.

    most_bytes: of a body. key: what a sender must know, if anything. hosts: the names under which the server may be
    asked, so that no foreign web page can come in by a name of its own that leads here; None: any.
    observe: called with the scope, the status and the seconds of every request.
    in_flight: requests to the API that are being answered. held: bytes of all that are being read or worked on.

    What is fetched for a request is counted with `request.state.hold`.
    """

    app: ASGIApp
    most_bytes: int
    key: str | None = None
    hosts: Sequence[str] | None = None
    observe: Callable[[Scope, int, float], None] = lambda scope, status, seconds: None
    in_flight: int = 0
    held: int = 0
    counting: threading.Lock = field(default_factory=threading.Lock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.monotonic(), 500
        of_api = is_api(scope)
        body = _Body(self, receive, "expect" in Headers(scope=scope))
        scope = {**scope, "state": {**scope.get("state", {}), "hold": body.hold}}

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, headers = message["status"], _with_security(message.get("headers", ()), of_api)
                if not await body.discard():
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        self.in_flight += of_api
        try:
            refused = self._refusal(scope)
            if refused is None:
                await self.app(scope, body.receive, send_with_headers)
                return
            response = error(refused.status_code, refused.detail, refused.headers)
            await response(scope, receive, send_with_headers)
        finally:
            self.in_flight -= of_api
            body.let_go()
            self.observe(scope, status, time.monotonic() - begin)

    def _refusal(self, scope: Scope) -> Refused | None:
        headers = Headers(scope=scope)
        if self.hosts is not None and _host(headers.get("host", "")) not in self.hosts:
            return Refused(400, f"this server answers to {', '.join(self.hosts)} only; the Host header says otherwise")
        if headers.get("sec-fetch-site") == "cross-site" and scope["method"] not in ("GET", "HEAD"):
            return Refused(403, "web pages of other sites may not send anything here")
        if self.key is not None and scope["path"] not in OPEN and not _knows(headers, self.key):
            return Refused(
                401,
                "an API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY",
                WWW_Authenticate='Basic realm="LeNeXt, any user name, the API key as password", charset="UTF-8"',
            )
        with suppress(ValueError):
            if int(headers.get("content-length", "0")) > self.most_bytes:
                return _too_large(self.most_bytes)
        return None


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the request has more than the limit of {limit / 1e6:g} MB")


class _Body:
    """The body of one request, counted and timed as it arrives."""

    def __init__(self, gate: Gate, receive: Receive, waits_for_consent: bool) -> None:
        self._gate, self._receive, self._waits_for_consent = gate, receive, waits_for_consent
        self._deadline, self._complete = time.monotonic() + BODY_SECONDS, False
        self._size = self._held = 0  # bytes of the body, and those with what is held for it
        self._is_over = False

    async def receive(self) -> Message:
        if self._complete:  # what may come now is only that the sender has gone
            return await self._receive()
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise Refused(408, "the request's body came too slowly") from None
        size, self._waits_for_consent = len(message.get("body", b"")), False
        self._deadline = min(self._deadline + size / BODY_RATE, time.monotonic() + BODY_SECONDS)
        self._size += size
        self._complete = not message.get("more_body", False)
        if self._size > self._gate.most_bytes:
            raise _too_large(self._gate.most_bytes)
        self.hold(size)
        return message

    def hold(self, size: int) -> None:
        """Count bytes that are kept for the request until it is answered. May be called from any thread. Raises
        Refused where all requests together hold too much, and when it is answered."""
        gate = self._gate
        with gate.counting:
            if self._is_over:
                raise Refused(400, "the request is over")
            self._held += size
            gate.held += size
            is_too_much = gate.held > max(MOST_HELD, MOST_LARGE * gate.most_bytes)
        if is_too_much:
            raise Refused(503, "too many large requests at once", Retry_After="2")

    def let_go(self) -> None:
        with self._gate.counting:
            self._gate.held -= self._held
            self._is_over = True

    async def discard(self) -> bool:
        """Listen to the rest for a while, without keeping it. Whether all has come then."""
        if not self._waits_for_consent:
            with suppress(TimeoutError):
                async with asyncio.timeout(LISTENING_SECONDS):
                    while not self._complete:
                        self._complete = not (await self._receive()).get("more_body", False)
        return self._complete


def is_api(scope: Scope) -> bool:
    """Whether a request is to the API; everything else is to the web page."""
    return scope["path"].startswith(API)


def _with_security(headers: Sequence[tuple[bytes, bytes]], of_api: bool) -> list[tuple[bytes, bytes]]:
    policy = API_POLICY if of_api else PAGE_POLICY
    wanted = SECURITY | {"content-security-policy": policy} | ({"cache-control": "no-store"} if of_api else {})
    there = {name.lower() for name, _ in headers}
    more = [(name.encode(), value.encode()) for name, value in wanted.items() if name.encode() not in there]
    return [*headers, *more]


def _knows(headers: Headers, key: str) -> bool:
    """Whether a sender has the key, compared in a time that does not tell how much of it is right."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    given = [headers.get("x-api-key", "")]
    if scheme.lower() == "bearer":
        given.append(value.strip())
    elif scheme.lower() == "basic":  # a browser asks its user
        with suppress(ValueError):  # no base64, no ASCII, no UTF-8
            given.append(base64.b64decode(value).decode().partition(":")[2])
    return any(hmac.compare_digest(text.encode(), key.encode()) for text in given)


def _host(header: str) -> str:
    """The Host header without its port; empty where it is malformed."""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^\[\]:@/]+)(:\d*)?", header.lower())
    return found[1] if found else ""


def hosts_of(host: str) -> list[str] | None:
    """The names for a server that listens on `host`: on a loopback address the usual ones, elsewhere any."""
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    own = f"[{host}]" if ":" in host else host
    return list(dict.fromkeys(["localhost", "127.0.0.1", "[::1]", own])) if is_loopback else None
