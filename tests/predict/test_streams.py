"""Answers leave as they come, and memory does not grow with their number."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pty
import subprocess
import sys
import threading
import tracemalloc

import psutil
import pyarrow.parquet as pq
import pytest

from lenext.classifier import Classifier, Prediction
from lenext.data import inputs
from lenext.models.pooled import build_network
from lenext.predict import answers, command, spool
from lenext.preprocess import Preprocess


@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_answers_are_written_as_they_come(form, capsys):
    def two():
        for name in ("first", "second"):
            yield Prediction(name, "a", 0.75, [("a", 0.75)]).to_dict()
            assert name in capsys.readouterr().out

    answers.show(two(), form, answers.Layout(ranks=1, several=False))


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl", "json"])
def test_writing_holds_few_answers(form, tmp_path, monkeypatch):
    """5,000 of these as Python objects are 7 MB."""
    monkeypatch.setattr(answers, "GROUP", 100)
    top = [("a", 0.5), ("b", 0.25), ("c", 0.125)]
    rows = (Prediction(f"folder/{i}.png", "a", 0.5, top).to_dict() for i in range(5_000))
    answers.write(iter([next(rows)]), form, answers.Layout(3, False), tmp_path / "warm")
    tracemalloc.start()
    answers.write(rows, form, answers.Layout(3, False), tmp_path / "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "a").stat().st_size > 20_000
    assert peak < 1_500_000


def test_memory_is_flat_over_20_000_pictures(many, tmp_path, monkeypatch):
    """Their answers, ten classes each, as Python objects are 60 MB."""
    architecture = {"name": "lenet5", "num_outputs": 10, "image_size": 32, "arguments": {}}
    network = build_network(architecture).eval()
    classifier = Classifier(network, architecture, tuple("abcdefghij"), Preprocess(image_size=32))
    classifier.save(tmp_path / "a.safetensors")
    folder, used, finish = str(many(20_000)), [], spool.Spool.finish
    monkeypatch.setattr(inputs, "PIECE", 500)

    def finish_and_measure(self, backend):
        finish(self, backend)
        used.append(psutil.Process().memory_info().rss)

    monkeypatch.setattr(spool.Spool, "finish", finish_and_measure)
    gc.collect()
    gc.freeze()  # a large heap would let unused cycles of objects grow with it
    try:
        path, out = str(tmp_path / "a.safetensors"), str(tmp_path / "a.parquet")
        answered = command.run(path, [folder], top_k=10, form="parquet", out=out, backend="pytorch-float32")
    finally:
        gc.unfreeze()
    assert answered == pq.read_metadata(out).num_rows == 20_000
    assert len(used) == 626
    assert max(used[-60:]) - max(used[:60]) < 15_000_000


def test_a_progress_bar_does_not_swallow_the_answers(run, shapes):
    """Answers go to a pipe while the bar is on a terminal."""
    terminal, end = pty.openpty()
    arguments = [sys.executable, "-m", "lenext.cli", "predict", str(run), str(shapes), "--format", "jsonl"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=end, env=os.environ | {"TERM": "xterm"})
    os.close(end)
    shown = bytearray()

    def watch() -> None:
        with contextlib.suppress(OSError):  # a terminal ends with an error
            while True:
                shown.extend(os.read(terminal, 4096))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out = process.communicate()[0]
    watcher.join()
    os.close(terminal)
    assert process.returncode == 0
    assert len([json.loads(line) for line in out.splitlines()]) == 60
    assert b"predicting" in shown
