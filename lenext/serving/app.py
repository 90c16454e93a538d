"""The HTTP API: pictures in, ranked classes out, and what is worth knowing about the models and the server.

    POST /v1/predict, /v1/models/NAME/predict      GET /v1/model, /v1/models, /v1/models/NAME
    GET /healthz, /readyz, /metrics, /openapi.json

Every error is {"error": reason}.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from lenext.classifier import Classifier, Prediction
from lenext.config import nearest
from lenext.serving import uploads
from lenext.serving.engine import Busy, Engine
from lenext.serving.lazy_page import LazyPage
from lenext.serving.limits import Gate, Refused, error, is_api
from lenext.serving.metrics import Metrics
from lenext.serving.openapi import document
from lenext.version import __version__

MEGABYTE = 1_000_000


class Api:
    """The answers of a server over its engines, the first of which is the one that needs no name.

    most_bytes: of a request's body. allow_urls: whether it may name addresses of pictures.
    """

    def __init__(self, engines: Sequence[Engine], *, most_bytes: int = 20 * MEGABYTE, allow_urls: bool = False) -> None:
        self._engines = {engine.name: engine for engine in engines}
        self._first, self._most_bytes, self._allow_urls = engines[0], most_bytes, allow_urls
        self.metrics = Metrics()
        for engine in engines:
            self.metrics.watch(engine)
        self._endpoints: dict[Any, str] = {route.endpoint: route.name for route in self.routes()}

    async def predict(self, request: Request) -> Response:
        engine = self._engine(request)
        top_k, threshold = _options(request)
        sent = await uploads.read(request, allow_urls=self._allow_urls, most_bytes=self._most_bytes)
        if len(sent) > engine.most_waiting:
            raise Refused(400, f"at most {engine.most_waiting} pictures can be sent at once")
        good = [(upload.name, upload.data) for upload in sent if upload.error is None]
        answers = iter(await _unless_gone(request, engine.answers(good, top_k, threshold)))
        rows = [
            next(answers) if upload.error is None else engine.classifier.failed(upload.name, upload.error)
            for upload in sent
        ]
        unreadable = sum(row.error is not None for row in rows)
        self.metrics.pictures(engine.name, len(rows) - unreadable, unreadable)
        predictions = [row.to_dict() for row in rows]
        if unreadable == len(rows):
            reason = rows[0].error if len(rows) == 1 else f"none of the {len(rows)} pictures can be read"
            return JSONResponse({"error": reason, "predictions": predictions}, 422)
        return JSONResponse({"predictions": predictions})

    async def model(self, request: Request) -> Response:
        engine = self._engine(request)
        return JSONResponse(describe(engine.classifier) | {"name": engine.name, "backend": engine.backend})

    async def models(self, _: Request) -> Response:
        return JSONResponse({"models": list(self._engines)})

    async def healthz(self, _: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(self, _: Request) -> Response:
        if not all(engine.is_accepting for engine in self._engines.values()):
            raise Refused(503, "there is a queue, or the server is stopping", Retry_After="1")
        return JSONResponse({"status": "ready"})

    async def show_metrics(self, _: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, _: Request) -> Response:
        return JSONResponse(document(list(self._engines), allow_urls=self._allow_urls))

    def routes(self) -> list[Route]:
        return [
            Route("/v1/predict", self.predict, methods=["POST"]),
            Route("/v1/model", self.model),
            Route("/v1/models", self.models),
            Route("/v1/models/{name}", self.model),
            Route("/v1/models/{name}/predict", self.predict, methods=["POST"]),
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
            Route("/metrics", self.show_metrics),
            Route("/openapi.json", self.openapi),
        ]

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        self.metrics.request(self._endpoints.get(scope.get("endpoint"), "other"), status, seconds)

    def _engine(self, request: Request) -> Engine:
        name = request.path_params.get("name")
        if name is None:
            return self._first
        if name not in self._engines:
            raise Refused(404, f"there is no model {name!r}; there are {', '.join(self._engines)}")
        return self._engines[name]


def make_app(
    api: Api,
    *,
    most_bytes: int = 20 * MEGABYTE,
    key: str | None = None,
    hosts: Sequence[str] | None = None,
    page: LazyPage | None = None,
) -> Gate:
    """The whole server as an ASGI app. key, hosts: as `Gate` takes them. page: what is shown at /."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        opening = asyncio.create_task(page.open()) if page else None
        yield
        if opening:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)

    app = Starlette(
        routes=api.routes(),
        lifespan=lifespan,
        exception_handlers=ERRORS,
    )
    router = app.router
    router.redirect_slashes = False
    if page:

        async def page_elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
            await (router.not_found if is_api(scope) else page)(scope, receive, send)

        router.default = page_elsewhere
    return Gate(app, most_bytes, key, hosts, api.observe)


def describe(classifier: Classifier) -> dict[str, Any]:
    """What senders may know of a classifier: nothing of the machine that it was trained on."""
    return {
        "architecture": classifier.architecture["name"],
        "task": classifier.task,
        "classes": list(classifier.classes),
        "preprocess": classifier.preprocess.to_dict(),
        "views": classifier.views,
        "temperature": classifier.temperature,
        "evaluation": classifier.about.get("evaluation"),
        "version": __version__,
    }


async def _unless_gone(request: Request, work: Coroutine[Any, Any, list[Prediction]]) -> list[Prediction]:
    """What the work gives. Cancelled where the sender goes away meanwhile, for nobody would hear the answer; raises
    ClientDisconnect then."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


def _options(request: Request) -> tuple[int, float | None]:
    """top_k and threshold of the query. Raises Refused."""
    top_k, threshold, known = 5, None, ("top_k", "threshold")
    for name, text in request.query_params.multi_items():
        if name not in known:
            raise Refused(400, f"unknown parameter {name!r}{nearest(name, known)}")
        try:
            if name == "top_k":
                top_k = int(text)
            else:
                threshold = float(text)
        except ValueError:
            raise Refused(400, f"{name} is {text!r}, which is no number") from None
    if top_k < 1:
        raise Refused(400, f"top_k is {top_k}; at least the best class must be asked for")
    if threshold is not None and not 0 <= threshold <= 1:
        raise Refused(400, f"threshold is {threshold}; it is a probability between 0 and 1")
    return top_k, threshold


# ---- errors


async def _refused(request: Request, exception: HTTPException) -> Response:
    reasons = {
        404: f"there is nothing at {request.url.path}; /openapi.json says what there is",
        405: f"{request.url.path} does not take {request.method}",
    }
    is_ours = isinstance(exception, Refused)
    reason = exception.detail if is_ours else reasons.get(exception.status_code, exception.detail)
    return error(exception.status_code, reason, exception.headers)


async def _busy(_: Request, exception: Busy) -> Response:
    return error(503, f"{exception}; try again later", {"Retry-After": str(exception.seconds)})


async def _gone(_: Request, exception: ClientDisconnect) -> Response:
    return error(400, "the request was broken off")


async def _failed(_: Request, exception: Exception) -> Response:
    return error(500, "the server failed; its log says why")


ERRORS: dict[Any, Any] = {HTTPException: _refused, Busy: _busy, ClientDisconnect: _gone, Exception: _failed}
