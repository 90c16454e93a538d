"""What is looked at before the first run of a study: settings, data, networks, and what is done already.

Everything that cannot work is said here, before anything is trained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import yaml

from lenext import config, models, runs
from lenext.config import TrainConfig
from lenext.data import dataset
from lenext.study import design, results
from lenext.study.design import Run, Study
from lenext.training import begin, prepare
from lenext.training.choose import choose

log = logging.getLogger("lenext")

# Files that the report is made from, and the classifier.
KEPT_WHOLE = (runs.CONFIG, runs.DATA, runs.METRICS, "evaluation.json", runs.CLASSIFIER)
# What every run of a study does unless the study says otherwise: nothing is timed, because runs side by side would
# measure one another, and settings that differ would make them hard to compare.
QUIET: dict[str, Any] = {"speed": "off", "cache": True, "track": "none"}


def require_same_requests(planned: Sequence[Run]) -> None:
    """ValueError where a run was begun with other settings than the study has now."""
    for one in planned:
        file = one.folder.with_name(one.folder.name + ".yaml")
        if not (file.is_file() and one.folder.is_dir()):
            continue
        asked, now_asked = file.read_text(encoding="utf-8"), request(one)
        if asked != now_asked:
            before, now = yaml.safe_load(asked), yaml.safe_load(now_asked)
            keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
            changes = ", ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in keys)
            raise ValueError(
                f"{one.folder} was made with other settings ({changes}); put the study back as it was, choose another "
                "--out, or remove that folder"
            )


def require_sound(study: Study, data: str, folder: Path) -> None:
    """Read the data and try to build every network, once, before the first run; ValueError for what cannot work."""
    asked = {cell.name: begin.configure({**QUIET, **cell.settings, "data": data}) for cell in study.cells.values()}
    for name, one in asked.items():
        if one.epochs is None and one.recipe != "probe":
            raise ValueError(
                f"the cell {name!r} has no epochs: it would be trained as long as its time budget lasts, and what it "
                "reaches would depend on the machine. Put epochs into the study's base"
            )
    options = design.distinct(prepare.data_options(one) for one in asked.values())
    # Every picture is looked at, also where the runs do not: what changes between them has to be noticed.
    reads = [dataset.read(data, dataclasses.replace(one, check=True, train_fraction=1.0)) for one in options]
    for one, read in zip(options, reads):
        if one.check:
            try:
                prepare.require_sound(read, max(config.max_unreadable for config in asked.values()))
            except ValueError as error:
                raise ValueError(f'{error} In a study file that is "check": False in its base.') from None
    _require_buildable(asked, reads[0])
    _require_unchanged(data, reads[0].membership(), folder)


def _require_buildable(asked: dict[str, TrainConfig], read: dataset.Dataset) -> None:
    """ValueError, naming the cell, for a network that cannot be built or trained as asked."""
    seen = set()
    for name, one in asked.items():
        # Thousands of cells may share a few networks.
        key = (one.model, one.pretrained, one.image_size, one.start_size, repr(one.arguments))
        if key in seen:
            continue
        seen.add(key)
        try:
            chosen, _ = choose(one, read.samples)
            assert chosen.model is not None
            with torch.device("meta"):
                models.create_model(
                    chosen.model, len(read.samples.classes), image_size=chosen.image_size, **chosen.arguments
                )
        except ValueError as error:
            raise ValueError(f"the cell {name!r} cannot be built: {error}") from None


def _require_unchanged(data: str, membership: pa.Table, folder: Path) -> None:
    """Keep which pictures the study is made with; ValueError, naming what changed, if they are others now.

    How they are divided is a matter of the runs.
    """
    file, splits = folder / runs.SAMPLES, membership.column_names.index("split")
    membership = membership.set_column(splits, "split", pa.array(["train"] * len(membership)))
    if not file.is_file():
        runs.write_samples(folder, membership)
        return
    before = runs.read_samples(folder)
    if dataset.fingerprint(before) != dataset.fingerprint(membership):
        raise ValueError(
            f"{data} is not what the study in {folder} was begun with ({dataset.differences(before, membership)}). "
            "Put it back as it was, or choose another --out"
        )


def to_do(planned: Sequence[Run]) -> list[Run]:
    """The runs that are not done; a run that is gone or damaged is said, put aside, and one of them."""
    waiting = []
    for one in planned:
        if results.has_diverged(one):
            log.warning("%s has diverged, as it would again; it is left as it is", one.name)
        elif (wrong := _damage(one)) is not None:
            log.warning("%s: %s; it is run again", one.name, wrong)
            receipt(one).unlink(missing_ok=True)
            _put_aside(one.folder)
            waiting.append(one)
        elif not receipt(one).is_file():
            waiting.append(one)
    return waiting


def _damage(one: Run) -> str | None:
    """What is wrong with a run that was done or begun; None if it is whole, or was not begun."""
    done = receipt(one).is_file()
    if not one.folder.is_dir():
        return f"{one.folder} is gone" if done else None
    if not done:
        try:
            if runs.is_run(one.folder):
                config.build(runs.read_config(one.folder))
                runs.read_json(one.folder / runs.DATA)
            return None
        except ValueError as error:
            return str(error)
    for name, digest in runs.read_json(receipt(one)).items():
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


def write_receipt(one: Run) -> None:
    """Note that a run is done, and what its files must be from now on."""
    runs.write_json(receipt(one), {name: _digest(one.folder / name) for name in KEPT_WHOLE})


def receipt(one: Run) -> Path:
    return one.folder.with_name(one.folder.name + ".json")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def request(one: Run) -> str:
    """What training is asked for, as a YAML file says it."""
    return yaml.safe_dump({**QUIET, **one.request}, allow_unicode=True, sort_keys=False)
