"""The web page: drop a picture and see the ranked classes, in the language of the browser.

Gradio shows it; the answers come from the same engines as the API's, from the same bytes. Pictures lie in a private
folder for a minute or two, for the browser to show them, and are gone then. There is one page for each language, and
a browser sees that of its Accept-Language.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lenext import runs as run_folders
from lenext.classifier import Classifier, Prediction, pixels_of
from lenext.data.transforms import eval_transform
from lenext.serving import page_view as view
from lenext.serving.engine import Busy, Engine
from lenext.serving.page_answers import Answers
from lenext.serving.page_guard import Function, Guard
from lenext.serving.page_kept import Kept, files_of
from lenext.serving.page_samples import sample_pictures
from lenext.serving.page_text import LANGUAGES, Text, language_of

log = logging.getLogger("lenext")

# Of the reader's machine: nothing is fetched from elsewhere.
FONTS = ["system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "Noto Sans SC", "sans-serif"]
KEPT_SECONDS, LOOKED_AFTER_SECONDS = 120, 20
UNREAD_SECONDS = 30  # that an answer waits for its reader, who comes at once or not at all
QUEUE = 64  # questions that wait for one of the library's workers, of which there are 40
MOST_AT_ONCE = 500  # pictures in one table
TOGETHER = 8  # pictures of one sender that wait in the queue, where others want to be answered too
MOST_READ = 16  # whole files that are in memory for all senders' questions
PATIENCE = 20  # times that a picture of a table is asked again while the queue is full
NO_PICTURE = (FileNotFoundError, PermissionError)  # any more, or never was one


def mount_page(app: Starlette, engines: Sequence[Engine], *, runs: Sequence[str], most_bytes: int) -> Starlette:
    """The app with the page at /; its lifespan opens the page and clears what was sent.

    runs: the run folder, classifier file or name that each engine's classifier was loaded from.
    most_bytes: of a picture. Importing and building take seconds. Raises ValueError where gradio is missing.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"  # after every answer it would go through the last 10,000
    try:
        import gradio as gr
    except ImportError:
        raise ValueError("the web page needs gradio: pip install 'lenext[serve]'") from None
    from fastapi import FastAPI

    temporary = tempfile.TemporaryDirectory(prefix="lenext-page-")
    folder = Path(temporary.name).resolve()
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    models = {engine.name: Model(engine, _run_folder(path)) for engine, path in zip(engines, runs)}
    first = models[engines[0].name]
    samples = sample_pictures(first.engine.classifier, first.run, folder / "samples")
    theme = gr.themes.Default(primary_hue="teal", font=FONTS, font_mono=["ui-monospace", "monospace"])
    theme.set(  # every text has a contrast of 4.5 or more
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
    )
    heat_maps = ThreadPoolExecutor(1, thread_name_prefix="heat")  # one at a time: predictions go first
    reading = asyncio.Semaphore(MOST_READ)
    pages, blocks = {}, {}
    for language, text in LANGUAGES.items():
        blocks[language] = _Page(gr, text, models, folder, samples, heat_maps, reading).blocks
        pages[language] = gr.mount_gradio_app(
            FastAPI(openapi_url=None),
            blocks[language],
            "/",
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            max_file_size=most_bytes,
            theme=theme,
            css=view.file("page.css"),
            head=f"<script>const WORDS = {json.dumps(text.heard)};\n{view.file('page.js')}</script>",
        )
    kept = Kept(folder, most_bytes)  # where the samples lie already
    answers = Answers([page._queue for page in blocks.values()])
    functions = {number: Function(len(f.inputs), f.queue) for number, f in next(iter(blocks.values())).fns.items()}
    outer = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        async with outer(app) as state, contextlib.AsyncExitStack() as stack:
            stack.callback(temporary.cleanup)
            stack.callback(heat_maps.shutdown, cancel_futures=True)
            for page in pages.values():
                await stack.enter_async_context(page.router.lifespan_context(page))
            sweeping = asyncio.create_task(_sweep_now_and_then(kept, answers))
            yield state
            sweeping.cancel()

    app.router.lifespan_context = lifespan
    app.mount("/", Guard(_ByLanguage(pages), kept, answers, functions, len(samples)))
    return app


@dataclass(frozen=True)
class Model:
    """An engine, and the run folder of its classifier where there is one."""

    engine: Engine
    run: Path | None


def _run_folder(path: str) -> Path | None:
    return Path(path) if run_folders.is_run(path) else None


async def _sweep_now_and_then(kept: Kept, answers: Answers) -> None:
    while True:
        await asyncio.sleep(LOOKED_AFTER_SECONDS)
        await kept.sweep(time.time() - KEPT_SECONDS)
        await answers.forget(time.monotonic() - UNREAD_SECONDS)


class _ByLanguage:
    """An ASGI app that hands every request to the one of the browser's language."""

    def __init__(self, pages: Mapping[str, ASGIApp]) -> None:
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        language = language_of(Headers(scope=scope).get("accept-language", ""))
        await self._pages[language](scope, receive, send)


