"""The pages say what the code does: links lead somewhere, generated tables are those of the table of networks."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", sorted((ROOT / "docs/en").glob("*.md")), ids=lambda page: page.name)
def test_every_page_exists_in_both_languages_with_the_same_parts(page: Path) -> None:
    other = ROOT / "docs/zh" / page.name
    parts = [re.findall(r"^(#+) |^(```)|^(!)\[", p.read_text(encoding="utf-8"), re.MULTILINE) for p in (page, other)]
    assert parts[0] == parts[1]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_tables_of_the_zoo_are_up_to_date(language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import draw_zoo
    import zoo_facts

    page = ROOT / "docs" / language / "zoo.md"
    copy = tmp_path / language / "zoo.md"
    copy.parent.mkdir()
    copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    zoo_facts.write_tables(copy, {paper: member.name for paper, member in draw_zoo.TREE.items()})
    assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8"), "run python docs/draw_zoo.py"
    for module in ("draw_zoo", "zoo_facts", "drawing"):
        sys.modules.pop(module, None)
