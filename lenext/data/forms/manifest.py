"""Manifests: CSV, TSV, JSON (a list of records), JSON Lines or Parquet.

Columns: `image` and `label`, and optionally `split`, `weight` and `group`. A label may be a list of class names: then
every picture of the manifest may have several, or none. Errors name the file, the row and the mend.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import json
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lenext.data.forms.table import Table, split_code
from lenext.data.samples import Files, Names

MANIFESTS = {".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"}
_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # the others stand for bytes that are not UTF-8
COLUMNS = ("image", "label", "split", "weight", "group")


def read(path: Path, root: Path | None = None) -> Table:
    """The pictures of a manifest. `root`: the folder they lie in; the manifest's own if not given."""
    root = Path(os.path.abspath(path.parent if root is None else root))
    classes: dict[str, int] = {}
    groups: dict[str, int] = {}
    labels, offsets, group_codes = (
        array("q"),
        array("q", [0]),
        array("q"),
    )  # 10 million rows fit, lists are 4 times that
    splits, weights = array("b"), array("f")
    several = False
    columns: set[str] = set()

    def images() -> Iterator[str]:
        nonlocal several
        for number, record in enumerate(_records(path), start=1):
            if not record.keys() <= columns or number == 1:
                columns.update(record)
                if number == 1:
                    _require_columns(path, record)
            where = f"{path}, row {number}"
            image = record.get("image")
            if image is None or image == "":
                raise ValueError(f"{where}: 'image' is empty")
            names = _label_names(record.get("label"), where)
            several |= isinstance(names, list)
            for name in names if isinstance(names, list) else [names]:
                labels.append(classes.setdefault(name, len(classes)))
            offsets.append(len(labels))
            splits.append(_split(record.get("split"), where))
            weights.append(_weight(record.get("weight"), where))
            if (group := record.get("group")) not in (None, ""):
                group_codes.append(groups.setdefault(_text(group), len(groups)))
            else:
                group_codes.append(-1)
            yield _inside(str(image), root, where)

    names = Names(images())
    if not len(names):
        raise ValueError(f"{path} has no rows")
    unweighted = "weight" not in columns
    return Table(
        store=Files(root),
        images=names,
        labels=np.array(labels, np.int64),
        names=list(classes),
        splits=np.array(splits, np.int8) if "split" in columns else None,
        offsets=np.array(offsets, np.int64) if several else None,
        weights=None if unweighted else np.array(weights, np.float32),
        groups=np.array(group_codes, np.int64) if groups else None,
    )


def _records(path: Path) -> Iterator[dict[str, Any]]:
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            yield from _parquet(path)
        elif kind in (".csv", ".tsv"):
            with open(path, encoding="utf-8-sig", newline="") as file:
                yield from csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",")
        elif kind == ".json":
            records = json.loads(path.read_text(encoding="utf-8-sig"))
            if not isinstance(records, list):
                raise ValueError(_not_records(path))
            for record in records:
                yield _record(record, path)
        else:
            with open(path, encoding="utf-8-sig") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield _record(_json_line(line, path, number), path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None
    except csv.Error as error:
        raise ValueError(f"{path} is not a table: {error}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        wanted = [name for name in COLUMNS if name in file.schema_arrow.names] or None
        for batch in file.iter_batches(columns=wanted):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _json_line(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not valid JSON ({error.msg})") from None


def _record(record: Any, path: Path) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(_not_records(path))
    return record


def _not_records(path: Path) -> str:
    return f'{path} must hold a list of records such as {{"image": "a.jpg", "label": "cat"}}'


def _require_columns(path: Path, record: dict[str, Any]) -> None:
    columns = [str(name) for name in record]
    for wanted in ("image", "label"):
        if wanted not in columns:
            near = difflib.get_close_matches(wanted, columns, n=1, cutoff=0.5)
            hint = f"; is it {near[0]!r}? Rename it to {wanted!r}" if near else ""
            raise ValueError(f"{path} has no column {wanted!r}, only {', '.join(map(repr, columns))}{hint}")


def _label_names(label: Any, where: str) -> str | list[str]:
    """The class name, or the list of class names, of a record."""
    if isinstance(label, str) and label.lstrip().startswith("["):  # a list in a table of text
        with contextlib.suppress(json.JSONDecodeError):  # a class may be called "[x]"
            label = json.loads(label)
    if isinstance(label, (list, tuple)):
        if any(isinstance(name, (list, dict)) or name is None or _text(name) == "" for name in label):
            raise ValueError(f"{where}: the label {label!r} is not a list of class names")
        return list(dict.fromkeys(_text(name) for name in label))
    if isinstance(label, dict):
        raise ValueError(f"{where}: the label {label!r} is neither a class name nor a list of them")
    if label is None or _text(label) == "":
        raise ValueError(f"{where}: 'label' is empty")
    return _text(label)


def _text(value: object) -> str:
    """A name: 1 and 1.0 are "1", true is "true"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _split(value: object, where: str) -> int:
    try:
        return split_code("" if value is None else str(value))
    except KeyError:
        raise ValueError(f"{where}: split {value!r} is not one of train, val, test") from None


def _weight(value: object, where: str) -> float:
    if value in (None, ""):
        return 1.0
    try:
        weight = float(str(value))
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise ValueError(f"{where}: weight {value!r} is not a number of at least 0")
    return weight


def _inside(image: str, root: Path, where: str) -> str:
    """The name as it is, if it stays inside the root: a manifest from elsewhere must not reach any file it likes."""
    if "\0" in image or _SURROGATE.search(image):
        raise ValueError(f"{where}: {image!r} holds a character that no file name has")
    whole = os.path.normpath(os.path.join(root, image))
    if not whole.startswith(f"{str(root).rstrip(os.sep)}{os.sep}"):
        raise ValueError(
            f"{where}: {image} lies outside {root}; name the folder that holds all the pictures with --root"
        )
    return image
