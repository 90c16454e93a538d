"""A training run in a process of its own, for programs that start many: searches and studies.

A process of its own keeps runs apart: nothing is left over from the one before, and a crash ends one run only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from lenext import runs

PROGRAM = [sys.executable, "-m", "lenext.cli"]
POLL = 0.2  # seconds between looks at a process
GRACE = 30.0  # seconds to save and end in after SIGTERM
DIVERGED = "the training diverged"  # what the program says then
Mark = list[float]


class Process:
    """The program at work on a run folder; what it says is kept in a file beside that.

    environment: variables on top of this process's own. cores: the ones it may use, all where None or where the
    system cannot tell.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        run: Path,
        *,
        environment: Mapping[str, str] | None = None,
        cores: Sequence[int] | None = None,
    ) -> None:
        self.said = messages(run)
        self.said.parent.mkdir(parents=True, exist_ok=True)
        pinned = hasattr(os, "sched_setaffinity") and cores is not None
        before = os.sched_getaffinity(0) if pinned else set()
        try:
            if pinned:  # a process inherits it from the thread that starts it
                os.sched_setaffinity(0, cores or ())
            with open(self.said, "wb") as file:
                # In a session of its own, so that Ctrl-C reaches this program alone, which stops the other in order.
                self._process = subprocess.Popen(
                    [*PROGRAM, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file,
                    start_new_session=True, env={**os.environ, **(environment or {})},
                )  # fmt: skip
        finally:
            if pinned:
                os.sched_setaffinity(0, before)

    def mark(self) -> Mark | None:
        """What tells the process from others later, see `stop_left_over`; None if it has ended already."""
        try:
            return [self._process.pid, psutil.Process(self._process.pid).create_time()]
        except psutil.NoSuchProcess:
            return None

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ask_to_stop(self) -> None:
        """Let it save and end; `stop` waits for that."""
        if not self.has_ended():
            self._process.terminate()

    def stop(self) -> None:
        """Let it save and end, or end it after GRACE seconds."""
        if self.has_ended():
            return
        self.ask_to_stop()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def failure(self) -> str | None:
        """Of a process that has ended: its own sentence about its failure, else the last thing that was said."""
        status = self._process.returncode
        if status == 0:
            return None
        if status < 0:
            memory = "; the system does that when memory runs out" if status == -signal.SIGKILL else ""
            return f"the process was killed by {signal.Signals(-status).name}{memory}"
        lines = [line for line in self.said.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        own = [line.removeprefix("lenext: ") for line in lines if line.startswith("lenext: ")]
        return (own or lines or [f"exit status {status}"])[-1].strip()


def train_or_resume(data: str, run: Path, settings: str, flags: Sequence[str] = ()) -> list[str]:
    """The command line of a run: it goes on if it was begun, else it begins with settings, the text of a YAML file.

    What is left of a run that had not come to a run folder is removed.
    """
    if runs.is_run(run):
        return ["train", "--resume", str(run)]
    if run.is_dir():
        shutil.rmtree(run)
    file = run.with_name(run.name + ".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    runs.write_text(file, settings)
    return ["train", data, "--config", str(file), "--out", str(run), *flags]


def stop_left_over(mark: Mark | None) -> None:
    """End a process that was started by a program which was killed and could not end it itself."""
    if mark is None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(int(mark[0]))
        if process.create_time() != mark[1]:  # another process has that number now
            return
        process.terminate()
        end = time.monotonic() + GRACE
        # Its parent is gone, and in a container often nobody is there to take note of its end.
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > end:
                process.kill()
            time.sleep(POLL)


def messages(run: Path) -> Path:
    """Where a process says what is not in its run's log: why it failed."""
    return run.with_name(run.name + ".log")


def forget_messages(run: Path) -> None:
    """Remove what the process said: train.log has it."""
    messages(run).unlink(missing_ok=True)
