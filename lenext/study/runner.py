"""`lenext study run`: every run of a study, several at once, interrupted and gone on with as one likes.

The folder of a study:

    study.lock  running.json        while it is at work
    samples.parquet                 which pictures it is made with
    runs/<cell>/seed-0/             an ordinary run folder
    runs/<cell>/seed-0.yaml         what was asked for
    runs/<cell>/seed-0.json         once it is done: what its files must be, so that damage is noticed
    runs/<cell>/seed-0.failed       why it failed; it is tried again next time
    report.html  table.csv  ...     see report.py

Whether a run is done is read from its folder, so a study that is started again finishes what is missing and repeats
nothing; more seeds or levels train only what is new.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from lenext import runs, terminal
from lenext.data import dataset
from lenext.data.sources import absolute
from lenext.evaluation.report import duration
from lenext.study import design, ready, results
from lenext.study.design import Run, Study
from lenext.training import begin, prepare, process
from lenext.training.interruption import Interruption

log = logging.getLogger("lenext")

RUNNING = "running.json"
# A run that nothing is known of yet is not started with less free memory, MiB.
UNKNOWN_MEMORY = 2048


def default_folder(name: str) -> Path:
    return Path("runs") / "studies" / name


def find_data(name: str, study: Study, given: str | None) -> str:
    """The data of a study: as given, or where it is usually. ValueError, with where to get it, if it is not there."""
    places = [given] if given is not None else list(study.places)
    for place in places:
        path = Path(place).expanduser()
        if place.startswith("hf:") or path.exists() or "{" in place:
            return absolute(path if path.exists() else place)
    if given is not None:
        raise ValueError(f"--data {given} does not exist. {study.data_help}".strip())
    looked = f" (looked for {', '.join(places)})" if places else ""
    raise ValueError(f"study {name} needs its data{looked}: {study.data_help} Then say where it is: --data PATH")


def count(data: str, study: Study) -> tuple[int, int]:
    """(training pictures before `train_fraction`, classes) of data, as the first cell divides it; none is looked at."""
    options = prepare.data_options(begin.configure(dict(next(iter(study.cells.values())).settings)))
    samples = dataset.read(data, dataclasses.replace(options, check=False, train_fraction=1.0)).samples
    return int(samples.in_split("train").sum()), len(samples.classes)


def run(
    study: Study,
    *,
    data: str,
    folder: Path,
    seeds: int,
    again: str,
    budget: float | None = None,
    devices: int | None = None,
) -> bool:
    """Train what is missing; whether every run that was tried came to its end.

    again: the command that goes on with it. budget: seconds after which what is running is saved and stopped.
    devices: runs side by side, on a GPU each or on parts of the CPU's cores; as many as there are GPUs, or cores, if
    not given.

    Raises ValueError, before the first run, where study, data or folder cannot work; KeyboardInterrupt, with a sentence
    that says how to go on, at Ctrl-C and SIGTERM.
    """
    end = None if budget is None else time.monotonic() + budget
    planned = design.plan(study, folder, seeds)
    folder.mkdir(parents=True, exist_ok=True)
    refusal = f"another lenext study is at work in {folder}; wait for it, or choose another --out"
    with runs.alone(folder / "study.lock", refusal), Interruption():
        try:
            _end_left_over(folder)
            ready.require_same_requests(planned)
            ready.require_sound(study, data, folder)
            waiting = ready.to_do(planned)
            log.info("%d of %d runs have ended already", len(planned) - len(waiting), len(planned))
            slots = _slots(devices, len(planned))  # not by what is left: a run goes on with as many cores
            work = _Work(folder, data, len(planned), waiting, slots)
            work.go_on(end)
        except KeyboardInterrupt:
            message = f"what was finished is kept, what was running is saved; go on with: {again}"
            raise KeyboardInterrupt(message) from None
        if work.waiting:
            log.info("the time is over; what was running is saved; go on with: %s", again)
        return not work.failed


def _end_left_over(folder: Path) -> None:
    """Stop the runs of a study that was killed; they save and are gone on with."""
    if (folder / RUNNING).is_file():
        for mark in runs.read_json(folder / RUNNING):
            process.stop_left_over(mark)
        (folder / RUNNING).unlink()


# ------------------------------------------------------------------------------------------------------ at work


@dataclass(frozen=True)
class _Slot:
    """A place for one run at a time. environment: what keeps it to its GPU or cores."""

    environment: dict[str, str]
    cores: tuple[int, ...] | None


def places() -> int:
    """How many runs go side by side on this machine."""
    return torch.cuda.device_count() if torch.cuda.is_available() else len(_cores())


def _slots(devices: int | None, most: int) -> list[_Slot]:
    """Places for as many runs as go side by side: a GPU each, or equal parts of the cores, shared if there are more."""
    count = max(min(devices or places(), most), 1)
    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(places())]
        return [_Slot({"CUDA_VISIBLE_DEVICES": names[i % len(names)]}, None) for i in range(count)]
    cores = _cores()
    bounds = [i * len(cores) // count for i in range(count + 1)]
    parts = [tuple(cores[low : max(high, low + 1)]) for low, high in itertools.pairwise(bounds)]
    return [_Slot({"OMP_NUM_THREADS": str(len(part))}, part) for part in parts]


def _cores() -> list[int]:
    """Those that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]


