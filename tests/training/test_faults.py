"""The promises about interrupted runs, kept under real faults: SIGKILL, Ctrl-C, a full disk, a cut file."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import lenext
from lenext import runs
from lenext.models import lenet
from lenext.training import begin, checkpoint, task
from tests.pictures import make_folder

SETTINGS = ["--model", "lenet5", "--batch-size", "8", "--epochs", "60", "--augment", "light"]
DEEP = [
    "--model", "resnet18", "--pretrained", "false", "--image-size", "32", "--batch-size", "4", "--epochs", "4",
    "--augment", "strong", "--precision", "bfloat16", "--channels-last", "true",
    "--arguments", '{"drop_path": 0.1, "width": 8}',  # wider ones are slow in bfloat16 where the processor has none
    "--mixup", "0.2", "--ema", "0.9", "--average", "2", "--workers", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"), ["a", "b"], 40, size=32)


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert command("train", data, "--out", out, *SETTINGS).wait() == 0
    return out


def settled(run: Path) -> list[str]:
    """Precision and memory format, which are measured, as a run had them: two runs may measure differently."""
    config = runs.read_config(run)
    return ["--precision", config["precision"], "--channels-last", str(config["channels_last"]).lower()]


def command(*arguments, **options) -> subprocess.Popen:
    def heed_interrupts() -> None:
        """A shell starts what is to run in the background with interrupts ignored, and that is inherited."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    text = [str(argument) for argument in arguments]
    program = [sys.executable, "-m", "lenext.cli", *text]
    return subprocess.Popen(program, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts, **options)


def wait_for_epoch(run: Path, epoch: int, process: subprocess.Popen) -> None:
    """Return as soon as the metrics name an epoch."""
    while process.poll() is None:
        if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= epoch:
            return
        time.sleep(0.005)
    raise AssertionError(f"the run ended before epoch {epoch}: {process.communicate()[1]}")


def assert_equal_runs(a: Path, b: Path) -> None:
    """Bit for bit the same weights, optimiser and figures; only times and memory differ."""
    assert_equal_training(a, b)
    assert (a / "evaluation.json").read_text() == (b / "evaluation.json").read_text()


def assert_equal_training(a: Path, b: Path) -> None:
    """The same of runs that were not measured in the end."""
    for name in ("classifier.safetensors", "checkpoint.safetensors"):
        ours, theirs = load_file(a / name), load_file(b / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), (name, key)
    times = ("seconds", "images_per_second", "peak_memory_mib")
    rows = [
        [{k: v for k, v in json.loads(line).items() if k not in times} for line in text.splitlines()]
        for text in ((a / "metrics.jsonl").read_text(), (b / "metrics.jsonl").read_text())
    ]
    assert rows[0] == rows[1]


def wait_inside_epoch(run: Path, epoch: int, process: subprocess.Popen) -> None:
    """Return when a checkpoint from within an epoch, counted from 1, is there."""
    while process.poll() is None:
        with contextlib.suppress(OSError, RuntimeError):  # there is none yet, or it is being renamed
            progress = saved_progress(run)
            if progress["epoch"] + 1 >= epoch and progress["batch"]:
                return
        time.sleep(0.005)
    raise AssertionError(f"the run ended before epoch {epoch}: {process.communicate()[1]}")


def saved_progress(run: Path) -> dict:
    with safe_open(run / checkpoint.NEWEST, "pt") as file:
        return json.loads(file.metadata()["progress"])


def test_killed_and_stopped_within_epochs_equals_never_interrupted(data, tmp_path):
    """With batch norm, drop-path, strong augmentation, mixup, EMA, bfloat16, channels-last and AdamW.

    Killed with workers 0, gone on with 2 and told to end, gone on with none again.
    """
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert command("train", data, "--out", whole, *DEEP).wait() == 0
    process = command("train", data, "--out", run, *DEEP, "--checkpoint-every", "0.01")
    wait_inside_epoch(run, 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "report.html").exists()
    assert lenext.load(run).classes == ("a", "b")  # the best so far is usable

    process = command("train", "--resume", run, "--workers", "2", "--checkpoint-every", "1000", start_new_session=True)
    before = saved_progress(run)
    while "going on" not in (run / "train.log").read_text():
        time.sleep(0.005)
    wait_for_epoch(run, before["epoch"] + 1, process)
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: the workers get it as well
    asked = time.monotonic()
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130, err
    assert time.monotonic() - asked < 10
    assert f"lenext train --resume {run}" in err
    assert "Traceback" not in err
    stopped = saved_progress(run)
    assert (stopped["epoch"], stopped["batch"]) > (before["epoch"], before["batch"])

    assert command("train", "--resume", run, "--workers", "0").wait() == 0
    assert_equal_runs(run, whole)


