"""Every recipe run to its end on real pictures, at a size that two cores bear: seconds and accuracy.

    python benchmarks/recipes.py [--fashion IDX_FOLDER] [--only RECIPE...] [--again]

Pictures: the solar cells of `lenext demo` (two classes: functional, defective; or four, by the experts' probability),
and Fashion-MNIST, whole or the first so many of each class, tested on its own test split or a part of it. What is
made smaller than the recipe says stands in the command. Recipes for pretrained networks run with the weights that pip
installs; those whose weights are not to be had run from random ones, which shows that they work and nothing more.

Finished runs stay in benchmarks/results/recipes.json and are not made again unless asked; recipes.md is made from it.
Run it on a quiet machine: two hours and more of two cores.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from training import described, machine

from lenext import runs
from lenext.demo import photographs, write_manifest

RESULTS = Path(__file__).parent / "results"
FASHION = "/usr/share/datasets/fashion-mnist"
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
CELLS, FOUR, WHOLE, PART, FIVE = (
    "solar cells, 2 classes",
    "solar cells, 4 classes",
    "Fashion-MNIST",
    "Fashion-MNIST, 10 x 600",
    "Fashion-MNIST, 5 x 400",
)
SMALL = "--image-size 24 --start-size 20 --crop-scale 0.9 --batch-size 512 --lr 0.02 --epochs 5 --val-fraction 0.05"
PACKAGED = "--model tf_efficientnet_lite0 --pretrained true"


@dataclass(frozen=True)
class Run:
    """One recipe on one set of pictures; options: what the command says besides."""

    recipe: str
    pictures: str
    options: str = ""


RUNS = (
    Run("auto", CELLS, "--model tf_efficientnet_lite0 --time-budget 165"),
    Run("probe", CELLS, PACKAGED),
    Run("finetune", CELLS, f"{PACKAGED} --epochs 8"),
    Run("fit", CELLS, f"{PACKAGED} --epochs 4"),
    Run("scratch-small", WHOLE, SMALL),
    Run("scratch-vit", PART, "--epochs 10"),
    Run("imagenet", PART, "--image-size 32 --epochs 6 --batch-size 256 --repeats 1"),
    Run("convnext-tiny-binary", CELLS, "--image-size 96 --epochs 3"),
    Run("convnext-base-binary", CELLS, "--image-size 64 --epochs 1"),
    Run("resnext50-birds", FOUR, "--image-size 96 --epochs 4"),
    Run("alexnet-flowers", FIVE, "--epochs 8"),
    Run("vit-finetune", FIVE, "--pretrained false --epochs 1 --lr 5e-4"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", default=FASHION, help="folder with the four IDX files of Fashion-MNIST")
    parser.add_argument("--only", nargs="+", default=[run.recipe for run in RUNS], help="recipes to run")
    parser.add_argument("--again", action="store_true", help="run finished recipes again")
    args = parser.parse_args()
    file = RESULTS / "recipes.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else {}
    for run in RUNS:
        if run.recipe in args.only and (args.again or run.recipe not in rows):
            rows[run.recipe] = {**measure(run, args.fashion), "machine": machine()}
            runs.write_json(file, {"rows": rows})
            print(json.dumps(rows[run.recipe]))
    runs.write_text(RESULTS / "recipes.md", table([rows[r.recipe] for r in RUNS if r.recipe in rows]))


def measure(run: Run, fashion: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        data, shown = pictures(run.pictures, Path(folder), fashion)
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "lenext.cli", "train", *data, "--recipe", run.recipe, *run.options.split()]
        begin = time.time()
        subprocess.run([*command, "--out", str(out)], check=True, env=os.environ | {"TQDM_DISABLE": "1"})
        seconds = time.time() - begin
        evaluation = json.loads((out / "evaluation.json").read_text())
        split = "test" if "test" in evaluation else "val"
        result = evaluation[split]
        return {
            "recipe": run.recipe,
            "pictures": run.pictures,
            "command": " ".join(f"lenext train {shown} --recipe {run.recipe} {run.options}".split()),
            "epochs": len(runs.read_metrics(out)),
            "seconds": round(seconds),
            "split": split,
            "n": result["n"],
            "accuracy": result["accuracy"],
            "interval": result["accuracy_interval"],
        }


def pictures(name: str, folder: Path, fashion: str) -> tuple[list[str], str]:
    """(DATA and its options, DATA as the table shows it)."""
    if name == WHOLE:
        return [fashion], "fashion-mnist/"
    if name == CELLS:
        return [str(write_manifest(0, folder)), "--root", str(photographs())], "cells.csv"
    if name == FOUR:
        rows = [line.split() for line in (photographs() / "labels.csv").read_text().splitlines()]
        with open(folder / "cells.csv", "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["image", "label"])
            writer.writerows([name, f"defective {float(share):.2f}"] for name, share, _ in rows)
        return [str(folder / "cells.csv"), "--root", str(photographs())], "cells.csv"
    classes, most = (CLASSES, 600) if name == PART else (CLASSES[:5], 400)
    for split, kind, limit in (("train", "train", most), ("test", "t10k", most // 4)):
        write_part(Path(fashion), kind, folder / "pictures" / split, classes, limit)
    return [str(folder / "pictures")], "fashion/"


def write_part(source: Path, kind: str, folder: Path, classes: tuple[str, ...], most: int) -> None:
    """The first `most` pictures of each of the classes as PNG files, a folder a class."""

    def read(name: str, header: int) -> np.ndarray:
        [path] = source.glob(f"{kind}-{name}*")
        data = path.read_bytes()
        return np.frombuffer(gzip.decompress(data) if path.suffix == ".gz" else data, np.uint8)[header:]

    images, labels = read("images", 16).reshape(-1, 28, 28), read("labels", 8)
    seen: Counter[int] = Counter()
    for number, (image, label) in enumerate(zip(images, labels)):
        if label < len(classes) and seen[label] < most:
            seen[label] += 1
            (folder / classes[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / classes[label] / f"{number:05}.png")


def table(rows: list[dict]) -> str:
    machines = list(dict.fromkeys(json.dumps(row["machine"]) for row in rows))
    names = {text: chr(ord("A") + number) for number, text in enumerate(machines)}
    lines = [
        "# Recipes, each run to its end",
        "",
        "Made by `benchmarks/recipes.py`.",
        *(f"Machine {names[text]}: {described(json.loads(text))}." for text in machines),
        "",
        "Seconds are those of the whole command, evaluation and report included; one run each, accuracy of the best",
        "epoch by validation with a 95 % interval. Without `test` in the third column the accuracy is that of the",
        "validation pictures, which chose the epoch.",
        "",
        "| command | pictures | measured on | epochs | machine | seconds | accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        low, high = row["interval"]
        lines.append(
            f"| `{row['command']}` | {row['pictures']} | {row['n']} {row['split']} | {row['epochs']} | "
            f"{names[json.dumps(row['machine'])]} | {row['seconds']} | "
            f"{row['accuracy']:.2%} ({low:.1%} to {high:.1%}) |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
