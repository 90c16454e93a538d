"""Resume is exact wherever a run was broken off: at the worst moments of a step, an epoch, a file and the end."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lenext import runs
from lenext.training import averaging, begin, checkpoint, keeper, loop, tracking
from lenext.training.checkpoint import Checkpoint, Progress
from lenext.training.interruption import Interruption
from lenext.training.sharpness import Sharpness
from tests.pictures import make_folder
from tests.training.test_faults import assert_equal_runs, assert_equal_training, command, wait_for_epoch

FIXED = {"precision": "float32", "channels_last": True, "workers": 0, "speed": "off", "track": "none"}
SMALL = FIXED | {"model": "lenet5", "epochs": 3, "batch_size": 8}
# Batch norm, drop-path, frozen layers, two averages and two passes a step.
RICH = FIXED | {
    "model": "resnet18", "pretrained": False, "image_size": 32, "arguments": {"drop_path": 0.2, "width": 8},
    "epochs": 3, "batch_size": 8, "sam": 0.05, "ema": 0.9, "average": 2, "freeze": 0.3, "mixup": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"), ["a", "b"], 16, size=32)


def train(data: Path, out: Path, settings: dict[str, Any]) -> Path:
    return begin.train(begin.configure({"data": str(data), **settings}), out)


@pytest.fixture(scope="module")
def small(data, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    return train(data, tmp_path_factory.mktemp("small") / "run", SMALL)


# ------------------------------------------------------------------------------------------------------- signals


@pytest.fixture
def quick_end(monkeypatch):
    """Runs end without figures and report, and the last model that is offered is the best: also the mean of epochs."""
    monkeypatch.setattr(loop, "finish_run", lambda *_: None)
    monkeypatch.setattr(keeper, "better", lambda *_: True)


@pytest.fixture(scope="module")
def rich(data, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "finish_run", lambda *_: None)
        patch.setattr(keeper, "better", lambda *_: True)
        return train(data, tmp_path_factory.mktemp("rich") / "run", RICH)


def strike() -> None:
    """Ctrl-C, and another signal while the first one is on its way."""
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.raise_signal(signal.SIGTERM)


def before(function: Any, call: int) -> Any:
    """The function, with a strike before it is called for the `call`-th time."""
    calls = itertools.count(1)

    def struck(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            strike()
        return function(*arguments, **options)

    return struck


def half_way(load: Any, call: int) -> Any:
    """The `load` of averages, struck in the midst of a call."""
    calls = itertools.count(1)

    def struck(tensors: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> None:
        if next(calls) == call:
            load(tensors, dict(list(values.items())[: len(values) // 2]))
            strike()
        load(tensors, values)

    return struck


def after(function: Any, call: int) -> Any:
    calls = itertools.count(1)

    def struck(*arguments: Any) -> None:
        function(*arguments)
        if next(calls) == call:
            strike()

    return struck


# An epoch has two or three steps; averages are loaded on the way in and on the way back.
MOMENTS = {
    "uphill in the second step": (Sharpness, "climb", after, 2),
    "before the first validation": (loop, "validate", before, 1),
    "in the validation of the moving average": (loop, "validate", before, 2),
    "while the moving average is swapped in": (averaging, "_load", half_way, 1),
    "while the weights are put back": (averaging, "_load", half_way, 2),
    "in the writing of a checkpoint": (checkpoint, "save_tensors", before, 2),
    "before the norms of the mean are refreshed": (loop, "refresh_norms", before, 1),
    "between two batches of that": (averaging, "derive_seed", before, 2),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_changes_nothing(moment, data, rich, tmp_path, monkeypatch, quick_end):
    owner, name, how, call = MOMENTS[moment]
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, how(getattr(owner, name), call))
        with pytest.raises(KeyboardInterrupt, match=f"lenext train --resume {run}"):
            train(data, run, RICH)
    begin.resume(run)
    assert_equal_training(run, rich)


def test_the_learning_rate_of_an_epoch_is_that_of_its_last_step(rich):
    assert all(row["lr"] > 0 for row in runs.read_metrics(rich)[:-1])


def test_a_second_signal_does_not_divide_the_handling_of_the_first():
    with Interruption() as interruption:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        with interruption.held():
            signal.raise_signal(signal.SIGINT)
        assert interruption.asked
        with pytest.raises(KeyboardInterrupt):  # whoever insists gets through
            signal.raise_signal(signal.SIGINT)


def test_a_run_is_finished_when_everything_is_written(data, small, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(tracking.Trackers, "graph", before(tracking.Trackers.graph, 1))
        with pytest.raises(KeyboardInterrupt):
            train(data, run, SMALL)
    assert (run / "evaluation.json").is_file()
    assert not runs.is_finished(run)
    (run / "metrics.csv").unlink()
    begin.resume(run)
    assert runs.is_finished(run)
    assert (run / "metrics.csv").is_file()
    assert_equal_runs(run, small)


def test_an_early_stop_before_the_epochs_to_average_is_said(data, tmp_path, quick_end, monkeypatch, caplog):
    monkeypatch.setattr(keeper, "better", lambda figures, best, select: best is None)
    with caplog.at_level(logging.WARNING, "lenext"):
        run = train(data, tmp_path / "run", SMALL | {"epochs": 9, "patience": 1, "average": 2})
    assert len(runs.read_metrics(run)) == 2
    assert "no mean of the last 2 epochs: the training stopped before the first of them" in caplog.text


# --------------------------------------------------------------------------------------------------- checkpoints

STATE = ({"model.weight": torch.arange(6.0), "model.steps": torch.tensor(3)}, [{"lr": 0.1, "betas": [0.9, 0.999]}])


def write_two(run: Path) -> None:
    for batch in (1, 2):
        checkpoint.save(run, STATE, Progress(batch=batch))


@pytest.mark.parametrize(
    ("written", "flipped"),
    [(rb"\"batch\": 2", rb"\"batch\": 3"), (rb"0.999]", rb"0.899]"), (rb"{\"epoch", rb"[\"epoch"), (b"F32", b"I32")],
)
def test_a_flipped_character_in_the_header_of_a_checkpoint_is_noticed(tmp_path, caplog, written, flipped):
    write_two(tmp_path)
    newest = tmp_path / checkpoint.NEWEST
    content = newest.read_bytes()
    assert content.count(written) == 1
    newest.write_bytes(content.replace(written, flipped))
    saved = Checkpoint(tmp_path)
    assert saved.progress.batch == 1
    assert "trying the one before" in caplog.text


def test_what_is_damaged_never_takes_the_place_of_the_one_before(tmp_path):
    write_two(tmp_path)
    (tmp_path / checkpoint.NEWEST).write_bytes(b"damaged")
    saved = Checkpoint(tmp_path)
    saved.stand_first()
    assert Checkpoint(tmp_path).progress.batch == 1
    checkpoint.save(tmp_path, STATE, Progress(batch=5))
    assert checkpoint._read(tmp_path / checkpoint.BEFORE)[0].batch == 1


def test_the_new_checkpoint_is_on_the_disk_before_the_old_one_moves(tmp_path, monkeypatch):
    write_two(tmp_path)

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(tmp_path, STATE, Progress(batch=3))
    assert [checkpoint._read(tmp_path / name)[0].batch for name in (checkpoint.NEWEST, checkpoint.BEFORE)] == [2, 1]


def test_what_killed_writers_left_is_removed_and_what_others_write_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "figures").mkdir()
    export = tmp_path / f"export/.onnx.{dead.pid}.tmp"
    export.mkdir(parents=True)
    inside = export / f".labels.txt.{dead.pid}.tmp"
    left = [tmp_path / f".a.png.{dead.pid}.tmp", tmp_path / f"figures/.b.png.{os.getpid()}.tmp", inside]
    others = [tmp_path / f".c.png.{os.getppid()}.tmp", tmp_path / ".mine.tmp", tmp_path / "classifier.safetensors"]
    for path in (*left, *others):
        path.touch()
    runs.remove_unfinished(tmp_path)
    assert not export.exists()
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


# The training of a process of its own, which kills itself in the midst of a file.
KILLED = """
import itertools, os, signal
from lenext.training import begin, checkpoint

