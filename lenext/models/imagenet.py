"""The names of the 1,000 classes of ImageNet, in the order of the outputs of every network pretrained on it."""

from __future__ import annotations

import csv
from importlib import resources

LANGUAGES = {"en": "english", "zh": "chinese"}


def class_names(language: str = "en") -> tuple[str, ...]:
    """1,000 distinct names in "en" (English) or "zh" (simplified Chinese). ValueError for another language."""
    if language not in LANGUAGES:
        raise ValueError(f"The ImageNet classes are named in {' and '.join(LANGUAGES)}, not in {language!r}.")
    with resources.files("lenext.models").joinpath("imagenet_classes.tsv").open(encoding="utf-8") as file:
        return tuple(row[LANGUAGES[language]] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
