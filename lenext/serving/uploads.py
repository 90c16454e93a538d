"""The pictures of a request: files of a form, base64 or addresses in JSON, or the body itself.

Everything stays in memory, within limits on the body and on what addresses give; a name is text that is given back and
never opened.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from lenext.config import nearest
from lenext.data.dataset import writable
from lenext.data.decode import UnreadableImage
from lenext.serving.limits import Refused

MOST_PICTURES = 128  # of a request
URL_SECONDS, URLS_SECONDS = 10.0, 20.0  # of one address, and of all that a request names
# The default threads read files for others, who should not wait for strangers' servers; nor should one request's
# addresses take all that there are.
FETCHERS = ThreadPoolExecutor(32, thread_name_prefix="fetch")
FETCHED_TOGETHER = 8
# Quotes, commas and brackets of a request in JSON. It is read while nobody else is answered, and a request needs few.
MOST_MARKS = 10_000
KINDS = "multipart/form-data with the field 'file', application/json, or a picture itself as image/* "
KINDS += "or application/octet-stream"


@dataclass
class Upload:
    """name: as it was sent. data: the encoded picture. error: why there is none."""

    name: str
    data: bytes = b""
    error: str | None = None

    def __post_init__(self) -> None:
        self.name = writable(self.name)  # it may hold half of a character, which no answer can be written with


async def read(request: Request, *, allow_urls: bool, most_bytes: int) -> list[Upload]:
    """The pictures of a request, at least one. most_bytes: of what its addresses give together. Raises Refused."""
    kind = kind_of(request)
    if kind == "multipart/form-data":
        return await from_form(request, "file")
    if kind == "application/json":
        images, urls = _from_json(await request.body(), allow_urls)
        return [*map(_decoded, images), *await _fetched(urls, _Allowance(most_bytes, request.state.hold))]
    if kind in ("", "application/octet-stream") or kind.startswith("image/"):
        return [Upload("", _not_empty(await request.body()))]
    raise Refused(415, f"pictures cannot be sent as {kind}; send {KINDS}")


def kind_of(request: Request) -> str:
    """The type of the body, without its parameters. Raises Refused."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "the body must be sent without Content-Encoding")
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


# ---- forms


class _Form(MultiPartParser):
    """Files stay in memory: there are limits on the body and on all bodies together."""

    spool_max_size = 2**40
    has_ended = False

    def on_end(self) -> None:
        self.has_ended = True


async def from_form(request: Request, name: str) -> list[Upload]:
    """The files of a form, at least one. name: of the field that they are in, the only one. Raises Refused."""
    parser = _Form(request.headers, request.stream(), max_files=MOST_PICTURES, max_fields=MOST_PICTURES)
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError) as error:  # ValueError: of the charset that it says it is written in
        raise Refused(400, f"the form is damaged: {error}") from None
    try:
        if not parser.has_ended:
            raise Refused(400, "the form is cut off: its last boundary is missing")
        uploads = []
        for field, value in form.multi_items():
            if field != name:
                raise Refused(400, f"unknown field {field!r}{nearest(field, [name])}; pictures are sent as '{name}'")
            if not isinstance(value, UploadFile):
                raise Refused(400, f"the field '{name}' holds text; it must be sent as a file, with a file name")
            uploads.append(Upload(value.filename or "", await value.read()))
    finally:
        await form.close()
    if not uploads:
        raise Refused(400, f"the form has no field '{name}'")
    return uploads


# ---- JSON


def _from_json(body: bytes, allow_urls: bool) -> tuple[list[str], list[str]]:
    """(pictures as base64, addresses)."""
    content = _parse(_not_empty(body))
    known = ("images", "urls")
    if not isinstance(content, dict) or not content:
        raise Refused(400, 'the JSON must be an object like {"images": ["<base64>"]}')
    for key in content:
        if key not in known:
            raise Refused(400, f"unknown key {key!r}{nearest(key, known)}; the keys are 'images' and 'urls'")
    if "urls" in content and not allow_urls:
        raise Refused(403, "this server does not fetch pictures from addresses; it would with --allow-urls")
    images, urls = _texts(content, "images"), _texts(content, "urls")
    if not images and not urls:
        raise Refused(400, "the JSON names no pictures")
    if len(images) + len(urls) > MOST_PICTURES:
        raise Refused(400, f"at most {MOST_PICTURES} pictures can be sent at once")
    return images, urls


def _parse(body: bytes) -> Any:
    if sum(map(body.count, (b'"', b",", b"[", b"{"))) > MOST_MARKS:
        raise Refused(400, f"the JSON holds far more than {MOST_PICTURES} pictures")
    try:
        return json.loads(body)
    except RecursionError:
        raise Refused(400, "the JSON is nested too deeply") from None
    except ValueError as error:
        raise Refused(400, f"this is not valid JSON: {error}") from None


def _texts(content: dict[str, Any], key: str) -> list[str]:
    values = content.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise Refused(400, f"'{key}' must be a list of texts")
    return values


def _decoded(text: str) -> Upload:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return Upload("", base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return Upload("", error="not base64")


def _not_empty(body: bytes) -> bytes:
    if not body:
        raise Refused(400, f"the request is empty; send {KINDS}")
    return body


# ---- addresses


class _Allowance:
    """What the addresses of one request may give together. hold: counts it with what all requests hold."""

    def __init__(self, most_bytes: int, hold: Callable[[int], None]) -> None:
        self.most_bytes, self._hold = most_bytes, hold
        self._left, self._lock = most_bytes, threading.Lock()
        self._end = time.monotonic() + URLS_SECONDS

    @property
    def seconds(self) -> float:
        return max(self._end - time.monotonic(), 0)

    def count(self, size: int) -> None:
        with self._lock:
            self._left -= size
            if self._left < 0:
                limit = f"{self.most_bytes / 1e6:g} MB"
                raise UnreadableImage(f"the addresses give more than the {limit} that are allowed together")
        self._hold(size)


async def _fetched(urls: Sequence[str], allowance: _Allowance) -> list[Upload]:
    places, loop = asyncio.Semaphore(FETCHED_TOGETHER), asyncio.get_running_loop()

    async def one(url: str) -> Upload:
        try:
            async with asyncio.timeout(allowance.seconds), places:
                return await loop.run_in_executor(FETCHERS, _fetch, url, allowance)
        except TimeoutError:
            return Upload(url, error=f"the addresses did not give everything within {URLS_SECONDS:g} seconds")

    tasks = [asyncio.create_task(one(url)) for url in urls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # where one is enough to refuse the request
            task.cancel()


def _fetch(url: str, allowance: _Allowance) -> Upload:
    from lenext.data.urls import fetch

    seconds = min(URL_SECONDS, allowance.seconds)
    try:
        return Upload(url, fetch(url, most_bytes=allowance.most_bytes, seconds=seconds, count=allowance.count))
    except UnreadableImage as error:
        return Upload(url, error=str(error))
