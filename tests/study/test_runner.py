"""Studies at work: with a stand-in for the program, whose results are known, and once with the program itself."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from lenext import runs
from lenext.study import command, design, runner
from lenext.study.design import Factor, Study
from lenext.training import process
from tests.pictures import make_folder

STAND_IN = [sys.executable, "-I", "-S", str(Path(__file__).with_name("program.py"))]
FILE = """
from lenext.study.design import Comparison, Factor, Study
STUDY = Study(
    question="Which?",
    factors=(
        Factor("model", {models}),
        Factor("rate", {{"low": {{"lr": 0.01}}, "high": {{"lr": {high}}}}}),
    ),
    base={base},
    seeds={seeds},
    comparisons=(
        Comparison(question="Is high better?", change="the high rate", cell="lenet5, high", against="lenet5, low"),
    ),
)
"""
BASE = {"pretrained": False, "epochs": 3, "check": False, "image_size": 32, "optimizer": "sgd"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pictures to train on, and no orders."""
    order(tmp_path / "pictures")
    return make_folder(tmp_path / "pictures", ["a", "b", "c"], 6, size=32)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PROGRAM", STAND_IN)
    monkeypatch.setattr(process, "POLL", 0.01)


def order(data: Path, **orders: Any) -> None:
    data.with_name("orders.json").write_text(json.dumps(orders))