@dataclass
class _Running:
    run: Run
    slot: _Slot
    process: process.Process
    began: float


class _Work:
    """The runs that wait, are at work and have ended."""

    def __init__(self, folder: Path, data: str, planned: int, waiting: list[Run], slots: list[_Slot]) -> None:
        self.folder, self.data, self.planned = folder, data, planned
        self.waiting, self.free = list(waiting), slots
        self.running: list[_Running] = []
        self.failed: list[Run] = []
        self.places, self.busy = len(slots), 0.0  # seconds of runs, all places together
        self.memory: dict[str, float] = {}  # of each cell, MiB, by the runs so far

    def go_on(self, deadline: float | None) -> None:
        """Run until nothing waits, or until the deadline; then, and when interrupted, what runs is saved."""
        begin, waited = time.monotonic(), len(self.waiting)
        try:
            with terminal.bar("runs", self.planned) as bar:
                while self.waiting or self.running:
                    if deadline is not None and time.monotonic() > deadline:
                        return
                    while self.free and (one := self._next()):
                        self._start(one, self.free.pop(0))
                    time.sleep(process.POLL)
                    for ended in [one for one in self.running if one.process.has_ended()]:
                        self._end(ended)
                    bar.to(self.planned - len(self.waiting) - len(self.running), note=self._note())
            spent = time.monotonic() - begin
            if waited:
                share = 100 * self.busy / spent / self.places
                log.info("%d runs in %s, %.1f %% of the time at work", waited, duration(spent), share)
        finally:
            self._stop()

    def _next(self) -> Run | None:
        """The next run to begin, out of those that wait; None while none can."""
        at_work = [*self.waiting, *(other.run for other in self.running)]
        for one in list(self.waiting):
            if one.teacher and not runs.is_finished(one.teacher):
                if all(other.folder != one.teacher for other in at_work):
                    self.waiting.remove(one)
                    self._fail(one, f"its teacher, {one.cell.teacher}, has no result")
            elif self._has_memory(one):
                self.waiting.remove(one)
                return one
        return None

    def _has_memory(self, one: Run) -> bool:
        """Whether another run fits the memory beside those at work; alone, a run is always tried."""
        if not self.running:
            return True
        if torch.cuda.is_available():  # what is known of runs is the memory of a GPU, and each has its own
            return psutil.virtual_memory().available / 2**20 > UNKNOWN_MEMORY
        needed = self.memory.get(one.cell.name, max([UNKNOWN_MEMORY, *self.memory.values()]))
        # Those that have just begun will still grow.
        growing = sum(
            max(self.memory.get(other.run.cell.name, UNKNOWN_MEMORY) - _held(other.process), 0)
            for other in self.running
        )
        return psutil.virtual_memory().available / 2**20 > needed + growing

    def _start(self, one: Run, slot: _Slot) -> None:
        results.failure_file(one).unlink(missing_ok=True)
        arguments = process.train_or_resume(self.data, one.folder, ready.request(one))
        log.info("%s: %s", one.name, "going on" if "--resume" in arguments else "begins")
        training = process.Process(arguments, one.folder, environment=slot.environment, cores=slot.cores)
        self.running.append(_Running(one, slot, training, time.monotonic()))
        self._write_marks()

    def _end(self, ended: _Running) -> None:
        one, why = ended.run, ended.process.failure()
        seconds = time.monotonic() - ended.began
        self.running.remove(ended)
        self.free.append(ended.slot)
        self.busy += seconds
        if why is None and not runs.is_finished(one.folder):
            why = "it ended without a result"
        if why is not None:
            self._fail(one, why)
        else:
            process.forget_messages(one.folder)
            ready.write_receipt(one)
            result = results.read_run(one)
            self.memory[one.cell.name] = max(result.peak_memory_mib or 0, self.memory.get(one.cell.name, 0))
            done = self.planned - len(self.waiting) - len(self.running)
            log.info(
                "%s: %.2f %%, %.0f s (%d of %d)", one.name, 100 * (result.accuracy or 0), seconds, done, self.planned
            )
        self._write_marks()

    def _fail(self, one: Run, why: str) -> None:
        self.failed.append(one)
        one.folder.parent.mkdir(parents=True, exist_ok=True)
        runs.write_text(results.failure_file(one), why + "\n")
        log.error("%s failed: %s", one.name, why)

    def _stop(self) -> None:
        """Let everything that runs save and end, all at once."""
        for one in self.running:
            one.process.ask_to_stop()
        for one in self.running:
            one.process.stop()
            self.waiting.append(one.run)
        self.running.clear()
        (self.folder / RUNNING).unlink(missing_ok=True)

    def _write_marks(self) -> None:
        runs.write_json(self.folder / RUNNING, [one.process.mark() for one in self.running])

    def _note(self) -> str:
        return "; ".join(f"{one.run.name} epoch {len(results.history(one.run.folder))}" for one in self.running)


def _held(training: process.Process) -> float:
    """MiB that a process holds."""
    mark = training.mark()
    try:
        return 0.0 if mark is None else psutil.Process(int(mark[0])).memory_info().rss / 2**20
    except psutil.NoSuchProcess:
        return 0.0
