"""Memory that stays with the process: glibc's allocator made to fit training on a CPU.

Every step of a training asks for the same large blocks and gives them back. By default glibc returns each to the system
at once and the next step gets it anew, page by page and zeroed, which takes a tenth to a third of the time of a step.
Here blocks stay in the heap, which lies in huge pages where the system has them. Results do not depend on any of this;
on other systems and with other allocators nothing is done.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

log = logging.getLogger("lenext")

# Numbers of mallopt and madvise.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX, MADV_HUGEPAGE = -1, -3, -4, 14
NEVER = -1
HUGE_PAGE = 2 << 20
# Share of the memory below which what is available counts as scarce.
SCARCE = 0.1
# What Linux says of this process.
STATUS = Path("/proc/self/status")
# Where a process finds its control groups, and their files.
CONTROL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")

_keeping = False


def keep_memory() -> None:
    """Keep what this process frees for its next step, from now on; a heap of huge pages where there are some."""
    global _keeping
    if not _is_ours_to_set():
        return
    import ctypes

    import psutil

    libc = ctypes.CDLL(None)
    libc.mallopt(TRIM_THRESHOLD, NEVER)
    libc.mallopt(MMAP_MAX, 0)
    _keeping = True
    if _is_address_space_limited():
        return
    # The heap grows by a block as large as the memory, which takes addresses but no memory, and keeps it when freed.
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = psutil.virtual_memory().available
    block = libc.malloc(size)
    if block:
        start = -(-block // HUGE_PAGE) * HUGE_PAGE
        libc.madvise(start, (size - (start - block)) // HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE)
        libc.free(block)


def release_memory() -> None:
    """Give back to the system what is free, and let glibc do so by itself again, as it does in other processes."""
    global _keeping
    if not _keeping:
        return
    import ctypes

    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_MAX, 65536)
    libc.mallopt(MMAP_THRESHOLD, 32 << 20)  # these two are what glibc arrives at by itself
    libc.mallopt(TRIM_THRESHOLD, 64 << 20)
    libc.malloc_trim(0)
    _keeping = False


def release_if_scarce() -> None:
    """Release memory if little is left on this machine or to this container. Takes microseconds."""
    if not _keeping:
        return
    available, total = memory()
    if available < SCARCE * total:
        release_memory()
        log.info("only %.1f of %.0f GB of memory are left: what is free is given back", available / 1e9, total / 1e9)


def peak_memory(device: Any) -> int:
    """Bytes of the most memory that this process has held so far; on a GPU (a torch.device) its tensors there."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration):
        # Linux; its getrusage would begin with the peak of the program that started this one.
        lines = STATUS.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        now = psutil.Process().memory_info()
        return getattr(now, "peak_wset", now.rss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def memory() -> tuple[int, int]:
    """(available, total) bytes: the machine's, or the control group's where that one has less available."""
    import psutil

    machine = psutil.virtual_memory()
    found = [(machine.available, machine.total)]
    for folder, limit, used in _control_groups():
        try:
            total = int((folder / limit).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            # Pages of files count as used and are given up when memory is wanted.
            files = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
            found.append((total - int((folder / used).read_text()) + files, total))
        except (OSError, ValueError):  # "max", or no such controller here
            continue
    return min(pair for pair in found if pair[1] <= machine.total)


def _control_groups() -> list[tuple[Path, str, str]]:
    """(folder, name of its limit, name of its use) of this process's control groups and those above, versions 1, 2."""
    groups, root = CONTROL_GROUPS
    found = []
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        elif not controllers:
            base, names = root, ("memory.max", "memory.current")
        else:
            continue
        group = Path(path.lstrip("/"))
        found += [(base / part, *names) for part in (group, *group.parents)]
    return found


def _is_ours_to_set() -> bool:
    """Whether this is glibc, with its own allocator and with none of its settings made by the user."""
    if sys.platform != "linux":
        return False
    try:
        glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):
        return False
    settings = os.environ.get("GLIBC_TUNABLES", "")
    made = "glibc.malloc." in settings or any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ)
    return glibc and not made and "malloc" not in os.environ.get("LD_PRELOAD", "")


def _is_address_space_limited() -> bool:
    """Whether addresses themselves are counted, so that reserving them would take them from others."""
    import resource

    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    if any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits):
        return True
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return True