def calls(data: Path) -> list[dict[str, Any]]:
    file = data.with_name("calls.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def begun(data: Path) -> list[str]:
    return [call["run"] for call in calls(data) if "begin" in call]


def forget(data: Path) -> None:
    data.with_name("calls.jsonl").unlink(missing_ok=True)


def write(folder: Path, *, models: tuple[str, ...] = ("lenet5", "resnet18"), high: float = 0.1, seeds: int = 2) -> str:
    levels = {name: {"model": name} for name in models}
    file = folder / "mine.py"
    file.write_text(FILE.format(models=levels, high=high, base=BASE, seeds=seeds))
    return str(file)


def study(data: Path, **changes: Any) -> bool:
    """Run the study in a folder beside the data."""
    out = str(data.with_name("out"))
    given = {name: changes.pop(name) for name in ("seeds", "budget", "devices") if name in changes}
    return command.run(write(data.parent, **changes), data=str(data), out=out, **given)


ALL = [f"{model}_{rate}/seed-{seed}" for seed in (0, 1) for model in ("lenet5", "resnet18") for rate in ("low", "high")]


# ---------------------------------------------------------------------------------------------------- what is run


def test_every_cell_is_trained_with_every_seed_and_seeds_come_one_after_another(data, quick):
    assert study(data, devices=1)
    assert begun(data) == ALL
    for name in ALL:
        config = runs.read_config(data.with_name("out") / "runs" / name)
        assert config["seed"] == int(name[-1])
        assert config["lr"] == (0.1 if "high" in name else 0.01)
        assert config["optimizer"] == "sgd"


def test_what_is_done_is_not_done_again(data, quick):
    assert study(data)
    forget(data)
    assert study(data)
    assert begun(data) == []


def test_a_seed_or_a_level_that_comes_later_trains_only_what_is_new(data, quick):
    assert study(data, models=("lenet5",), seeds=1)
    forget(data)
    assert study(data, models=("lenet5",), seeds=2)
    assert sorted(begun(data)) == ["lenet5_high/seed-1", "lenet5_low/seed-1"]
    forget(data)
    assert study(data, models=("lenet5", "resnet18"), seeds=2)
    assert sorted(begun(data)) == sorted(name for name in ALL if "resnet18" in name)


def test_as_many_go_side_by_side_as_asked_each_with_its_part_of_the_cores(data, quick, monkeypatch):
    monkeypatch.setattr(runner, "_cores", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(process.os, "sched_setaffinity", lambda pid, cores: None)
    order(data, seconds=0.1)
    assert study(data, devices=2)
    entries = sorted(calls(data), key=lambda call: call.get("begin") or call["end"])
    at_work = most = 0
    for entry in entries:
        at_work += 1 if "begin" in entry else -1
        most = max(most, at_work)
    assert most == 2
    assert {entry["threads"] for entry in entries if "begin" in entry} == {"2"}


def test_no_run_begins_beside_another_without_memory_for_both(data, quick, monkeypatch):
    class Memory:
        available = 2**30
        total = 2**30

    monkeypatch.setattr(runner.psutil, "virtual_memory", lambda: Memory)
    monkeypatch.setattr(runner, "_cores", lambda: [0, 1])
    order(data, seconds=0.05)
    assert study(data, seeds=1)
    ends = sorted(call["end"] for call in calls(data) if "end" in call)
    starts = sorted(call["begin"] for call in calls(data) if "begin" in call)
    assert len(ends) == 4
    assert all(start > end for start, end in zip(starts[1:], ends))


def test_a_taught_run_waits_for_its_teacher(data, quick, tmp_path):
    made = Study(
        question="Which?",
        factors=(
            Factor(
                "model",
                {"student": {"model": "lenet5", "teacher": "cell:teacher"}, "teacher": {"model": "resnet18"}},
            ),
        ),
        base={**BASE, "lr": 0.1},
        seeds=2,
    )
    folder = tmp_path / "out"
    assert runner.run(made, data=str(data), folder=folder, seeds=2, again="", devices=2)
    ends = {call["run"]: call["end"] for call in calls(data) if "end" in call}
    starts = {call["run"]: call["begin"] for call in calls(data) if "begin" in call}
    for seed in (0, 1):
        assert starts[f"student/seed-{seed}"] > ends[f"teacher/seed-{seed}"]
        taught = runs.read_config(folder / f"runs/student/seed-{seed}")
        assert taught["teacher"] == str(folder / f"runs/teacher/seed-{seed}")
    # Without a teacher there is nothing to learn, which is said and keeps nobody from ending.
    shutil.rmtree(folder)
    order(data, fail=["teacher/seed-0"])
    assert not runner.run(made, data=str(data), folder=folder, seeds=1, again="", devices=2)
    assert "its teacher, teacher, has no result" in (folder / "runs/student/seed-0.failed").read_text()


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(data, quick, caplog, capsys):
    order(data, fail=["lenet5_low/seed-0"])
    assert not study(data)
    assert sorted(begun(data)) == sorted(ALL)
    assert "lenet5, low, seed 0 failed: the disk is full of cats" in caplog.text
    page = data.with_name("out") / "report.md"
    assert "the disk is full of cats" in page.read_text()
    forget(data)
    order(data)
    assert study(data)
    assert begun(data) == ["lenet5_low/seed-0"]
    assert "cats" not in page.read_text()


def test_a_run_that_diverged_is_a_result(data, quick, caplog):
    order(data, diverge=["lenet5_high/seed-1"])
    assert not study(data)
    forget(data)
    assert study(data)
    assert begun(data) == []
    assert "lenet5, high, seed 1 has diverged" in caplog.text
    assert "diverged" in (data.with_name("out") / "report.md").read_text()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda run: shutil.rmtree(run), "is gone"),
        (lambda run: run.rename(run.with_name("elsewhere")), "is gone"),
        (lambda run: (run / "evaluation.json").write_text("{}"), "evaluation.json is not as the run wrote it"),
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl is gone"),
    ],
)
def test_a_run_that_was_moved_or_damaged_is_run_again_and_said(data, quick, caplog, harm, said):
    assert study(data)
    out = data.with_name("out")
    table = (out / "table.csv").read_bytes()
    harm(out / "runs/resnet18_low/seed-1")
    forget(data)
    assert study(data)
    assert begun(data) == ["resnet18_low/seed-1"]
    assert f"resnet18, low, seed 1: {out / 'runs/resnet18_low/seed-1'}" in caplog.text
    assert said in caplog.text
    assert (out / "table.csv").read_bytes() == table
    # Nothing was thrown away.
    kept = out / "runs/resnet18_low/seed-1.damaged-1"
    assert kept.is_dir() == ("as the run wrote" in said or "metrics" in said)


