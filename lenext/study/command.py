"""`lenext study list`, `run` and `report`: what each does, from the request to what people see."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from lenext import terminal
from lenext.evaluation.report import duration
from lenext.study import design, estimate, results, runner
from lenext.study.design import Study

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def list(name: str | None = None, data: str | None = None) -> bool:
    """Show every study with its question, runs and time on this machine; or the runs of one."""
    if name is not None:
        _show_cells(*design.read(name), data)
        return True
    studies = [design.read(known) for known in design.names()]
    total = sum(len(study.cells) for _, study in studies)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    table.add_column("study", no_wrap=True)
    table.add_column("runs", justify="right", no_wrap=True)
    table.add_column("time here", justify="right", no_wrap=True)
    table.add_column("question")
    with terminal.bar("timing a few steps of each network", total) as bar:
        for known, study in studies:
            found = _estimates(study, study.pictures, study.classes, bar.advance)
            seconds = study.seeds * sum(one.seconds for one in found.values()) / runner.places()
            table.add_row(known, f"{len(study.cells)} x {study.seeds}", duration(seconds), escape(study.question))
    terminal.output.print(table)
    terminal.output.print(
        f"Runs: cells x seeds. Time: a few steps of each network, timed here, times their number, {_beside()}."
    )
    terminal.output.print("next         lenext study list NAME, lenext study run NAME")
    return True


def run(
    name: str,
    data: str | None = None,
    seeds: int | None = None,
    budget: str | None = None,
    devices: int | None = None,
    out: str | None = None,
) -> bool:
    """Train what is missing of a study and write its report; whether no run failed."""
    known, study = design.read(name)
    if seeds is not None and seeds < 1:
        raise ValueError(f"--seeds is {seeds}; it must be at least 1")
    if devices is not None and devices < 1:
        raise ValueError(f"--devices is {devices}; it must be at least 1")
    seconds = None if budget is None else read_time(budget)
    folder = runner.default_folder(known) if out is None else Path(out)
    place = runner.find_data(known, study, data)
    flags = {"--data": data, "--seeds": seeds, "--devices": devices, "--out": out}
    given = [word for flag, value in flags.items() if value is not None for word in (flag, str(value))]
    again = shlex.join(["lenext", "study", "run", name, *given])
    finished = runner.run(
        study, data=place, folder=folder, seeds=seeds or study.seeds, again=again, budget=seconds, devices=devices
    )
    if not results.seeds_in(study, folder):  # the time was over before anything began
        return finished
    return report(name, seeds, out) and finished


def report(name: str, seeds: int | None = None, out: str | None = None) -> bool:
    """Write the report of a study from its run folders, and say what it says."""
    from lenext.study import report as pages

    known, study = design.read(name)
    folder = runner.default_folder(known) if out is None else Path(out)
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist; the study has to be run first: lenext study run {name}")
    begun = results.seeds_in(study, folder)
    if not begun:
        raise ValueError(f"{folder} holds no run of the study {known}; lenext study run {name} makes them")
    written = pages.write(known, study, folder, seeds or max(begun, study.seeds))
    pages.show(written)
    return True


def read_time(text: str) -> float:
    """Seconds of a time such as 45s, 90m, 4h, 1h30m; a bare number is seconds. Raises ValueError for anything else."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    elif re.fullmatch(r"\d+(\.\d+)?", text):
        seconds = float(text)
    else:
        raise ValueError(f"--budget is {text!r}; it is a time such as 45s, 90m, 4h or 1h30m")
    if not seconds:
        raise ValueError("--budget is no time at all; 90m, 4h or 1h30m would be some")
    return seconds


def _show_cells(name: str, study: Study, data: str | None) -> None:
    pictures, classes = study.pictures, study.classes
    if data is not None or not pictures:
        pictures, classes = runner.count(runner.find_data(name, study, data), study)
    with terminal.bar("timing a few steps of each network", len(study.cells)) as bar:
        found = _estimates(study, pictures, classes, bar.advance)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for factor in study.factors:
        table.add_column(factor.name, no_wrap=True)
    for column in ("M params", "images/s", "time here", *(["published"] if study.published else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for cell in study.cells.values():
        one, published = found[cell.name], study.published.get(cell.name)
        table.add_row(
            *(escape(level) for level in cell.levels.values()),
            f"{one.parameters / 1e6:.2f}",
            f"{one.images_per_second:.0f}",
            duration(one.seconds),
            *([] if published is None else [f"{100 * published:.2f} %"]),
        )
    seconds = study.seeds * sum(one.seconds for one in found.values()) / runner.places()
    terminal.output.print(f"{escape(study.question)}\n")
    terminal.output.print(table)
    terminal.output.print(
        f"\n{len(study.cells)} cells, each from {study.seeds} seeds: {duration(seconds)} in all, {_beside()}\n"
    )
    for comparison in study.comparisons:
        terminal.output.print(f"- {escape(comparison.question)}")


def _beside() -> str:
    count = runner.places()
    return f"{count} runs side by side" if count > 1 else "one run after another"


def _estimates(study: Study, pictures: int, classes: int, tick: Any) -> dict[str, estimate.Estimate]:
    found = {}
    for cell in study.cells.values():
        found[cell.name] = estimate.estimate(cell, pictures, classes)
        tick()
    return found
