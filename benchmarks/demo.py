"""The demo over five different splits: accuracy and seconds of the quick and of the final classifier.

    python benchmarks/demo.py [--seeds 5] [--again]

Each seed is `lenext demo` in a process of its own; finished seeds are kept and not run again unless asked. Writes
benchmarks/results/demo.json and demo.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lenext import runs
from lenext.demo import PUBLISHED

RESULTS = Path(__file__).parent / "results"
TARGETS = {"quick": (0.87, 30), "final": (0.895, 180)}
NAMES = {"quick": "quick classifier", "final": "final"}


def measure(seed: int) -> dict:
    """One `lenext demo`, timed from outside as well."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        begin = time.time()
        subprocess.run([sys.executable, "-m", "lenext.cli", "demo", "--seed", str(seed), "--out", str(out)], check=True)
        wall = time.time() - begin
        answer = json.loads((out / "demo.json").read_text())
    return {
        "seed": seed,
        "quick": {
            "accuracy": answer["results"]["quick classifier"]["accuracy"],
            "seconds": answer["seconds"]["quick"],
        },
        "final": {"accuracy": answer["results"]["final"]["accuracy"], "seconds": wall},
    }


def table(rows: list[dict], machine: dict) -> str:
    lines = [
        "# The demo over several splits",
        "",
        "Accuracy on the untouched 25 % of 2,624 solar cells, seconds from the start of the command (imports",
        f"included), on {machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, torch",
        f"{machine['torch']}, OpenVINO {machine['openvino']}. Made by `python benchmarks/demo.py`.",
        "",
        "| split | quick, accuracy | quick, seconds | final, accuracy | whole command, seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        q, f = row["quick"], row["final"]
        lines.append(
            f"| {row['seed']} | {q['accuracy']:.2%} | {q['seconds']:.1f} | {f['accuracy']:.2%} | {f['seconds']:.1f} |"
        )
    cells = []
    for step in ("quick", "final"):
        for key, form in (("accuracy", "{:.2%} ± {:.2%}"), ("seconds", "{:.1f} ± {:.1f}")):
            values = [row[step][key] for row in rows]
            cells.append(form.format(np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0))
    lines.append(f"| mean ± standard deviation | {' | '.join(cells)} |")
    lines += ["", "| target | measured mean | met |", "| --- | --- | --- |"]
    for step, (accuracy, seconds) in TARGETS.items():
        got = {key: np.mean([row[step][key] for row in rows]) for key in ("accuracy", "seconds")}
        for key, target, met in (
            ("accuracy", f"at least {accuracy:.1%}", got["accuracy"] >= accuracy),
            ("seconds", f"at most {seconds} s", got["seconds"] <= seconds),
        ):
            value = f"{got[key]:.2%}" if key == "accuracy" else f"{got[key]:.1f} s"
            lines.append(f"| {NAMES[step]}: {target} | {value} | {'yes' if met else 'no'} |")
    published = ", ".join(f"{name} {accuracy:.2%}" for name, accuracy in PUBLISHED)
    return "\n".join([*lines, "", f"Published on a split of their own: {published}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="run finished seeds again")
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "demo.json"
    kept = json.loads(file.read_text())["rows"] if file.exists() and not args.again else []
    rows = {row["seed"]: row for row in kept}
    machine = runs.environment()
    machine = {key: machine[key] for key in ("processor", "cores", "memory_gib", "torch", "openvino", "python")}
    for seed in range(args.seeds):
        if seed not in rows:
            rows[seed] = measure(seed)
            runs.write_json(file, {"machine": machine, "rows": list(rows.values())})
    text = table([rows[seed] for seed in sorted(rows)], machine)
    runs.write_text(RESULTS / "demo.md", text)
    print(text)


if __name__ == "__main__":
    main()
