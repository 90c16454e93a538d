"""The search: with a stand-in for the program, whose scores are known, and once with the program itself."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import sqlalchemy
from filelock import FileLock

from lenext import config, runs
from lenext.evaluation.evaluate import evaluate_run
from lenext.evaluation.metrics import accuracy_interval
from lenext.training import begin, process, step
from lenext.training.checkpoint import Progress
from lenext.tune import command, report, trial
from tests.evaluation.test_report import Page
from tests.pictures import make_folder

write_html = report.write_html
STAND_IN = [sys.executable, "-I", "-S", str(Path(__file__).with_name("program.py"))]
FIXED: dict[str, Any] = {"model": "lenet5", "epochs": 4, "pretrained": False}
SPACE = "lr: {low: 0.0001, high: 1, log: true}\nlabel_smoothing: {low: 0, high: 0.2}\n"


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def hurry(connection, record) -> None:
    """Kills are tested here, power cuts are not: the disk need not be waited for."""
    connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("pictures"), ["圆", "三角"], 20, size=32)


@pytest.fixture
def data(pictures, tmp_path, monkeypatch) -> Path:
    """Pictures, with orders for the stand-in, which takes the program's place."""
    monkeypatch.setattr(process, "PROGRAM", STAND_IN)
    monkeypatch.setattr(process, "POLL", 0.01)
    monkeypatch.setattr(report, "write_html", lambda folder, *_, **__: folder / "report.html")  # it takes its time
    folder = tmp_path / "数据 {a}?"
    shutil.copytree(pictures, folder)
    order(folder)
    return folder


@pytest.fixture
def space(tmp_path) -> str:
    (tmp_path / "space.yaml").write_text(SPACE)
    return str(tmp_path / "space.yaml")


def order(data: Path, **orders) -> None:
    (data / "orders.json").write_text(json.dumps(orders))


