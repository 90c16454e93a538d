"""What decoding large JPEG files at a fraction of their size costs in accuracy and gives in speed.

    python benchmarks/scaled_decoding.py [--pictures 2624] [--repeats 5]

The 2,624 photographs of solar cells, enlarged to 1200 x 1200 and stored as JPEG of quality 90, are decoded in full and
scaled (`decode(..., shrink_to=...)`), brought to the input size by the same transform, and seen by a frozen
EfficientNet-Lite0 with ImageNet weights. A logistic regression on its features tells defective from functional cells;
accuracy is over all pictures, five-fold cross-validated, on the same folds for every arrangement. Takes six to
ten minutes. Writes benchmarks/results/scaled_decoding.json and scaled_decoding.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from lenext import runs
from lenext.data.decode import decode
from lenext.data.transforms import eval_transform, normalise
from lenext.models import create_model, default_preprocess
from lenext.models.weights import head_names
from lenext.preprocess import Preprocess

RESULTS = Path(__file__).parent / "results"
MODEL = "tf_efficientnet_lite0"
SIDE, QUALITY = 1200, 90
SIZES = (224, 128)
LIMIT = 0.001
ARRANGEMENTS = {"full": ("full", "full"), "scaled": ("scaled", "scaled"), "trained on full": ("full", "scaled")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2624)
    parser.add_argument("--repeats", type=int, default=5, help="ways to draw the folds")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    preprocesses = {size: replace(default_preprocess(MODEL), image_size=size) for size in SIZES}
    paths, labels = photographs()
    keep = np.random.default_rng(0).permutation(len(paths))[: args.pictures]
    paths, labels = [paths[i] for i in keep], labels[keep]
    found = features(paths, preprocesses)
    machine = runs.environment()
    result: dict[str, Any] = {
        "machine": {key: machine[key] for key in ("processor", "cores", "memory_gib", "torch", "pillow", "python")},
        "pictures": len(paths),
        "repeats": args.repeats,
        "speed": {size: speed(paths[:100], preprocess) for size, preprocess in preprocesses.items()},
        "accuracy": {
            size: {
                name: accuracies(found[size, train], found[size, test], labels, args.repeats)
                for name, (train, test) in ARRANGEMENTS.items()
            }
            for size in SIZES
        },
    }
    RESULTS.mkdir(exist_ok=True)
    runs.write_json(RESULTS / "scaled_decoding.json", result)
    text = table(result)
    runs.write_text(RESULTS / "scaled_decoding.md", text)
    print(text)


def photographs() -> tuple[list[Path], np.ndarray]:
    """Paths, and whether each cell is defective."""
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise ValueError("the photographs are missing: pip install elpv-dataset")
    root = Path(package.origin).parent / "data"
    rows = [line.split() for line in (root / "labels.csv").read_text().splitlines()]
    return [root / name for name, _, _ in rows], np.array([float(probability) > 0.5 for _, probability, _ in rows])


def as_large_jpeg(path: Path) -> bytes:
    with Image.open(path) as image:
        large = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    large.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def features(paths: list[Path], preprocesses: dict[int, Preprocess]) -> dict[tuple[int, str], np.ndarray]:
    """(N, 1280) of each input size and way of decoding."""
    model = create_model(MODEL, pretrained=True).eval()
    for name in head_names(model):
        model.set_submodule(name, nn.Identity())
    found: dict[tuple[int, str], list[np.ndarray]] = {(size, way): [] for size in SIZES for way in ("full", "scaled")}
    for chunk in chunks(paths, 16):
        files = [as_large_jpeg(path) for path in chunk]
        full = [decode(file) for file in files]
        for size, preprocess in preprocesses.items():
            scaled = [decode(file, shrink_to=preprocess.resize) for file in files]
            assert scaled[0].shape[0] < SIDE
            for way, images in (("full", full), ("scaled", scaled)):
                x = torch.stack([eval_transform(preprocess)(image) for image in images])
                with torch.inference_mode():
                    found[size, way].append(model(normalise(x, preprocess)).numpy())
    return {key: np.concatenate(parts) for key, parts in found.items()}


def chunks(paths: list[Path], size: int) -> Iterator[list[Path]]:
    for begin in range(0, len(paths), size):
        yield paths[begin : begin + size]


def accuracies(train: np.ndarray, test: np.ndarray, labels: np.ndarray, repeats: int) -> list[float]:
    """Share of all pictures that are told right, each by the fold that did not train on it; one for each repeat."""
    shares = []
    for seed in range(repeats):
        right = np.zeros(len(labels), bool)
        for fit, held in StratifiedKFold(5, shuffle=True, random_state=seed).split(train, labels):
            classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
            right[held] = classifier.fit(train[fit], labels[fit]).predict(test[held]) == labels[held]
        shares.append(float(right.mean()))
    return shares


def speed(paths: list[Path], preprocess: Preprocess) -> dict[str, float]:
    """Pictures a second of processor time: decoding alone, and with the transform; the best of five rounds."""
    files = [as_large_jpeg(path) for path in paths]
    transform = eval_transform(preprocess)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def rate(work: Callable[[bytes], object]) -> float:
        seconds = []
        for _ in range(5):
            begin = time.process_time()
            for file in files:
                work(file)
            seconds.append(time.process_time() - begin)
        return len(files) / min(seconds)

    rates = {
        "decode_full": rate(decode),
        "decode_scaled": rate(lambda file: decode(file, shrink_to=preprocess.resize)),
        "input_full": rate(lambda file: transform(decode(file))),
        "input_scaled": rate(lambda file: transform(decode(file, shrink_to=preprocess.resize))),
    }
    torch.set_num_threads(threads)
    return rates


def table(result: dict[str, Any]) -> str:
    machine = result["machine"]
    lines = [
        "# Scaled decoding",
        "",
        f"{result['pictures']:,} photographs of solar cells, enlarged to {SIDE} x {SIDE} and stored as JPEG of quality "
        f"{QUALITY}; frozen features of {MODEL}, logistic regression, accuracy over all pictures in five-fold "
        f"cross-validation, mean over {result['repeats']} ways to draw the folds, on {machine['cores']} cores of "
        f"{machine['processor']}, {machine['memory_gib']} GiB, torch {machine['torch']}. Differences are in "
        "percentage points against full decoding on the same folds, with the standard error over the ways to draw "
        "them. Made by `python benchmarks/scaled_decoding.py`.",
        "",
        "| input | training, testing | accuracy | difference, points | at most 0.1 below |",
        "| --- | --- | --- | --- | --- |",
    ]
    for size, found in result["accuracy"].items():
        for name, (train, test) in ARRANGEMENTS.items():
            difference = np.subtract(found[name], found["full"])
            error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
            cells = (
                ("", "")
                if name == "full"
                else (
                    f"{100 * difference.mean():+.2f} ± {100 * error:.2f}",
                    "yes" if difference.mean() >= -LIMIT else "no",
                )
            )
            lines.append(f"| {size} | {train}, {test} | {np.mean(found[name]):.2%} | {cells[0]} | {cells[1]} |")
    lines += [
        "",
        "Pictures a second of processor time, on one core:",
        "",
        "| input | decode, full | decode, scaled | with transform, full | with transform, scaled |",
        "| --- | --- | --- | --- | --- |",
    ]
    for size, rates in result["speed"].items():
        lines.append(f"| {size} | {' | '.join(f'{rate:,.0f}' for rate in rates.values())} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
