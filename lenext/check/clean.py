"""A cleaned data set: a list of the pictures worth keeping, written beside the data, which stays as it is.

Left out are unreadable files; equal or nearly equal pictures with different labels, all of them, since nobody knows
which is right; all but one of equal pictures; and what is in a held-out split too, so that what is measured stays.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lenext import runs, terminal
from lenext.check import Check
from lenext.data.check import clusters
from lenext.data.forms import shard_writing
from lenext.data.forms.manifest import MANIFESTS
from lenext.data.samples import SPLITS, Files


def left_out(check: Check) -> dict[str, np.ndarray]:
    """{why: rows of the pictures to leave out}, each row under one reason only."""
    findings, named = check.findings, check.named
    out = ~findings.readable
    rows: dict[str, np.ndarray] = {"unreadable": np.flatnonzero(out)}

    def drop(why: str, dropped: list[np.ndarray]) -> None:
        chosen = np.concatenate([*dropped, np.zeros(0, np.int64)])
        rows[why] = np.unique(chosen[~out[chosen]])
        out[rows[why]] = True

    drop("labelled differently elsewhere", findings.conflicts)
    # argmax: the first of those that are held out furthest, test before val before train.
    drop("copy of another", [np.delete(rows, np.argmax(named[rows])) for rows in clusters(findings.same)])
    drop(
        "nearly the same as a held-out picture",
        [rows[named[rows] < named[rows].max()] for rows in clusters(findings.alike)],
    )
    return rows


def write_manifest(check: Check, path: str | Path) -> str:
    """Write the list of pictures to keep, a CSV, TSV, JSON, JSON Lines or Parquet file; the command that trains on it.

    Image names are relative to the folder that the data's pictures lie in. Raises ValueError where the pictures are
    not files, where `path` exists, and for names that no text can hold.
    """
    path, samples = Path(path), check.findings.samples
    if not isinstance(samples.store, Files):
        raise ValueError(
            f"the pictures of {check.data} are no files that a manifest could name; write them as shards with "
            "--write-shards DIR"
        )
    kind = path.suffix.lower()
    if kind not in MANIFESTS:
        raise ValueError(f"{path}: the ending says the kind of manifest, one of {', '.join(sorted(MANIFESTS))}")
    if path.exists():
        raise ValueError(f"{path} exists already; nothing is overwritten, choose another name")
    records = _records(check)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist(records)
        runs.write_atomically(path, lambda file: pq.write_table(table, file))
    else:
        runs.write_text(path, _as_text(records, kind))
    root = os.path.abspath(samples.store.root)
    elsewhere = "" if root == os.path.abspath(path.parent) else f" --root {shlex.quote(root)}"
    return f"lenext train {shlex.quote(str(path))}{elsewhere}"


def write_shards(check: Check, folder: str | Path) -> str:
    """Write the pictures to keep as shards into a new folder; the command that trains on them."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already; nothing is overwritten, choose another name")
    samples = replace(check.findings.samples, splits=check.named).take(kept(check))
    with terminal.bar("writing shards", len(samples)) as bar:
        shard_writing.write(samples, folder, progress=bar.advance)
    return f"lenext train {shlex.quote(str(folder))}"


def kept(check: Check) -> np.ndarray:
    """(M,) the rows of the pictures to keep."""
    return np.delete(np.arange(len(check.named)), np.concatenate(list(left_out(check).values())))


def _records(check: Check) -> list[dict[str, Any]]:
    samples = check.findings.samples
    weighted = bool((samples.weights != 1).any())
    split = bool((check.named >= 0).any())
    records = []
    for row in kept(check):
        image = samples.images[int(row)]
        try:
            image.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"the name of {image!r} is no valid text, which a manifest needs; rename it") from None
        label = samples.classes[samples.labels[row]] if samples.sets is None else _names(check, int(row))
        record: dict[str, Any] = {"image": image, "label": label}
        if split:
            record["split"] = SPLITS[check.named[row]]
        if weighted:
            record["weight"] = float(samples.weights[row])
        if samples.groups is not None:
            record["group"] = str(samples.groups[row]) if samples.groups[row] >= 0 else ""
        records.append(record)
    if not records:
        raise ValueError(f"no picture of {check.data} is worth keeping")
    return records


def _names(check: Check, row: int) -> list[str]:
    samples = check.findings.samples
    assert samples.sets is not None
    return [samples.classes[k] for k in samples.sets[[samples.labels[row]]].indices]


def _as_text(records: list[dict[str, Any]], kind: str) -> str:
    if kind == ".json":
        return json.dumps(records, ensure_ascii=False, indent=1) + "\n"
    if kind in (".jsonl", ".ndjson"):
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    text = io.StringIO()
    table = csv.DictWriter(text, list(records[0]), delimiter="\t" if kind == ".tsv" else ",", lineterminator="\n")
    table.writeheader()
    for record in records:
        label = record["label"]
        table.writerow(record | {"label": json.dumps(label, ensure_ascii=False) if isinstance(label, list) else label})
    return text.getvalue()
