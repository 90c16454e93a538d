"""Answers so far, in a hidden file beside the one to come: a command that was killed goes on where it was.

Its first line says what was asked, every further line holds the answers of one batch. Batches are the unit because a
network's last digits may depend on which pictures it sees together: the finished file is, byte by byte, that of a
command that nobody interrupted.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lenext.classifier import BATCH, Classifier
from lenext.data.dataset import writable
from lenext.inference.choose import network_digest

log = logging.getLogger("lenext")


class Spool:
    """found: whether an earlier command left it. answered: how many pictures have their answer. backend: the one that
    gave them, "" before the first picture that could be read."""

    def __init__(self, path: Path, *, found: bool) -> None:
        self.path, self.found = path, found
        self.answered, self.backend = 0, ""
        self.batch: list[dict[str, Any]] = []

    def remaining(self, pictures: Iterator[str]) -> Iterator[str]:
        """Those of the pictures that have no answer yet; answers from the first change in the pictures on are dropped.

        To be called once, before anything is added.
        """
        with open(self.path, "r+b") as file:
            whole = len(file.readline())
            for line in file:
                batch = _parse(line)
                if batch is None:  # the line that was being written
                    break
                asked = list(islice(pictures, BATCH))
                if [row["image"] for row in batch["answers"]] != [writable(picture) for picture in asked]:
                    pictures = chain(asked, pictures)
                    break
                whole += len(line)
                self.answered += len(asked)
                self.backend = batch["backend"] or self.backend
            file.truncate(whole)
        return pictures

    def add(self, answer: dict[str, Any], backend: str) -> None:
        """The answer of the next picture, and the backend in use."""
        self.batch.append(answer)
        if len(self.batch) == BATCH:
            self.finish(backend)

    def finish(self, backend: str) -> None:
        """Write what makes no whole batch: the last one."""
        if self.batch:
            with open(self.path, "ab") as file:
                file.write(_line({"backend": backend, "answers": self.batch}))
            self.answered += len(self.batch)
            self.batch = []

    def answers(self) -> Iterator[dict[str, Any]]:
        """Every answer, in order."""
        with open(self.path, "rb") as file:
            file.readline()
            for line in file:
                yield from json.loads(line)["answers"]


@contextmanager
def open_spool(out: Path, asked: dict[str, Any]) -> Iterator[Spool]:
    """The spool of the file `out` and of what was asked, made or found again; it goes when the block ends well.

    asked: everything that the answers depend on, by the name that a user has for it. Different requests for one file
    have different spools, so that none destroys what another has done. Raises ValueError where another process is
    at it.
    """
    header = _line(asked)
    path = out.with_name(f".{out.name}.{hashlib.sha256(header).hexdigest()[:8]}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"the same command is running already, and writes {out}") from None
        file.seek(0)
        found = file.readline() == header
        if not found:
            _tell_of_others(out, path, asked)
            file.truncate(0)
            file.write(header)
            file.flush()
        spool = Spool(path, found=found)
        try:
            yield spool
        except ValueError:  # a request that makes no sense leaves nothing behind
            if not spool.answered:
                path.unlink()
            raise
        path.unlink()


def _tell_of_others(out: Path, own: Path, asked: dict[str, Any]) -> None:
    """Answers to another request for the same file are not thrown away, and that is said."""
    for other in sorted(out.parent.glob(f".{glob.escape(out.name)}.*.partial")):
        with open(other, "rb") as file:
            before, answered = _parse(file.readline()), _parse(file.readline())
        if other != own and before is not None and answered is not None:
            differences = " and ".join(name for name in asked if before.get(name) != asked[name])
            log.warning(
                "this command starts anew: an interrupted one for %s had another %s. What that one has answered waits "
                "for it in %s, which may be deleted",
                out,
                differences,
                other,
            )


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    """What `_line` wrote; None of a line that is cut off or damaged."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:  # what a power cut leaves
        return None


def fingerprint(classifier: Classifier) -> str:
    """Of everything in a classifier that its answers depend on."""
    described = (classifier.architecture, classifier.classes, classifier.preprocess, classifier.task)
    network = network_digest(classifier.model)
    return hashlib.sha256(repr((*described, classifier.temperature, network)).encode()).hexdigest()
