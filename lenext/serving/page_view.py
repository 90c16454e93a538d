"""What the web page shows, as HTML: answers, tables and the card of a model. Everything is in the text itself, pictures
and downloads too, so that nothing of an answer is kept on the server."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from lenext import runs
from lenext.classifier import THRESHOLD, Classifier, Prediction
from lenext.evaluation.explain import heat_map, overlay
from lenext.serving.page_text import Text

SHOWN_SPLITS = ("test", "val")  # the first of these that was evaluated speaks for the model
MOST_ROWS = 200  # of classes with figures of their own
COARSE = 64  # pixels; smaller inputs are shown with their pixels


@cache
def _parts() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lenext.serving"),
        autoescape=True,  # names of classes and files are other people's text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = share
    environment.globals |= {"threshold": THRESHOLD, "most_rows": MOST_ROWS}
    return environment.get_template("page.html.j2").module


def file(name: str) -> str:
    """The text of a file beside the template."""
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def note(sentence: str) -> str:
    return _parts().note(sentence)


def failure(sentence: str) -> str:
    return _parts().failure(sentence)


def answer(text: Text, prediction: Prediction, heat: dict[str, Any] | None) -> str:
    """The ranked classes of a picture that could be read.

    heat: what `heat_pictures` gives; empty for a network that has none; None while it is being computed.
    """
    return _parts().answer(text, prediction, heat)


def table(text: Text, predictions: Sequence[Prediction], warning: str = "") -> str:
    """One row a picture, and the same to download."""
    return _parts().table(text, predictions, _data_uri(to_csv(predictions), "text/csv;charset=utf-8"), warning)


def card(text: Text, classifier: Classifier, run: Path | None) -> str:
    """What is known of a model. run: its run folder, which knows more than the classifier."""
    return _parts().card(text, facts(classifier, run))


def share(value: float | None) -> str:
    if value is None:
        return "–"
    return "<0.1 %" if 0 < value < 0.0005 else f"{100 * value:.1f} %"


def to_csv(predictions: Sequence[Prediction]) -> bytes:
    """UTF-8 with the mark by which Excel knows it."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    several = any(row.labels is not None for row in predictions)
    writer.writerow(["image", "label", "probability", *(["labels"] if several else []), "error"])
    for row in predictions:
        probability = "" if row.probability is None else f"{row.probability:.6f}"
        labels = [_inert(", ".join(row.labels or []))] if several else []
        writer.writerow([_inert(row.image), _inert(row.label or ""), probability, *labels, row.error or ""])
    return buffer.getvalue().encode("utf-8-sig", "replace")


def _inert(name: str) -> str:
    """A name that a spreadsheet does not take for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def heat_pictures(classifier: Classifier, pixels: Tensor) -> dict[str, Any]:
    """The picture as the network sees it, uint8 (3, S, S), without and with its heat map; {} where there is none."""
    try:
        heat = heat_map(classifier, pixels)
    except ValueError:
        return {}
    picture = pixels.permute(1, 2, 0).numpy()
    return {
        "picture": _png(picture),
        "overlay": _png(overlay(pixels, heat)),
        "coarse": len(heat) < COARSE,
    }


def _png(pixels: np.ndarray) -> str:
    return _data_uri(encode_png(pixels), "image/png")


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3) or (H, W)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def facts(classifier: Classifier, run: Path | None) -> dict[str, Any]:
    """What the card tells, for people who may use the model but not look into the machine it was trained on."""
    evaluation, counts = classifier.about.get("evaluation", {}), {}
    if run is not None:
        if (run / "evaluation.json").is_file():
            evaluation = runs.read_json(run / "evaluation.json")
        table = runs.read_json(run / runs.DATA)["counts"]
        counts = {split: sum(classes.values()) for split, classes in table.items()}
    split = next((name for name in SHOWN_SPLITS if name in evaluation), None)
    data = classifier.about.get("data")
    return {
        "network": classifier.architecture["name"],
        "size": classifier.preprocess.image_size,
        "views": classifier.views,
        "classes": classifier.classes,
        "several": classifier.task == "multi-label",
        "split": split,
        "result": evaluation.get(split),
        "data": data and Path(str(data)).name,
        "counts": counts,
    }
