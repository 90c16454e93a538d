"""The report of a run: one HTML file that needs nothing else, no network and no script."""

from __future__ import annotations

import base64
import shlex
from pathlib import Path
from typing import Any

from lenext import runs
from lenext.evaluation.figures import DPI, percent
from lenext.evaluation.page import write_page
from lenext.evaluation.predictions import read_mistakes

HEADLINE_SPLITS = ("test", "val")  # the first of these that was evaluated speaks for the run
SHOWN_MISTAKES, SHOWN_CONFUSIONS, SHOWN_FILES = 12, 10, 50


def write_report(run: Path) -> Path:
    """Write `run`/report.html from what the run folder holds; what it lacks is left out. Returns the path.

    Only config.yaml and data.json are needed.
    """
    run = runs.require(run)
    filters = {function.__name__: function for function in (share, score, number, duration)}
    return write_page(run / "report.html", "lenext.evaluation", "report.html.j2", read_content(run), filters)


def read_content(run: Path) -> dict[str, Any]:
    """Everything that the template shows, read from the run folder."""
    config, data = runs.read_config(run), runs.read_json(run / runs.DATA)
    evaluation: dict[str, Any] = _json(run / "evaluation.json", {})
    headline = next((split for split in HEADLINE_SPLITS if split in evaluation), next(iter(evaluation), None))
    order = sorted(evaluation, key=lambda split: split != headline)
    mistakes = read_mistakes(run / "predictions.parquet", SHOWN_MISTAKES)
    return {
        "title": f"{config.get('model', run.name)} on {Path(data['data']).name or data['data']}",
        "run": run.name,
        "headline": headline,
        "choices": _json(run / "choices.json", []),
        "several": any(result["task"] == "multi-label" for result in evaluation.values()),
        "data": data,
        "splits": list(data["counts"]),
        "training": training_summary(runs.read_metrics(run)),
        "figures": {path.stem: _picture(path) for path in sorted((run / "figures").glob("*.png"))},
        "results": [
            {
                "split": split,
                **evaluation[split],
                "classes": sorted(
                    ({"name": name, **row} for name, row in evaluation[split]["per_class"].items()),
                    key=lambda row: (row["f1"] is None, row["f1"]),
                ),
                "confusions": confusions(evaluation[split].get("confusion", []), list(evaluation[split]["per_class"])),
                "mistakes": mistakes.get(split, []),
            }
            for split in order
        ],
        "model": _text(run / "model.txt"),
        "config": (run / runs.CONFIG).read_text(encoding="utf-8"),
        "environment": _json(run / "environment.json", {}),
        "quoted_run": shlex.quote(str(run)),
        "python_run": repr(str(run)),
        "shown_files": SHOWN_FILES,
    }


def training_summary(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Epochs, seconds and pictures per second of the whole training; None before the first epoch."""
    if not history:
        return None
    speeds = [row["images_per_second"] for row in history if row.get("images_per_second")]
    return {
        "epochs": history[-1]["epoch"],
        "seconds": sum(row.get("seconds") or 0 for row in history),
        "images_per_second": sum(speeds) / len(speeds) if speeds else None,
    }


def confusions(matrix: list[list[int]], classes: list[str]) -> list[dict[str, Any]]:
    """The most frequent mistakes: {"label", "prediction", "count", "share" of the label's pictures}.

    matrix: (K, K) counts, a row a label; empty where there are several labels.
    """
    rows: list[dict[str, Any]] = [
        {"label": classes[i], "prediction": classes[j], "count": count, "share": count / sum(row)}
        for i, row in enumerate(matrix)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(rows, key=lambda row: (row["count"], row["share"]), reverse=True)[:SHOWN_CONFUSIONS]


def share(value: float | None) -> str:
    return "–" if value is None else percent(value)


def score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def number(value: float) -> str:
    """A whole number, its thousands apart by a narrow space."""
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60), seconds / 3600
    if hours >= 72:
        return f"{number(hours / 24)} days"
    return f"{minutes} min" if minutes < 90 else f"{hours:.1f} h"


def _json(path: Path, default: Any) -> Any:
    return runs.read_json(path) if path.exists() else default


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _picture(path: Path) -> dict[str, Any]:
    """The PNG as a data URI, and its width in CSS pixels, of which an inch has 96."""
    from PIL import Image

    with Image.open(path) as image:
        width = round(image.width * 96 / DPI)
    return {
        "uri": "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii"),
        "width": width,
    }
