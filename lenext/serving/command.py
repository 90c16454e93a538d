"""`lenext serve`: classifiers behind an HTTP API and a web page, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lenext import runs

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from lenext.serving.engine import Engine

log = logging.getLogger("lenext")

PACKAGES = ("uvicorn", "httptools", "starlette", "python_multipart", "prometheus_client")


def run(
    paths: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str | None = None,
    allow_urls: bool = False,
    max_upload: float = 20,
    queue: int = 1024,
    backend: str = "auto",
    tolerance: float = 0.001,
    views: int | None = None,
    page: bool = True,
) -> int:
    """Serve until a signal comes; returns the exit status. Raises KeyboardInterrupt after Ctrl-C.

    max_upload: megabytes. queue: pictures that may wait. The rest as the command line says.
    """
    key = key or os.environ.get("LENEXT_API_KEY") or None
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ValueError("the API key travels in a header and must be of ASCII letters, digits and signs")
    if max_upload <= 0:
        raise ValueError(f"--max-upload is {max_upload}; it is a number of megabytes above zero")
    if queue < 1:
        raise ValueError(f"--queue is {queue}; at least one picture must be able to wait")
    for package in (*PACKAGES, *(["gradio"] if page else [])):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"serving needs the package {package}: pip install 'lenext[serve]'")
    from lenext.serving.server import Server, allow_connections, listen

    engines: list[Engine] = []
    status = 0

    def leave() -> None:
        # A library that compiles in a thread crashes when the process is taken down around it.
        if any(engine.is_choosing for engine in engines):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def choose() -> None:  # after everything that somebody waits for
        for engine in engines:
            engine.choose()

    atexit.register(leave)  # the first to be registered is the last to run
    allow_connections()
    with listen(host, port) as listening:
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        from lenext.classifier import load  # takes seconds
        from lenext.inference.backends import require
        from lenext.serving.app import Api, make_app
        from lenext.serving.engine import Engine
        from lenext.serving.lazy_page import LazyPage
        from lenext.serving.limits import hosts_of

        if backend != "auto":
            require(backend)
        classifiers = [load(path) for path in paths]
        for classifier, name in zip(classifiers, names_of(paths)):
            classifier.use_views(views)
            engines.append(Engine(classifier, name, backend=backend, tolerance=tolerance, most_waiting=queue))
        hosts = hosts_of(host)
        if hosts is None and key is None:
            log.warning("anyone who can reach %s can send pictures; --api-key asks for a key", address)
        most_bytes = int(max_upload * 1e6)
        app = make_app(
            Api(engines, most_bytes=most_bytes, allow_urls=allow_urls),
            most_bytes=most_bytes,
            key=key,
            hosts=hosts,
            page=LazyPage(lambda: make_page(engines, paths, most_bytes), choose) if page else None,
        )

        def ready() -> None:
            announce(address)
            if not page:
                choose()

        server = Server(
            app,
            ready=ready,
            is_busy=lambda: app.in_flight > 0 or any(engine.waiting for engine in engines),
        )
        server.run(sockets=[listening])
    for engine in engines:
        engine.close()
    if server.signal == signal.SIGINT:
        status = 130
        raise KeyboardInterrupt
    return status


def names_of(paths: Sequence[str]) -> list[str]:
    """What models are called in addresses: as their run folder or file; with a number where that is taken."""
    names: list[str] = []
    for path in paths:
        file = Path(path.removeprefix("hf:"))
        if file.name == runs.CLASSIFIER:
            file = file.absolute().parent
        stem = (file.stem if file.suffix == ".safetensors" else file.absolute().name) or "model"
        number = 1
        while (name := stem if number == 1 else f"{stem}-{number}") in names:
            number += 1
        names.append(name)
    return names


def make_page(engines: Sequence[Engine], paths: Sequence[str], most_bytes: int) -> Starlette:
    """The web page; importing what it is made of takes seconds."""
    from starlette.applications import Starlette

    from lenext.serving.app import ERRORS
    from lenext.serving.page import mount_page

    return mount_page(Starlette(exception_handlers=ERRORS), engines, runs=paths, most_bytes=most_bytes)


def announce(address: str) -> None:
    """On standard output, so that a program that starts the server can wait for it."""
    print(f"ready at {address} ({time.time() - runs.process_start():.1f} s)", flush=True)
