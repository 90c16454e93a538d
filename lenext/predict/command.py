"""The command from its arguments to its answers, from top to bottom."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from lenext import runs, terminal
from lenext.classifier import AUTO, load
from lenext.data.dataset import writable
from lenext.data.decode import decode, read_bytes
from lenext.data.inputs import count, expand, fetched
from lenext.inference.choose import SAME
from lenext.predict import answers
from lenext.predict.answers import Answer, Form, Layout
from lenext.predict.spool import Spool, fingerprint, open_spool
from lenext.preprocess import Preprocess
from lenext.version import __version__

log = logging.getLogger("lenext")


def run(
    path: str,
    inputs: Sequence[str],
    *,
    top_k: int = 5,
    form: Form | None = None,
    out: str | None = None,
    language: str | None = None,
    views: int | None = None,
    threshold: float | None = None,
    backend: str = AUTO,
    tolerance: float = SAME,
    allow_urls: bool = False,
    save_pictures: str | None = None,
) -> int:
    """Predict every picture that `inputs` name and write the answer; returns how many pictures got one.

    The arguments are those of `Classifier.stream` and of the command line. form: where none is given, what the ending
    of `out` says. With `out` an interrupted command goes on where it was. Raises ValueError for a request that makes no
    sense, before anything is written.
    """
    form = form or answers.form_of(out)
    if form == "parquet" and out is None:
        raise ValueError("--format parquet is binary and needs a file: --out answers.parquet")
    if top_k < 1:
        raise ValueError(f"--top-k is {top_k}; at least the best class must be asked for")
    if out is not None and os.path.exists(out) and not os.path.isfile(out):
        raise ValueError(f"--out {out} is not a file that can be replaced")
    classifier = load(path, language)
    classifier.use_views(views)
    layout = Layout(min(top_k, len(classifier.classes)), classifier.task == "multi-label")
    gallery = None
    if save_pictures is not None:
        from lenext.predict.gallery import SIDE, Gallery

        gallery = Gallery(save_pictures)
    without = None if gallery is None else os.path.abspath(gallery.folder)
    total = count(inputs, without)
    answered = failed = 0

    def pixels(image: str, preprocess: Preprocess) -> np.ndarray:
        data = fetched(image, allow_urls)
        if isinstance(data, str):
            data = read_bytes(Path(data))
        found = decode(data, shrink_to=preprocess.resize)
        if gallery is not None:
            gallery.keep(image, decode(data, shrink_to=SIDE))
        return found

    def predict(pictures: Iterator[str], done: int, backend: str) -> Iterator[Answer]:
        stream = classifier.stream(
            pictures, top_k, threshold=threshold, backend=backend, tolerance=tolerance, expected=total, pixels=pixels
        )
        # On a terminal, answers that are printed as they come show the progress themselves.
        printed = out is None and sys.stdout.isatty() and (form != "table" or total >= answers.PAGE)
        with nullcontext() if printed else terminal.bar("predicting", total, done=done) as bar:
            for number, prediction in enumerate(stream, done + 1):
                if gallery is not None:
                    gallery.save(number, prediction)
                if bar is not None:
                    bar.advance()
                yield replace(prediction, image=writable(prediction.image)).to_dict()

    def counted(found: Iterable[Answer]) -> Iterator[Answer]:
        nonlocal answered, failed
        for answer in found:
            answered += answer["error"] is None
            failed += answer["error"] is not None
            yield answer

    if out is None:
        if gallery is not None:
            gallery.require_empty()
        answers.show(counted(predict(expand(inputs, without), 0, backend)), form, layout)
    else:
        asked = {
            "version": __version__,
            "classifier": fingerprint(classifier),
            "--views": classifier.views,
            "--top-k": top_k,
            "--threshold": threshold,
            "--backend": backend,
            "--tolerance": tolerance,
            "--allow-urls": allow_urls,
            "--save-pictures": without,
            "list of pictures": list(inputs),
            "working folder": os.getcwd(),
        }
        with open_spool(Path(out), asked) as spool:
            pictures = spool.remaining(expand(inputs, without))
            if gallery is not None and not spool.found:
                gallery.require_empty()
            if spool.answered:
                log.info("%d of %d pictures have their answer from before", spool.answered, total)
            with _interruptions(spool, total):
                for answer in predict(pictures, spool.answered, spool.backend or backend):
                    spool.add(answer, classifier.running)
                spool.finish(classifier.running)
                runs.write_atomically(
                    Path(out), lambda file: answers.write(counted(spool.answers()), form, layout, file)
                )
    if failed:
        left_out = "" if gallery is None else f", and are not in {gallery.folder}"
        asked_for = f"{answered + failed} picture{'s' * (answered + failed > 1)}"
        log.warning("%d of %s could not be read%s", failed, asked_for, left_out)
    return answered


@contextmanager
def _interruptions(spool: Spool, total: int) -> Iterator[None]:
    """Says what an interruption leaves, and how to go on."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        kept = f"{spool.answered} of {total} pictures have their answer; the same command goes on after them"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(kept) from None
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        raise OSError(f"{reason}. {kept}") from None
