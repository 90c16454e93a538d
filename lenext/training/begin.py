"""How a run begins: settings settled, data sound, the run folder made; or an interrupted one taken up again.

`train` and `resume` both end in `loop.fit`, which depends on the run folder alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from lenext import config as settings
from lenext import recipes, runs
from lenext.classifier import Classifier
from lenext.config import TrainConfig
from lenext.data import dataset
from lenext.data.dataset import Dataset
from lenext.data.loader import derive_seed
from lenext.data.samples import Samples
from lenext.data.sources import absolute
from lenext.evaluation.lr_figure import draw_lr_search
from lenext.models.pooled import build_network
from lenext.training import allocator, checkpoint, devices, loop, prepare, tracking, trial
from lenext.training.choose import choose
from lenext.training.depthwise import hasten_depthwise
from lenext.training.find_lr import Search
from lenext.training.find_lr import find_lr as find_lr_with
from lenext.training.interruption import Interruption
from lenext.training.objective import num_outputs

log = logging.getLogger("lenext")
Setting = TypeVar("Setting")

# What may change when a run goes on: how it is computed, not what.
CHANGEABLE = ("devices", "nodes", "workers", "cache", "cache_limit", "checkpoint_every", "track")
LOCK = ".lock"
# Seconds for a training that is ending, or was killed and leaves processes that read files, to let go of its folder.
PATIENCE = 20


def configure(given: dict[str, Any], file: dict[str, Any] | None = None) -> TrainConfig:
    """The configuration of what the user gave, over a configuration file, over the recipe, over the defaults."""
    file = file or {}
    recipe = given.get("recipe", file.get("recipe", "auto"))
    return settings.build(recipes.get(recipe), file, given)


def train(config: TrainConfig, out: str | Path | None = None, *, started: float | None = None) -> Path:
    """Train from the beginning; returns the run folder. Nothing is written before data and settings are sound.

    started: when the time budget began, in seconds since the epoch; now if not given.
    Of several processes, only the first returns; the others end.
    """
    started = time.time() if started is None else started
    opened: list[tuple[Dataset, Classifier]] = []

    def begin() -> Path:
        if devices.restarted() and out is not None and runs.is_run(out):
            return Path(out)
        return _begin(config, out, opened)

    with _running(config) as (fabric, interruption):
        run = devices.decide(fabric, begin)
        with _ending(fabric, run), _alone(fabric, run):
            return _go_on(run, fabric, interruption, opened[0] if opened else None, started)


def resume(path: str | Path, changes: dict[str, Any] | None = None) -> Path:
    """Go on with an interrupted run with the settings it has; a finished run is left as it is.

    changes: settings of CHANGEABLE that are to be other than they were.
    """
    fixed = [name for name in changes or {} if name not in CHANGEABLE]
    if fixed:
        raise ValueError(
            f"--resume goes on with the settings of the run; take away {', '.join(sorted(fixed))} "
            f"(what may change: {', '.join(CHANGEABLE)})"
        )
    run = runs.require(path)
    if runs.is_finished(run):
        log.info("%s is finished already; nothing to resume", run)
        return run
    before = runs.read_config(run)
    config = settings.build(before, changes or {})
    with _running(config) as (fabric, interruption), _ending(fabric, run), _alone(fabric, run):
        if fabric.is_global_zero:
            runs.write_config(run, dataclasses.asdict(config))
        fabric.barrier()
        try:
            return _go_on(run, fabric, interruption, None, time.time())
        except ValueError:  # a change that this run cannot take is not kept
            if fabric.is_global_zero:
                runs.write_config(run, before)
            raise


def find_lr(config: TrainConfig, out: str | Path | None = None) -> tuple[Search, Path]:
    """(what a learning rate range test found, the figure it drew) for a training that would begin with `config`."""
    with _running(dataclasses.replace(config, devices=1, nodes=1)) as (fabric, _):
        config, data, _ = settled(config)
        folder = runs.create(out, "find-lr")
        classifier = _new_classifier(config, data.samples, {})
        step = trial.trial_step(folder, config, data, classifier, fabric)
        search = find_lr_with(step)
        figure = folder / "find-lr.png"
        draw_lr_search(search, figure)
        runs.write_json(
            folder / "find-lr.json", {name: np.asarray(v).tolist() for name, v in dataclasses.asdict(search).items()}
        )
    return search, figure


def settled(config: TrainConfig) -> tuple[TrainConfig, Dataset, list[str]]:
    """(the configuration with everything chosen that the data decides, the data, sentences that say why)."""
    if config.data is None:
        raise ValueError("DATA is missing: a folder of pictures (a folder a class), a manifest, shards, or hf:NAME")
    data = dataset.read(config.data, prepare.data_options(config))
    prepare.require_sound(data, config.max_unreadable)
    # The run may be used from elsewhere.
    config = dataclasses.replace(
        config, data=absolute(config.data), root=config.root and absolute(config.root),
        pretrained=_absolute_file(config.pretrained), teacher=_absolute_file(config.teacher),
    )  # fmt: skip
    config, choices = choose(config, data.samples)
    return config, data, choices


def _absolute_file(setting: Setting) -> Setting | str:
    """A file or folder named so that it is found from any folder; what names none, such as a network, as it is."""
    return os.path.abspath(setting) if isinstance(setting, str) and os.path.exists(setting) else setting


def _begin(config: TrainConfig, out: str | Path | None, opened: list[tuple[Dataset, Classifier]]) -> Path:
    """The run folder with everything in it that stands before training; data and network go into `opened`."""
    if out is None and devices.restarts():
        raise ValueError("with --max-restarts a run has to be found again: give the training an --out FOLDER")
    config, data, choices = settled(config)
    membership = data.membership()
    classifier = _new_classifier(config, data.samples, dataset.fingerprint(membership))
    opened.append((data, classifier))
    run = runs.create(out, str(config.model if config.recipe in ("auto", "fit") else config.recipe))
    with runs.logging_to(run):
        for sentence in choices:
            log.info("%s", sentence)
    runs.write_samples(run, membership)
    runs.write_json(run / "environment.json", runs.environment())
    runs.write_json(run / "choices.json", choices)
    prepare.write_data(run, classifier, data.samples, unreadable=[])
    runs.write_config(run, dataclasses.asdict(config))
    return run


def _go_on(
    run: Path, fabric: Any, interruption: Interruption, opened: tuple[Dataset, Classifier] | None, started: float
) -> Path:
    """Train in a run folder; opened: its data and network, where this process has just made it."""
    config = settings.build(runs.read_config(run))
    assert config.data is not None
    resumed = opened is None
    if resumed and fabric.is_global_zero:
        runs.remove_unfinished(run)
    with runs.logging_to(run) if fabric.is_global_zero else contextlib.nullcontext():
        with fabric.rank_zero_first(local=True):  # what the first finds out, it keeps for the others
            if opened is None:
                log.info("resuming %s", run)
                data = dataset.read(config.data, prepare.data_options(config))
                # The checkpoint has the weights, and the file that they came from at first may be gone.
                fresh = dataclasses.replace(config, pretrained=False) if checkpoint.exists(run) else config
                opened = data, _new_classifier(fresh, data.samples, runs.read_json(run / runs.DATA)["fingerprint"])
        data, classifier = opened
        if devices.decide(fabric, lambda: resumed):
            devices.decide(fabric, lambda: _require_unchanged(run, data))
        hasten_depthwise(classifier.model)
        loop.fit(run, config, data, classifier, fabric, interruption, started)
    if not fabric.is_global_zero:
        devices.leave()
    return run


def _require_unchanged(run: Path, data: Dataset) -> None:
    """ValueError, naming the files, where the data is not what the run began with."""
    membership = data.membership()
    if dataset.fingerprint(membership) != runs.read_json(run / runs.DATA)["fingerprint"]:
        before = runs.read_samples(run)
        changes = "" if before is None else f" ({dataset.differences(before, membership)})"
        raise ValueError(
            f"{data.source} is not what the run {run} began with{changes}. Put it back as it was, or train anew"
        )


def _new_classifier(config: TrainConfig, samples: Samples, fingerprint: dict[str, str]) -> Classifier:
    """A network with fresh or pretrained weights and what belongs to it, not yet trained."""
    assert config.loss is not None
    several = samples.sets is not None
    architecture = {
        "name": config.model,
        "num_outputs": num_outputs(config.loss, len(samples.classes), several),
        "image_size": config.image_size,
        "arguments": config.arguments,
    }
    torch.manual_seed(derive_seed("weights", config.seed))
    return Classifier(
        model=build_network(architecture, pretrained=config.pretrained or False),
        architecture=architecture,
        classes=samples.classes,
        preprocess=prepare.preprocess_of(config),
        views=config.views or 1,
        task="multi-label" if several else "single-label",
        about={
            "data": config.data,
            "data_options": prepare.data_options(config).to_dict(),
            "fingerprint": fingerprint,
        },
    )


@contextlib.contextmanager
def _running(config: TrainConfig) -> Iterator[tuple[Any, Interruption]]:
    """The processes of a training, interruptible."""
    tracking.require(config.trackers)
    allocator.keep_memory()
    with Interruption() as interruption:
        fabric = devices.launch(
            config.accelerator, config.devices, config.nodes, config.strategy, freezes=config.freeze > 0
        )
        interruption.alone = fabric.world_size == 1
        try:
            yield fabric, interruption
        finally:
            allocator.release_memory()  # a notebook gets it back


@contextlib.contextmanager
def _alone(fabric: Any, run: Path) -> Iterator[None]:
    """Hold the run folder: ValueError if another training is at work in it, which would mix up both their files."""
    refusal = f"another training is at work in {run}; wait for its end, or stop it"
    with contextlib.ExitStack() as held:
        devices.decide(fabric, lambda: held.enter_context(runs.alone(run / LOCK, refusal, patience=PATIENCE)))
        yield


@contextlib.contextmanager
def _ending(fabric: Any, run: Path) -> Iterator[None]:
    """Ctrl-C anywhere in a run, or the end of another of its processes, says how to go on."""
    mend = f"go on with: lenext train --resume {run}"
    try:
        with devices.together(fabric, mend):
            yield
    except KeyboardInterrupt:
        if not fabric.is_global_zero:
            devices.leave()
        raise KeyboardInterrupt(f"what was finished is saved; {mend}") from None