class _Page:
    """The page in one language."""

    def __init__(
        self,
        gr: Any,
        text: Text,
        models: Mapping[str, Model],
        folder: Path,
        samples: Sequence[Path],
        heat_maps: ThreadPoolExecutor,
        reading: asyncio.Semaphore,
    ) -> None:
        self._text, self._models, self._folder = text, models, folder
        self._heat_maps, self._reading = heat_maps, reading
        self.blocks = self._build(gr, samples)
        self.blocks.queue(max_size=QUEUE, api_open=False)

    def _build(self, gr: Any, samples: Sequence[Path]) -> Any:
        text, first = self._text, next(iter(self._models))

        with gr.Blocks(title=f"{first} · LeNeXt", analytics_enabled=False) as blocks:
            head = gr.HTML(self._head(first))
            model = gr.Dropdown(
                list(self._models), value=first, label=text.model, visible=len(self._models) > 1, filterable=False
            )
            with gr.Tabs():
                with gr.Tab(text.one):
                    with gr.Row():
                        with gr.Column(min_width=300):
                            picture = gr.Image(
                                label=text.picture,
                                type="filepath",
                                sources=["upload", "webcam", "clipboard"],
                                webcam_options=gr.WebcamOptions(mirror=False),
                                height=340,
                                buttons=[],
                                elem_id="picture",
                            )
                            if samples:
                                gr.Examples(
                                    [str(sample) for sample in samples], picture, label=text.samples, elem_id="samples"
                                )
                        with gr.Column(min_width=300):
                            answer = gr.HTML(view.note(text.empty), elem_id="answer")
                with gr.Tab(text.many):
                    pictures = gr.File(
                        label=text.pictures, file_count="multiple", file_types=["image"], height=180, elem_id="pictures"
                    )
                    table = gr.HTML(view.note(text.empty_many), elem_id="table")
                with gr.Tab(text.about):
                    card = gr.HTML(self._card(first), elem_id="card")
            # Gradio would decode the pictures itself; what it hands on is where they lie.
            as_sent: dict[str, Any] = {"preprocess": False, "api_visibility": "private", "concurrency_limit": None}
            gr.on(
                [picture.change, model.change],
                self._answer,
                [model, picture],
                answer,
                show_progress="minimal",
                **as_sent,
            )
            gr.on([pictures.change, model.change], self._answer_all, [model, pictures], table, **as_sent)
            model.change(lambda name: (self._head(name), self._card(name)), model, [head, card], **as_sent)
        return blocks

    def _model(self, name: Any) -> Model:
        return self._models.get(str(name)) or next(iter(self._models.values()))

    def _head(self, name: Any) -> str:
        model = self._model(name)
        classifier = model.engine.classifier
        lead = self._text.lead_several if classifier.task == "multi-label" else self._text.lead
        title, sentence = html.escape(model.engine.name), html.escape(lead.format(n=len(classifier.classes)))
        return f'<div class="lx-head"><h1>{title}</h1><p>{sentence}</p></div>'

    def _card(self, name: Any) -> str:
        model = self._model(name)
        return view.card(self._text, model.engine.classifier, model.run)

    async def _answer(self, name: Any, sent: Any) -> AsyncIterator[str]:
        """The ranked classes at once, and the heat map when it is there."""
        text, engine = self._text, self._model(name).engine
        try:
            if not (files := files_of(sent, self._folder)):
                yield view.note(text.empty)
                return
            path = files[0][1]
            async with self._reading:
                prediction = await engine.answer(await asyncio.to_thread(path.read_bytes))
            if prediction.error is not None:
                yield view.failure(text.why_unreadable(prediction.error))
                return
            yield view.answer(text, prediction, None)
            heat = asyncio.get_running_loop().run_in_executor(self._heat_maps, _heat, engine.classifier, path)
            yield view.answer(text, prediction, await heat)
        except NO_PICTURE:
            yield view.failure(text.gone)
        except Busy as busy:
            yield view.failure(text.busy.format(seconds=busy.seconds))
        except Exception:
            log.exception("the web page could not answer")
            yield view.failure(text.failed)

    async def _answer_all(self, name: Any, sent: Any) -> str:
        text, engine = self._text, self._model(name).engine
        places = asyncio.Semaphore(TOGETHER)

        async def one(image: str, path: Path) -> Prediction:
            async with places, self._reading:
                try:
                    data = await asyncio.to_thread(path.read_bytes)
                except NO_PICTURE:
                    return engine.classifier.failed(image, text.gone)
                for _ in range(PATIENCE):
                    with contextlib.suppress(Busy):
                        return await engine.answer(data, image=image)
                    await asyncio.sleep(1)
                return engine.classifier.failed(image, text.busy.format(seconds=10))

        try:
            files = files_of(sent, self._folder)
            rows = await asyncio.gather(*(one(image, path) for image, path in files[:MOST_AT_ONCE]))
        except NO_PICTURE:
            return view.failure(text.gone)
        except Exception:
            log.exception("the web page could not answer")
            return view.failure(text.failed)
        if not rows:
            return view.note(text.empty_many)
        return view.table(text, rows, text.too_many.format(n=MOST_AT_ONCE) if len(files) > MOST_AT_ONCE else "")


def _heat(classifier: Classifier, path: Path) -> dict[str, Any]:
    pixels = eval_transform(classifier.preprocess)(pixels_of(path.read_bytes(), classifier.preprocess))
    return view.heat_pictures(classifier, pixels)
