"""The engine: the answers of Classifier.predict, in batches that grow with the load, none lost and none waiting for
another's fault."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import httpx
import pytest
import torch
from torch import nn

from lenext import runs
from lenext.classifier import Classifier, pixels_of
from lenext.data.decode import UnreadableImage
from lenext.data.reading import THREADS
from lenext.data.transforms import eval_transform
from lenext.inference.backends import PLAIN
from lenext.inference.choose import CANDIDATES, SAME, Choice, _key
from lenext.serving.engine import SAMPLE, Busy, Engine
from lenext.serving.measure import Measurement
from tests.data import corpus
from tests.serving.servers import app_of, engine_of, served

PICTURE = corpus.good()["plain.jpg"]


class Held(nn.Module):
    """The network, which notes the sizes of its batches and waits for permission before each."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.sizes = model, list[int]()
        self.permission, self.called = threading.Semaphore(0), threading.Semaphore(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        self.called.release()
        assert self.permission.acquire(timeout=20)
        return self.model(x)


@pytest.fixture
def network(classifier: Classifier) -> Held:
    return Held(classifier.model)


@pytest.fixture
def held(classifier: Classifier, network: Held) -> Classifier:
    return replace(classifier, model=network)


def wait_for_decoding(engine: Engine, number: int) -> None:
    for _ in range(2000):
        if engine._decoded.qsize() == number:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{engine._decoded.qsize()} of {number} pictures are decoded")


def test_answers_are_those_of_predict(classifier: Classifier, engine: Engine) -> None:
    files = corpus.corpus()
    expected = classifier.predict(list(files.values()), backend=PLAIN, top_k=2)

    async def ask_all():
        return await asyncio.gather(*(engine.answer(data, 2, image=name) for name, data in files.items()))

    for name, one, other in zip(files, asyncio.run(ask_all()), expected):
        assert (one.image, one.label, one.error) == (name, other.label, other.error)
        assert dict(one.top) == pytest.approx(dict(other.top), abs=1e-3)


def test_a_picture_alone_does_not_wait_and_those_that_follow_go_together(held: Classifier, network: Held) -> None:
    with engine_of(held) as engine:
        first = engine.submit([PICTURE])
        assert network.called.acquire(timeout=20)
        others = engine.submit([PICTURE] * 7)
        wait_for_decoding(engine, 7)
        for _ in range(8):
            network.permission.release()
        rows = [future.result(20) for future in first + others]
        assert network.sizes == [1, 4, 2, 1]
        assert all(row == pytest.approx(rows[0], abs=1e-5) for row in rows)


def test_what_the_queue_does_not_hold_is_turned_away_as_a_whole(held: Classifier, network: Held) -> None:
    with engine_of(held, most_waiting=3) as engine:
        futures = engine.submit([PICTURE] * 2)
        with pytest.raises(Busy) as busy:
            engine.submit([PICTURE] * 2)
        assert busy.value.seconds >= 1
        assert engine.waiting == 2
        assert engine.is_accepting
        futures += engine.submit([PICTURE])
        assert not engine.is_accepting
        for _ in range(3):
            network.permission.release()
        assert len([future.result(20) for future in futures]) == 3
        assert engine.is_accepting


def test_who_has_gone_is_not_worked_for(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    permission, read = threading.Event(), list[bytes]()

    def slowly(data: bytes, *_: object) -> None:
        read.append(data)
        assert permission.wait(20)
        raise UnreadableImage("late")

    monkeypatch.setattr("lenext.serving.engine.pixels_of", slowly)
    files = [("file", (f"{number}", PICTURE)) for number in range(40)]
    with engine_of(classifier) as engine, served(app_of(engine)) as port:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"http://127.0.0.1:{port}/v1/predict", files=files, timeout=1)
        for _ in range(1000):
            if engine.waiting == len(read):
                break
            threading.Event().wait(0.01)
        permission.set()
        assert engine.waiting == len(read) == THREADS


def test_closing_answers_what_was_accepted(held: Classifier, network: Held) -> None:
    engine = Engine(held, "shapes", backend=PLAIN)
    futures = engine.submit([PICTURE, b"no picture", PICTURE])
    closing = threading.Thread(target=engine.close)
    closing.start()
    for _ in range(2):
        network.permission.release()
    closing.join(20)
    assert not closing.is_alive()
    assert [future.exception() is None for future in futures] == [True, False, True]
    with pytest.raises(Busy, match="stopping"):
        engine.submit([PICTURE])


def test_a_picture_that_breaks_the_network_breaks_alone(classifier: Classifier) -> None:
    class Fragile(Held):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if (x.std((1, 2, 3)) < 1e-3).any():  # a picture of one colour
                raise RuntimeError("the network broke")
            return super().forward(x)

    network = Fragile(classifier.model)
    network.permission = threading.Semaphore(100)
    grey = corpus.encoded(corpus.picture().point(lambda _: 128), "PNG")
    with engine_of(replace(classifier, model=network)) as engine:
        futures = engine.submit([PICTURE, grey, PICTURE, PICTURE])
        outcomes = [future.exception(20) for future in futures]
    assert [str(outcome) for outcome in outcomes] == ["None", "the network broke", "None", "None"]


def remembered_as(classifier: Classifier, name: str) -> None:
    blank = torch.zeros(SAMPLE, 3, 32, 32, dtype=torch.uint8)
    choice = asdict(Choice(name, plain=0.002, chosen=0.001, making=1.0))
    runs.remember("backends", _key(classifier.model, classifier.preprocess, blank, SAME, CANDIDATES), choice)


def test_the_backend_that_was_found_before_is_changed_to(classifier: Classifier) -> None:
    pytest.importorskip("openvino")
    remembered_as(classifier, "openvino-float32")
    with engine_of(classifier, backend="auto") as engine:
        assert engine.backend == PLAIN
        plain = engine.submit([PICTURE])[0].result(20)
        engine.choose()
        engine._chooser.join(300)
        assert engine.backend == "openvino-float32"
        assert engine.submit([PICTURE])[0].result(20) == pytest.approx(plain, abs=1e-3)
    remembered_as(classifier, "")


def test_the_first_pictures_are_what_is_measured_with(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    samples = []

    class Found(Measurement):
        def __init__(self, classifier: Classifier, sample: torch.Tensor, tolerance: float) -> None:
            samples.append(sample)

        def result(self) -> str:
            return "openvino-float32"

        def stop(self) -> None:
            pass

    remembered_as(classifier, "")
    monkeypatch.setattr("lenext.serving.engine.Measurement", Found)
    with engine_of(classifier, backend="auto") as engine:
        engine.choose()
        for future in engine.submit([PICTURE, b"no picture"] * SAMPLE):
            future.exception(20)
        engine._chooser.join(300)
        assert engine.backend == "openvino-float32"
    expected = eval_transform(classifier.preprocess)(pixels_of(PICTURE, classifier.preprocess))
    assert torch.equal(samples[0], torch.stack([expected] * SAMPLE))


def test_closing_ends_a_measurement(classifier: Classifier, caplog: pytest.LogCaptureFixture) -> None:
    remembered_as(classifier, "")
    with engine_of(classifier, backend="auto") as engine:
        engine.choose()
        for future in engine.submit([PICTURE] * SAMPLE):
            future.result(20)
        while engine._measurement is None:
            threading.Event().wait(0.01)
    assert engine._measurement._process.returncode == -signal.SIGKILL
    engine._chooser.join(300)
    assert not engine.is_choosing
    assert not caplog.records


def test_closing_ends_a_measurement_that_is_only_being_made(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Measurement] = []
    saving, permission = threading.Event(), threading.Event()

    class Slow(Measurement):
        def __init__(self, classifier: Classifier, sample: torch.Tensor, tolerance: float) -> None:
            saving.set()
            assert permission.wait(20)
            super().__init__(classifier, sample, tolerance)
            made.append(self)

    remembered_as(classifier, "")
    monkeypatch.setattr("lenext.serving.engine.Measurement", Slow)
    with engine_of(classifier, backend="auto") as engine:
        engine.choose()
        for future in engine.submit([PICTURE] * SAMPLE):
            future.result(20)
        assert saving.wait(60)
        closing = threading.Thread(target=engine.close)
        closing.start()
        while not engine._closed:
            threading.Event().wait(0.01)
        permission.set()
        closing.join(60)
        assert not closing.is_alive()
        # All of this holds as soon as the engine is closed: the program may end then.
        assert [measurement._process.returncode for measurement in made] == [-signal.SIGKILL]
        assert not Path(made[0]._folder.name).exists()
    engine._chooser.join(60)


def test_an_engine_that_is_closed_begins_no_measurement(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr("lenext.serving.engine.Measurement", lambda *_: made.append(1))
    remembered_as(classifier, "")
    with engine_of(classifier, backend="auto") as engine:
        engine.choose()
    for _ in range(SAMPLE):
        engine._sample.put(torch.zeros(3, 32, 32, dtype=torch.uint8))
    engine._chooser.join(60)
    assert not engine.is_choosing
    assert not made


def test_a_measurement_is_in_the_servers_group(classifier: Classifier) -> None:
    measurement = Measurement(classifier, torch.zeros(SAMPLE, 3, 32, 32, dtype=torch.uint8), SAME)
    try:
        assert os.getpgid(measurement._process.pid) == os.getpgrp()
    finally:
        measurement.stop()
    with pytest.raises(OSError, match="stopped"):
        measurement.result()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_measuring_process_ends_with_the_server_however_that_ends() -> None:
    child = (
        "import os, signal, sys, time; from lenext.serving.measure import end_with; end_with(int(sys.argv[1])); "
        "os.kill(os.getpid(), signal.SIGINT); print('ready', flush=True); time.sleep(60); print('left behind')"
    )
    server = "import os, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], str(os.getpid())])"
    with subprocess.Popen([sys.executable, "-c", server, child], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"  # it has outlived a Ctrl-C
        process.kill()
        # The pipe ends when nobody is left who could write into it. What the system then says of the process is no
        # proof: its files are closed a moment before it counts as ended.
        assert process.stdout.read() == ""
