"""uvicorn with an end: what is being answered is answered, then the process goes, whatever a web page keeps open."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from lenext.serving.connections import MOST_CONNECTIONS, Connection

log = logging.getLogger("lenext")

STOP_SECONDS = 60  # at most, for what is being answered when the server is told to stop
IDLE_SECONDS = 20  # that a connection is kept for another request
FILES_BESIDE = 256  # that the process may have open, beside connections


class Server(uvicorn.Server):
    """app: an ASGI app. ready: called when requests are taken. is_busy: whether some are still to be answered.

    `signal` is the one that ended it.
    """

    def __init__(self, app: Callable, *, ready: Callable[[], None], is_busy: Callable[[], bool]) -> None:
        for name in ("uvicorn.error", "python_multipart"):  # they report every sender of nonsense
            logging.getLogger(name).setLevel(logging.ERROR)
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        super().__init__(config)
        self._ready, self._is_busy = ready, is_busy
        self.signal: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Not in the signal's handler: it may have interrupted somebody who is writing to the same stream.
        log.info("stopping: what has been asked is answered first")
        hanging_up = asyncio.create_task(self._hang_up())
        await super().shutdown(sockets)
        hanging_up.cancel()

    async def _hang_up(self) -> None:
        """End the streams of open web pages, which never end by themselves, as soon as requests are answered."""
        while self._is_busy():
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)  # answers are on their way
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0.5)
        for task in list(self.server_state.tasks):
            task.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the signal does not kill the process afterwards: that it ended well shows in its status."""
        if threading.current_thread() is not threading.main_thread():  # which alone gets signals
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.signal = self.signal or sig
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections. Raises ValueError for what cannot be, OSError for what cannot be now."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}; it is a number from 1 to 65535, or 0 for any that is free")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"port {port} of {host} is in use; choose another with --port") from None
        reason = error.strerror or str(error)
        raise OSError(f"cannot listen on port {port} of {host}: {reason}; look at --host and --port") from None


def allow_connections() -> None:
    """Let the process have as many connections open as it is made for, where the system allows it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + FILES_BESIDE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        Connection.most_connections = max(soft - FILES_BESIDE, soft // 2)