def table(out: Path) -> list[dict[str, str]]:
    with open(out / "trials.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def calls(data: Path) -> list[list[str]]:
    return [json.loads(line) for line in (data / "calls.jsonl").read_text().splitlines()]


def results(out: Path) -> list[dict[str, str]]:
    """All that a search found, without how long it took."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in table(out)]


def peak(row: dict[str, str]) -> float:
    """What the stand-in scores at these settings after four epochs."""
    best = 0.9 - 0.2 * abs(math.log10(float(row["lr"]) / 0.01)) - 2 * abs(float(row["label_smoothing"]) - 0.1)
    return max(best * (1 - 0.5**5), 0)


def test_the_search_begins_with_the_defaults_and_ends_near_the_optimum(data, space, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(report, "write_html", write_html)
    out = tmp_path / "search {b}?"
    order(data, diverge=[2], fail=[4])
    with caplog.at_level("INFO", "lenext"):
        assert command.run(str(data), trials=24, out=str(out), space=space, **FIXED)
    rows = table(out)
    assert [row["trial"] for row in rows] == [str(i) for i in range(24)]

    # What training would do by itself comes first; then scores are the stand-in's, and what failed says why.
    assert float(rows[0]["lr"]) == pytest.approx(5e-4)  # AdamW, 16 pictures in a batch
    assert float(rows[0]["label_smoothing"]) == config.build(begin.recipes.get("auto")).label_smoothing
    done = [row for row in rows if row["state"] == "done"]
    assert all(float(row["val_accuracy"]) == pytest.approx(peak(row)) for row in done)
    assert (rows[2]["state"], rows[4]["state"]) == ("diverged", "failed")
    assert rows[4]["reason"] == "the disk is full of cats"
    assert rows[4]["val_accuracy"] == ""
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert pruned
    assert all(int(row["trial"]) >= command.UNPRUNED_TRIALS for row in pruned)
    assert max(map(peak, pruned)) < max(map(peak, done))

    # The proposals of the second half are better than the random ones of the first ten.
    best = max(done, key=lambda row: float(row["val_accuracy"]))
    assert float(best["val_accuracy"]) > 0.75 > float(rows[0]["val_accuracy"])
    assert sorted(map(peak, rows[12:]))[6] > sorted(map(peak, rows[1:11]))[5] + 0.1

    # best.yaml has nothing but settings, those of the best trial, and says whose they are.
    text = (out / "best.yaml").read_text(encoding="utf-8")
    assert text.startswith(f"# Trial {best['trial']} of 24: validation accuracy {100 * peak(best):.2f} % in epoch 4\n")
    settings = config.read_file(out / "best.yaml")
    assert settings["lr"] == float(best["lr"])
    assert settings.items() >= FIXED.items()
    assert "data" not in settings
    assert begin.configure({"data": str(data)}, settings).lr == float(best["lr"])

    # Of finished trials little is left, and of one a classifier.
    classifiers = list((out / "trials").glob("*/classifier.safetensors"))
    assert [path.parent.name for path in classifiers] == [f"{int(best['trial']):04d}"]
    assert not list((out / "trials").glob("*/checkpoint*"))
    assert not list((out / "trials").glob("*/figures"))
    assert {path.name for path in (out / "trials/0000").iterdir()} == {
        "config.yaml", "data.json", "metrics.jsonl", "train.log",
    }  # fmt: skip
    assert [path.name for path in sorted((out / "trials").glob("*.log"))] == ["0002.log", "0004.log"]

    # The page and the lines say the same.
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert f"The best of 24 trials, number {best['trial']}" in page.text
    assert "the disk is full of cats" in page.text
    low, high = accuracy_interval(round(6 * peak(best)), 6)  # 15 % of 40 pictures validate
    assert f"is {100 * low:.1f}\xa0% to {100 * high:.1f}\xa0%" in " ".join(page.texts)
    assert "script" not in page.tags
    pictured = [value for name, value in page.attributes if name == "src"]
    assert len(pictured) == 5  # importance among them
    assert all(value and value.startswith("data:image/png;base64,") for value in pictured)
    assert f"{100 * peak(best):.2f} %  best" in caplog.text
    assert "failed" in caplog.text
    assert f"--config '{out}/best.yaml'" in caplog.text

    # The same once more is finished already, and asks for nothing but the report.
    before = calls(data)
    assert command.run(str(data), trials=24, out=str(out), space=space, **FIXED)
    assert calls(data) == before


def test_importance_names_what_the_score_depends_on():
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    for _ in range(command.ENOUGH + 15):
        one = study.ask()
        lr, smoothing = one.suggest_float("lr", 1e-4, 1, log=True), one.suggest_float("label_smoothing", 0, 0.2)
        for name in ("momentum", "mixup", "erasing"):
            one.suggest_float(name, 0, 1)
        accuracy = 0.9 - 0.2 * abs(math.log10(lr / 0.01)) - 2 * abs(smoothing - 0.1)
        one.set_user_attr("kept", {"accuracy": accuracy, "loss": 1 - accuracy, "epoch": 1})
        study.tell(one, accuracy)
    found = command.importances(study, report.read(study))
    assert sum(found.values()) == pytest.approx(1)
    assert found["lr"] + found["label_smoothing"] > 0.6
    assert command.importances(study, report.read(study)[: command.ENOUGH - 1]) == {}


def test_two_searches_with_one_seed_are_equal_and_with_another_differ(data, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert command.run(str(data), trials=3, out=str(tmp_path / name), seed=seed, **FIXED)
    assert results(tmp_path / "a") == results(tmp_path / "b")
    assert results(tmp_path / "a")[0] == results(tmp_path / "c")[0]  # the defaults
    assert results(tmp_path / "a")[1:] != results(tmp_path / "c")[1:]


def test_the_default_rate_goes_with_the_other_settings(data, tmp_path):
    """A trial's rate is what training would choose for its optimiser and batch, times a factor."""
    assert command.run(str(data), trials=6, out=str(tmp_path / "out"), **FIXED)
    rows = table(tmp_path / "out")
    assert len({(row["optimizer"], row["batch_size"]) for row in rows}) > 2
    for row, one in zip(rows, optuna_trials(tmp_path / "out"), strict=True):
        batch = int(row["batch_size"])
        default = 0.1 * batch / 256 if row["optimizer"] == "sgd" else 1e-3 * (batch / 64) ** 0.5
        assert float(row["lr"]) == pytest.approx(default * one.params["lr_factor"], rel=0.01)


# ------------------------------------------------------------------------------------------------- interruptions

KILLED = """
import sys
from lenext.training import process
from lenext.tune import command
process.PROGRAM, process.POLL = {program!r}, 0.01
try:
    command.run({data!r}, trials=4, out={out!r}, space={space!r}, **{fixed!r})
except KeyboardInterrupt as interrupt:
    print(interrupt, file=sys.stderr)
    sys.exit(130)
"""


def start_and_wait(data: Path, out: Path, space: str, hanging: int) -> subprocess.Popen[str]:
    """A search in a process of its own, once its trial `hanging` has written its first epoch."""
    order(data, hang=hanging)
    script = KILLED.format(program=STAND_IN, data=str(data), out=str(out), space=space, fixed=FIXED)
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    metrics = out / f"trials/{hanging:04d}/metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def optuna_trials(out: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(storage=f"sqlite:///{out}/study.db", study_name="lenext").trials


def mark_of(out: Path, number: int) -> list[float]:
    return optuna_trials(out)[number].user_attrs["process"]


def is_alive(mark: list[float]) -> bool:
    try:
        process = psutil.Process(int(mark[0]))
        return process.create_time() == mark[1] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_search_that_was_killed_ends_as_one_that_was_not(data, space, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    process = start_and_wait(data, out, space, hanging=2)
    process.kill()
    process.communicate()
    left_over = mark_of(out, 2)
    assert is_alive(left_over)  # nobody could end it
    first = calls(data)
    assert command.run(str(data), trials=4, out=str(out), space=space, **FIXED)
    assert not is_alive(left_over)
    assert calls(data)[len(first)] == ["train", "--resume", str(out / "trials/0002")]
    assert len(calls(data)) == len(first) + 2  # two trials were finished, and are left as they are
    order(data)
    assert command.run(str(data), trials=4, out=str(whole), space=space, **FIXED)
    assert results(out) == results(whole)


def test_a_search_that_is_stopped_ends_its_trial_and_says_how_to_go_on(data, space, tmp_path):
    out = tmp_path / "out"
    process = start_and_wait(data, out, space, hanging=1)
    while "process" not in optuna_trials(out)[1].user_attrs:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert f"1 of 4 trials are finished and kept; go on with the same command and --out {out}" in said
    assert not is_alive(mark_of(out, 1))
    # A run that was stopped before it could be taken up again begins anew.
    (out / "trials/0001/data.json").unlink()
    order(data)
    assert command.run(str(data), trials=2, out=str(out), space=space, **FIXED)
    assert calls(data)[-1][:2] == ["train", str(data)]
    assert [row["state"] for row in table(out)] == ["done", "done"]


# --------------------------------------------------------------------------------------------------------- errors


def test_where_all_trials_fail_the_first_reason_is_said(data, tmp_path, caplog):
    order(data, fail=[0, 1])
    assert not command.run(str(data), trials=2, out=str(tmp_path / "out"), **FIXED)
    assert "no trial came to an end; the first failed because: the disk is full of cats" in caplog.text
    assert not (tmp_path / "out/best.yaml").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere"}, r"nowhere does not exist: DATA is a folder"),
        ({"model": "lenet6"}, r"lenet6"),
        ({"lr": -1.0}, r"lr is -1.0; it must be greater than 0"),
        ({"trials": 0}, r"trials is 0; it must be greater than 0"),
        ({"time_budget_per_trial": 60}, r"a trial is as long as its epochs or as its time budget; give one of the two"),
        ({"space": "nowhere.yaml"}, r"configuration file nowhere.yaml cannot be read"),
        ({"recipe": "probe"}, r"recipe probe has no epochs"),
    ],
)
def test_what_cannot_work_ends_before_the_first_trial(data, tmp_path, changes, message):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=message):
        command.run(**{"data": str(data), "out": str(out), **FIXED, **changes})
    assert not out.exists()
    assert not (data / "calls.jsonl").exists()


