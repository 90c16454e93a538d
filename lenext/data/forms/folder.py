"""Folders: root/<class>/**/*, with or without train, val and test above the classes."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from natsort import natsorted, ns

from lenext.data.decode import EXTENSIONS
from lenext.data.forms.table import SPLIT_NAMES, Table, split_code
from lenext.data.samples import Files, Names

log = logging.getLogger("lenext")
_DIGITS = re.compile(r"\d+")


def read(root: Path) -> Table:
    """The pictures below a folder. Raises ValueError where there are none in class folders."""
    folders = natsorted(entry.name for entry in os.scandir(root) if _is_class(entry))
    splits = _split_folders(root, folders)
    classes: dict[str, int] = {}
    lengths: list[tuple[int, int, int]] = []  # (pictures, class, split) of each class folder

    def images() -> Iterator[str]:
        for above in splits or [""]:
            for folder in natsorted(_class_folders(root / above), alg=ns.IC):
                found = pictures(root / above / folder)
                if not found:
                    log.warning("the folder %s holds no pictures; it is not taken as a class", root / above / folder)
                    continue
                split = split_code(above)
                lengths.append((len(found), classes.setdefault(folder, len(classes)), split))
                prefix = os.path.join(above, folder)
                for name in found:
                    yield f"{prefix}/{name}"

    names = Names(images())
    if not len(names):
        _say_what_is_missing(root)
    counts, labels, sides = (np.array(column) for column in zip(*lengths))
    return Table(
        store=Files(root),
        images=names,
        labels=np.repeat(labels, counts).astype(np.int64),
        names=list(classes),
        splits=np.repeat(sides, counts).astype(np.int8) if splits else None,
    )


def pictures(folder: Path) -> list[str]:
    """Names of the picture files below a folder, relative to it, in natural order; links are followed once."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        below = waiting.pop()
        here = os.path.join(folder, below)
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(here) as entries:
            for entry in entries:
                name = entry.name
                if is_hidden(name):
                    continue
                if _is_folder(entry):
                    waiting.append(f"{below}{name}/")
                elif _is_picture(name):
                    found.append(below + name)
    return natural_order(found)


def natural_order(names: list[str]) -> list[str]:
    """The names with 2 before 10, in whatever order they came."""
    if len(names) < 2:
        return names
    # Most folders hold names that differ in one number only, and numbers are sorted many times faster than texts.
    prefix = os.path.commonprefix([min(names), max(names)]).rstrip("0123456789")  # noqa: RUF071, characters are meant
    suffix = os.path.splitext(names[0])[1]
    middles = [name[len(prefix) : len(name) - len(suffix)] for name in names if name.endswith(suffix)]
    if len(middles) == len(names) and all(map(str.isdecimal, middles)):
        return [name for _, name in sorted(zip(map(int, middles), names))]
    return sorted(names, key=natural_key)


def natural_key(name: str) -> tuple[str, str]:
    """Sorts 2 before 10: a number is led by how many digits it has. Many times faster than a general natural sort."""
    return _DIGITS.sub(_lead, name.lower()), name


def _lead(match: re.Match[str]) -> str:
    digits = match[0].lstrip("0") or "0"
    return f"{chr(48 + min(len(digits), 60))}{digits}"


def _split_folders(root: Path, folders: list[str]) -> list[str]:
    """Those of the folders that are splits, in the order train, val, test; none where the folders are classes."""
    splits = sorted((name for name in folders if name.lower() in SPLIT_NAMES), key=split_code)
    others = [name for name in folders if name not in splits]
    if splits and not others:
        return splits
    if not any(split_code(name) == 0 for name in splits):
        return []  # a class may be called "test"
    # Notes and annotations lie beside the splits of many data sets; pictures there would be a mistake to pass over.
    holding = [name for name in others if pictures(root / name)]
    if holding:
        raise ValueError(
            f"{root} holds the split {splits[0]!r} beside other folders with pictures ({', '.join(holding[:3])}): move "
            f"those into a split such as {root / splits[0] / holding[0]}, or out of the way"
        )
    return splits


def _class_folders(folder: Path) -> list[str]:
    entries = list(os.scandir(folder))
    loose = [e.name for e in entries if _is_picture(e.name) and not is_hidden(e.name)]
    found = [e.name for e in entries if _is_class(e)]
    if loose and found:
        log.warning(
            "%d pictures lie in %s, in no class folder, and are left out, such as %s", len(loose), folder, loose[0]
        )
    return found


def _is_picture(name: str) -> bool:
    return name[name.rfind(".") :].lower() in EXTENSIONS


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_class(entry: os.DirEntry[str]) -> bool:
    return not is_hidden(entry.name) and _is_folder(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _say_what_is_missing(root: Path) -> None:
    loose = pictures(root)
    if loose:
        raise ValueError(
            f"{root} holds pictures but no class folders: put the pictures of each class into a folder named after "
            f"it, such as {root / 'cat' / Path(loose[0]).name}, or give a manifest with labels"
        )
    raise ValueError(f"{root} holds no pictures ({', '.join(sorted(EXTENSIONS))}) in class folders")