def test_a_run_that_was_begun_and_damaged_is_begun_again(data, quick, caplog):
    out = data.with_name("out")
    assert study(data)
    run = out / "runs/lenet5_low/seed-0"
    run.with_name("seed-0.json").unlink()
    (run / "config.yaml").write_text("lr: [")
    forget(data)
    assert study(data)
    assert [call["resumed"] for call in calls(data) if "begin" in call] == [False]
    assert "config.yaml cannot be read" in caplog.text


def test_other_settings_in_the_same_folder_are_refused(data, quick):
    assert study(data)
    with pytest.raises(ValueError, match=r"lenet5_high/seed-0 was made with other settings \(lr was 0.1 and is 0.2\)"):
        study(data, high=0.2)


def test_other_pictures_are_refused_and_named(data, quick):
    assert study(data)
    picture = data / "a" / "3.png"
    picture.write_bytes((data / "b" / "3.png").read_bytes())
    with pytest.raises(ValueError, match=r"is not what the study in .* was begun with \(a/3.png has other content\)"):
        study(data)
    picture.unlink()
    with pytest.raises(ValueError, match=r"\(a/3.png is gone\)"):
        study(data)


def test_a_network_that_cannot_be_built_is_named_before_anything_is_trained(data, quick):
    made = Study(
        question="Which?",
        factors=(Factor("model", {"good": {}, "bad": {"arguments": {"cardinality": 3}}}),),
        base={**BASE, "model": "resnet18"},
    )
    with pytest.raises(ValueError, match="the cell 'bad' cannot be built: cardinality and base_width belong"):
        runner.run(made, data=str(data), folder=data.with_name("out"), seeds=1, again="")
    assert begun(data) == []


def test_a_study_without_epochs_would_depend_on_the_machine_and_is_refused(data, quick):
    made = Study(question="Which?", factors=(Factor("model", {"one": {}}),), base={**BASE, "epochs": None})
    with pytest.raises(ValueError, match="the cell 'one' has no epochs"):
        runner.run(made, data=str(data), folder=data.with_name("out"), seeds=1, again="")


def test_two_studies_in_one_folder_are_refused(data, quick):
    out = data.with_name("out")
    out.mkdir()
    with FileLock(out / "study.lock"), pytest.raises(ValueError, match="another lenext study is at work"):
        study(data)


