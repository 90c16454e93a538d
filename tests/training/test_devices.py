"""Several processes are one training: two real ones on this machine, against one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from lenext import runs
from tests.pictures import make_folder

# No batch norm and no mixing, whose statistics and partners are those of a process; 11 validation pictures are odd.
SETTINGS = [
    "--model", "lenet5", "--batch-size", "8", "--epochs", "3", "--augment", "light", "--precision", "float32",
    "--channels-last", "true", "--optimizer", "sgd", "--lr", "0.05", "--workers", "0", "--speed", "off",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"), ["a", "b", "c"], 25, size=32)


def train(data: Path, out: Path, *options: str) -> Path:
    program = [sys.executable, "-m", "lenext.cli", "train", str(data), "--out", str(out), *SETTINGS, *options]
    result = subprocess.run(program, capture_output=True, text=True, env=one_thread())
    assert result.returncode == 0, result.stderr
    return out


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    return train(data, tmp_path_factory.mktemp("alone") / "run", "--ema", "0.9")


def assert_same_training(run: Path, expected: Path) -> None:
    """Equal to the rounding of sums in another order: gradients, order of pictures, and every figure."""
    ours, theirs = (load_file(folder / "checkpoint.safetensors") for folder in (run, expected))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)
    for row, other in zip(runs.read_metrics(run), runs.read_metrics(expected), strict=True):
        for figure in ("train_loss", "val_loss", "ema_val_loss"):
            assert row[figure] == pytest.approx(other[figure], rel=1e-4)
        for figure in ("train_accuracy", "val_accuracy"):  # a share of all pictures: each is counted exactly once
            assert row[figure] == pytest.approx(other[figure], abs=1e-9)
    assert (run / "report.html").is_file()


def test_two_processes_learn_what_one_does(data, alone, tmp_path):
    assert_same_training(train(data, tmp_path / "run", "--devices", "2", "--ema", "0.9"), alone)


def test_a_network_in_parts_learns_what_a_whole_one_does(data, tmp_path):
    options = ["--optimizer", "adamw", "--lr", "0.002", "--channels-last", "false", "--ema", "0.9"]
    whole = train(data, tmp_path / "whole", *options)
    assert_same_training(train(data, tmp_path / "parts", *options, "--devices", "2", "--strategy", "fsdp"), whole)


def test_bad_data_is_said_once_by_the_first_process(tmp_path):
    program = [sys.executable, "-m", "lenext.cli", "train", str(tmp_path / "nowhere"), "--devices", "2"]
    result = subprocess.run(program, capture_output=True, text=True, env=one_thread())
    assert result.returncode == 2
    assert result.stderr.count("nowhere") == 1
    assert "Traceback" not in result.stderr


def test_a_killed_process_is_noticed_and_torchrun_goes_on_from_the_checkpoint(data, alone, tmp_path):
    run = tmp_path / "run"
    options = [*SETTINGS, "--ema", "0.9", "--checkpoint-every", "0.01"]
    program = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1",
        "-m", "lenext.cli", "train", str(data), "--out", str(run), *options,
    ]  # fmt: skip
    process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=one_thread())
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    second = next(
        child for child in psutil.Process(process.pid).children(recursive=True)
        if child.environ().get("RANK") == "1" and "lenext.cli" in child.cmdline()
    )  # fmt: skip
    second.send_signal(signal.SIGKILL)
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 0, err
    assert "going on after epoch" in (run / "train.log").read_text()
    assert_same_training(run, alone)


def test_ctrl_c_stops_every_process_at_the_same_step(data, tmp_path):
    run = tmp_path / "run"
    program = [
        sys.executable, "-m", "lenext.cli", "train", str(data), "--out", str(run), *SETTINGS, "--epochs", "500",
        "--devices", "2",
    ]  # fmt: skip
    process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=one_thread(), start_new_session=True)
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    asked = time.monotonic()
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130, err
    assert time.monotonic() - asked < 20
    assert err.count(f"lenext train --resume {run}") == 1
    assert "Traceback" not in err
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics
