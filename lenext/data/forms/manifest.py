"""Manifests: CSV, TSV, JSON (a list of records), JSON Lines or Parquet -> images, labels, splits and weights.

Columns: `image` and `label`, and optionally `split` and `weight`. Errors name the file, the row and the mend.
"""

from __future__ import annotations

import csv
import difflib
import json
from pathlib import Path

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
MANIFESTS = {".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"}


def read_manifest(path: Path) -> tuple[list[tuple[str, str, str]], list[float]]:
    """([(image, label, split)], weights) of a manifest; the split is "" where it names none. Raises ValueError."""
    records = _records(path)
    if not records:
        raise ValueError(f"{path} has no rows")
    columns = list(dict.fromkeys(key for record in records for key in record))
    for wanted in ("image", "label"):
        if wanted not in columns:
            near = difflib.get_close_matches(wanted, columns, n=1, cutoff=0.5)
            hint = f"; is it {near[0]!r}? Rename it to {wanted!r}" if near else ""
            raise ValueError(f"{path} has no column {wanted!r}, only {', '.join(map(repr, columns))}{hint}")
    rows, weights = [], []
    for number, record in enumerate(records, start=1):
        image, label = record.get("image"), record.get("label")
        if image in (None, "") or label in (None, ""):
            empty = "image" if image in (None, "") else "label"
            raise ValueError(f"{path}, row {number}: {empty!r} is empty")
        if isinstance(label, (list, dict)):
            raise ValueError(f"{path}, row {number}: the label {label!r} is not a single class name")
        split = str(record.get("split") or "").strip().lower()
        if split and split not in SPLIT_NAMES:
            raise ValueError(f"{path}, row {number}: split {record['split']!r} is not one of train, val, test")
        rows.append((str(image), _label_text(label), SPLIT_NAMES.get(split, "")))
        weights.append(_weight(record.get("weight"), path, number))
    return rows, weights


def _records(path: Path) -> list[dict]:
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            return _parquet(path)
        if kind in (".csv", ".tsv"):
            with open(path, encoding="utf-8-sig", newline="") as file:
                return list(csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ","))
        text = path.read_text(encoding="utf-8-sig")
        records = json.loads(text) if kind == ".json" else [json.loads(x) for x in text.splitlines() if x.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f'{path} must hold a list of records such as {{"image": "a.jpg", "label": "cat"}}')
    return records


def _parquet(path: Path) -> list[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _label_text(label: object) -> str:
    """A class name: 1 and 1.0 are the class "1", true is the class "true"."""
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label).strip()


def _weight(value: object, path: Path, number: int) -> float:
    if value in (None, ""):
        return 1.0
    try:
        weight = float(str(value))
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise ValueError(f"{path}, row {number}: weight {value!r} is not a number of at least 0")
    return weight
