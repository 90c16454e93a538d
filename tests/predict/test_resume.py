"""A command that is interrupted, by whatever means, goes on where it was and ends with the same file."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lenext.predict import spool
from tests.test_cli import lenext_command

PICTURES = 150
DYING = """
import os, signal, sys
from lenext import cli
from lenext.predict import spool

add = spool.Spool.add
def add_and_die(self, answer, backend):
    add(self, answer, backend)
    if self.answered == 96:
        with open(self.path, "ab") as file:
            file.write(b'{"backend":"pytorch-float32","answers":[{"im')
        os.kill(os.getpid(), signal.SIGKILL)
spool.Spool.add = add_and_die
cli.main(sys.argv[1:])
"""


def spools(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.partial"))


@pytest.fixture
def interrupted(run, many, tmp_path, capsys, monkeypatch):
    """Runs a command until so many pictures are answered and presses Ctrl-C; gives its arguments and its messages."""

    def start(*options, after=96, folder=None):
        folder = folder or many(PICTURES)
        arguments = ["predict", run, folder, "--out", tmp_path / "answers.json", "--format", "json", *options]
        add = spool.Spool.add

        def add_and_interrupt(self, answer, backend):
            add(self, answer, backend)
            if self.answered + len(self.batch) == after:
                os.kill(os.getpid(), signal.SIGINT)

        with monkeypatch.context() as patch:
            patch.setattr(spool.Spool, "add", add_and_interrupt)
            status, out, err = lenext_command(*arguments, capsys=capsys)
        assert (status, out) == (130, "")
        return arguments, err

    return start


def uninterrupted(arguments, tmp_path, capsys) -> bytes:
    out = tmp_path / "whole" / "answers.json"
    arguments = [out if a == tmp_path / "answers.json" else a for a in arguments]
    assert lenext_command(*arguments, capsys=capsys)[0] == 0
    return out.read_bytes()


def test_a_killed_command_goes_on(run, many, tmp_path, capsys):
    arguments = ["predict", run, many(PICTURES), "--out", tmp_path / "answers.json", "--format", "json"]
    killed = subprocess.run([sys.executable, "-c", DYING, *map(str, arguments)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "answers.json").exists()
    (left,) = spools(tmp_path)
    content, expected = left.read_bytes(), uninterrupted(arguments, tmp_path, capsys)
    lines = content.splitlines(keepends=True)
    assert len(lines) == 5
    ends = [sum(map(len, lines[: i + 1])) for i in range(5)]
    for cut, kept in (
        (len(content), 96),  # as it was left, with a line begun
        (ends[3], 96),
        (ends[3] - 1, 64),  # without its line end
        (ends[1] + 200, 32),
        (ends[0], 0),
        (ends[0] - 5, 0),  # in the first line
        (0, 0),
    ):
        left.write_bytes(content[:cut])
        status, _, err = lenext_command(*arguments, capsys=capsys)
        assert status == 0
        assert (f"{kept} of {PICTURES} pictures have their answer from before" in err) == (kept > 0), err
        assert (tmp_path / "answers.json").read_bytes() == expected
        assert spools(tmp_path) == []
    left.write_bytes(content[: ends[2]] + b"\0" * 500 + b"\n")  # after a power cut
    assert lenext_command(*arguments, capsys=capsys)[0] == 0
    assert (tmp_path / "answers.json").read_bytes() == expected


def test_ctrl_c_says_what_is_kept(interrupted, tmp_path, capsys):
    arguments, err = interrupted(after=100)
    assert f"96 of {PICTURES} pictures have their answer; the same command goes on after them" in err
    status, _, err = lenext_command(*arguments, capsys=capsys)
    assert (status, "96 of 150 pictures have their answer from before" in err) == (0, True)
    assert (tmp_path / "answers.json").read_bytes() == uninterrupted(arguments, tmp_path, capsys)


def test_another_form_takes_over_the_same_answers(interrupted, tmp_path, capsys):
    arguments, _ = interrupted()
    arguments = ["jsonl" if a == "json" else a for a in arguments]
    status, _, err = lenext_command(*arguments, capsys=capsys)
    assert (status, "96 of 150 pictures have their answer from before" in err) == (0, True)
    assert (tmp_path / "answers.json").read_bytes() == uninterrupted(arguments, tmp_path, capsys)


def test_another_command_starts_anew_and_destroys_nothing(interrupted, tmp_path, capsys):
    arguments, _ = interrupted()
    (left,) = spools(tmp_path)
    other = [*arguments, "--top-k", "1"]
    status, _, err = lenext_command(*other, capsys=capsys)
    assert status == 0
    assert "this command starts anew" in err
    assert "had another --top-k" in err
    assert str(left) in err
    answers = json.loads((tmp_path / "answers.json").read_text(encoding="utf-8"))
    assert [len(row["top"]) for row in answers] == [1] * PICTURES
    assert spools(tmp_path) == [left]
    status, _, err = lenext_command(*arguments, capsys=capsys)
    assert (status, "96 of 150" in err, spools(tmp_path)) == (0, True, [])


def test_pictures_that_have_come_and_gone_since(interrupted, shapes, tmp_path, capsys):
    arguments, _ = interrupted()
    folder = arguments[2]
    shutil.copy(shapes / "圆/0.png", folder / "50-new.png")
    (folder / "140.png").unlink()
    status, _, err = lenext_command(*arguments, capsys=capsys)
    assert (status, "32 of 150 pictures have their answer from before" in err) == (0, True)
    assert (tmp_path / "answers.json").read_bytes() == uninterrupted(arguments, tmp_path, capsys)


def test_it_goes_on_with_the_backend_that_it_began_with(interrupted, tmp_path, capsys):
    arguments, _ = interrupted()
    (left,) = spools(tmp_path)
    left.write_bytes(left.read_bytes().replace(b"pytorch-float32", b"pytorch-bfloat16"))
    lenext_command(*arguments, capsys=capsys)
    mixed = json.loads((tmp_path / "answers.json").read_bytes())
    plain = json.loads(uninterrupted(arguments, tmp_path, capsys))
    low = json.loads(uninterrupted([*arguments, "--backend", "pytorch-bfloat16"], tmp_path, capsys))
    assert plain[96:] != low[96:]
    assert mixed == plain[:96] + low[96:]


def test_saved_pictures_go_on_too(interrupted, many, tmp_path, capsys):
    arguments, _ = interrupted("--save-pictures", tmp_path / "saved", after=40, folder=many(70))
    saved = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "saved").iterdir()}
    assert len(saved) == 40
    assert lenext_command(*arguments, capsys=capsys)[0] == 0
    names = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert names == sorted(f"{i + 1:06d}-{i}.png" for i in range(70))
    untouched = [name for name, time in saved.items() if (tmp_path / "saved" / name).stat().st_mtime_ns == time]
    assert len(untouched) == 32


def test_the_same_command_twice_at_once(interrupted, tmp_path, capsys):
    arguments, _ = interrupted()
    (left,) = spools(tmp_path)
    before = left.read_bytes()
    with open(left, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        status, _, err = lenext_command(*arguments, capsys=capsys)
    assert (status, "the same command is running already" in err) == (2, True)
    assert left.read_bytes() == before


def test_a_full_disk_loses_nothing(interrupted, tmp_path, capsys):
    """A limit on the size of files stands for it: writing fails in the same place."""
    import resource

    arguments, _ = interrupted(after=64)
    (left,) = spools(tmp_path)
    size = left.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
    try:
        status, _, err = lenext_command(*arguments, capsys=capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert (status, "64 of 150 pictures have their answer" in err) == (1, True), err
    assert lenext_command(*arguments, capsys=capsys)[0] == 0
    assert (tmp_path / "answers.json").read_bytes() == uninterrupted(arguments, tmp_path, capsys)
