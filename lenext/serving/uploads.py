"""The pictures of a request: files of a form, base64 or addresses in JSON, or the body itself.

Everything stays in memory, within the limit of the body; a name is text that is given back and never opened.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from lenext.config import nearest
from lenext.data.decode import UnreadableImage
from lenext.serving.limits import Refused

MOST_PICTURES = 128  # of a request
URL_SECONDS = 10.0
KINDS = "multipart/form-data with the field 'file', application/json, or a picture itself as image/* "
KINDS += "or application/octet-stream"


@dataclass
class Upload:
    """name: as it was sent. data: the encoded picture. error: why there is none."""

    name: str
    data: bytes = b""
    error: str | None = None


async def read(request: Request, *, allow_urls: bool, most_bytes: int) -> list[Upload]:
    """The pictures of a request, at least one. most_bytes: of what an address gives. Raises Refused."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "the body must be sent without Content-Encoding")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _from_form(request)
    if kind == "application/json":
        return await _from_json(await request.body(), allow_urls, most_bytes)
    if kind in ("", "application/octet-stream") or kind.startswith("image/"):
        return [Upload("", _not_empty(await request.body()))]
    raise Refused(415, f"pictures cannot be sent as {kind}; send {KINDS}")


# ---- forms


class _Form(MultiPartParser):
    """Files stay in memory: there are limits on the body and on all bodies together."""

    spool_max_size = 2**40
    has_ended = False

    def on_end(self) -> None:
        self.has_ended = True


async def _from_form(request: Request) -> list[Upload]:
    parser = _Form(request.headers, request.stream(), max_files=MOST_PICTURES, max_fields=MOST_PICTURES)
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:
        raise Refused(400, f"the form is damaged: {error}") from None
    try:
        if not parser.has_ended:
            raise Refused(400, "the form is cut off: its last boundary is missing")
        uploads = []
        for field, value in form.multi_items():
            if field != "file":
                raise Refused(400, f"unknown field {field!r}{nearest(field, ['file'])}; pictures are sent as 'file'")
            if not isinstance(value, UploadFile):
                raise Refused(400, "the field 'file' holds text; it must be sent as a file, with a file name")
            uploads.append(Upload(value.filename or "", await value.read()))
    finally:
        await form.close()
    if not uploads:
        raise Refused(400, "the form has no field 'file'")
    return uploads


# ---- JSON


async def _from_json(body: bytes, allow_urls: bool, most_bytes: int) -> list[Upload]:
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
    fetched = await asyncio.gather(*(asyncio.to_thread(_fetched, url, most_bytes) for url in urls))
    return [*map(_decoded, images), *fetched]


def _parse(body: bytes) -> Any:
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


def _fetched(url: str, most_bytes: int) -> Upload:
    from lenext.data.urls import fetch

    try:
        return Upload(url, fetch(url, most_bytes=most_bytes, seconds=URL_SECONDS))
    except UnreadableImage as error:
        return Upload(url, error=str(error))


def _not_empty(body: bytes) -> bytes:
    if not body:
        raise Refused(400, f"the request is empty; send {KINDS}")
    return body
