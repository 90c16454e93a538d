"""The shortened form of tests/soak/test_serving.py, for every change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.soak import soak


@pytest.mark.parametrize("kind", ["good", "damaged"])
def test_the_memory_of_a_server_stays_flat(run: Path, kind: str) -> None:
    soak(run, kind, first=250, then=500, padding=200_000)  # 100 MB, where all of them were kept