def test_a_folder_with_another_search_is_left_alone(data, space, tmp_path):
    out = tmp_path / "out"
    assert command.run(str(data), trials=1, out=str(out), space=space, **FIXED)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for changes, what in (
        ({"seed": 1}, "with other settings held fixed"),
        ({"space": None}, "of another space"),
        ({"epochs": 5}, "with other settings held fixed"),
    ):
        with pytest.raises(ValueError, match=rf"holds a search ({what}); choose another --out"):
            command.run(**{"data": str(data), "trials": 2, "out": str(out), "space": space, **FIXED, **changes})
    with FileLock(out / ".lock"), pytest.raises(ValueError, match="another lenext tune is at work in"):
        command.run(str(data), trials=2, out=str(out), space=space, **FIXED)
    with pytest.raises(ValueError, match="is not empty; choose another --out"):
        command.run(str(data), trials=2, out=str(data), space=space, **FIXED)
    assert {path: path.read_bytes() for path in before} == before
    make_folder(data, ["圆", "三角"], 21, size=32)
    with pytest.raises(ValueError, match="holds a search on other pictures"):
        command.run(str(data), trials=2, out=str(out), space=space, **FIXED)


def test_without_optuna_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'lenext\[tune\]'"):
        command.run("data")


# ---------------------------------------------------------------------------------------------------------- parts


