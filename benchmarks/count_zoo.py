"""Counts parameters and multiply-adds of every network and writes them into `lenext/models/zoo.csv`.

    python benchmarks/count_zoo.py

A new row of the table may hold zeros until then. A minute; nothing is computed, only shapes.
"""

from __future__ import annotations

import csv
from pathlib import Path

import lenext
from lenext.models import catalogue

TABLE = Path(lenext.__file__).parent / "models" / "zoo.csv"


def main() -> None:
    with TABLE.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        name = row["name"]
        parameters, multiply_adds = catalogue.count(name)
        row.update(parameters=str(parameters), multiply_adds=str(multiply_adds))
        print(f"{name:34}{parameters:14,}{multiply_adds:18,}", flush=True)
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
