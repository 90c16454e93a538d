"""What a command is asked about -> pictures, one after the other, in memory that does not grow with their number."""

from __future__ import annotations

import glob
import heapq
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from natsort import natsort_keygen, ns

from lenext.data.decode import EXTENSIONS, UnreadableImage
from lenext.data.urls import fetch, is_url

log = logging.getLogger("lenext")
natural = natsort_keygen(alg=ns.IC)
PIECE = 20_000  # so many names are sorted at once
URL_BYTES, URL_SECONDS = 100_000_000, 30.0


def count(inputs: Sequence[str], without: str | None = None) -> int:
    """How many pictures there are; says which folders cannot be searched. Raises ValueError as `expand` does."""

    def tell(error: OSError) -> None:
        log.warning("the folder %s is left out: %s", error.filename, error.strerror)

    return sum(1 for _ in expand(inputs, without, troubled=tell, order=iter))


def expand(
    inputs: Sequence[str],
    without: str | None = None,
    *,
    troubled: Callable[[OSError], object] = lambda error: None,
    order: Callable[[Iterable[str]], Iterator[str]] | None = None,
) -> Iterator[str]:
    """The pictures that paths, folders (searched through), patterns and URLs stand for, in the order asked.

    without: a folder whose pictures do not count. troubled: is told of folders that cannot be searched. order: of the
    names in a folder; natural by default.
    A path that does not exist stays, and becomes a row with an error; a pattern or folder without pictures is a
    ValueError.
    """
    order = order or in_natural_order
    for item in inputs:
        if is_url(item):
            yield item
            continue
        if os.path.isdir(item):
            found, nothing = _walk(item, troubled, order), f"the folder {item} holds no pictures"
        elif glob.has_magic(item) and not os.path.exists(item):
            found = order(path for path in glob.iglob(item, recursive=True) if os.path.isfile(path))
            nothing = f"no file fits the pattern {item!r}"
        else:
            found, nothing = iter([item]), ""
        empty = True
        for path in found:
            if without is None or not Path(os.path.abspath(path)).is_relative_to(without):
                empty = False
                yield path
        if empty and nothing:
            raise ValueError(nothing)


def expanded(inputs: Iterable[Any]) -> Iterator[Any]:
    """Inputs of any kind, with the pictures of folders and patterns in their place. Raises ValueError as `expand`."""
    for item in inputs:
        if isinstance(item, (str, Path)):
            yield from expand([str(item)])
        else:
            yield item


def is_several(item: Any) -> bool:
    """Whether this is the path of a folder or a pattern, which stand for all their pictures."""
    if not isinstance(item, (str, Path)):
        return False
    return os.path.isdir(item) or (glob.has_magic(str(item)) and not os.path.exists(item))


def fetched(item: Any, allow_urls: bool) -> Any:
    """The bytes behind a URL; other inputs as they are. Raises UnreadableImage."""
    if not isinstance(item, str) or not is_url(item):
        return item
    if not allow_urls:
        raise UnreadableImage("this is a URL; with --allow-urls (in Python: allow_urls=True) it is fetched")
    return fetch(item, most_bytes=URL_BYTES, seconds=URL_SECONDS)


def _walk(
    folder: str, troubled: Callable[[OSError], object], order: Callable[[Iterable[str]], Iterator[str]]
) -> Iterator[str]:
    """Pictures in a folder and below it, each folder in order. Links to folders could lead in circles: not followed."""
    folders = [(str(Path(folder)), _names(folder, troubled, order))]
    while folders:
        here, names = folders[-1]
        name = next(names, None)
        if name is None:
            folders.pop()
        elif name.endswith(os.sep):
            path = os.path.join(here, name[:-1])
            folders.append((path, _names(path, troubled, order)))
        else:
            yield os.path.join(here, name)


def _names(
    folder: str, troubled: Callable[[OSError], object], order: Callable[[Iterable[str]], Iterator[str]]
) -> Iterator[str]:
    """Names of the pictures in a folder, and of the folders in it with a slash behind."""
    try:
        with os.scandir(folder) as entries:
            yield from order(name for entry in entries if (name := _name(entry)))
    except OSError as error:
        troubled(error)


def _name(entry: os.DirEntry[str]) -> str | None:
    if entry.is_dir(follow_symlinks=False):
        return entry.name + os.sep
    return entry.name if Path(entry.name).suffix.lower() in EXTENSIONS and entry.is_file() else None


def in_natural_order(names: Iterable[str]) -> Iterator[str]:
    """img2 before img10. Of very many names, sorted pieces wait in temporary files."""
    remaining = iter(names)
    pieces: list[Iterable[str]] = []
    with ExitStack() as files:
        while piece := sorted(islice(remaining, PIECE), key=natural):
            if len(piece) < PIECE:
                pieces.append(piece)
                break
            file = files.enter_context(tempfile.TemporaryFile("w+", encoding="ascii"))
            file.writelines(json.dumps(name) + "\n" for name in piece)  # names may hold line ends
            file.seek(0)
            pieces.append(map(json.loads, file))
        yield from heapq.merge(*pieces, key=natural)
