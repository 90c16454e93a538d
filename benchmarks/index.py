"""What it costs to know a data set: memory of ten million samples, and seconds to list a million files.

    python benchmarks/index.py [--samples 10000000] [--files 1000000] [--rounds 5]

Memory is measured in a process of its own, on names such as train/n01440764/n01440764_10026.JPEG in 1,000 classes:
the columns by their own count, and what the process has grown by when they are made. The files are empty, lie in
1,000 class folders on a local disk, and are listed warm, by the whole way from a path to samples (`open_data`), beside
the bare calls of the operating system (`os.scandir`) as the floor. Writes benchmarks/results/index.json and index.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from lenext import runs
from lenext.data.forms.table import Table
from lenext.data.samples import Files, Names
from lenext.data.sources import open_data, to_samples

RESULTS = Path(__file__).parent / "results"
CLASSES = 1_000
MOST_BYTES, LEAST_SPEED = 100, 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    machine = runs.environment()
    result = {
        "machine": {key: machine[key] for key in ("processor", "cores", "memory_gib", "system", "python")},
        "memory": in_own_process(memory, args.samples),
        "listing": in_own_process(listing, args.files, args.rounds),
    }
    (RESULTS / "index.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "index.md").write_text(report(result), encoding="utf-8")
    print(report(result))


def in_own_process(work: Callable[..., dict[str, float]], *args: int) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, args)


def class_names() -> list[str]:
    return [f"n{1440764 + 13_500 * k:08d}" for k in range(CLASSES)]


def memory(count: int) -> dict[str, float]:
    """Bytes a sample: of the columns, of the process, and of the process at its highest."""
    each, folders = count // CLASSES, class_names()
    to_samples(Table(store=Files(Path()), images=Names(["a"]), labels=np.zeros(1, np.int64), names=["a"]))  # imports
    before = resident()
    samples = to_samples(
        Table(
            store=Files(Path()),
            images=Names(f"train/{name}/{name}_{i * 13 % 25_000}.JPEG" for name in folders for i in range(each)),
            labels=np.repeat(np.arange(CLASSES), each),
            names=folders,
            splits=np.zeros(each * CLASSES, np.int8),
        )
    )
    peak = psutil.Process().memory_info()
    gc.collect()
    pa.default_memory_pool().release_unused()
    n = len(samples)
    return {
        "samples": n,
        "columns": samples.nbytes / n,
        "process": (resident() - before) / n,
        "process_peak": (highest() or peak.rss) / n - before / n,
        "name_length": sum(map(len, samples.images[: 10 * each : each])) / 10,
    }


def resident() -> int:
    return psutil.Process().memory_info().rss


def highest() -> int:
    """The most memory that this process has held, in bytes; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def listing(count: int, rounds: int) -> dict[str, float]:
    """Files a second, medians of rounds taken in turns."""
    with tempfile.TemporaryDirectory() as folder:
        each = count // CLASSES
        for k, name in enumerate(class_names()):
            os.mkdir(f"{folder}/{name}")
            for i in range(each):
                os.close(os.open(f"{folder}/{name}/{name}_{(i * 7919 + k) % 20_011}.JPEG", os.O_CREAT))
        seconds: dict[str, list[float]] = {"open_data": [], "scandir": []}
        for _ in range(rounds + 1):
            for name, work in (("open_data", open_data), ("scandir", walk)):
                begin = time.perf_counter()
                found = len(work(folder))
                seconds[name].append(time.perf_counter() - begin)
                assert found == each * CLASSES
    # The first round warms the system's memory of the folders.
    speeds = {name: [found / s for s in values[1:]] for name, values in seconds.items()}
    return {"files": found, **{name: statistics.median(values) for name, values in speeds.items()}} | {
        "open_data_low": min(speeds["open_data"]),
        "open_data_high": max(speeds["open_data"]),
    }


def walk(folder: str) -> list[str]:
    return [file.path for below in os.scandir(folder) for file in os.scandir(below.path)]


def report(result: dict[str, Any]) -> str:
    machine, held, listed = result["machine"], result["memory"], result["listing"]
    return "\n".join(
        [
            "# Memory of samples, and speed of listing",
            "",
            f"On {machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, Python "
            f"{machine['python']}. Made by `python benchmarks/index.py`.",
            "",
            "| what | measured | limit |",
            "| --- | --- | --- |",
            f"| bytes a sample, columns of {held['samples']:,} samples with names of {held['name_length']:.0f} "
            f"characters | {held['columns']:.1f} | at most {MOST_BYTES} |",
            f"| bytes a sample, growth of the process | {held['process']:.1f} | at most {MOST_BYTES} |",
            f"| bytes a sample, growth of the process at its highest | {held['process_peak']:.1f} | |",
            f"| files a second, {listed['files']:,} files in {CLASSES:,} folders, warm "
            f"| {listed['open_data']:,.0f} ({listed['open_data_low']:,.0f} to {listed['open_data_high']:,.0f}) "
            f"| at least {LEAST_SPEED:,} |",
            f"| files a second, bare `os.scandir` | {listed['scandir']:,.0f} | |",
            "",
        ]
    )


if __name__ == "__main__":
    main()
