"""Progress where nobody watches a terminal."""

from __future__ import annotations

from lenext import terminal


def test_a_log_file_gets_plain_lines_from_time_to_time(monkeypatch, capsys):
    seconds = iter([0, 100, 110, 115, 190])  # the first step comes after long preparations
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(seconds))
    with terminal.bar("epoch 1/2", 12, done=2) as bar:
        bar.advance(note="loss 0.5 [not markup]")
        bar.to(4)
        bar.to(5)
        bar.to(11)
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1/2: 3 of 12  loss 0.5 [not markup]",
        "epoch 1/2: 11 of 12, 11 s left",
    ]


def test_short_work_says_nothing(capsys):
    with terminal.bar("predicting", 3) as bar:
        for _ in range(3):
            bar.advance()
    assert capsys.readouterr().err == ""
