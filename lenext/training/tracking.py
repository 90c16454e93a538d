"""Where a run's figures go besides its folder: TensorBoard, Weights & Biases, MLflow; and metrics.csv.

Every tracker is told the same: a row of figures after each epoch, under the same names (loss/train, accuracy/val,
lr, ...), and the pictures that the run draws. A resumed run goes on in the tracker's own run, whose id is kept in
trackers.json, and tells nothing twice. Tracking never ends a training: a tracker that fails is left out, with a
warning.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import logging
import os
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lenext import runs

log = logging.getLogger("lenext")

PROJECT = "lenext"  # of W&B, and the experiment of MLflow, where the environment names none


def require(names: tuple[str, ...]) -> None:
    """Raise ValueError with the mend if a tracker of config.TRACKERS is asked for whose package is missing."""
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder called wandb is no package
            raise ValueError(f"track is {name}, and that package is not installed: pip install 'lenext[{name}]'")


def flatten(row: dict[str, Any]) -> dict[str, float]:
    """The figures of a row of metrics.jsonl under the names that trackers group by: val_loss is loss/val."""
    figures = {}
    for key, value in row.items():
        if key in ("epoch", "step") or not isinstance(value, int | float):
            continue
        split, _, figure = key.rpartition("_")
        figures[f"{figure}/{split}" if split and figure in ("loss", "accuracy") else key] = float(value)
    return figures


def write_csv(run: Path) -> None:
    """metrics.csv: the rows of metrics.jsonl as a table; a figure that an epoch lacks is an empty cell."""
    rows = runs.read_metrics(run)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    runs.write_text(run / "metrics.csv", table.getvalue())


class Trackers:
    """The trackers of one run, as a context manager; with no names it does nothing.

    names: of config.TRACKERS, checked with `require`. config: the settings of the run, shown beside its figures.
    purge_after: the last step of the checkpoint that a run is resumed from, 0 for a run from its beginning: a killed
    run may have told later steps already, and tells them again. Steps are whole numbers that grow, such as epochs.
    """

    def __init__(self, run: Path, names: tuple[str, ...], *, config: dict[str, Any], purge_after: int = 0) -> None:
        self._trackers: dict[str, Any] = {}
        for name in names:
            with self._left_out_if_it_fails(name):
                self._trackers[name] = KINDS[name](run, config, purge_after)

    def scalars(self, row: dict[str, Any], step: int) -> None:
        """Tell the figures of an epoch: a row of metrics.jsonl."""
        self._tell(lambda tracker: tracker.scalars(flatten(row), step))

    def picture(self, name: str, path: Path, step: int) -> None:
        """Show a PNG that the run has drawn; one that was not drawn is passed over."""
        if path.is_file():
            self._tell(lambda tracker: tracker.picture(name, path, step))

    def graph(self, model: nn.Module, example: Tensor) -> None:
        """Draw the network's graph in TensorBoard where it can be traced; the network stays as it is.

        example: (B, C, H, W).
        """
        if "tensorboard" in self._trackers:
            try:
                self._trackers["tensorboard"].graph(model, example)
            except Exception as error:
                log.debug("no graph in TensorBoard: %s", error)

    def close(self, *, failed: bool = False) -> None:
        """Send what is left, and say whether the run failed."""
        for name, tracker in list(self._trackers.items()):
            with self._left_out_if_it_fails(name):
                tracker.close(failed)
        self._trackers.clear()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def _tell(self, tell: Callable[[Any], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._left_out_if_it_fails(name):
                tell(tracker)

    @contextlib.contextmanager
    def _left_out_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._trackers.pop(name, None)
            reason = textwrap.shorten(str(error), 300) or type(error).__name__
            log.warning("%s failed and is left out from here on; the training goes on: %s", name, reason)


class _TensorBoard:
    """Event files in tensorboard/; what a resumed run had told after its checkpoint is purged."""

    def __init__(self, run: Path, config: dict[str, Any], purge_after: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        folder = run / "tensorboard"
        is_new = not folder.exists()
        self._writer = SummaryWriter(str(folder), purge_step=purge_after + 1)
        if is_new:
            table = "\n".join(f"| {key} | {value} |" for key, value in config.items())
            self._writer.add_text("config", f"| setting | value |\n| --- | --- |\n{table}")

    def scalars(self, figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def picture(self, name: str, path: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        self._writer.add_image(name, np.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def graph(self, model: nn.Module, example: Tensor) -> None:
        training = {module: module.training for module in model.modules()}
        example = example.to(next(model.parameters(), example))
        devices = [example.device] if example.is_cuda else []
        try:  # it traces the network in evaluation, and then puts all of it to training or none
            with (
                torch.no_grad(),
                torch.random.fork_rng(devices),
                contextlib.redirect_stdout(io.StringIO()),  # it prints its errors besides raising them
                warnings.catch_warnings(action="ignore"),
            ):
                self._writer.add_graph(model, example)
        finally:
            for module, was in training.items():
                module.training = was
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()


class _WandB:
    """A run of Weights & Biases with its files in wandb/.

    WANDB_MODE and the other variables hold; nobody is asked to log in: without a key the run is kept offline.
    """

    def __init__(self, run: Path, config: dict[str, Any], purge_after: int) -> None:
        import wandb

        self._wandb, self._told = wandb, _Told(run, "wandb")
        mode = wandb.setup().settings.mode
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            mode = "offline"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.resolve().name),
            id=self._told.id,
            resume="allow" if self._told.id and mode == "online" else None,
            dir=run,
            config=config,
            mode=mode,
            # A run of the user's own stays open, progress bars keep the terminal, and a dead network ends the wait.
            settings=wandb.Settings(
                reinit="create_new", console="off", silent=True, finish_timeout=60, init_timeout=30
            ),
        )
        self._told.begin(self._run.id)
        self._run.define_metric("*", step_metric="epoch")
        if mode == "offline":
            log.info("wandb is offline; to send the run: wandb sync %s", Path(self._run.dir).parent)
        elif self._run.url:
            log.info("wandb: %s", self._run.url)

    def scalars(self, figures: dict[str, float], step: int) -> None:
        if step > self._told.step:
            self._run.log({"epoch": step, **figures})
            self._told.up_to(step)

    def picture(self, name: str, path: Path, step: int) -> None:
        self._run.log({"epoch": step, name: self._wandb.Image(str(path))})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _MLflow:
    """A run of MLflow: on the server that MLFLOW_TRACKING_URI names, else in mlflow/ of the run folder."""

    def __init__(self, run: Path, config: dict[str, Any], purge_after: int) -> None:
        # Read when mlflow is imported. As it is, a dead server would hold the training up for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        for name in ("alembic", "mlflow.store.db.utils"):  # dozens of lines about their empty tables
            logging.getLogger(name).setLevel(logging.WARNING)
        self._told = _Told(run, "mlflow")
        server, folder = os.environ.get("MLFLOW_TRACKING_URI"), (run / "mlflow").resolve()
        if not server:
            folder.mkdir(exist_ok=True)
        self._client = MlflowClient(server or f"sqlite:///{folder / 'mlflow.db'}")
        if self._told.id:
            self._client.update_run(self._told.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(name, None if server else (folder / "artifacts").as_uri())
        )
        self._told.begin(self._client.create_run(number, run_name=run.resolve().name).info.run_id)
        self._client.log_batch(self._told.id, params=[Param(key, str(value)) for key, value in config.items()])

    def scalars(self, figures: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        if step > self._told.step:
            now = int(1000 * time.time())
            metrics = [Metric(name, value, now, step) for name, value in figures.items()]
            self._client.log_batch(self._told.id, metrics=metrics)
            self._told.up_to(step)

    def picture(self, name: str, path: Path, step: int) -> None:
        self._client.log_artifact(self._told.id, str(path), "figures")

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._told.id, status="FAILED" if failed else "FINISHED")


class _Told:
    """What a tracker that cannot take figures back was told, in trackers.json: its id of the run and the last step."""

    def __init__(self, run: Path, name: str) -> None:
        self._file, self._name = run / "trackers.json", name
        known = self._read().get(name, {})
        self.id: str | None = known.get("id")
        self.step: int = known.get("step", -1)

    def begin(self, id: str) -> None:
        self.id = id
        self.up_to(self.step)

    def up_to(self, step: int) -> None:
        self.step = step
        runs.write_json(self._file, self._read() | {self._name: {"id": self.id, "step": step}})

    def _read(self) -> dict[str, Any]:
        return runs.read_json(self._file) if self._file.is_file() else {}


KINDS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _WandB, "mlflow": _MLflow}
