"""Progress where nobody watches a terminal."""

from __future__ import annotations

from lenext import terminal


def test_a_log_file_gets_plain_lines_from_time_to_time(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "LINE_EVERY", 0.0)
    with terminal.bar("epoch 1/2", 4, done=2) as bar:
        bar.advance(note="loss 0.5 [not markup]")
        bar.to(4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("epoch 1/2: 3 of 4, ")
    assert lines[0].endswith(" s left  loss 0.5 [not markup]")
    assert lines[1].startswith("epoch 1/2: 4 of 4, 0 s left")
    assert len(lines) == 2


def test_short_work_says_nothing(capsys):
    with terminal.bar("predicting", 3) as bar:
        for _ in range(3):
            bar.advance()
    assert capsys.readouterr().err == ""
