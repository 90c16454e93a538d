"""What of the web page's library is open to the world: the few addresses that the page itself uses, and of files only
those that a browser has just sent.

The library can do more than the page needs: fetch addresses for a sender, pass requests on, record. All of it is shut
here, in one place, whatever the library's next version adds.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

API = "/gradio_api"
UPLOAD, FILE = f"{API}/upload", f"{API}/file="
ASK = frozenset((f"{API}/queue/join", f"{API}/run/predict"))  # in turn, and at once
READ = frozenset(
    (
        *("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"),
        *(f"{API}/{name}" for name in ("queue/data", "upload_progress", "startup-events", "info", "theme.css")),
    )
)
READ_BELOW = ("/assets/", "/static/", "/svelte/")
WRITE = ASK | {UPLOAD, f"{API}/cancel", f"{API}/reset"}
MOST_ASKED = 1_000_000  # bytes of a question, which names pictures that were sent before
MOST_DEPTH = 20
MOST_LARGE = 50  # pictures of the largest size that may lie in the folder


class Guard:
    """ASGI middleware around the web page.

    folder: where pictures lie between their arrival and their answer. most_bytes: of a picture.
    """

    def __init__(self, app: ASGIApp, folder: Path, most_bytes: int) -> None:
        self.app, self.folder, self.most_bytes = app, folder.resolve(), most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        reason = self._refusal(scope)
        if reason is None and scope["path"] in ASK:
            body = await _read(receive)
            reason = self._objection(body)
            receive = _replay(body, receive)
        if reason is not None:
            await JSONResponse({"error": reason[1]}, reason[0])(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        path, method = scope["path"], scope["method"]
        if method == "POST" and path in WRITE:
            return self._refused_upload(scope) if path == UPLOAD else None
        if method in ("GET", "HEAD"):
            if path.startswith(FILE):
                return None if lies_in(path.removeprefix(FILE), self.folder) else (403, "this file is not for reading")
            if path in READ or (path.startswith(READ_BELOW) and ".." not in path):
                return None
        return 404, "there is nothing here"

    def _refused_upload(self, scope: Scope) -> tuple[int, str] | None:
        length = Headers(scope=scope).get("content-length", "")
        if not length.isdecimal():
            return 411, "the length of an upload must be said"
        if int(length) > self.most_bytes:
            return 413, f"the picture has more than the limit of {self.most_bytes / 1e6:g} MB"
        if size_of(self.folder) > MOST_LARGE * self.most_bytes:
            return 503, "too many pictures at once; try again in a few minutes"
        return None

    def _objection(self, body: bytes) -> tuple[int, str] | None:
        if len(body) > MOST_ASKED:
            return 413, "the question is too long"
        try:
            question = json.loads(body)
        except (ValueError, RecursionError):
            return 400, "the question is no JSON"
        return None if self._is_harmless(question, 0) else (403, "a picture must be sent before it is asked about")

    def _is_harmless(self, value: Any, depth: int) -> bool:
        """Whether everything that names a file names one that was sent."""
        if depth > MOST_DEPTH:
            return False
        if isinstance(value, dict):
            if ("path" in value or "url" in value) and not lies_in(value.get("path"), self.folder):
                return False
            value = list(value.values())
        return not isinstance(value, list) or all(self._is_harmless(item, depth + 1) for item in value)


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder, from which others may go meanwhile."""
    size = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            size += file.lstat().st_size
    return size


def lies_in(path: Any, folder: Path) -> bool:
    """Whether a path is that of something in a folder, links followed."""
    if not isinstance(path, str):
        return False
    try:
        return all(Path(form).resolve().is_relative_to(folder) for form in (path, unquote(path)))
    except (OSError, ValueError, RuntimeError):  # too long, with a zero in it, in a circle
        return False


def files_of(sent: Any, folder: Path) -> list[tuple[str, Path]]:
    """(name, path) of what a browser says of the files that it sent. Raises PermissionError for others."""
    files = []
    for item in sent if isinstance(sent, list) else [sent] if sent else []:
        if not isinstance(item, dict) or not lies_in(item.get("path"), folder):
            raise PermissionError("a picture must be sent before it is asked about")
        files.append((str(item.get("orig_name") or ""), Path(item["path"])))
    return files


async def _read(receive: Receive) -> bytes:
    """The body, as far as it may reach."""
    body = b""
    while len(body) <= MOST_ASKED:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "the request was broken off")
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    rest: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return rest.pop() if rest else await receive()

    return again
