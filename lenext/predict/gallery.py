"""Pictures with what they were taken for as their titles, one file each."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from lenext.classifier import UNKNOWN, Prediction
from lenext.data.urls import is_url
from lenext.evaluation.figures import DPI, INK, percent
from lenext.evaluation.fonts import figure_fonts, printable, shorten

SIDE = 640  # pixels of the longer side
HEADING = 44


class Gallery:
    """A folder for the pictures of one command."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.waiting: dict[str, list[np.ndarray]] = {}
        self.lock = threading.Lock()  # pictures come from the threads that decode

    def require_empty(self) -> None:
        """Raises ValueError where the folder holds anything: nothing of the user's is written over."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; --save-pictures names a folder")
        if self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} is not empty; choose another folder for --save-pictures")

    def keep(self, image: str, pixels: np.ndarray) -> None:
        """Hold a picture, uint8 (H, W, 3), until its answer comes."""
        small = Image.fromarray(pixels)
        small.thumbnail((SIDE, SIDE))
        with self.lock:
            self.waiting.setdefault(image, []).append(np.array(small))

    def save(self, number: int, prediction: Prediction) -> None:
        """Draw the picture, asked as the number-th; one that could not be read is left out."""
        if prediction.error is not None:
            return
        with self.lock:
            pictures = self.waiting[prediction.image]
            pixels = pictures.pop()
            if not pictures:
                del self.waiting[prediction.image]
        draw(pixels, title(prediction), self.folder / file_name(number, prediction.image))


def title(prediction: Prediction) -> str:
    """The class and its probability; of a multi-label classifier every class that the picture has."""
    known = dict(prediction.top)
    if prediction.labels is not None:
        parts = [f"{label} {percent(known[label])}" if label in known else label for label in prediction.labels]
        return ", ".join(parts) or "(none)"
    likeliest, probability = prediction.top[0]
    if prediction.label == UNKNOWN != likeliest:
        return f"{UNKNOWN} ({likeliest} {percent(probability)})"
    return f"{likeliest} {percent(probability)}"


def file_name(number: int, image: str) -> str:
    """The number keeps names apart; of the picture's own only what is harmless in every file system."""
    stem = Path(unquote(urlsplit(image).path) if is_url(image) else image).stem
    harmless = re.sub(r"[^\w.-]+", "_", stem)[:60].strip("._")
    return f"{number:06d}-{harmless or 'picture'}.png"


def draw(pixels: np.ndarray, title: str, path: Path) -> None:
    """pixels: uint8 (H, W, 3). Small pictures are enlarged."""
    H, W, _ = pixels.shape
    height, width = (max(1, round(SIDE * side / max(H, W))) for side in (H, W))
    line = shorten(printable(title), SIDE // 12)
    with figure_fonts([line]):
        figure = Figure(figsize=(SIDE / DPI, (height + HEADING) / DPI))
        axes = figure.add_axes(((SIDE - width) / 2 / SIDE, 0, width / SIDE, height / (height + HEADING)))
        axes.set_axis_off()
        axes.imshow(pixels, aspect="auto", interpolation="nearest" if max(H, W) < 64 else "antialiased")
        middle = 1 - HEADING / 2 / (height + HEADING)
        figure.text(0.5, middle, line, ha="center", va="center", fontsize=9, color=INK)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI)
