"""Pictures that show little: dark, overexposed, blurry, empty, grey among coloured ones.

All are looked at through small versions made by the one decoder, whatever they are stored in: that is what training
sees. cleanvision judges them, a few at a time, so that memory does not grow with their number. Blank pictures, sizes
and shapes are left to `lenext.data.check`, which knows the true ones.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from lenext import terminal
from lenext.data.check import Finding
from lenext.data.decode import EXTENSIONS, UnreadableImage
from lenext.data.forms.folder import is_hidden
from lenext.data.samples import Files, Samples

LONG_SIDE = 192  # pixels; blur is judged at 64, and light and information hardly depend on the size
CHUNK = 64
# What most pictures of a data set have is its nature and no defect: digits are grey, drawings are white.
MOST = 0.5
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
KINDS = {
    "dark": "are very dark",
    "light": "are very light",
    "blurry": "are blurry",
    "low_information": "show hardly anything",
    "grayscale": "are grey, and the others coloured",
}
MENDS = {"grayscale": "Mind that colour may tell where a picture comes from instead of what it shows."}


def small(samples: Samples, row: int) -> Image.Image:
    """The picture, its long side at most `LONG_SIDE` pixels. Raises UnreadableImage."""
    image = Image.fromarray(samples.decode(row, shrink_to=LONG_SIDE))
    image.thumbnail((LONG_SIDE, LONG_SIDE))
    return image


def look(samples: Samples, rows: np.ndarray) -> list[Finding]:
    """Findings about the pictures at `rows`, all readable; a note where cleanvision is not installed."""
    if importlib.util.find_spec("cleanvision") is None:
        return [_not_installed()]
    from cleanvision.issue_managers import image_property_issue_manager

    chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    scores: dict[str, list[np.ndarray]] = {kind: [np.zeros(0)] for kind in KINDS}
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        terminal.bar("judging pictures", len(rows)) as bar,
        # It shows a bar of its own for every few pictures.
        mock.patch.object(image_property_issue_manager, "tqdm", lambda iterable, **_: iterable),
    ):
        for judged in pool.map(lambda chunk: _judge(samples, chunk), chunks):
            for kind, score in judged.items():
                scores[kind].append(score)
            bar.advance(len(score))
    found = []
    for kind, says in KINDS.items():
        score = np.concatenate(scores[kind])
        flagged = np.flatnonzero(~np.isnan(score))
        if 0 < len(flagged) <= MOST * len(rows):
            order = flagged[np.argsort(score[flagged], kind="stable")]
            text = f"{len(order)} of {len(rows)} pictures {says}."
            found.append(
                Finding(kind, "note", text, MENDS.get(kind, "Take out what nobody could classify."), rows[order])
            )
    return found


def other_files(samples: Samples) -> list[Finding]:
    """Files in class folders whose names say that they are no pictures."""
    if not isinstance(samples.store, Files):
        return []
    kinds: Counter[str] = Counter()
    for folder in {os.path.dirname(name) for name in samples.images}:
        with os.scandir(samples.store.root / folder) as entries:
            for entry in entries:
                kind = Path(entry.name).suffix.lower()
                ours = kind in EXTENSIONS or is_hidden(entry.name) or entry.name.lower() in SYSTEM_FILES
                if not ours and entry.is_file():
                    kinds[kind or "no extension"] += 1
    if not kinds:
        return []
    n, listed = kinds.total(), ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(5))
    return [
        Finding(
            "other_files",
            "note",
            f"{n} file{'s lie' if n > 1 else ' lies'} among the pictures and {'are' if n > 1 else 'is'} left out, not "
            f"being pictures by name: {listed}.",
            "Nothing has to be done if they are none.",
            np.zeros(0, np.int64),
        )
    ]


def _judge(samples: Samples, chunk: np.ndarray) -> dict[str, np.ndarray]:
    """{kind: (M,) score of each picture, NaN where there is nothing to say; the lowest is the worst}."""
    from cleanvision import Imagelab

    images = [_read(samples, int(row)) for row in chunk]
    there = [i for i, image in enumerate(images) if image is not None]
    scores = {kind: np.full(len(chunk), np.nan) for kind in KINDS}
    if there:
        lab = Imagelab(torchvision_dataset=[(images[i],) for i in there], verbose=False)
        lab.find_issues({kind: {} for kind in KINDS}, n_jobs=1, verbose=False)
        for kind in KINDS:
            scores[kind][there] = lab.issues[f"{kind}_score"].where(lab.issues[f"is_{kind}_issue"], np.nan)
    return scores


def _read(samples: Samples, row: int) -> Image.Image | None:
    """The small picture, in Pillow's mode "L" where it has no colour."""
    try:
        image = small(samples, row)
    except UnreadableImage:  # read a moment ago; gone since
        return None
    r, g, b = (np.asarray(band) for band in image.split())
    return image.getchannel(0) if np.array_equal(r, g) and np.array_equal(g, b) else image


def _not_installed() -> Finding:
    return Finding(
        "not_looked_for",
        "note",
        "Dark, light, blurry and grey pictures were not looked for: cleanvision is not installed.",
        "pip install 'lenext[check]'",
        np.zeros(0, np.int64),
    )