def test_killed_with_workers_equals_never_interrupted(data, uninterrupted, tmp_path):
    run = tmp_path / "run"
    every = ["--workers", "2", "--checkpoint-every", "0.01"]
    process = command("train", data, "--out", run, *SETTINGS, *settled(uninterrupted), *every)
    wait_inside_epoch(run, 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert command("train", "--resume", run).wait() == 0
    assert_equal_runs(run, uninterrupted)


def test_ctrl_c_says_how_to_go_on_and_a_damaged_checkpoint_falls_back(data, uninterrupted, tmp_path):
    run = tmp_path / "run"
    process = command("train", data, "--out", run, *SETTINGS, *settled(uninterrupted))
    wait_for_epoch(run, 5, process)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert f"lenext train --resume {run}" in err
    assert "Traceback" not in err
    newest = run / checkpoint.NEWEST
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1  # one flipped bit among the weights
    newest.write_bytes(content)
    process = command("train", "--resume", run)
    err = process.communicate()[1]
    assert process.returncode == 0
    assert "its checksum does not fit its content; trying the one before" in err
    assert_equal_runs(run, uninterrupted)


def test_no_whole_checkpoint_is_an_error_that_leaves_the_classifier(data, uninterrupted, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    (run / "report.html").unlink()
    for name in (checkpoint.NEWEST, checkpoint.BEFORE):
        (run / name).write_bytes((run / name).read_bytes()[:50_000])
    before = (run / "classifier.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"has no checkpoint to go on from .*damaged or cut off"):
        begin.resume(run)
    assert (run / "classifier.safetensors").read_bytes() == before


def test_resume_refuses_changed_data_and_leaves_finished_runs(uninterrupted, data, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()}
    assert begin.resume(uninterrupted) == uninterrupted
    assert {path: path.stat().st_mtime_ns for path in before} == before
    changed = tmp_path / "data"
    shutil.copytree(data, changed)
    run = begin.train(begin.configure({"data": str(changed), "model": "lenet5", "epochs": 1}), tmp_path / "run")
    (run / "report.html").unlink()
    (changed / "a/0.png").unlink()
    with pytest.raises(ValueError, match=r"is not what the run .* began with"):
        begin.resume(run)


def test_a_folder_in_which_a_training_is_at_work_is_left_to_it(data, uninterrupted, tmp_path, monkeypatch):
    run = tmp_path / "run"
    process = command("train", data, "--out", run, *SETTINGS, *settled(uninterrupted))
    wait_for_epoch(run, 1, process)
    process.send_signal(signal.SIGSTOP)  # so that it does not end too early
    try:
        monkeypatch.setattr(begin, "PATIENCE", 0.1)
        with pytest.raises(ValueError, match=f"another training is at work in {run}; wait for its end, or stop it"):
            begin.resume(run)
    finally:
        process.send_signal(signal.SIGCONT)
    assert process.wait() == 0
    assert_equal_runs(run, uninterrupted)


def test_full_disk_is_said_and_leaves_the_last_checkpoint_whole(data, uninterrupted, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    # Room for the reports' beginnings and one checkpoint, not for two and the classifier.
    size = (uninterrupted / checkpoint.NEWEST).stat().st_size * 2 + (
        uninterrupted / "figures/samples.png"
    ).stat().st_size
    small = f"mount -t tmpfs -o size={size} tmpfs {disk}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", small], capture_output=True).returncode:
        pytest.xfail("this system lets nobody mount a small disk in a namespace of their own (unshare -rm)")
    arguments = " ".join(f"'{argument}'" for argument in ("train", data, "--out", disk / "run", *SETTINGS))
    script = (
        f"{small} && {sys.executable} -m lenext.cli {arguments}; echo status $?; ls {disk}/run; "
        f'{sys.executable} -c "from lenext.training.checkpoint import _read; from pathlib import Path; '
        f"print('whole', _read(Path('{disk}/run/{checkpoint.NEWEST}'))[0])\""
    )
    result = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    assert "status 1" in result.stdout, result.stderr
    assert "the disk is full" in result.stderr
    assert "Traceback" not in result.stderr
    assert "whole" in result.stdout
    assert ".tmp" not in result.stdout  # nothing half-written is left


def test_divergence_stops_before_anything_is_spoilt(data, tmp_path):
    config = begin.configure(
        {"data": str(data), "model": "lenet5", "epochs": 3, "lr": 1e38, "optimizer": "sgd", "clip_norm": 0.0,
         "precision": "float32", "channels_last": True, "checkpoint_every": 0.001}
    )  # fmt: skip
    with pytest.raises(FloatingPointError, match=r"the training diverged.*lower --lr"):
        begin.train(config, tmp_path / "run")
    *_, tensors = checkpoint._read(tmp_path / "run" / checkpoint.NEWEST)
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point())


def test_after_a_divergence_the_last_good_classifier_predicts(data, tmp_path, monkeypatch):
    settings = {"data": str(data), "model": "lenet5", "epochs": 4, "batch_size": 8, "workers": 0, "speed": "off"}
    normalise, run = task.normalise, tmp_path / "run"

    def poisoned(x, preprocess):
        x = normalise(x, preprocess)
        return x * torch.nan if runs.read_metrics(run) else x  # from the second epoch on

    monkeypatch.setattr(task, "normalise", poisoned)
    with pytest.raises(FloatingPointError, match=r"the training diverged.*lower --lr"):
        begin.train(begin.configure(settings), run)
    answer = lenext.load(run).predict(data / "a/0.png", top_k=2)
    assert sum(probability for _, probability in answer.top) == pytest.approx(1)
    assert lenext.load(run).about["validation"]["epoch"] == 1


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e38])
def test_a_batch_of_nonsense_is_left_out_and_never_reaches_weights_or_average(data, tmp_path, monkeypatch, poison):
    """One batch of the second epoch holds values that no picture has: the step is skipped, the rate falls and rises."""
    config = begin.configure(
        {"data": str(data), "model": "resnet18", "pretrained": False, "image_size": 32, "epochs": 2, "batch_size": 8,
         "precision": "float32", "channels_last": True, "ema": 0.9, "clip_norm": 0.0}
    )  # fmt: skip
    normalise = task.normalise
    calls = itertools.count()

    def poisoned(x, preprocess):
        x = normalise(x, preprocess)
        return x.index_fill(0, torch.tensor([3]), poison) if next(calls) == 12 else x

    monkeypatch.setattr(task, "normalise", poisoned)
    run = begin.train(config, tmp_path / "run")
    *_, tensors = checkpoint._read(run / checkpoint.NEWEST)
    assert any(name.startswith("ema.") for name in tensors)
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point())
    assert sum(row.get("skipped", 0) for row in runs.read_metrics(run)) == 1
    assert "left out, and the rate halved" in (run / "train.log").read_text()
    assert saved_progress(run)["backoff"] < 1


def test_out_of_memory_halves_what_goes_through_at_once_and_keeps_the_batch(data, tmp_path, monkeypatch):
    """A network without batch norm learns the same from a batch in parts: the weights agree to rounding."""
    settings = {
        "data": str(data), "model": "lenet5", "epochs": 2, "batch_size": 8, "precision": "float32",
        "channels_last": True, "seed": 3,
    }  # fmt: skip
    expected = begin.train(begin.configure(settings), tmp_path / "whole")
    forward = lenet.LeNet5.forward

    def forward_with_little_memory(self, x):
        if self.training and len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    monkeypatch.setattr(lenet.LeNet5, "forward", forward_with_little_memory)
    run = begin.train(begin.configure(settings | {"speed": "off"}), tmp_path / "run")
    assert saved_progress(run)["micro_batch"] == 2
    ours, theirs = (load_file(folder / "classifier.safetensors") for folder in (run, expected))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)
