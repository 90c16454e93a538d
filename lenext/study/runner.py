"""`lenext study run`: every run of a study, several at once, interrupted and gone on with as one likes.

The folder of a study:

    study.lock  running.json        while it is at work
    samples-*.parquet               which pictures it is made with, for each way to divide them
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
import functools
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from filelock import FileLock, Timeout

from lenext import models, runs, terminal
from lenext.config import TrainConfig
from lenext.data import dataset
from lenext.data.dataset import DataOptions
from lenext.data.sources import absolute
from lenext.study import design, results
from lenext.study.design import Cell, Run, Study
from lenext.training import begin, prepare, process
from lenext.training.choose import choose
from lenext.training.interruption import Interruption

log = logging.getLogger("lenext")

RUNNING = "running.json"
# A run that nothing is known of yet is not started with less free memory, MiB.
UNKNOWN_MEMORY = 2048
# Files that the report is made from, and the classifier.
KEPT_WHOLE = (runs.CONFIG, runs.DATA, runs.METRICS, "evaluation.json", runs.CLASSIFIER)
# What every run of a study does unless the study says otherwise: nothing is timed, because runs side by side would
# measure one another, and settings that differ would make them hard to compare.
QUIET: dict[str, Any] = {"speed": "off", "cache": True, "track": "none"}


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


def count(data: str) -> tuple[int, int]:
    """(training pictures, classes) of data, none of which is looked at."""
    samples = dataset.read(data, DataOptions(check=False)).samples
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
    try:
        with FileLock(folder / "study.lock", timeout=0), Interruption():
            try:
                _end_left_over(folder)
                _require_same_requests(planned)
                _require_sound(study, planned, data, folder)
                waiting = _to_do(planned)
                log.info("%d of %d runs have ended already", len(planned) - len(waiting), len(planned))
                work = _Work(folder, data, len(planned), waiting, _slots(devices, len(waiting)))
                work.go_on(end)
            except KeyboardInterrupt:
                message = f"what was finished is kept, what was running is saved; go on with: {again}"
                raise KeyboardInterrupt(message) from None
            if work.waiting:
                log.info("the time is over; what was running is saved; go on with: %s", again)
            return not work.failed
    except Timeout:
        raise ValueError(f"another lenext study is at work in {folder}; wait for it, or choose another --out") from None


# ------------------------------------------------------------------------------------------------------- before


def _end_left_over(folder: Path) -> None:
    """Stop the runs of a study that was killed; they save and are gone on with."""
    if (folder / RUNNING).is_file():
        for mark in runs.read_json(folder / RUNNING):
            process.stop_left_over(mark)
        (folder / RUNNING).unlink()


def _require_same_requests(planned: Sequence[Run]) -> None:
    """ValueError where a run was begun with other settings than the study has now."""
    for one in planned:
        file = one.folder.with_name(one.folder.name + ".yaml")
        if not (file.is_file() and one.folder.is_dir()):
            continue
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
        if before != (now := _plain(_request(one))):
            keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
            changes = ", ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in keys)
            raise ValueError(
                f"{one.folder} was made with other settings ({changes}); put the study back as it was, choose another "
                f"--out, or remove that folder"
            )


def _require_sound(study: Study, planned: Sequence[Run], data: str, folder: Path) -> None:
    """Read the data and try to build every network, once, before the first run; ValueError for what cannot work."""
    cells = list(study.cells.values())
    configs = {cell.name: begin.configure({**QUIET, **cell.settings, "data": data}) for cell in cells}
    found = {}
    for option in design.distinct(prepare.data_options(config) for config in configs.values()):
        # Every picture is looked at, also where the runs do not: what changes between them has to be noticed.
        read = dataset.read(data, dataclasses.replace(option, check=True))
        if option.check:
            prepare.require_sound(read, max(config.max_unreadable for config in configs.values()))
        found[hashlib.sha256(repr(option).encode()).hexdigest()[:8]] = read.membership()
        _require_buildable(cells, configs, read)
    _require_unchanged(data, found, folder)


def _require_buildable(cells: Sequence[Cell], configs: dict[str, TrainConfig], read: dataset.Dataset) -> None:
    """ValueError, naming the cell, for a network that cannot be built or trained as asked."""
    seen = set()
    for cell in cells:
        config = configs[cell.name]
        # Thousands of cells may share a few networks.
        key = (config.model, config.pretrained, config.image_size, config.start_size, repr(config.arguments))
        if key in seen:
            continue
        seen.add(key)
        try:
            chosen, _ = choose(config, read.samples)
            assert chosen.model is not None
            with torch.device("meta"):
                models.create_model(
                    chosen.model, len(read.samples.classes), image_size=chosen.image_size, **chosen.arguments
                )
        except ValueError as error:
            raise ValueError(f"the cell {cell.name!r} cannot be built: {error}") from None


def _require_unchanged(data: str, found: dict[str, Any], folder: Path) -> None:
    """Keep which pictures the study is made with; ValueError, naming what changed, if they are others now."""
    import pyarrow.parquet as pq

    for options, membership in found.items():
        file = folder / f"samples-{options}.parquet"
        if not file.is_file():
            runs.write_atomically(file, functools.partial(pq.write_table, membership))
            continue
        before = pq.read_table(file)
        if dataset.fingerprint(before) != dataset.fingerprint(membership):
            raise ValueError(
                f"{data} is not what the study in {folder} was begun with ({dataset.differences(before, membership)}). "
                "Put it back as it was, or choose another --out"
            )


def _to_do(planned: Sequence[Run]) -> list[Run]:
    """The runs that are not done; a run that was done and is gone or damaged since is said, and put aside."""
    waiting = []
    for one in planned:
        receipt = _receipt(one)
        if results.has_diverged(one):
            log.warning("%s has diverged, as it would again; it is left as it is", one.name)
            continue
        if receipt.is_file():
            if (wrong := _damage(one, runs.read_json(receipt))) is None:
                continue
            log.warning("%s: %s; it is run again", one.name, wrong)
            receipt.unlink()
            _put_aside(one.folder)
        waiting.append(one)
    return waiting


def _damage(one: Run, digests: dict[str, str]) -> str | None:
    """What is wrong with a run that was done; None if it is whole."""
    if not one.folder.is_dir():
        return f"{one.folder} is gone"
    for name, digest in digests.items():
        if not (one.folder / name).is_file():
            return f"{one.folder / name} is gone"
        if _digest(one.folder / name) != digest:
            return f"{one.folder / name} is not as the run wrote it"
    return None


def _put_aside(folder: Path) -> None:
    """Keep a folder under a name that nothing reads."""
    if folder.is_dir():
        numbers = (f"{folder.name}.damaged-{n}" for n in range(1, 10_000))
        folder.rename(folder.with_name(next(name for name in numbers if not folder.with_name(name).exists())))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _receipt(one: Run) -> Path:
    return one.folder.with_name(one.folder.name + ".json")


def _request(one: Run) -> dict[str, Any]:
    return {**QUIET, **one.request}


def _plain(settings: dict[str, Any]) -> Any:
    """As YAML gives it back."""
    return yaml.safe_load(_yaml(settings))


def _yaml(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, allow_unicode=True, sort_keys=False)


# ------------------------------------------------------------------------------------------------------ at work


@dataclass(frozen=True)
class _Slot:
    """A place for one run at a time. environment: what keeps it to its GPU or cores."""

    environment: dict[str, str]
    cores: tuple[int, ...] | None


def _slots(devices: int | None, most: int) -> list[_Slot]:
    """Places for as many runs as go side by side: a GPU each, or equal parts of the cores."""
    if torch.cuda.is_available():
        count = min(devices or torch.cuda.device_count(), torch.cuda.device_count())
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        return [_Slot({"CUDA_VISIBLE_DEVICES": names[i]}, None) for i in range(max(min(count, most), 1))]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    count = max(min(devices or len(cores), len(cores), most), 1)
    parts = [tuple(cores[i * len(cores) // count : (i + 1) * len(cores) // count]) for i in range(count)]
    return [_Slot({"OMP_NUM_THREADS": str(len(part))}, part) for part in parts]


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
        self.memory: dict[str, float] = {}  # of each cell, MiB, by the runs so far

    def go_on(self, deadline: float | None) -> None:
        """Run until nothing waits, or until the deadline; then, and when interrupted, what runs is saved."""
        try:
            with terminal.bar("runs", self.planned) as bar:
                while self.waiting or self.running:
                    if deadline is not None and time.monotonic() > deadline:
                        return
                    while self.waiting and self.free and self._has_memory(self.waiting[0]):
                        self._start(self.waiting.pop(0), self.free.pop(0))
                    time.sleep(process.POLL)
                    for one in [one for one in self.running if one.process.has_ended()]:
                        self._end(one)
                    bar.to(self.planned - len(self.waiting) - len(self.running), note=self._note())
        finally:
            self._stop()

    def _has_memory(self, one: Run) -> bool:
        """Whether another run fits the memory beside those at work; alone, a run is always tried."""
        if not self.running:
            return True
        needed = self.memory.get(one.cell.name, max([UNKNOWN_MEMORY, *self.memory.values()]))
        # Those that have just begun will still grow.
        growing = sum(
            max(self.memory.get(other.run.cell.name, UNKNOWN_MEMORY) - _held(other.process), 0)
            for other in self.running
        )
        return psutil.virtual_memory().available / 2**20 > needed + growing

    def _start(self, one: Run, slot: _Slot) -> None:
        results.failure_file(one).unlink(missing_ok=True)
        arguments = process.train_or_resume(self.data, one.folder, _yaml(_request(one)))
        log.info("%s: %s", one.name, "going on" if "--resume" in arguments else "begins")
        training = process.Process(arguments, one.folder, environment=slot.environment, cores=slot.cores)
        self.running.append(_Running(one, slot, training, time.monotonic()))
        self._write_marks()

    def _end(self, ended: _Running) -> None:
        one, why = ended.run, ended.process.failure()
        self.running.remove(ended)
        self.free.append(ended.slot)
        if why is None and not runs.is_finished(one.folder):
            why = "it ended without a result"
        if why is not None:
            self.failed.append(one)
            runs.write_text(results.failure_file(one), why + "\n")
            log.error("%s failed: %s", one.name, why)
        else:
            process.forget_messages(one.folder)
            runs.write_json(_receipt(one), {name: _digest(one.folder / name) for name in KEPT_WHOLE})
            result = results.read_run(one)
            self.memory[one.cell.name] = max(result.peak_memory_mib or 0, self.memory.get(one.cell.name, 0))
            done = self.planned - len(self.waiting) - len(self.running)
            seconds = time.monotonic() - ended.began
            log.info(
                "%s: %.2f %%, %.0f s (%d of %d)", one.name, 100 * (result.accuracy or 0), seconds, done, self.planned
            )
        self._write_marks()

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
