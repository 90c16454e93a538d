"""Trackers: what they were told is read back, from TensorBoard's files and from stand-ins for the optional two."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lenext import runs
from lenext.config import TRACKERS
from lenext.training import tracking
from lenext.training.tracking import Trackers, require, write_csv

CONFIG = {"model": "lenet5", "lr": None, "epochs": 6}


def row(epoch: int, **more: Any) -> dict[str, Any]:
    figures = {"train_loss": 1 / epoch, "val_loss": 2 / epoch, "val_accuracy": 1 - 1 / epoch, "lr": 0.1}
    return {"epoch": epoch, "step": 10 * epoch, "seconds": 1.5} | figures | more


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)).save(path)
    return path


def interrupted():
    """Ctrl-C, which a tracker must let pass."""
    return pytest.raises(KeyboardInterrupt)


def read_board(run):
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    return board


def points(board, tag):
    return [(event.step, pytest.approx(event.value)) for event in board.Scalars(tag)]


# ------------------------------------------------------------------------------------------------------ TensorBoard


def test_tensorboard_shows_every_figure_of_every_epoch(tmp_path, picture):
    with Trackers(tmp_path, ("tensorboard",), config=CONFIG) as trackers:
        trackers.picture("samples", picture, 0)
        trackers.picture("never drawn", tmp_path / "none.png", 0)
        for epoch in (1, 2):
            trackers.scalars(row(epoch, ema_val_loss=3 / epoch, val_accuracy=None, val_loss=math.nan), epoch)
    board = read_board(tmp_path)
    tags = board.Tags()
    assert set(tags["scalars"]) == {"loss/train", "loss/val", "loss/ema_val", "lr", "seconds"}
    assert points(board, "loss/train") == [(1, 1.0), (2, 0.5)]
    assert points(board, "loss/ema_val") == [(1, 3.0), (2, 1.5)]
    assert all(math.isnan(event.value) for event in board.Scalars("loss/val"))
    assert tags["images"] == ["samples"]
    shown = Image.open(io.BytesIO(board.Images("samples")[0].encoded_image_string))
    np.testing.assert_array_equal(shown, Image.open(picture))
    config = board.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| model | lenet5 |" in config


def test_a_resumed_run_shows_no_point_twice(tmp_path, picture):
    with Trackers(tmp_path, ("tensorboard",), config=CONFIG) as trackers:
        trackers.picture("samples", picture, 0)
        for epoch in range(1, 6):  # killed after epoch 5; the checkpoint is of epoch 3
            trackers.scalars(row(epoch, lr=1.0), epoch)
    with Trackers(tmp_path, ("tensorboard",), config=CONFIG, purge_after=3) as trackers:
        for epoch in range(4, 7):
            trackers.scalars(row(epoch, lr=2.0), epoch)
    board = read_board(tmp_path)
    assert points(board, "lr") == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]
    assert [event.step for event in board.Images("samples")] == [0]
    assert len(board.Tensors("config/text_summary")) == 1


def test_a_run_resumed_within_its_first_epoch_keeps_the_samples(tmp_path, picture):
    with Trackers(tmp_path, ("tensorboard",), config=CONFIG) as trackers:
        trackers.picture("samples", picture, 0)
        trackers.scalars(row(1, lr=1.0), 1)
    with Trackers(tmp_path, ("tensorboard",), config=CONFIG, purge_after=0) as trackers:
        trackers.scalars(row(1, lr=2.0), 1)
    board = read_board(tmp_path)
    assert points(board, "lr") == [(1, 2.0)]
    assert len(board.Images("samples")) == 1


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_drawing_the_graph_leaves_the_network_and_the_random_numbers_alone(tmp_path, capsys):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Noisy(), nn.Flatten(), nn.Linear(144, 2))
    network[1].eval()  # a frozen part stays so
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    with Trackers(tmp_path, ("tensorboard",), config=CONFIG) as trackers:
        trackers.graph(network, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert read_board(tmp_path).Tags()["graph"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert [module.training for module in network] == [True, False, True, True, True]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert capsys.readouterr().out == ""


class Untraceable(nn.Module):
    def forward(self, x):
        raise RuntimeError("this cannot be traced")


def test_a_network_that_cannot_be_traced_is_a_debug_line(tmp_path, caplog, capsys):
    network = Untraceable()
    with caplog.at_level(logging.DEBUG, logger="lenext"):
        with Trackers(tmp_path, ("tensorboard",), config=CONFIG) as trackers:
            trackers.graph(network, torch.zeros(1, 3, 8, 8))
            trackers.scalars(row(1), 1)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert "this cannot be traced" in caplog.text
    assert network.training
    assert capsys.readouterr().out == ""
    assert points(read_board(tmp_path), "lr") == [(1, 0.1)]


# ------------------------------------------------------------------------------------------- missing and failing ones


def test_every_tracker_of_the_configuration_is_known():
    assert set(tracking.KINDS) == set(TRACKERS)


def test_a_missing_package_is_reported_with_the_mend(tmp_path, monkeypatch):
    require(())
    require(("tensorboard",))
    (tmp_path / "nosuchtracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)  # trackers leave folders of their own name behind: these are no packages
    with pytest.raises(ValueError, match=r"pip install 'lenext\[nosuchtracker\]'"):
        require(("tensorboard", "nosuchtracker"))


def test_without_trackers_nothing_is_written(tmp_path, picture):
    run = tmp_path / "run"
    run.mkdir()
    with Trackers(run, (), config=CONFIG) as trackers:
        trackers.scalars(row(1), 1)
        trackers.picture("samples", picture, 1)
        trackers.graph(nn.Linear(2, 2), torch.zeros(1, 2))
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("failing", ["opening", "telling", "closing"])
def test_a_tracker_that_fails_is_left_out_after_one_warning(tmp_path, monkeypatch, caplog, failing):
    told = []

    class Failing:
        def __init__(self, run, config, purge_after):
            self.fail("opening")

        def fail(self, stage):
            if stage == failing:
                raise ConnectionError("no route\nto host")

        def scalars(self, figures, step):
            told.append(step)
            if step == 2:
                self.fail("telling")

        def close(self, failed):
            self.fail("closing")

    monkeypatch.setitem(tracking.KINDS, "wandb", Failing)
    with caplog.at_level(logging.WARNING, logger="lenext"):
        with Trackers(tmp_path, ("wandb", "tensorboard"), config=CONFIG) as trackers:
            for epoch in (1, 2, 3, 4):
                trackers.scalars(row(epoch), epoch)
    assert told == {"opening": [], "telling": [1, 2], "closing": [1, 2, 3, 4]}[failing]
    assert len(caplog.records) == 1
    assert "wandb" in caplog.text
    assert "no route to host" in caplog.text
    assert len(points(read_board(tmp_path), "lr")) == 4


# -------------------------------------------------------------------------------------- stand-ins: W&B and MLflow


def install(monkeypatch, **modules):
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None, origin="stand-in")
        monkeypatch.setitem(sys.modules, name.replace("_", "."), module)


class StandInRun:
    def __init__(self, arguments):
        self.arguments, self.logged, self.exit_code = arguments, [], None
        self.id = arguments["id"] or "first-id"
        self.dir, self.url = f"{arguments['dir']}/wandb/run/files", "https://example.org/run"

    def define_metric(self, name, step_metric):
        self.axis = (name, step_metric)

    def log(self, figures):
        self.logged.append(figures)

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    module: Any = types.ModuleType("wandb")
    module.runs, module.mode, module.key, module.logins = [], "online", True, []

    def init(**arguments):
        module.runs.append(StandInRun(arguments))
        return module.runs[-1]

    def login(*, prompt, verify):
        module.logins.append(prompt)
        return module.key

    module.init, module.login = init, login
    module.setup = lambda: types.SimpleNamespace(settings=types.SimpleNamespace(mode=module.mode))
    module.Settings, module.Image = dict, lambda path: ("image", path)
    install(monkeypatch, wandb=module)
    for name in ("WANDB_PROJECT", "WANDB_NAME", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return module


def test_wandb_is_told_the_run_and_a_resumed_run_goes_on_in_it(tmp_path, picture, wandb):
    require(("wandb",))
    with interrupted(), Trackers(tmp_path, ("wandb",), config=CONFIG) as trackers:
        trackers.picture("samples", picture, 0)
        for epoch in (1, 2, 3):
            trackers.scalars(row(epoch), epoch)
        raise KeyboardInterrupt
    with Trackers(tmp_path, ("wandb",), config=CONFIG, purge_after=1) as trackers:
        for epoch in (2, 3, 4):  # from the checkpoint of epoch 1 on
            trackers.scalars(row(epoch), epoch)
        trackers.picture("confusion", picture, 4)
    first, second = wandb.runs
    assert first.arguments["config"] == CONFIG
    assert first.arguments["dir"] == tmp_path
    assert (first.arguments["id"], first.arguments["resume"]) == (None, None)
    assert (first.arguments["project"], first.arguments["name"]) == ("lenext", tmp_path.name)
    assert first.axis == ("*", "epoch")
    assert first.logged[0] == {"epoch": 0, "samples": ("image", str(picture))}
    assert first.logged[2] == {
        "epoch": 2, "loss/train": 0.5, "loss/val": 1.0, "accuracy/val": 0.5, "lr": 0.1, "seconds": 1.5,
    }  # fmt: skip
    assert first.exit_code == 1
    assert (second.arguments["id"], second.arguments["resume"]) == ("first-id", "allow")
    assert [figures["epoch"] for figures in second.logged] == [4, 4]
    assert second.logged[-1]["confusion"] == ("image", str(picture))
    assert second.exit_code == 0


@pytest.mark.parametrize(
    ("mode", "key", "expected"),
    [
        ("online", True, "online"),
        ("online", False, "offline"),
        ("offline", True, "offline"),
        ("disabled", False, "disabled"),
    ],
)
def test_wandb_asks_nobody_for_a_key(tmp_path, wandb, caplog, mode, key, expected):
    wandb.mode, wandb.key = mode, key
    with caplog.at_level(logging.INFO, logger="lenext"):
        for purge_after in (0, 1):
            Trackers(tmp_path, ("wandb",), config=CONFIG, purge_after=purge_after).close()
    assert wandb.runs[0].arguments["mode"] == expected
    assert wandb.logins == ([False, False] if mode == "online" else [])  # asked for a key without a prompt
    assert ("wandb sync" in caplog.text) == (expected == "offline")
    # There is no server to ask for the run when it is offline: the same id brings the parts together.
    assert wandb.runs[1].arguments["id"] == "first-id"
    assert wandb.runs[1].arguments["resume"] == ("allow" if expected == "online" else None)


class StandInClient:
    stores: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, uri):
        empty = {"experiments": {}, "params": {}, "metrics": [], "artifacts": [], "states": [], "runs": 0}
        self.store = self.stores.setdefault(uri, empty)

    def get_experiment_by_name(self, name):
        known = self.store["experiments"].get(name)
        return known and types.SimpleNamespace(experiment_id=name)

    def create_experiment(self, name, place):
        self.store["experiments"][name] = place or "the server's"
        return name

    def create_run(self, number, run_name):
        assert number in self.store["experiments"]
        self.store["runs"] += 1
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"run-{self.store['runs']}"))

    def update_run(self, id, status):
        self.store["states"].append((id, status))

    def log_batch(self, id, metrics=(), params=()):
        for key, value in params:
            assert key not in self.store["params"], "MLflow refuses a parameter that changes"
            self.store["params"][key] = value
        self.store["metrics"] += [(id, name, value, step) for name, value, _, step in metrics]

    def log_artifact(self, id, path, folder):
        self.store["artifacts"].append((id, path, folder))

    def set_terminated(self, id, status):
        self.store["states"].append((id, status))


@pytest.fixture
def mlflow(monkeypatch):
    StandInClient.stores = {}
    module: Any = types.ModuleType("mlflow")
    module.MlflowClient = StandInClient
    entities: Any = types.ModuleType("mlflow.entities")
    entities.Param = lambda key, value: (key, value)
    entities.Metric = lambda name, value, when, step: (name, value, when, step)
    install(monkeypatch, mlflow=module, mlflow_entities=entities)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
                 "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"):  # fmt: skip
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back
        monkeypatch.delenv(name)
    return StandInClient.stores


def test_mlflow_keeps_the_run_in_its_folder_and_a_resumed_run_goes_on_in_it(tmp_path, picture, mlflow):
    with interrupted(), Trackers(tmp_path, ("mlflow",), config=CONFIG) as trackers:
        trackers.picture("samples", picture, 0)
        for epoch in (1, 2):
            trackers.scalars(row(epoch), epoch)
        raise KeyboardInterrupt
    with Trackers(tmp_path, ("mlflow",), config=CONFIG | {"epochs": 9}, purge_after=1) as trackers:
        for epoch in (2, 3):
            trackers.scalars(row(epoch), epoch)
    [(uri, store)] = mlflow.items()
    assert uri == f"sqlite:///{tmp_path.resolve()}/mlflow/mlflow.db"
    assert (tmp_path / "mlflow").is_dir()
    assert store["experiments"] == {"lenext": (tmp_path.resolve() / "mlflow" / "artifacts").as_uri()}
    assert store["params"] == {"model": "lenet5", "lr": "None", "epochs": "6"}
    assert [entry for entry in store["metrics"] if entry[1] == "loss/train"] == [
        ("run-1", "loss/train", 1.0, 1), ("run-1", "loss/train", 0.5, 2), ("run-1", "loss/train", 1 / 3, 3),
    ]  # fmt: skip
    assert store["artifacts"] == [("run-1", str(picture), "figures")]
    assert store["states"] == [("run-1", "FAILED"), ("run-1", "RUNNING"), ("run-1", "FINISHED")]


def test_mlflow_goes_to_the_server_and_the_experiment_that_the_user_names(tmp_path, mlflow, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://example.org")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "orchids")
    Trackers(tmp_path, ("mlflow",), config=CONFIG).close()
    assert list(mlflow) == ["https://example.org"]
    assert mlflow["https://example.org"]["experiments"] == {"orchids": "the server's"}
    assert not (tmp_path / "mlflow").exists()


# ------------------------------------------------------------------------------------------------------- metrics.csv


def test_metrics_csv_has_every_figure_of_every_epoch(tmp_path):
    rows = [row(1), row(2, ema_val_loss=0.25), row(3, val_accuracy=None)]
    for figures in rows:
        runs.append_metrics(tmp_path, figures)
    write_csv(tmp_path)
    table = list(csv.DictReader((tmp_path / "metrics.csv").open(encoding="utf-8")))
    assert list(table[0]) == [*row(1), "ema_val_loss"]
    for read, written in zip(table, rows, strict=True):
        assert {key: json.loads(value) for key, value in read.items() if value} == {
            key: value for key, value in written.items() if value is not None
        }
