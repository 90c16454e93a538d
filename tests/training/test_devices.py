"""Several processes are one training: two real ones on this machine, against one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import lenext
from lenext import config as settings
from lenext import runs
from lenext.data import dataset
from lenext.evaluation.evaluate import compute_logits
from lenext.models import create_model
from lenext.training import devices, prepare
from tests.pictures import make_folder

# No batch norm and no mixing, whose statistics and partners are those of a process; 11 validation pictures are odd.
SETTINGS = [
    "--model", "lenet5", "--batch-size", "8", "--epochs", "3", "--augment", "light", "--precision", "float32",
    "--channels-last", "true", "--optimizer", "sgd", "--lr", "0.05", "--workers", "0", "--speed", "off",
    "--accelerator", "auto" if torch.cuda.device_count() > 1 else "cpu",
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


def test_a_memory_format_whose_gradient_destroys_memory_is_not_taken():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    narrow, usual = (create_model("resnet18", num_classes=2, width=width) for width in (8, 16))
    for network, device, expected in (
        (narrow, cpu, torch.contiguous_format),
        (narrow, gpu, torch.channels_last),
        (usual, cpu, torch.channels_last),
    ):
        assert devices.memory_format(network, device, channels_last=True) == expected
    assert devices.memory_format(usual, cpu, channels_last=False) == torch.contiguous_format


def test_two_processes_learn_what_one_does(data, alone, tmp_path):
    assert_same_training(train(data, tmp_path / "run", "--devices", "2", "--ema", "0.9"), alone)


def test_a_network_in_parts_learns_what_a_whole_one_does(data, tmp_path):
    options = ["--optimizer", "adamw", "--lr", "0.002", "--channels-last", "false", "--ema", "0.9"]
    whole = train(data, tmp_path / "whole", *options)
    assert_same_training(train(data, tmp_path / "parts", *options, "--devices", "2", "--strategy", "fsdp"), whole)


def test_bad_data_is_said_once_by_the_first_process(tmp_path):
    program = [sys.executable, "-m", "lenext.cli", "train", str(tmp_path / "nowhere"), *SETTINGS, "--devices", "2"]
    result = subprocess.run(program, capture_output=True, text=True, env=one_thread())
    assert result.returncode == 2
    assert result.stderr.count("nowhere") == 1
    assert "Traceback" not in result.stderr


def test_what_started_a_process_says_how_many_there_are(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "MASTER_", "TORCHELASTIC_", "NODE_RANK"))]:
        monkeypatch.delenv(name)
    assert devices.processes(4, 1) == (4, 1)
    with pytest.raises(ValueError, match=r"--nodes 2: without MASTER_ADDR, MASTER_PORT, NODE_RANK .*NODE_RANK=0"):
        devices.processes(4, 2)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    with pytest.raises(ValueError, match="without MASTER_PORT, NODE_RANK "):
        devices.processes(4, 2)
    for name in ("MASTER_PORT", "NODE_RANK"):
        monkeypatch.setenv(name, "1")
    assert devices.processes(4, 2) == (4, 2)
    monkeypatch.setenv("SLURM_NTASKS", "6")
    monkeypatch.setenv("SLURM_NNODES", "2")
    with pytest.raises(ValueError, match="srun --nodes 2 --ntasks-per-node 3"):
        devices.processes(1, 1)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "3")
    assert devices.processes(1, 1) == (3, 2)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")  # a shell in the job: Slurm starts nothing there
    assert devices.processes(4, 2) == (4, 2)


SLURM = {"SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_LOCALID": "0"}
SLURM |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "localhost"}


@pytest.mark.parametrize(
    ("options", "common", "own"),
    [(["--nodes", "2"], {"MASTER_ADDR": "localhost"}, ["NODE_RANK"]), ([], SLURM, ["SLURM_PROCID", "SLURM_NODEID"])],
    ids=["by hand", "Slurm"],
)
def test_two_machines_learn_what_one_does(data, alone, tmp_path, options, common, own):
    run = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    program = [sys.executable, "-m", "lenext.cli", "train", str(data), "--out", str(run), *SETTINGS, "--ema", "0.9"]
    machines = [
        subprocess.Popen(
            [*program, *options], stderr=subprocess.PIPE, text=True,
            env={**one_thread(), **common, "MASTER_PORT": port, **dict.fromkeys(own, str(number))},
        )
        for number in range(2)
    ]  # fmt: skip
    for machine in machines:
        err = machine.communicate(timeout=600)[1]
        assert machine.returncode == 0, err
    assert_same_training(run, alone)


# As the program, with a fault in the second process from the second epoch on.
FAULTY = """
import os, sys
from datetime import timedelta
import torch
from lenext import cli
from lenext.data import loader
from lenext.data.decode import UnreadableImage
from lenext.models import lenet
from lenext.training import devices

devices.MOMENT = timedelta(seconds=2)
fault, epoch = os.environ["FAULT"], 0
get, forward = loader._Batch.__getitem__, lenet.LeNet5.forward

def faulty_get(self, job):
    global epoch
    epoch = job.epoch
    return UnreadableImage("cats/7.jpg: it is gone") if fault == "picture" and epoch == 2 else get(self, job)

def faulty_forward(self, x):
    if fault == "memory" and epoch == 2 and self.training:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return forward(self, x)

if os.environ.get("LOCAL_RANK") == "1":
    loader._Batch.__getitem__, lenet.LeNet5.forward = faulty_get, faulty_forward
cli.main()
"""


@pytest.mark.parametrize(
    ("fault", "said"),
    [("picture", "process 1 cannot go on: cats/7.jpg: it is gone; then go on with: lenext train --resume"),
     ("memory", "out of memory on device 1 with 4 pictures at once: train with --micro-batch 2")],
)  # fmt: skip
def test_what_ends_the_second_process_alone_is_said_and_ends_the_training(data, tmp_path, fault, said):
    (tmp_path / "program.py").write_text(FAULTY)
    program = [sys.executable, str(tmp_path / "program.py"), "train", str(data), "--out", str(tmp_path / "run")]
    result = subprocess.run(
        [*program, *SETTINGS, "--devices", "2"], capture_output=True, text=True, env={**one_thread(), "FAULT": fault}
    )
    assert result.returncode != 0
    assert said in result.stderr, result.stderr
    assert "Traceback" not in result.stderr


def test_the_average_is_validated_with_the_statistics_that_are_kept(data, tmp_path):
    """Each process has batch norms of its own; the first one's are saved, and the figures are theirs."""
    network = ["--model", "resnet18", "--pretrained", "false", "--image-size", "32", "--arguments", '{"width": 8}']
    run = train(data, tmp_path / "run", *network, "--devices", "2", "--ema", "0.9", "--epochs", "2", "--lr", "0.2")
    config = settings.build(runs.read_config(run))
    assert config.data is not None
    val = dataset.read(config.data, prepare.data_options(config)).samples.split("val")
    classifier, kept = lenext.load(run), load_file(run / "checkpoint.safetensors")
    for part, figure in (("model.", "val_loss"), ("ema.average.", "ema_val_loss")):
        weights = {name.removeprefix(part): value for name, value in kept.items() if name.startswith(part)}
        classifier.model.load_state_dict(weights)
        logits, _ = compute_logits(classifier, val, "measuring")
        loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(val.labels)).item()
        assert runs.read_metrics(run)[-1][figure] == pytest.approx(loss, rel=1e-4)


def test_gpus_are_told_to_repeat_exactly(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    try:
        devices.repeat_exactly()
        assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        cudnn.benchmark, cudnn.deterministic = before[:2]
        torch.use_deterministic_algorithms(before[2])


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
