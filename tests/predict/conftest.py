from __future__ import annotations

import os

import pytest


@pytest.fixture
def many(shapes, tmp_path):
    """Makes a folder with so many pictures, which take no room."""

    def make(number: int, name: str = "many"):
        folder = tmp_path / name
        folder.mkdir()
        originals = sorted(shapes.glob("*/*.png"))
        for i in range(number):
            os.symlink(originals[i % len(originals)], folder / f"{i}.png")
        return folder

    return make
