"""The same raw files give the same answers in every runtime, also by the example that knows nothing of lenext."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lenext import runs
from lenext.classifier import Classifier
from lenext.data.dataset import writable
from lenext.data.decode import decode
from lenext.export import command
from lenext.export.formats import FORMATS
from tests.data import corpus
from tests.export.classifiers import classifier, large_files

# What only the decoder of lenext knows: damage that does no harm, bombs in metadata.
BEYOND_THE_EXAMPLE = {"junk-between.jpg", "no-end.jpg", "text-bomb.png", "profile-bomb.png"}
SAME = 1e-3


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """Raw files of every format, mode and orientation."""
    folder = tmp_path_factory.mktemp("raw")
    for name, data in (corpus.good() | large_files()).items():
        (folder / name).write_bytes(data)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def one() -> Classifier:
    return classifier("lenet5", 32, views=2)


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, one, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    command.write(one, request.param, folder, None)
    command.runs.write_json(folder / command.PREPROCESS, command.describe(one, request.param, "float32", None))
    return request.param, folder


def probabilities(one: Classifier, files: list[Path]) -> np.ndarray:
    """(N, K) by `predict`."""
    answers = [dict(p.top) for p in one.predict(list(files), len(one.classes), backend="pytorch-float32")]
    return np.array([[answer[name] for name in one.classes] for answer in answers])


def test_raw_files_give_the_same_answers_in_every_runtime(exported, one, files) -> None:
    form, folder = exported
    artefact = FORMATS[form].load(folder)
    expected = probabilities(one, files)
    assert len(set(expected.argmax(1))) > 1
    assert expected.max(1).min() > 0.3
    shown = np.concatenate([artefact(decode(file, shrink_to=one.preprocess.resize)[None]) for file in files])
    np.testing.assert_allclose(shown, expected, atol=SAME)
    assert (shown.argmax(1) == expected.argmax(1)).all()


def test_pictures_of_one_size_are_answered_together(exported, one) -> None:
    form, folder = exported
    artefact = FORMATS[form].load(folder)
    pictures = np.stack([np.asarray(corpus.picture(90, 70).rotate(angle)) for angle in (0, 90, 180)])
    alone = np.concatenate([artefact(x[None]) for x in pictures])
    np.testing.assert_allclose(artefact(pictures), alone, atol=1e-5)


def test_the_example_reproduces_the_answers_without_lenext(exported, one, files, tmp_path) -> None:
    _, folder = exported
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['lenext'] = None\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    refused = subprocess.run([sys.executable, "-c", "import lenext"], env=environment, capture_output=True, text=True)
    assert "ModuleNotFoundError" in refused.stderr
    usual = [file for file in files if file.name not in BEYOND_THE_EXAMPLE]
    assert len(usual) > 80
    program = [sys.executable, str(folder / command.EXAMPLE), *map(str, usual)]
    result = subprocess.run(program, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["image"] for answer in answers] == [str(file) for file in usual]
    expected = probabilities(one, usual)
    assert [*answers[0]] == [*one.predict(usual[0]).to_dict()]
    tops = [{row["label"]: row["probability"] for row in answer["top"]} for answer in answers]
    shown = np.array([[top[name] for name in one.classes] for top in tops])
    np.testing.assert_allclose(shown, expected, atol=SAME)
    assert [answer["label"] for answer in answers] == [one.classes[i] for i in expected.argmax(1)]
    alone = subprocess.run(program[:2], capture_output=True, text=True)
    assert (alone.returncode, alone.stdout, alone.stderr) == (2, "", "usage: python predict.py PICTURE...\n")
    command.require_ours(folder)  # another export may take the place of one that was used


def test_the_example_answers_on_after_a_broken_picture_and_under_any_name(exported, one, tmp_path) -> None:
    """Bytes that are no text stand in the answer as `lenext predict` spells them."""
    _, folder = exported
    for name, data in ((b"a\xff.jpg", corpus.good()["plain.jpg"]), (b"b\xff.jpg", corpus.bad()["cut-plain-50.jpg"])):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(data)
    paths = [os.fsdecode(b"a\xff.jpg"), os.fsdecode(b"b\xff.jpg"), "gone.jpg", os.fsdecode(b"a\xff.jpg")]
    program = [sys.executable, str(folder / command.EXAMPLE), *paths]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    result = subprocess.run(program, env=environment, capture_output=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first, broken, gone, last = (json.loads(line) for line in result.stdout.splitlines())
    assert first == last
    assert first["image"] == writable(paths[0])
    assert first["label"] in one.classes
    assert broken["image"] == writable(paths[1])
    assert "truncated" in broken["error"]
    assert "No such file" in gone["error"]
    assert gone | {"error": None} == one.failed("gone.jpg", "").to_dict() | {"error": None}


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        ("onnx", {"task": "multi-label"}),
        ("openvino", {"num_outputs": 1}),
        ("torch", {"views": 8, "interpolation": "bicubic"}),
    ],
    ids=str,
)
def test_every_kind_of_answer(form, settings, files, tmp_path) -> None:
    one = classifier("lenet5", 32, **settings)
    command.write(one, form, tmp_path, None)
    artefact = FORMATS[form].load(tmp_path)
    few = [file for file in files if file.name in large_files()]
    shown = np.concatenate([artefact(decode(file, shrink_to=one.preprocess.resize)[None]) for file in few])
    np.testing.assert_allclose(shown, probabilities(one, few), atol=SAME)


@pytest.mark.parametrize("form", FORMATS)
def test_the_example_names_every_label_that_is_likely_enough(form, files, tmp_path) -> None:
    one = classifier("lenet5", 32, task="multi-label")
    command.write(one, form, tmp_path, None)
    runs.write_json(tmp_path / command.PREPROCESS, command.describe(one, form, "float32", None))
    few = [*(str(file) for file in files if file.name in large_files()), "gone.jpg"]
    program = [sys.executable, str(tmp_path / command.EXAMPLE), *few]
    result = subprocess.run(program, capture_output=True, text=True, check=True)
    shown = [json.loads(line)["labels"] for line in result.stdout.splitlines()]
    expected = [answer.labels for answer in one.predict(few)]
    assert shown == expected
    assert len({len(labels or ()) for labels in expected}) > 1


def test_a_network_that_a_format_cannot_hold_is_named(tmp_path) -> None:
    class Undecided(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) if float(x.sum()) > 0 else x.amax((2, 3))

    one = classifier("lenet5", 32)
    one.model = Undecided()
    with pytest.raises(ValueError, match="lenet5 cannot be exported to torch: "):
        command.write(one, "torch", tmp_path, None)
