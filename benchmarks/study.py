"""What a study costs besides its trainings: planning ten thousand cells, and side by side the memory of eight.

    python benchmarks/study.py [--rounds 5] [--memory]

Planning: four factors of ten levels each, from the definition to the list of runs that are still to do. Memory: the
eight cells of the study `small`, all at once, until each is in its second epoch; the sum of what their processes hold
(proportional set sizes, so that what they share counts once), and the packed caches on the disk. What the runner adds
to the time of the trainings every `lenext study run` says at its end.

Results go to benchmarks/results/study.json and study.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from lenext import runs
from lenext.study import design, ready
from lenext.study.design import Factor, Study

RESULTS = Path(__file__).parent / "results"
FACTORS = ("lr", "weight_decay", "label_smoothing", "ema")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="train the eight cells of `small` side by side as well")
    args = parser.parse_args()
    file = RESULTS / "study.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    environment = runs.environment()
    found["machine"] = {key: environment[key] for key in ("processor", "cores", "memory_gib", "torch", "python")}
    found["planning_seconds"] = [round(plan(), 3) for _ in range(args.rounds)]
    if args.memory:
        found["memory"] = memory()
    runs.write_json(file, found)
    runs.write_text(RESULTS / "study.md", table(found))
    print(table(found))


def plan() -> float:
    """Seconds to plan ten thousand cells."""
    begin = time.perf_counter()
    factors = tuple(Factor(name, {f"{name} {i}": {name: 0.001 * (i + 1)} for i in range(10)}) for name in FACTORS)
    study = Study(question="Which?", factors=factors, base={"model": "lenet5", "epochs": 2})
    with tempfile.TemporaryDirectory() as folder:
        waiting = ready.to_do(design.plan(study, Path(folder), 1))
    assert len(waiting) == 10_000
    return time.perf_counter() - begin


def memory() -> dict:
    """The most that eight cells side by side hold at once, GiB, and what they keep on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        command = ["study", "run", "small", "--seeds", "1", "--devices", "8", "--out", f"{folder}/out"]
        study = subprocess.Popen(
            [sys.executable, "-m", "lenext.cli", *command],
            env=os.environ | {"XDG_CACHE_HOME": str(cache)}, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        most, together, cells = 0.0, 0, list((Path(folder) / "out/runs").glob("*"))
        while len(cells) < 8 or not all(len(runs.read_metrics(cell / "seed-0")) for cell in cells):
            assert study.poll() is None, "the study has ended"
            cells = list((Path(folder) / "out/runs").glob("*"))
            children = psutil.Process(study.pid).children(recursive=True)
            held = [pss for child in [psutil.Process(study.pid), *children] if (pss := proportional(child))]
            most, together = max(most, sum(held) / 2**30), max(together, len(held) - 1)
            time.sleep(0.5)
        study.terminate()
        study.wait()
        packs = [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 1_000_000]
        return {
            "processes": together,
            "gib": round(most, 2),
            "packs": {path.name: round(path.stat().st_size / 1e6, 1) for path in packs},
        }


def proportional(process: psutil.Process) -> int:
    """Bytes that a process holds, of shared ones its part; 0 if it has ended."""
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


def table(found: dict) -> str:
    seconds = found["planning_seconds"]
    lines = [
        "# What a study costs besides its trainings",
        "",
        "Made by `benchmarks/study.py` on " + ", ".join(f"{k} {v}" for k, v in found["machine"].items()) + ".",
        "",
        f"Planning 10,000 cells: {statistics.median(seconds):.2f} s, the median of {len(seconds)} rounds "
        f"({min(seconds):.2f} to {max(seconds):.2f}).",
    ]
    if memory := found.get("memory"):
        packs = ", ".join(f"{size} MB" for size in memory["packs"].values())
        lines += [
            "",
            f"The eight cells of `small` side by side: {memory['processes']} processes, {memory['gib']} GiB at most; "
            f"packed pictures on the disk, which cells of one size share: {packs}.",
        ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
