"""What was answered for every picture: the rows of predictions.parquet, and the surest mistakes among them.

Columns: split, image, label, prediction, probability (of the likeliest class) and probabilities (of all, in the order
of the classes). Of a multi-label classifier label and prediction are lists of names in the order of the classes, and
two more columns name its surest mistake: `mistake`, the class that it was wrong about, and `confidence`, the
probability that it gave to its wrong yes or no; both null where every decision is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lenext.classifier import THRESHOLD
from lenext.data.dataset import writable
from lenext.data.samples import Samples


def prediction_rows(split: str, samples: Samples, truth: np.ndarray, probabilities: np.ndarray) -> list[dict[str, Any]]:
    """One row a picture. truth: (N,) class indices, or (N, K) bool. probabilities: (N, K)."""
    classes, winners = np.array(samples.classes, dtype=object), probabilities.argmax(1)
    rows: list[dict[str, Any]] = [
        {
            "split": split,
            "image": writable(image),
            "label": classes[label] if truth.ndim == 1 else classes[label].tolist(),
            "prediction": classes[winner] if truth.ndim == 1 else classes[row >= THRESHOLD].tolist(),
            "probability": float(row[winner]),
            "probabilities": row.tolist(),
        }
        for image, label, winner, row in zip(samples.images, truth, winners, probabilities)
    ]
    if truth.ndim == 2:
        decided = probabilities >= THRESHOLD
        confidence = np.where(decided == truth, 0, np.where(decided, probabilities, 1 - probabilities))
        for row, surest, values in zip(rows, confidence.argmax(1), confidence):
            wrong = values[surest] > 0
            row["mistake"] = classes[surest] if wrong else None
            row["confidence"] = float(values[surest]) if wrong else None
    return rows


def surest_mistakes(rows: Sequence[dict[str, Any]], most: int) -> list[int]:
    """Places of the rows with a wrong answer, those first whose wrong answer has the highest probability."""
    sure = {
        place: row.get("confidence", row["probability"])
        for place, row in enumerate(rows)
        if row["label"] != row["prediction"]
    }
    return sorted(sure, key=lambda place: -sure[place])[:most]


def mistake_title(row: dict[str, Any]) -> str:
    """The label and, on a second line, what was said instead, for a picture."""
    if "mistake" not in row:
        return f"{row['label']}\nsaid {row['prediction']}, {100 * row['probability']:.0f} %"
    said = "said" if row["mistake"] in row["prediction"] else "not"
    return f"{', '.join(row['label']) or '(none)'}\n{said} {row['mistake']}, {100 * row['confidence']:.0f} %"


def read_mistakes(path: Path, most: int) -> dict[str, list[dict[str, Any]]]:
    """The `surest_mistakes` of each split in predictions.parquet; none where the file is absent."""
    import pyarrow.parquet as pq

    if not path.exists() or pq.read_metadata(path).num_rows == 0:
        return {}
    columns = [name for name in pq.read_schema(path).names if name != "probabilities"]  # K numbers a picture
    splits: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(path, columns=columns).to_pylist():
        splits.setdefault(row["split"], []).append(row)
    return {split: [rows[i] for i in surest_mistakes(rows, most)] for split, rows in splits.items()}