def die():
    os.kill(os.getpid(), signal.SIGKILL)

calls = itertools.count(1)
{fault}
{work}
"""
HALF_A_FILE = """
write = checkpoint.save_tensors
def half(tensors, file, metadata):
    write(tensors, file, metadata)
    if next(calls) == 3:
        os.truncate(file, file.stat().st_size // 2)
        die()
checkpoint.save_tensors = half
"""
BETWEEN_RENAMES = """
replace = os.replace
def move(old, new):
    replace(old, new)
    if os.path.basename(new) == checkpoint.BEFORE:
        die()
os.replace = move
"""


def killed(fault: str, work: str) -> None:
    process = subprocess.run([sys.executable, "-c", KILLED.format(fault=fault, work=work)], capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr


def test_killed_in_the_writing_of_checkpoints_and_with_a_damaged_one(data, small, tmp_path):
    run = tmp_path / "run"
    settings = SMALL | {"data": str(data), "checkpoint_every": 0.001}
    killed(HALF_A_FILE, f"begin.train(begin.configure({settings!r}), {str(run)!r})")
    assert list(run.glob(".checkpoint*.tmp"))
    (run / checkpoint.NEWEST).write_bytes((run / checkpoint.NEWEST).read_bytes()[:-1])
    killed(BETWEEN_RENAMES, f"begin.resume({str(run)!r})")
    assert not (run / checkpoint.NEWEST).exists()
    begin.resume(run)
    assert not list(run.rglob(".*.tmp"))
    assert_equal_runs(run, small)


# ------------------------------------------------------------------------------------- what a run depends on


def copied_at(validation: int, run: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy the run folder when validation begins for so many times: what a kill at that moment would leave."""
    validate, calls = loop.validate, itertools.count(1)

    def copying(*arguments: Any, **options: Any) -> dict[str, float]:
        if next(calls) == validation:
            shutil.copytree(run, copy)
        return validate(*arguments, **options)

    monkeypatch.setattr(loop, "validate", copying)


@pytest.mark.parametrize("recipe", ["auto", "finetune"])
def test_weights_that_are_gone_are_in_the_checkpoint(recipe, data, small, tmp_path, monkeypatch):
    """Of a two-step run and of one that tunes the whole network. Files that were given are found from any folder."""
    shutil.copytree(small, tmp_path / "start")
    monkeypatch.chdir(tmp_path)
    run, left = tmp_path / "run", tmp_path / "left"
    copied_at(3, run, left, monkeypatch)
    settings = SMALL | {"recipe": recipe, "pretrained": "start", "ema": 0.0}
    train(data, run, settings)
    assert runs.read_config(run)["pretrained"] == str(tmp_path / "start")
    assert (run / "quick.safetensors").exists() == (recipe == "auto")
    shutil.rmtree(tmp_path / "start")
    begin.resume(left)
    assert_equal_runs(left, run)


def test_a_teacher_is_found_from_any_folder(data, small, tmp_path, monkeypatch, quick_end):
    monkeypatch.chdir(small.parent)
    run = train(data, tmp_path / "run", SMALL | {"epochs": 1, "teacher": small.name})
    assert runs.read_config(run)["teacher"] == str(small)


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need two GPUs")
def test_a_two_step_run_goes_on_in_one_process_and_says_so(data, small, tmp_path, monkeypatch, quick_end):
    run, left = tmp_path / "run", tmp_path / "left"
    copied_at(2, run, left, monkeypatch)
    train(data, run, SMALL | {"pretrained": str(small)})
    process = command("train", "--resume", left, "--devices", "2", "--workers", "0")
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 2, err
    assert "several cannot go on with it: go on with --devices 1 --nodes 1" in err
    assert runs.read_config(left)["devices"] == 1  # so that without the change it goes on as before
    assert "Traceback" not in err
    assert command("train", "--resume", left, "--devices", "1").wait() == 0


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need two GPUs")
def test_a_run_of_two_processes_goes_on_in_one(data, small, tmp_path):
    run = tmp_path / "run"
    settings = ["--model", "lenet5", "--batch-size", "8", "--speed", "off", "--workers", "0", "--track", "none"]
    process = command("train", data, "--out", run, *settings, "--pretrained", small, "--epochs", "60", "--devices", "2")
    wait_for_epoch(run, 1, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 130
    epochs = len(runs.read_metrics(run))
    assert epochs < 60
    begin.resume(run, {"devices": 1})
    assert len(runs.read_metrics(run)) == 60
    names = load_file(run / checkpoint.NEWEST)
    assert "model.c1.weight" in names  # the whole network is tuned, as it was
