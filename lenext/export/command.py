"""`lenext export`: a folder to be used without lenext, put in its place only if a replay on real files agrees."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from lenext import runs, terminal
from lenext.classifier import THRESHOLD, Classifier, load
from lenext.data import dataset, sources
from lenext.data.dataset import DataOptions
from lenext.data.samples import Samples
from lenext.evaluation.evaluate import match_classes, require_unchanged
from lenext.export.formats import FORMATS
from lenext.export.replay import replay
from lenext.inference.calibration import training_pictures
from lenext.version import __version__

log = logging.getLogger("lenext")
# Share of the pictures with the same answer as before, below which an export has failed.
MIN_AGREEMENT = {"float32": 0.99, "int8": 0.95}
PREPROCESS, LABELS, REPLAY = "preprocess.json", "labels.txt", "replay.json"
EXAMPLE, READER = "predict.py", "read_picture.py"
# The example leaves what Python has compiled of its other file.
OURS = {
    PREPROCESS,
    LABELS,
    EXAMPLE,
    READER,
    "__pycache__",
    REPLAY,
    *(name for kind in FORMATS.values() for name in kind.files),
}


def run(
    path: str,
    form: str,
    *,
    int8: bool = False,
    out: str | None = None,
    min_agreement: float | None = None,
    pictures: int | None = None,
    data: str | None = None,
    root: str | None = None,
) -> Path:
    """Export the classifier of `path` in the format `form`, a key of FORMATS; returns the folder.

    int8: weights and activations of 8 bits, scaled by training pictures. out: the folder; export/<format> in a run
    folder if not given. pictures: how many of the validation split are replayed, evenly over it; all if not given,
    none if 0. data: where the pictures are now, or others of the same classes. root: the folder of the pictures
    of a manifest in `data`.

    Raises ValueError for a request that makes no sense and for a network that the format cannot hold; OSError when
    less than the share `min_agreement` of the pictures gets the same answer. Then there is no folder.
    """
    arithmetic = "int8" if int8 else "float32"
    least = MIN_AGREEMENT[arithmetic] if min_agreement is None else min_agreement
    if not 0 <= least <= 1:
        raise ValueError(f"--min-agreement is {least}; it is a share of the pictures, from 0 to 1")
    if pictures is not None and pictures < 0:
        raise ValueError(f"--pictures is {pictures}; it is a number of pictures, 0 for no replay")
    if int8 and form == "torch":
        raise ValueError("torch.export keeps float32; leave --int8 out, or choose --format openvino or onnx")
    if root is not None and data is None:
        raise ValueError(f"--root is for the manifest that --data names: --data MANIFEST --root {root}")
    FORMATS[form].require(int8=int8)
    folder = default_folder(path, f"{form}-int8" if int8 else form) if out is None else Path(out).resolve()
    recover(folder)
    require_ours(folder)
    classifier = load(path)
    about = classifier.about if data is None else elsewhere(classifier.about, data, root)
    samples = None if pictures == 0 else held_out(path, classifier, about, pictures)
    calibration = training_pictures(about, classifier.preprocess) if int8 else None

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        write(classifier, form, temporary, calibration)
        runs.write_json(temporary / PREPROCESS, describe(classifier, form, arithmetic, weights_file(path)))
        if samples is not None:
            figures = replay(classifier, FORMATS[form].load(temporary), samples)
            figures["before"]["bytes"] = weights_size(classifier)
            figures["after"]["bytes"] = FORMATS[form].size(temporary)
            runs.write_json(temporary / REPLAY, figures)
            show(figures, f"{form} {arithmetic}")
            require_agreement(figures, least)
        put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def elsewhere(about: dict[str, Any], data: str, root: str | None) -> dict[str, Any]:
    """What a classifier knows of its data, with other data in its place."""
    return {**about, "data": data, "data_options": {**about.get("data_options", {}), "root": root}}


def held_out(path: str, classifier: Classifier, about: dict[str, Any], most: int | None) -> Samples:
    """Pictures of the validation split, evenly over it.

    ValueError, with the mend, where there are none any more, or where the data is divided otherwise than it was.
    """
    own = about is classifier.about  # and not others of the same classes
    other = "" if own else "other "
    mend = f"give {other}pictures to replay: lenext export {path} --data DATA, or --pictures 0 to do without"
    if "data_options" not in about:
        raise ValueError(f"{path} does not say which data it was trained on; {mend}")
    options = DataOptions(**about["data_options"])
    try:
        if own:
            found = dataset.read(about["data"], options)
            samples = found.samples
        else:
            samples = other_pictures(about["data"], options)
    except ValueError as error:
        raise ValueError(f"{error}; {mend}") from None
    if own:
        require_unchanged(path, found, about["fingerprint"], "val", f"or {mend}")
    samples = match_classes(samples.split("val"), classifier.classes, classifier.task)
    count = len(samples) if most is None else min(most, len(samples))
    return samples.take(np.linspace(0, len(samples) - 1, count).astype(int))


def other_pictures(data: str, options: DataOptions) -> Samples:
    """Data with a validation split: its own, which may be all that it has, or one as a training would divide it."""
    samples = sources.open_data(data, options.root)
    return samples if samples.in_split("val").any() else dataset.read(data, options).samples


# ------------------------------------------------------------------------------------------------------- files


def write(classifier: Classifier, form: str, folder: Path, calibration: Any) -> None:
    """The model, its class names and the example."""
    log.info("exporting %s to %s", classifier.architecture["name"], form)
    try:
        FORMATS[form].write(classifier, folder, calibration)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # converters raise many kinds
        root = error
        while root.__cause__ is not None:
            root = root.__cause__  # type: ignore[assignment]
        reason = str(root).strip().split("\n")[0][:200] or type(root).__name__
        name = classifier.architecture["name"]
        raise ValueError(f"{name} cannot be exported to {form}: {reason}; try another --format") from error
    lines = [" ".join(name.splitlines()) for name in classifier.classes]
    runs.write_text(folder / LABELS, "".join(f"{line}\n" for line in lines))
    examples = Path(__file__).parent / "examples"
    for name, example in ((EXAMPLE, f"predict_{form}.py"), (READER, READER)):
        runs.write_text(folder / name, (examples / example).read_text(encoding="utf-8"))


def describe(classifier: Classifier, form: str, arithmetic: str, file: Path | None) -> dict[str, Any]:
    """Everything about the graph that a program around it has to know, and what became of the preprocessing in it.

    file: the classifier file; None for a network that was never one.
    """
    preprocess = classifier.preprocess
    several = classifier.task == "multi-label"
    return {
        "lenext": __version__,
        "classifier_sha256": None if file is None else sha256(file),
        "network": classifier.architecture["name"],
        "format": form,
        "arithmetic": arithmetic,
        "model": FORMATS[form].files[0],
        "input": {
            "name": "pictures",
            "layout": "NHWC",
            "type": "uint8",
            "channels": "RGB",
            "shape": ["pictures of one size", "height", "width", 3],
        },
        "output": {
            "name": "probabilities",
            "type": "float32",
            "shape": ["pictures", len(classifier.classes)],
            "sums_to_one": not several,
        },
        "graph_input": "any size",
        "resize": preprocess.resize,
        "interpolation": preprocess.interpolation,
        "antialias": True,
        "crop": preprocess.image_size,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "views": classifier.views,
        "temperature": classifier.temperature,
        "task": classifier.task,
        **({"threshold": THRESHOLD} if several else {}),
        "classes": list(classifier.classes),
    }


def weights_file(path: str) -> Path | None:
    """The classifier file that was exported; None for a network of the zoo."""
    file = Path(path) / runs.CLASSIFIER if Path(path).is_dir() else Path(path)
    return file if file.is_file() else None


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_size(classifier: Classifier) -> int:
    """Bytes of the weights, which is all but the size of the classifier file."""
    return sum(tensor.nbytes for tensor in classifier.model.state_dict().values())


# ----------------------------------------------------------------------------------------------------- folders


def default_folder(path: str, name: str) -> Path:
    """In a run folder, beside a classifier file, or here for a network of the zoo."""
    place = Path(path)
    if place.is_dir():
        return place / "export" / name
    if place.is_file():
        return place.with_name(f"{place.stem}-{name}")
    return Path(f"{path.replace('/', '_').replace(':', '_')}-{name}")


def require_ours(folder: Path) -> None:
    """ValueError where something lies that is not an earlier export."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; --out names a folder")
    if folder.resolve() == Path.cwd():  # whoever is in it would be left in a folder that is gone
        raise ValueError(f"{folder} is where you are, and an export takes a folder's place; name another with --out")
    present = {item.name for item in folder.iterdir()} if folder.is_dir() else set()
    if present and not {PREPROCESS, EXAMPLE} <= present <= OURS:
        raise ValueError(f"{folder} holds other files than an export; choose another --out")


