"""A data set ready to train on: its samples, what one look at every picture told, and what it was made of.

Membership is recorded picture by picture (name, label, split, content), so that a data set that has changed since is
named file by file and never measured unawares.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lenext import terminal
from lenext.data import sources
from lenext.data.samples import SPLITS, Samples
from lenext.data.scan import Scan, scan
from lenext.data.sources import SplitOptions


@dataclass(frozen=True, kw_only=True)
class DataOptions(SplitOptions):
    """All that decides which pictures a data set has and where each belongs.

    root: folder of a manifest's pictures. check: whether equal and nearly equal pictures are kept on one side, for
    which every picture is looked at.
    """

    root: str | None = None
    check: bool = True

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Dataset:
    """source: as it was given. samples: each with its split. scanned: row i tells of sample i. near: (N,) int64, equal
    numbers for equal and nearly equal pictures, -1 for one that is alone. Both None where nothing was looked at."""

    source: str
    samples: Samples
    scanned: Scan | None = None
    near: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Dataset:
        """The pictures at `rows`, in that order, and what is known of them."""
        samples, near = self.samples.take(rows), self.near
        if near is not None:
            near = near[rows]
            alone = np.bincount(near + 1)[near + 1] < 2  # the pictures like it are not among the rows
            near = np.where(alone, -1, near)
        return Dataset(self.source, samples, None if self.scanned is None else self.scanned.take(rows), near)

    def membership(self) -> pa.Table:
        """One row a picture: image, label, split, content (hex of its digest, "" where it was not looked at)."""
        samples = self.samples
        digests = [""] * len(samples) if self.scanned is None else [d.tobytes().hex() for d in self.scanned.digests]
        return pa.table(
            {
                "image": [writable(name) for name in samples.images],
                "label": [samples.label_text(i) for i in range(len(samples))],
                "split": [SPLITS[split] for split in samples.splits],
                "content": digests,
            }
        )


def read(data: str | Path, options: DataOptions) -> Dataset:
    """The data set to train on, every picture with its split. Raises ValueError where nothing can be learned."""
    samples, scanned, near = sources.open_data(data, options.root), None, None
    if options.check:
        with terminal.bar("looking at pictures", len(samples)) as bar:
            scanned = scan(samples, bar.to)
        near = scanned.near_duplicates()
    found = Dataset(str(data), sources.divide(samples, data, options, near), scanned, near)
    return found.take(sources.used(found.samples, options)) if options.train_fraction < 1 else found


def fingerprint(membership: pa.Table) -> dict[str, str]:
    """{split: hash of its rows}: equal exactly when the same pictures with the same labels are in it."""
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    for row in membership.to_pylist():
        lines[row["split"]].append(f"{row['image']}\t{row['label']}\t{row['content']}")
    return {
        split: hashlib.blake2b("\n".join(sorted(rows)).encode(), digest_size=16).hexdigest()
        for split, rows in lines.items()
        if rows
    }


def differences(recorded: pa.Table, current: pa.Table, split: str | None = None, most: int = 5) -> str:
    """What has become of a data set, or of one split, since it was recorded, file by file, for a sentence."""
    before, now = (_rows(table, split) for table in (recorded, current))
    found = [f"{name} is gone" for name in before if name not in now]
    found += [f"{name} is new" for name in now if name not in before]
    for name in before.keys() & now.keys():
        (label, side, content), (new_label, new_side, new_content) = before[name], now[name]
        if label != new_label:
            found.append(f"{name} was {label!r} and is {new_label!r}")
        elif side != new_side:
            found.append(f"{name} was in {side} and is in {new_side}")
        elif content != new_content:
            found.append(f"{name} {'has other content' if new_content.strip('0') else 'cannot be read'}")
    more = f", and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(sorted(found)[:most]) + more


def _rows(table: pa.Table, split: str | None) -> dict[str, tuple[str, str, str]]:
    rows = (row for row in table.to_pylist() if split in (None, row["split"]))
    return {row["image"]: (row["label"], row["split"], row["content"]) for row in rows}


def writable(name: str) -> str:
    """A file name may hold bytes that are no text, which no file of text can: they are spelled out."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
