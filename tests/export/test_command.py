"""`lenext export`: what lies in its folder, what the replay finds, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lenext import cli
from lenext.classifier import load
from lenext.export import command
from lenext.export.formats import FORMATS
from lenext.export.replay import replay


def export(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(["export", *map(str, arguments)])
    return int(end.value.code or 0)


def held_out(run: Path):
    classifier = load(run)
    return classifier, command.held_out(str(run), classifier, classifier.about, None)


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, run, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("exports") / request.param
    assert export(run, "--format", request.param, "--out", folder) == 0
    return request.param, folder


def test_the_folder_says_what_a_program_has_to_know(exported, run) -> None:
    form, folder = exported
    assert {file.name for file in folder.iterdir()} == {
        "preprocess.json", "labels.txt", "predict.py", "read_picture.py", "replay.json", *FORMATS[form].files,
    }  # fmt: skip
    about = json.loads((folder / "preprocess.json").read_text(encoding="utf-8"))
    classifier = load(run)
    assert about["classes"] == (folder / "labels.txt").read_text(encoding="utf-8").split("\n")[:-1] == ["三角", "圆"]
    assert about["classifier_sha256"] == command.sha256(run / "classifier.safetensors")
    assert (about["resize"], about["crop"]) == (classifier.preprocess.resize, classifier.preprocess.image_size)
    assert about["temperature"] == classifier.temperature
    assert (about["format"], about["arithmetic"], about["graph_input"]) == (form, "float32", "any size")
    assert (folder / about["model"]).is_file()


def test_the_replay_finds_the_same_answers(exported, run) -> None:
    form, folder = exported
    figures = json.loads((folder / "replay.json").read_text())
    _, samples = held_out(run)
    assert figures["pictures"] == len(samples) > 0
    assert figures["failed"] == 0
    assert figures["agreement"] == 1
    assert figures["largest_difference"] < 1e-5
    recorded = json.loads((run / "evaluation.json").read_text())["val"]["accuracy"]
    assert figures["before"]["accuracy"] == figures["after"]["accuracy"] == pytest.approx(recorded)
    assert figures["after"]["bytes"] == sum((folder / name).stat().st_size for name in FORMATS[form].files)


def test_a_full_disk_is_said_and_leaves_nothing(exported, run, tmp_path) -> None:
    form, folder = exported
    disk = tmp_path / "disk"
    disk.mkdir()
    small = f"mount -t tmpfs -o size={FORMATS[form].size(folder) * 9 // 10} tmpfs {disk}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", small], capture_output=True).returncode:
        pytest.xfail("this system lets nobody mount a small disk in a namespace of their own (unshare -rm)")
    command = f"{sys.executable} -m lenext.cli export '{run}' --format {form} --out {disk}/export --pictures 0"
    script = f"{small} && {command}; echo status $? files $(ls -A {disk})"
    result = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    assert result.stdout == "status 1 files\n", result.stderr
    said = result.stderr.splitlines()[-1]
    assert said.startswith("lenext: the disk is full")
    assert said.endswith("Make room, then repeat the command")


def test_a_damaged_artefact_fails_the_replay(run, tmp_path) -> None:
    classifier, samples = held_out(run)
    command.write(classifier, "onnx", tmp_path, None)
    model = onnx.load(tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1:
            noisy = rng.permutation(values.flatten()).reshape(values.shape)
            tensor.CopyFrom(numpy_helper.from_array(noisy, tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    figures = replay(classifier, FORMATS["onnx"].load(tmp_path), samples)
    assert figures["agreement"] < 0.9
    with pytest.raises(OSError, match=r"agrees with the classifier on .* 99 % are asked for"):
        command.require_agreement(figures, 0.99)


def test_a_failed_replay_leaves_the_folder_as_it_was(run, tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "export"
    assert export(run, "--format", "torch", "--out", folder) == 0
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    write = command.write

    def write_another(classifier, *rest) -> None:  # the network of other weights
        for parameter in classifier.model.parameters():
            parameter.data.mul_(-1)
        write(classifier, *rest)
        for parameter in classifier.model.parameters():
            parameter.data.mul_(-1)

    monkeypatch.setattr(command, "write", write_another)
    capsys.readouterr()
    assert export(run, "--format", "torch", "--out", folder) == 1
    assert "nothing was kept" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


# An export that kills itself between the two renames that put it in its place.
KILLED = """
import os, signal, sys
from lenext import cli
replace = os.replace

