"""Packs of pictures share a disk: who uses which, and which make way.

A pack is a folder with the files LOCK, DATA and INDEX, as lenext.data.cache describes them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from pathlib import Path

log = logging.getLogger("lenext")

LOCK, DATA, INDEX = "lock", "pixels", "index.npz"
# Left free on the disk for everything else: so much, or a tenth of a small disk.
RESERVE_BYTES = 2 * 10**9


def make_room(folder: Path, need: int, limit_bytes: int) -> int:
    """Bytes that a pack in `folder` may take, after the packs used least recently made way as far as `need` asks.

    Nothing is removed if that would not be enough. Leftovers of builders that died go in any case.
    """
    packs = []
    for other in folder.parent.iterdir():
        if other == folder:
            continue
        if (other / INDEX).exists():
            packs.append(((other / INDEX).stat().st_mtime, (other / DATA).stat().st_size, other))
        else:
            _remove_unused(other)
    packs.sort()
    disk = shutil.disk_usage(folder)
    free = disk.free - min(RESERVE_BYTES, disk.total // 10)
    taken = sum(size for _, size, _ in packs)
    removable = sum(size for _, size, other in packs if _is_unused(other))
    if need > min(limit_bytes - taken, free) + removable:
        return min(limit_bytes - taken, free) + removable
    for _, size, other in packs:
        if need <= min(limit_bytes - taken, free):
            break
        if _remove_unused(other):
            log.info("removed packed pictures that were not used for the longest time (%.1f GB)", size / 1e9)
            taken, free = taken - size, free + size
    return min(limit_bytes - taken, free)


def _remove_unused(folder: Path) -> bool:
    lock = _try_lock(folder)
    if lock is None:
        return False
    (folder / INDEX).unlink(missing_ok=True)  # first: a kill half way leaves no pack
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
    return True


def _is_unused(folder: Path) -> bool:
    lock = _try_lock(folder)
    if lock is not None:
        os.close(lock)
    return lock is not None


def hold(folder: Path, how: int) -> int:
    """A descriptor that holds the folder's lock, shared or alone, until it is closed."""
    told = False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                log.info("another process is packing the same pictures: waiting for it")
                told = True
            fcntl.flock(lock, how)
        except BaseException:
            os.close(lock)
            raise
        if _is_named(lock, folder):
            return lock
        os.close(lock)  # the folder was removed in between: what is held is the lock of a folder that is gone


def _try_lock(folder: Path) -> int | None:
    """The lock of a folder that exists, held alone, or None if somebody holds it."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_named(lock, folder):
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _is_named(lock: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.stat(folder / LOCK))
    except FileNotFoundError:
        return False
