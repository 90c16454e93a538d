"""Data flows one way, and so do imports: what stands later may know what stands earlier, never the other way round."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lenext

ROOT = Path(lenext.__file__).parent
# Rooms in the order of the data's way. A room may import from rooms before it and from itself.
ORDER = [
    {"version", "config", "preprocess"},
    {"runs", "terminal"},
    {"data"},
    {"models"},
    {"inference"},
    {"classifier"},
    {"evaluation", "predict", "recipes", "check"},
    {"training"},
    {"tune", "study"},
    {"studies"},
    {"export", "hub"},
    {"serving"},
    {"demo"},
    {"cli", "__init__"},
    {"__main__"},
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
# Printing asks for names and tables when a command ends; nothing it imports imports it back at that moment.
DEFERRED = {("terminal", "models")}


def imports(path: Path) -> set[str]:
    """Rooms of lenext that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lenext":
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name.split(".")[1] for a in node.names if a.name.startswith("lenext.")]
        found |= set(names)
    return found & RANK.keys()


FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py" or path.parent != ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_from_a_later_room(path):
    relative = path.relative_to(ROOT)
    room = relative.parts[0].removesuffix(".py")
    assert room in RANK, f"{relative} is in no room of ORDER"
    later = {other for other in imports(path) if RANK[other] > RANK[room]}
    assert {(room, other) for other in later} <= DEFERRED


def test_one_paper_is_one_file_of_a_readable_length():
    for path in (ROOT / "models").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path
