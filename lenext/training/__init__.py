"""Training: `lenext.train`, the loop behind it and its parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lenext.classifier import Classifier


def train(data: str | Path, *, out: str | Path | None = None, **settings: Any) -> Classifier:
    """Train a classifier on a folder of pictures or a manifest and return it; the run folder keeps everything.

    data: `root/<class>/**`, `root/{train,val,test}/<class>/**` or a CSV, TSV, JSON, JSON Lines or Parquet manifest.
    out: the run folder, runs/<date>-<model> when not given.
    settings: any field of `lenext.config.TrainConfig`, such as model="convnext_tiny", epochs=20.

    Raises ValueError for data or settings that cannot work, before anything is written.
    """
    from lenext.classifier import load
    from lenext.training import begin

    return load(begin.train(begin.configure({"data": str(data), **settings}), out))
