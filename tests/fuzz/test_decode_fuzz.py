"""Damaged files give pixels or a reason: never another exception, a crash, a wait or a leak.

LENEXT_FUZZ is the number of files, 400 unless set.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.data.corpus import corpus, mutated

FILES = int(os.environ.get("LENEXT_FUZZ", "400"))
SECONDS_PER_FILE = 10
MIB_OF_GROWTH = 150


class Worker:
    """A process that decodes one file after another and is started anew when one of them ends it."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def decode(self, path: Path, shrink_to: int, seconds: float) -> tuple[int, str]:
        """(resident memory in MiB, 0 where the process ended; what became of the file)."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            self.process.stdin.write(f"{shrink_to} {path}\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline() if selector.select(seconds) else "hang"
        if answer and answer != "hang":
            memory, what = answer.rstrip("\n").split(" ", 1)
            return int(memory), what
        if answer == "hang":
            self.process.kill()
        status = self.process.wait()
        self.start()
        return 0, f"no answer within {seconds} s" if answer else f"the process ended with status {status}"

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def test_damaged_files_give_pixels_or_a_reason(tmp_path):
    files = corpus()
    names = sorted(files)
    worker = Worker()
    warm, failures, seen = 0, [], {"pixels": 0, "unreadable": 0}
    for name in names:  # the first of every form loads its library
        (tmp_path / "case").write_bytes(files[name])
        warm, what = worker.decode(tmp_path / "case", 0, 120)
        assert what == ("unreadable" if name.startswith("bad-") else "pixels"), name
    memory = warm
    for i in range(FILES):
        name = names[i % len(names)]
        data = mutated(files[name], np.random.default_rng((0, i)))
        (tmp_path / "case").write_bytes(data)
        # The first answer of a new process waits for its imports.
        memory, what = worker.decode(tmp_path / "case", (0, 0, 8)[i % 3], SECONDS_PER_FILE if memory else 120)
        if what in seen:
            seen[what] += 1
        else:
            kept = tmp_path / f"failure-{i}-{name}"
            kept.write_bytes(data)
            failures.append(f"{kept}: {what}")
    worker.stop()
    print(f"{seen}, {memory} MiB at the end, {warm} MiB after the warm-up")
    assert not failures, "\n".join(failures)
    assert min(seen.values()) > FILES / 20, "the damage must be small enough for some and large enough for others"
    assert memory < warm + MIB_OF_GROWTH
