"""The place of the web page, which takes seconds to import: the API does not wait for it, and whoever opens the page
meanwhile sees that it is coming."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger("lenext")

COMING = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="refresh" content="1"><title>LeNeXt</title>
<p style="font: 1.2em sans-serif; text-align: center; margin-top: 20vh">The page is being opened … 页面正在打开 …</p>"""


class LazyPage:
    """An ASGI app that becomes another one.

    make: imports and builds it, in a thread. then: called when that is over.
    """

    def __init__(self, make: Callable[[], Starlette], then: Callable[[], None] = lambda: None) -> None:
        self._make, self._then = make, then
        self._app: ASGIApp = HTMLResponse(COMING, 503, {"Retry-After": "1"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    async def open(self) -> None:
        """Build the page and keep it open until this is cancelled."""
        try:
            page = await asyncio.to_thread(self._make)
            async with page.router.lifespan_context(page):
                self._app = page
                self._then()
                await asyncio.Event().wait()
        except Exception as error:  # the API goes on without it
            log.exception("the web page cannot be shown: %s", error)
            self._app = HTMLResponse("<p>The page cannot be shown; the server's log says why.", 500)
            self._then()
