"""The run folder: everything a training run leaves behind. This is its only reader and writer.

config.yaml, data.json, samples.parquet, environment.json, choices.json, model.txt   written before training
metrics.jsonl, train.log, checkpoint.*, classifier.safetensors      written as it goes
trackers.json, tensorboard/, wandb/, mlflow/                        where they are asked for
metrics.csv, evaluation.json, predictions.parquet, figures/, report.html         written at the end
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

CONFIG, DATA, METRICS, CLASSIFIER = "config.yaml", "data.json", "metrics.jsonl", "classifier.safetensors"
SAMPLES = "samples.parquet"
log = logging.getLogger("lenext")
# Python can only read the umask by setting it; once, while there is one thread.
_UMASK = os.umask(0o022)
os.umask(_UMASK)


def create(out: str | Path | None, name: str) -> Path:
    """A new, empty run folder: `out`, or runs/<date>-<name> with a number if that is taken."""
    if out is not None:
        run = Path(out)
        if run.is_dir() and any(run.iterdir()):
            mend = f"; continue it with: lenext train --resume {run}" if is_run(run) else ""
            raise ValueError(f"{run} is not empty; choose another --out{mend}")
        if run.exists() and not run.is_dir():
            raise ValueError(f"{run} is a file; --out names a folder")
        run.mkdir(parents=True, exist_ok=True)
        return run
    stem = f"{datetime.date.today().isoformat()}-{name.replace('/', '_').replace(':', '_')}"
    number = 1
    while True:
        run = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            number += 1


def cache_folder(room: str = "") -> Path:
    """The user's folder of what can be made again, or a room in it. Raises OSError where there is no place for it."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lenext" / room
    except RuntimeError:
        raise OSError("there is no home folder; XDG_CACHE_HOME can name a place") from None


def remember(room: str, key: dict[str, Any], value: Any) -> None:
    """Keep a measurement in a room of the cache folder. key: what it depends on; both in JSON's types."""
    try:
        file = _remembered(room, key)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"key": key, "value": value})
    except OSError as error:
        log.debug("a measurement is not kept: %s", error)


def recall(room: str, key: dict[str, Any]) -> Any:
    """What was measured under this key before; None if nothing was, or the file is damaged."""
    try:
        kept = json.loads(_remembered(room, key).read_text(encoding="utf-8"))
        # As JSON gives it back: tuples are lists there.
        return kept["value"] if kept["key"] == json.loads(json.dumps(key)) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _remembered(room: str, key: dict[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder(room) / f"{name}.json"


def is_run(path: str | Path) -> bool:
    return (Path(path) / CONFIG).is_file() and (Path(path) / DATA).is_file()


def require(path: str | Path) -> Path:
    """The run folder of a path: itself, or that of the classifier file in it; ValueError where there is none."""
    run = Path(path)
    if run.name == CLASSIFIER and is_run(run.parent):
        return run.parent
    if is_run(run):
        return run
    if not run.exists():
        raise ValueError(f"{run} does not exist; a run folder was expected")
    raise ValueError(f"{run} is not a run folder: it has no {CONFIG} and {DATA}")


@contextlib.contextmanager
def alone(lock: Path, refusal: str, *, patience: float = 0) -> Iterator[None]:
    """Hold a lock file, which the system lets go of when this process ends, however it ends.

    Raises ValueError with the sentence `refusal` where another process holds it for `patience` seconds.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        held.acquire(timeout=patience)
    except Timeout:
        raise ValueError(refusal) from None
    try:
        yield
    finally:
        held.release()


def write_atomically(path: Path, write: Callable[[Path], object], *, before: Path | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename it over `path`.

    before: where the old content goes, once the new is on the disk; it is lost if not given.
    Whatever happens half way (a full disk, a kill), `path` holds the old content or the new, never a part; with
    `before`, the old may lie there and nothing at `path`.
    Raises ValueError where `path` is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file, such as {path / 'NAME'}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_UMASK)  # some writers make files that only their owner can read
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        if before is not None and path.exists():
            os.replace(path, before)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)  # people know the file by this name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(run: Path) -> None:
    """Remove what processes that are gone were writing when they were killed: files, and folders of an export."""
    for path in list(run.rglob(".*.tmp")):
        if is_abandoned(path):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def is_abandoned(path: Path) -> bool:
    """Whether `.NAME.PID.ENDING` is of a process that is gone."""
    import psutil

    process = path.name.split(".")[-2]
    # In a container the killed process and this one, which is writing nothing now, may have the same number.
    return process.isdecimal() and (int(process) == os.getpid() or not psutil.pid_exists(int(process)))


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def add_choice(run: Path, sentence: str) -> None:
    """Add a sentence about what was chosen, once: a run that is interrupted early chooses again."""
    choices = read_json(run / "choices.json")
    if sentence not in choices:
        write_json(run / "choices.json", [*choices, sentence])


def write_config(run: Path, values: dict[str, Any]) -> None:
    write_text(run / CONFIG, yaml.safe_dump(values, allow_unicode=True, sort_keys=False))


def read_config(run: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{run / CONFIG} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{run / CONFIG} holds no settings")
    return values


def append_metrics(run: Path, row: dict[str, Any]) -> None:
    """Add the figures of an epoch; what is no finite number is null, as JSON has it."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    with open(run / METRICS, "a", encoding="utf-8") as file:
        file.write(json.dumps(finite) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; of a line that was cut off while it was written there is nothing."""
    path = run / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def keep_metrics(run: Path, epochs: int) -> None:
    """Drop the rows of epochs after `epochs`: a resumed run writes them again."""
    rows = [row for row in read_metrics(run) if row["epoch"] <= epochs]
    write_text(run / METRICS, "".join(json.dumps(row) + "\n" for row in rows))


def is_finished(run: Path) -> bool:
    return (run / "evaluation.json").is_file() and (run / "report.html").is_file()


@contextlib.contextmanager
def logging_to(run: Path) -> Iterator[None]:
    """Send the log to train.log too."""
    handler = logging.FileHandler(run / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def environment() -> dict[str, Any]:
    """Versions, hardware, revision and command, for environment.json."""
    import importlib.metadata

    import psutil
    import torch

    from lenext.version import __version__

    versions = {}
    for package in (
        "torch",
        "torchvision",
        "lightning-fabric",
        "openvino",
        "numpy",
        "scikit-learn",
        "pillow",
    ):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "lenext": __version__,
        "python": platform.python_version(),
        **versions,
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "git_revision": _git_revision(),
        "command": " ".join(sys.argv),
    }


def process_start() -> float:
    """When this process began, in seconds since the epoch: time budgets count imports too."""
    import psutil

    return psutil.Process().create_time()


def processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git_revision() -> str:
    """The revision of the working folder, which is the user's project if it is one."""
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return result.stdout.strip() or "none"


def write_predictions(run: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pyarrow as pa

    _write_table(run / "predictions.parquet", pa.Table.from_pylist(list(rows)))


def write_samples(run: Path, table: Any) -> None:
    """Which pictures the run was made with: an Arrow table of image, label, split and content."""
    _write_table(run / SAMPLES, table)


def read_samples(run: Path) -> Any:
    """The table that `write_samples` wrote; None in a folder without one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not (run / SAMPLES).is_file():
        return None
    try:
        return pq.read_table(run / SAMPLES)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{run / SAMPLES} cannot be read: {error}") from None


def _write_table(path: Path, table: Any) -> None:
    import pyarrow.parquet as pq

    write_atomically(path, lambda file: pq.write_table(table, file))
