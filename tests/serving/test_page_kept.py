"""What a browser sent lies in a folder of its own, is counted there, and goes soon."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the web page needs lenext[serve]")

from lenext.serving import page, page_kept
from lenext.serving.limits import Refused
from lenext.serving.page_answers import Answers
from lenext.serving.page_guard import Guard
from lenext.serving.page_kept import Kept, files_of, lies_in
from tests.serving.pages import page_of, upload


def test_what_was_sent_is_gone_soon_and_the_folder_with_the_server(run, monkeypatch):
    monkeypatch.setattr(page, "KEPT_SECONDS", 0.5)
    monkeypatch.setattr(page, "LOOKED_AFTER_SECONDS", 0.1)
    with page_of(run) as address:
        kept = Path(os.environ["GRADIO_TEMP_DIR"])
        assert kept.stat().st_mode & 0o077 == 0  # nobody else of the machine can read it
        sent = Path(upload(address, b"x" * 1000).json()[0])
        assert sent.is_relative_to(kept)
        for _ in range(300):
            if not sent.exists():
                break
            time.sleep(0.1)
        assert not sent.exists()
        assert list(kept.rglob("*.png"))  # the samples stay
    assert not kept.exists()


def test_the_folder_knows_what_it_holds(tmp_path, monkeypatch):
    (tmp_path / "sample.png").write_bytes(b"x" * 1000)
    kept = Kept(tmp_path, most_bytes=100)
    names = ("a.png", "猫.jpg", "../../up.png", "a\0b.webp", ".", "", "a.b/c", "a.<script>", "x" * 5000 + ".gif")

    async def send() -> list[Path]:
        return [await kept.add(name, b"x" * 10) for name in names]

    paths = asyncio.run(send())
    assert (kept.number, kept.size) == (len(names), 10 * len(names))
    assert {path.parent for path in paths} == {tmp_path.resolve()}
    assert len(set(paths)) == len(names)
    assert [path.suffix for path in paths] == [".png", ".jpg", ".png", ".webp", "", "", "", "", ".gif"]
    paths[0].unlink()  # by somebody else
    os.utime(paths[1], (1, 1))
    os.utime(tmp_path / "sample.png", (1, 1))
    asyncio.run(kept.sweep(before=1000))
    assert not paths[1].exists()
    assert (tmp_path / "sample.png").exists()
    assert (kept.number, kept.size) == (len(names) - 2, 10 * (len(names) - 2))
    kept.require_room(100)
    monkeypatch.setattr(page_kept, "MOST_FILES", len(names) - 2)
    with pytest.raises(Refused, match="too many pictures"):
        asyncio.run(kept.add("a.png", b""))
    assert kept.number == len(names) - 2


def test_what_could_not_be_written_is_not_counted(tmp_path):
    kept = Kept(tmp_path / "missing", most_bytes=100)
    with pytest.raises(FileNotFoundError):
        asyncio.run(kept.add("a.png", b"x"))
    assert (kept.number, kept.size) == (0, 0)


def test_a_full_folder_takes_no_more(tmp_path):
    kept = Kept(tmp_path, most_bytes=100)
    for _ in range(50):
        asyncio.run(kept.add("a", b"x" * 100))

    async def never(*_: Any) -> Any:
        raise AssertionError("it was let in")

    guard = Guard(never, kept, Answers([]), {}, 0)
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": [(b"content-length", b"9")]}
    with pytest.raises(Refused) as refused:
        asyncio.run(guard(scope, never, never))
    assert refused.value.status_code == 503


def test_only_what_lies_in_the_folder_is_a_file_that_was_sent(tmp_path):
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "secret").write_text("x")
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "a").write_text("x")
    assert lies_in(str(inside / "a"), inside)
    for path in (inside / "link", inside / ".." / "secret", f"{inside}/%2e%2e/secret", "a" * 10_000, None, 5, "\0"):
        assert not lies_in(path if path in (None, 5) else str(path), inside)
    assert files_of(None, inside) == []
    assert files_of({"path": str(inside / "a"), "orig_name": "b"}, inside) == [("b", inside / "a")]
    again = [{"path": f"{inside}/{path}", "orig_name": path} for path in ("a", "./a", "../in/a")]
    assert files_of(again * 100, inside) == [("../in/a", inside / "a")]
    for sent in ("text", [["x"]], {"path": "/etc/passwd"}, [{"path": str(inside / "a")}, {}]):
        with pytest.raises(PermissionError):
            files_of(sent, inside)