def test_the_figures_of_a_run_are_those_its_model_is_kept_by():
    rows: list[dict[str, Any]] = [
        {"epoch": 1, "val_accuracy": 0.5, "val_loss": 0.9},
        {"epoch": 2, "val_accuracy": 0.7, "val_loss": 0.8, "ema_val_accuracy": 0.6, "ema_val_loss": 0.4},
        {"epoch": 3, "val_accuracy": 0.7, "val_loss": 0.6},
        {"epoch": 4, "val_accuracy": 0.7, "val_loss": 0.6},
        {"epoch": 5, "val_accuracy": 0.9, "val_loss": None},
    ]
    assert trial.best_figures(rows, "val_accuracy") == trial.Figures(0.7, 0.6, 3)
    assert trial.best_figures(rows, "val_loss") == trial.Figures(0.6, 0.4, 2)
    assert trial.best_figures(rows[4:], "val_loss") is None


def test_among_equal_scores_the_lower_loss_is_best():
    def one(number, state, score, loss):
        return report.Trial(number, state, score, loss, 1, 1.0, "", {}, {}, {})

    trials = [one(0, "done", 0.8, 0.5), one(1, "done", 0.8, 0.4), one(2, "done", 0.8, 0.4), one(3, "pruned", 0.9, 0.1)]
    assert report.best(trials) == trials[1]
    assert report.best(trials[3:]) is None


def test_a_process_that_was_killed_or_crashed_says_so(tmp_path, monkeypatch):
    def reason(code: str) -> str | None:
        monkeypatch.setattr(process, "PROGRAM", [sys.executable, "-c", code])
        return trial.follow([], tmp_path / "run", started=lambda mark: None, look=lambda rows: False)

    assert reason("import os; os.kill(os.getpid(), 9)") == (
        "the process was killed by SIGKILL; the system does that when memory runs out"
    )
    assert reason("raise RuntimeError('odd')") == "RuntimeError: odd"
    assert reason("import sys; sys.exit(3)") == "exit status 3"
    assert reason("print('lenext: no', file=__import__('sys').stderr); print('x', 1 / 0)") == "no"
    assert reason("pass") is None


# ------------------------------------------------------------------------------------------------------ the program


def test_what_the_program_says_of_a_divergence_is_understood(tmp_path):
    progress = Progress(bad_steps=step.MOST_BAD_STEPS - 1)
    with pytest.raises(FloatingPointError, match=process.DIVERGED):
        step.endure(progress, "step 9 of epoch 1", tmp_path)


def test_with_the_program_itself(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "out"
    (tmp_path / "space.yaml").write_text("lr: [0.001, 0.01]\naugment: [none, light]\n")
    fixed: dict[str, Any] = {"model": "lenet5", "epochs": 2, "optimizer": "sgd", "speed": "off"}
    assert command.run(str(pictures), trials=1, out=str(out), space=str(tmp_path / "space.yaml"), **fixed)
    (row,) = table(out)
    run = out / "trials/0000"
    metrics = runs.read_metrics(run)
    assert [one["epoch"] for one in metrics] == [1, 2]
    assert float(row["val_accuracy"]) == metrics[int(row["epoch"]) - 1]["val_accuracy"]
    used, settings = runs.read_config(run), config.read_file(out / "best.yaml")
    assert {name: used[name] for name in settings} == settings
    assert settings["lr"] in (0.001, 0.01)
    # The one classifier that is left can be measured on pictures that no trial was chosen by.
    assert evaluate_run(str(run))[0] == "test"
