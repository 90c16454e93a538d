"""What of the web page's library is open to the world: the few addresses that the page itself uses, and of files only
those that a browser has just sent.

The library can do more than the page needs: fetch addresses for a sender, pass requests on, record. All of it is shut
here, in one place, whatever the library's next version adds. Pictures are taken in here too, by the API's reader of
forms; and of a question only what the page itself would ask is passed on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lenext.serving import uploads
from lenext.serving.limits import Refused, error
from lenext.serving.page_answers import Answers
from lenext.serving.page_kept import Kept, lies_in

API = "/gradio_api"
UPLOAD, PROGRESS, FILE = f"{API}/upload", f"{API}/upload_progress", f"{API}/file="
ASK, ASK_AT_ONCE, ANSWERS = f"{API}/queue/join", f"{API}/run/predict", f"{API}/queue/data"
CANCEL = f"{API}/cancel"
READ = frozenset(
    (
        *("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"),
        *(PROGRESS, ANSWERS, *(f"{API}/{name}" for name in ("startup-events", "info", "theme.css"))),
    )
)
READ_BELOW = ("/assets/", "/static/", "/svelte/")
WRITE = frozenset((UPLOAD, ASK, ASK_AT_ONCE, CANCEL, f"{API}/reset"))
MOST_ASKED = 1_000_000  # bytes of a question, which names pictures that were sent before
MOST_DEPTH = 20
MOST_NAME = 100  # letters of a session's name
META = ("meta", {"_type": "gradio.FileData"})  # by which the library knows that something is a file


@dataclass(frozen=True)
class Function:
    """A question that the page asks. inputs: the number of values that it is about. is_queued: whether its answer is
    fetched later; the others ask for a sample picture by its number."""

    inputs: int
    is_queued: bool


@dataclass(eq=False)
class Guard:
    """ASGI middleware around the web page. functions: what may be asked. samples: the number of sample pictures."""

    app: ASGIApp
    kept: Kept
    answers: Answers
    functions: Mapping[int, Function]
    samples: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, request = scope["path"], Request(scope, receive)
        self._require_open(path, scope["method"])
        turn: AbstractContextManager[None] = nullcontext()
        if path == UPLOAD:
            await (await self._keep(request))(scope, receive, send)
            return
        if path == PROGRESS:  # there is none to follow: a picture is taken in as a whole
            await Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")(scope, receive, send)
            return
        if path in WRITE:
            question = self._question(path, await _read(request))
            receive = _replay(json.dumps(question).encode(), receive)
            if path == ASK:
                turn = self.answers.asking(question["session_hash"])
        elif path == ANSWERS:
            session = request.query_params.get("session_hash", "")
            if not self.answers.knows(session):
                raise Refused(404, "nothing was asked in this session, or too long ago")
            turn = self.answers.reading(session)
        with turn:
            await self.app(scope, receive, _in_our_words(send))

    def _require_open(self, path: str, method: str) -> None:
        if method == "POST" and path in WRITE:
            return
        if method in ("GET", "HEAD"):
            if path.startswith(FILE):
                if not lies_in(path.removeprefix(FILE), self.kept.folder):
                    raise Refused(403, "this file is not for reading")
                return
            if path in READ or (path.startswith(READ_BELOW) and ".." not in path):
                return
        raise Refused(404, "there is nothing here")

    async def _keep(self, request: Request) -> Response:
        """The paths of the pictures of a form, for the questions about them."""
        length = request.headers.get("content-length", "")
        if not (length.isascii() and length.isdecimal()):
            raise Refused(411, "the length of an upload must be said")
        self.kept.require_room(int(length))
        if uploads.kind_of(request) != "multipart/form-data":
            raise Refused(415, "pictures are sent to the page as multipart/form-data with the field 'files'")
        pictures = await uploads.from_form(request, "files")
        return JSONResponse([str(await self.kept.add(picture.name, picture.data)) for picture in pictures])

    # ---- questions

    def _question(self, path: str, body: bytes) -> dict[str, Any]:
        """What is passed on of a question. Raises Refused."""
        try:
            question = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused(400, "the question is no JSON") from None
        if not isinstance(question, dict) or not _is_shallow(question):
            raise Refused(400, "the question must be an object, and not a deep one")
        if not self._is_harmless(question):
            raise Refused(403, "a picture must be sent before it is asked about")
        try:
            json.dumps(question, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Refused(400, "the question holds half of a character, which no answer can be written with") from None
        if path == CANCEL:
            self.answers.require_quiet(str(question.get("session_hash")))
        return self._as_asked_by_the_page(path, question) if path in (ASK, ASK_AT_ONCE) else question

    def _as_asked_by_the_page(self, path: str, question: dict[str, Any]) -> dict[str, Any]:
        number, data, session = (question.get(key) for key in ("fn_index", "data", "session_hash"))
        function = self.functions.get(number) if type(number) is int else None  # True is a number, too
        if function is None or function.is_queued != (path == ASK):
            raise Refused(400, "fn_index is no number of a question that the page asks here")
        if not isinstance(data, list) or len(data) != function.inputs:
            raise Refused(400, f"data must be a list of {function.inputs}")
        if function.is_queued and not (isinstance(data[0], str) and all(map(_is_pictures, data[1:]))):
            raise Refused(400, "data must be the name of a model, and what the upload gave of the pictures")
        if not function.is_queued and any(type(value) is not int or not 0 <= value < self.samples for value in data):
            raise Refused(400, "there is no such sample")
        if not isinstance(session, str) or not 0 < len(session) <= MOST_NAME:
            raise Refused(400, f"session_hash must be a text of 1 to {MOST_NAME} letters: the answer is fetched by it")
        trigger = question.get("trigger_id")
        return {
            "fn_index": number,
            "data": data,
            "session_hash": session,
            "trigger_id": trigger if type(trigger) is int else None,
        }

    def _is_harmless(self, value: Any) -> bool:
        """Whether everything that names a file names one that was sent."""
        if isinstance(value, dict):
            if ("path" in value or "url" in value) and not lies_in(value.get("path"), self.kept.folder):
                return False
            value = list(value.values())
        return not isinstance(value, list) or all(map(self._is_harmless, value))


def _is_pictures(value: Any) -> bool:
    """None, a picture that was sent, or a list of such."""
    pictures = value if isinstance(value, list) else [] if value is None else [value]
    return all(isinstance(one, dict) and isinstance(one.get("path"), str) and META in one.items() for one in pictures)


def _is_shallow(value: Any, depth: int = 0) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth <= MOST_DEPTH and all(_is_shallow(item, depth + 1) for item in inner)


async def _read(request: Request) -> bytes:
    """The body, as far as it may reach. Raises Refused."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_ASKED:
            raise Refused(413, "the question is too long")
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    rest: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return rest.pop() if rest else await receive()

    return again


# ---- errors


def _in_our_words(send: Send) -> Send:
    """The library's errors leave as all others do."""
    status, said = 0, bytearray()

    async def translated(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start" and message["status"] >= 400:
            status = message["status"]
        elif not status:
            await send(message)
        elif message["type"] == "http.response.body":
            said.extend(message.get("body", b""))
            if not message.get("more_body", False):
                response = error(status, _reason(status, bytes(said)))
                await send({"type": "http.response.start", "status": status, "headers": response.raw_headers})
                await send({"type": "http.response.body", "body": response.body})

    return translated


def _reason(status: int, said: bytes) -> str:
    if status >= 500 and status != HTTPStatus.SERVICE_UNAVAILABLE:
        return "the page failed; the server's log says why"
    try:
        reason = json.loads(said)["detail"]
    except (ValueError, KeyError, TypeError):
        reason = None
    # What is no text is a list of all that is not of its type.
    return reason if isinstance(reason, str) else HTTPStatus(status).phrase.lower()