def die_after(before, after):
    replace(before, after)
    if str(after).endswith(".old"):
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = die_after
cli.main(sys.argv[1:])
"""


def test_after_a_kill_the_next_export_has_the_older_one_back(run, tmp_path) -> None:
    folder = tmp_path / "ex[port]"
    arguments = [run, "--format", "torch", "--out", folder, "--pictures", 0]
    assert export(*arguments) == 0
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    killed = subprocess.run([sys.executable, "-c", KILLED, "export", *map(str, arguments)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = {path.suffix for path in tmp_path.iterdir()}
    assert left == {".old", ".tmp"}
    assert export(*arguments, "--data", tmp_path / "gone", "--pictures", 1) == 2  # one that comes to nothing
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_int8_is_smaller_and_nearly_as_good(form, run, tmp_path, capsys) -> None:
    assert export(run, "--format", form, "--int8", "--out", tmp_path / "export") == 0
    shown = capsys.readouterr()
    assert "Statistics" not in shown.out + shown.err  # the quantiser's own bars
    figures = json.loads((tmp_path / "export/replay.json").read_text())
    assert figures["agreement"] >= 0.95
    assert figures["largest_difference"] > 1e-5
    about = json.loads((tmp_path / "export/preprocess.json").read_text(encoding="utf-8"))
    assert about["arithmetic"] == "int8"
    parameters = sum(parameter.numel() for parameter in load(run).model.parameters())
    model = tmp_path / "export" / ("model.bin" if form == "openvino" else "model.onnx")
    assert model.stat().st_size < 2 * parameters + 100_000 * (form == "onnx")  # of float32 it would be 4


def test_some_pictures_or_none_are_replayed(run, tmp_path) -> None:
    assert export(run, "--format", "torch", "--out", tmp_path / "a", "--pictures", 3) == 0
    assert json.loads((tmp_path / "a/replay.json").read_text())["pictures"] == 3
    assert export(run, "--format", "torch", "--out", tmp_path / "b", "--pictures", 0) == 0
    assert not (tmp_path / "b/replay.json").exists()


def test_data_that_has_moved_can_be_named(run, shapes, tmp_path, capsys) -> None:
    classifier = load(run)
    classifier.about["data"] = str(tmp_path / "gone")
    file = classifier.save(tmp_path / "moved.safetensors")
    assert export(file, "--format", "torch") == 2
    assert "--data DATA" in capsys.readouterr().err
    assert export(file, "--format", "torch", "--data", shapes) == 0
    assert json.loads((tmp_path / "moved-torch/replay.json").read_text())["agreement"] == 1


def test_a_run_on_a_manifest_is_replayed_on_one_elsewhere_and_on_a_folder(run, shapes, tmp_path, capsys) -> None:
    """The folder of the pictures is that of the data, not that of the run."""
    gone, moved = tmp_path / "gone", tmp_path / "moved.csv"
    rows = [f"{file.relative_to(shapes)},{file.parent.name},{'val' if i % 3 else 'train'}\n"
            for i, file in enumerate(sorted(shapes.rglob("*.png")))]  # fmt: skip
    moved.write_text("image,label,split\n" + "".join(rows), encoding="utf-8")
    classifier = load(run)
    classifier.about["data"] = str(gone / "list.csv")
    classifier.about["data_options"]["root"] = str(gone)
    file = classifier.save(tmp_path / "manifest.safetensors")
    for data in (["--data", moved, "--root", shapes], ["--data", shapes]):
        assert export(file, "--format", "torch", *data) == 0, capsys.readouterr().err
        assert json.loads((tmp_path / "manifest-torch/replay.json").read_text())["agreement"] == 1


def test_other_pictures_need_no_training_split_but_for_int8(run, shapes, tmp_path, capsys) -> None:
    shutil.copytree(shapes / "圆", tmp_path / "data/val/圆")  # nor pictures of every class
    arguments = [run, "--out", tmp_path / "export", "--data", tmp_path / "data"]
    assert export(*arguments, "--format", "torch") == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "export/replay.json").read_text())["pictures"] == 30
    assert export(*arguments, "--format", "onnx", "--int8") == 2


def test_pictures_that_the_training_has_seen_are_not_replayed_for_those_it_has_not(
    run, shapes, tmp_path, capsys
) -> None:
    """More pictures divide a folder anew."""
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    classifier = load(run)
    classifier.about["data"] = str(data)
    file = classifier.save(tmp_path / "moved.safetensors")
    assert export(file, "--format", "torch") == 0
    one = next(data.rglob("*.png"))
    for i in range(40):
        shutil.copy(one, one.with_name(f"more-{i}.png"))
    assert export(file, "--format", "torch") == 2
    error = capsys.readouterr().err
    assert "the val pictures of" in error
    assert "--pictures 0" in error
    assert export(file, "--format", "torch", "--data", data) == 0


def test_what_is_not_ours_is_never_replaced(run, tmp_path, capsys) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("mine")
    assert export(run, "--format", "onnx", "--out", folder) == 2
    assert "holds other files than an export" in capsys.readouterr().err
    assert (folder / "chapter.txt").read_text() == "mine"
    shutil.rmtree(folder)
    folder.write_text("mine")
    assert export(run, "--format", "onnx", "--out", folder) == 2
    assert folder.read_text() == "mine"


def test_the_folder_may_be_named_in_any_way_but_nobody_may_be_in_it(run, tmp_path, monkeypatch, capsys) -> None:
    """Whoever is in a folder whose place another takes sees it empty ever after."""
    real, empty = tmp_path / "real", tmp_path / "empty"
    real.mkdir()
    empty.mkdir()
    (tmp_path / "link").symlink_to(real)
    monkeypatch.chdir(empty)
    assert export(run, "--format", "torch", "--pictures", 0, "--out", "../link/.") == 0
    assert (tmp_path / "link").is_symlink()
    assert (real / "predict.py").is_file()
    assert export(run, "--format", "torch", "--pictures", 0, "--out", ".") == 2
    assert f"{empty} is where you are" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--format", "torch", "--int8"], "torch.export keeps float32"),
        (["--format", "onnx", "--min-agreement", 99], "from 0 to 1"),
        (["--format", "onnx", "--pictures", -1], "--pictures is -1"),
        (["--format", "onnx", "--root", "photos"], "--data MANIFEST --root photos"),
        (["--format", "tensorrt"], "one of onnx, openvino, torch"),
        ([], "missing: --format"),
    ],
)
def test_requests_that_make_no_sense(arguments, reason, run, capsys) -> None:
    assert export(run, *arguments) == 2
    assert reason in capsys.readouterr().err