def test_data_that_is_not_there_is_said_with_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)study tiny-imagenet needs its data.*237 MB.*--data PATH"):
        command.run("tiny-imagenet")
    with pytest.raises(ValueError, match="--data nowhere does not exist"):
        command.run("tiny-imagenet", data="nowhere")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("45s", 45), ("90m", 5400), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172_800)]
)
def test_times(text, seconds):
    assert command.read_time(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1h30", "-5m", "5 m", "0"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match="--budget is"):
        command.read_time(text)


# ------------------------------------------------------------------------------------------------- interruptions

INTERRUPTED = """
import sys
from lenext.study import command
from lenext.training import process
process.PROGRAM, process.POLL = {program!r}, 0.01
try:
    command.run({file!r}, data={data!r}, out={out!r}, devices=2)
except KeyboardInterrupt as interrupt:
    print(interrupt, file=sys.stderr)
    sys.exit(130)
"""


def start(data: Path, program: list[str], file: str, out: Path) -> subprocess.Popen[str]:
    script = INTERRUPTED.format(program=program, file=file, data=str(data), out=str(out))
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_study_goes_on_and_repeats_nothing(data, quick, number):
    order(data, seconds=0.3)
    out = data.with_name("out")
    studying = start(data, STAND_IN, write(data.parent), out)
    wait_for(lambda: len(begun(data)) >= 4, studying)
    studying.send_signal(number)
    said = studying.communicate(timeout=60)[1]
    assert studying.returncode == (-9 if number == signal.SIGKILL else 130)
    if number != signal.SIGKILL:
        assert "go on with: lenext study run" in said
        assert "--data" in said
    done = {str(path.relative_to(out / "runs"))[: -len(".json")] for path in (out / "runs").glob("*/*.json")}
    assert 0 < len(done) < len(ALL)
    forget(data)
    order(data)
    assert study(data)
    assert not done & set(begun(data))
    assert sorted(done | set(begun(data))) == sorted(ALL)
    resumed = [call["run"] for call in calls(data) if call.get("resumed")]
    assert len(resumed) in (1, 2)
    for name in ALL:
        assert [row["epoch"] for row in runs.read_metrics(out / "runs" / name)] == [1, 2, 3]


def test_a_budget_that_is_over_saves_what_runs_and_says_how_to_go_on(data, quick, caplog):
    caplog.set_level(logging.INFO, "lenext")
    order(data, seconds=0.4)
    begin = time.monotonic()
    assert study(data, budget="3s", devices=1)
    assert "the time is over; what was running is saved; go on with: lenext study run" in caplog.text
    assert 0 < len(begun(data)) < len(ALL)
    assert time.monotonic() - begin >= 3
    order(data)
    assert study(data)
    assert {call["run"] for call in calls(data) if "end" in call} == set(ALL)


# ----------------------------------------------------------------------------------------------- the program itself


@pytest.fixture
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


REAL = """
from lenext.study.design import Comparison, Factor, Study
STUDY = Study(
    question="Does depth or momentum help?",
    factors=(
        Factor("network", {"LeNet": {"model": "lenet5"}, "ResNet": {"model": "resnet18", "arguments": {"width": 8}}}),
        Factor("momentum", {"none": {"momentum": 0.0}, "0.9": {"momentum": 0.9}}),
    ),
    base={
        "recipe": "fit", "pretrained": False, "image_size": 32, "epochs": 2, "batch_size": 8, "optimizer": "sgd",
        "lr": 0.02, "check": False, "workers": 0, "mixup": 0.2, "ema": 0.9,
    },
    seeds=2,
    comparisons=(
        Comparison(question="Does momentum help?", change="momentum", cell="ResNet, 0.9", against="ResNet, none"),
    ),
)
"""


def test_a_killed_study_ends_with_every_byte_of_one_that_was_not(tmp_path, one_thread):
    """2 x 2 cells and 2 seeds, with the program itself; SIGKILL to the study and to a run in the midst of it."""
    data = make_folder(tmp_path / "pictures", ["a", "b", "c"], 12, size=32, splits=("train", "val", "test"))
    file = tmp_path / "mini.py"
    file.write_text(REAL)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert command.run(str(file), data=str(data), out=str(whole))
    studying = start(data, process.PROGRAM, str(file), killed)
    third = killed / "runs/ResNet_none/seed-0/metrics.jsonl"
    wait_for(third.exists, studying, seconds=400)
    marks = runs.read_json(killed / runner.RUNNING)
    os.kill(studying.pid, signal.SIGKILL)
    os.kill(int(marks[0][0]), signal.SIGKILL)
    studying.communicate()
    receipts = {path: path.stat().st_mtime_ns for path in killed.glob("runs/*/*.json")}
    assert receipts
    assert command.run(str(file), data=str(data), out=str(killed))
    assert {path: path.stat().st_mtime_ns for path in receipts} == receipts
    for name in ("table.csv", "runs.csv", "comparisons.csv", "effects.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    planned = design.plan(design.read(str(file))[1], Path(), 2)
    for run in planned:  # and so did what the tables are made of
        one, other = killed / run.folder, whole / run.folder
        assert (one / "evaluation.json").read_bytes() == (other / "evaluation.json").read_bytes()
        ours, theirs = (load_file(folder / runs.CLASSIFIER) for folder in (one, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
