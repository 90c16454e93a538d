"""A few pictures that a classifier was not trained on, for visitors of the web page who have none at hand."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from lenext import runs
from lenext.classifier import Classifier
from lenext.data import sources
from lenext.data.dataset import writable
from lenext.data.decode import UnreadableImage
from lenext.serving.page_view import encode_png

log = logging.getLogger("lenext")

MOST = 5
SHOWN = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"))  # by every browser


def sample_pictures(classifier: Classifier, run: Path | None, folder: Path) -> list[Path]:
    """Copies, in `folder`, of pictures from all over the run's test or validation split; none where they are not here.

    Their names say nothing about what is on them.
    """
    about = classifier.about
    if run is None or "data_options" not in about or not Path(about["data"]).exists():
        return []
    folder.mkdir()
    copies: list[Path] = []
    try:
        members = runs.read_samples(run)
        if members is None:
            return []
        samples = sources.open_data(about["data"], about["data_options"].get("root"))
        place = {writable(name): i for i, name in enumerate(samples.images)}
        rows = sorted(
            (row["split"] == "val", row["label"], row["image"])
            for row in members.select(["split", "label", "image"]).to_pylist()
            if row["split"] != "train" and row["image"] in place
        )
        rows = [row for row in rows if row[0] == rows[0][0]]  # of the test split, where there is one
        for at in np.linspace(0, len(rows) - 1, min(MOST, len(rows))).round().astype(int):
            try:
                content = samples.read(place[rows[at][2]])
            except UnreadableImage:
                continue
            if isinstance(content, Path) and content.suffix.lower() not in SHOWN:
                continue
            ending = content.suffix.lower() if isinstance(content, Path) else ".png"
            data = content.read_bytes() if isinstance(content, Path) else content
            copies.append(folder / f"{len(copies) + 1}{ending}")
            copies[-1].write_bytes(encode_png(data) if isinstance(data, np.ndarray) else data)
    except (OSError, ValueError) as error:
        log.debug("no sample pictures: %s", error)
    return copies
