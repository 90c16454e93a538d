"""The promises about interrupted runs, kept under real faults: SIGKILL, Ctrl-C, a full disk, a cut file."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lenext
from lenext import runs
from lenext.training import checkpoint, loop
from tests.pictures import make_folder

SETTINGS = ["--model", "lenet5", "--batch-size", "8", "--epochs", "60", "--augment", "light"]
DEEP = [
    "--model", "resnet18", "--pretrained", "false", "--image-size", "32", "--batch-size", "8", "--epochs", "3",
    "--augment", "strong", "--precision", "bfloat16", "--channels-last", "true", "--arguments", '{"drop_path": 0.1}',
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
    """Bit for bit the same weights, optimiser and figures; only times differ."""
    for name in ("classifier.safetensors", "checkpoint.safetensors"):
        ours, theirs = load_file(a / name), load_file(b / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), (name, key)
    times = ("seconds", "images_per_second")
    rows = [
        [{k: v for k, v in json.loads(line).items() if k not in times} for line in text.splitlines()]
        for text in ((a / "metrics.jsonl").read_text(), (b / "metrics.jsonl").read_text())
    ]
    assert rows[0] == rows[1]
    assert (a / "evaluation.json").read_text() == (b / "evaluation.json").read_text()


def test_killed_in_an_epoch_and_resumed_equals_never_interrupted(data, tmp_path):
    """With batch norm, drop-path, strong augmentation, bfloat16, channels-last and AdamW."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert command("train", data, "--out", whole, *DEEP).wait() == 0
    process = command("train", data, "--out", run, *DEEP)
    wait_for_epoch(run, 1, process)
    time.sleep(0.1)  # into the second epoch
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "report.html").exists()
    assert lenext.load(run).classes == ("a", "b")  # the best so far is usable
    assert command("train", "--resume", run).wait() == 0
    assert_equal_runs(run, whole)


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
        loop.resume(run)
    assert (run / "classifier.safetensors").read_bytes() == before


def test_resume_refuses_changed_data_and_leaves_finished_runs(uninterrupted, data, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()}
    assert loop.resume(uninterrupted) == uninterrupted
    assert {path: path.stat().st_mtime_ns for path in before} == before
    changed = tmp_path / "data"
    shutil.copytree(data, changed)
    run = loop.train(loop.configure({"data": str(changed), "model": "lenet5", "epochs": 1}), tmp_path / "run")
    (run / "report.html").unlink()
    (changed / "a/0.png").unlink()
    with pytest.raises(ValueError, match=r"is not what the run .* began with"):
        loop.resume(run)


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
        f"print('whole', _read(Path('{disk}/run/{checkpoint.NEWEST}'))[0]['progress'])\""
    )
    result = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    assert "status 1" in result.stdout, result.stderr
    assert "the disk is full" in result.stderr
    assert "Traceback" not in result.stderr
    assert "whole" in result.stdout
    assert ".tmp" not in result.stdout  # nothing half-written is left


def test_divergence_stops_before_anything_is_spoilt(data, tmp_path):
    config = loop.configure(
        {"data": str(data), "model": "lenet5", "epochs": 3, "lr": 1e38, "optimizer": "sgd", "clip_norm": 0.0,
         "precision": "float32", "channels_last": True}
    )  # fmt: skip
    with pytest.raises(FloatingPointError, match=r"the training diverged.*lower --lr"):
        loop.train(config, tmp_path / "run")
    progress = checkpoint._read(tmp_path / "run" / checkpoint.NEWEST)[1]
    assert all(torch.isfinite(tensor).all() for tensor in progress.values() if tensor.is_floating_point())
