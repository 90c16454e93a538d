"""Which pictures a command is about, and in which order."""

from __future__ import annotations

import os
import shutil
import tracemalloc

import pytest
from natsort import natsorted, ns

from lenext.data import inputs
from lenext.data.inputs import count, expand


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_folders_patterns_urls_and_missing_files_in_the_order_asked(tmp_path):
    touch(tmp_path, "b/img10.jpg", "b/img2.JPG", "b/notes.txt", "b/deep/er/x.png", "b/a9.webp", "a.png", ".hidden.png")
    os.symlink(tmp_path / "b", tmp_path / "b/circle")
    os.symlink(tmp_path / "a.png", tmp_path / "b/link.png")
    os.symlink(tmp_path / "gone.png", tmp_path / "b/broken-link.png")
    asked = [
        str(tmp_path / "none.png"),
        str(tmp_path / "b"),
        "https://a.example/*.png",
        str(tmp_path / "*.png"),
        "file:///x",
    ]
    b = ["a9.webp", "deep/er/x.png", "img2.JPG", "img10.jpg", "link.png"]
    expected = [asked[0], *(str(tmp_path / "b" / name) for name in b), asked[2], str(tmp_path / "a.png"), asked[4]]
    assert list(expand(asked)) == expected
    assert count(asked) == len(expected)
    assert list(expand([str(tmp_path)]))[:2] == [str(tmp_path / ".hidden.png"), str(tmp_path / "a.png")]
    assert list(expand([str(tmp_path)], without=str(tmp_path / "b"))) == [
        str(tmp_path / ".hidden.png"),
        str(tmp_path / "a.png"),
    ]


@pytest.mark.parametrize(("item", "reason"), [("", "holds no pictures"), ("*.gif", "no file fits the pattern")])
def test_nothing_to_do_is_an_error(item, reason, tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(ValueError, match=reason):
        count([str(tmp_path / item)])


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    touch(tmp_path, "a[1].png", "a1.png")
    assert list(expand([str(tmp_path / "a[1].png")])) == [str(tmp_path / "a[1].png")]


def test_large_folders_are_sorted_in_pieces(tmp_path, monkeypatch):
    names = [f"img{i}.png" for i in range(40)] + ["line\nend.png", "Bild ü.png", "图.png", os.fsdecode(b"\xff.png")]
    touch(tmp_path, *names)
    whole = list(expand([str(tmp_path)]))
    assert whole == natsorted((str(tmp_path / name) for name in names), alg=ns.IC)
    for piece in (7, len(names), 1):
        monkeypatch.setattr(inputs, "PIECE", piece)
        assert list(expand([str(tmp_path)])) == whole
        assert list(expand([str(tmp_path / "*.png")])) == whole


def test_a_folder_that_cannot_be_searched_is_told(tmp_path):
    touch(tmp_path, "1/a.png", "2/a.png", "3/a.png")
    troubles: list[OSError] = []
    pictures = expand([str(tmp_path)], troubled=troubles.append)
    assert next(pictures) == str(tmp_path / "1/a.png")
    shutil.rmtree(tmp_path / "2")  # while the search is on
    assert list(pictures) == [str(tmp_path / "3/a.png")]
    assert [error.filename for error in troubles] == [str(tmp_path / "2")]


def test_memory_does_not_grow_with_the_number_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "PIECE", 500)
    touch(tmp_path, "0.png")
    for i in range(1, 20_000):
        os.link(tmp_path / "0.png", tmp_path / f"{i}-{'x' * 100}.png")

    tracemalloc.start()
    number = sum(1 for _ in expand([str(tmp_path)]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 20_000
    assert peak < 1_500_000  # buffers of 40 pieces; the names alone are 3 MB