def recover(folder: Path) -> None:
    """Clear away what killed exports left beside a folder; the older export comes back where none is in its place."""
    for old in folder.parent.glob(f".{glob.escape(folder.name)}.*.old"):
        if runs.is_abandoned(old):
            if folder.exists():
                shutil.rmtree(old)
            else:
                os.replace(old, folder)
    for temporary in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
        if runs.is_abandoned(temporary):
            shutil.rmtree(temporary)


def put_in_place(temporary: Path, folder: Path) -> None:
    """Rename, so that there is a whole folder, the old or the new; after a kill between the two, `recover` has it."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------ answer


def show(figures: dict[str, Any], name: str) -> None:
    """The replay on standard output."""
    before, after = figures["before"], figures["after"]
    table = Table(title=f"replay of {figures['pictures']} pictures", title_justify="left")
    table.add_column("")
    table.add_column("pytorch float32", justify="right")
    table.add_column(escape(name), justify="right")
    table.add_row("accuracy", *(f"{100 * side['accuracy']:.2f} %" for side in (before, after)))
    table.add_row("size", *(f"{side['bytes'] / 1e6:.1f} MB" for side in (before, after)))
    table.add_row("pictures/s", *(f"{side['pictures_per_second']:.1f}" for side in (before, after)))
    table.add_row("same answer", "", f"{100 * figures['agreement']:.2f} %")
    table.add_row("largest difference of a probability", "", f"{figures['largest_difference']:.1e}")
    terminal.output.print(table)
    if figures["failed"]:
        log.warning("%d pictures could not be read and were left out", figures["failed"])


def require_agreement(figures: dict[str, Any], least: float) -> None:
    """OSError, the work has failed, where too few answers are the same."""
    if figures["agreement"] < least:
        raise OSError(
            f"the export agrees with the classifier on {100 * figures['agreement']:.2f} % of {figures['pictures']} "
            f"pictures, and {100 * least:g} % are asked for: nothing was kept (--min-agreement sets the limit)"
        )
