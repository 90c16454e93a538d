"""Where pictures lie that a browser has just sent to the web page: a private folder, for a minute or two, and only as
many as there is room for. They are called by numbers; what they were called before is known to the browser alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from lenext.serving.limits import Refused

MOST_LARGE = 50  # pictures of the largest size
MOST_FILES = 5000


class Kept:
    """folder: nobody else's; what lies there now stays. most_bytes: of a picture.

    size, number: bytes and files that were sent and still lie there.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder.resolve(), most_bytes
        self.size = self.number = 0
        self._sizes: dict[Path, int] = {}
        self._spared = frozenset(self.folder.rglob("*"))

    def require_room(self, size: int) -> None:
        """Raises Refused where a picture of so many bytes would be too much."""
        if self.number >= MOST_FILES or self.size + size > MOST_LARGE * self.most_bytes:
            raise Refused(503, "too many pictures at once; try again in a few minutes", Retry_After="60")

    async def add(self, name: str, data: bytes) -> Path:
        """The file of a picture. name: its ending is kept, by which browsers know what to show. Raises Refused."""
        self.require_room(len(data))
        ending = Path(name).suffix
        ending = ending if re.fullmatch(r"\.\w{1,8}", ending, re.ASCII) else ""
        path = self.folder / f"{secrets.token_hex(16)}{ending}"
        self._count(1, len(data))  # before it is written: others come meanwhile
        try:
            await asyncio.to_thread(path.write_bytes, data)
        except BaseException:
            self._count(-1, -len(data))
            raise
        self._sizes[path] = len(data)
        return path

    async def sweep(self, before: float) -> None:
        """Delete what was written into the folder before a time, seconds since the epoch."""
        gone = await asyncio.to_thread(_sweep, self.folder, self._spared, before, list(self._sizes))
        for path in gone:
            self._count(-1, -self._sizes.pop(path))

    def _count(self, number: int, size: int) -> None:
        self.number, self.size = self.number + number, self.size + size


def _sweep(folder: Path, spared: Collection[Path], before: float, known: Collection[Path]) -> list[Path]:
    """The known files that are gone then."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder comes before it
        with contextlib.suppress(OSError):  # it has just gone, or a folder is not empty
            if path not in spared and path.lstat().st_mtime < before:
                path.rmdir() if path.is_dir() else path.unlink()
    return [path for path in known if not path.exists()]


def lies_in(path: Any, folder: Path) -> bool:
    """Whether a path is that of a file in a folder, be it gone by now; links followed."""
    if not isinstance(path, str):
        return False
    try:
        forms = [Path(form).resolve() for form in (path, unquote(path))]
        return all(form.is_relative_to(folder) and not form.is_dir() for form in forms)
    except (OSError, ValueError, RuntimeError):  # too long, with a zero in it, in a circle
        return False


def files_of(sent: Any, folder: Path) -> list[tuple[str, Path]]:
    """(name, path) of what a browser says of the files that it sent, each once. Raises PermissionError for others."""
    names: dict[Path, str] = {}
    for item in sent if isinstance(sent, list) else [sent] if sent else []:
        if not isinstance(item, dict) or not lies_in(item.get("path"), folder):
            raise PermissionError("a picture must be sent before it is asked about")
        names[Path(item["path"]).resolve()] = str(item.get("orig_name") or "")
    return [(name, path) for path, name in names.items()]
