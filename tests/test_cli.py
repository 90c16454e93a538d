"""The command line as a user sees it: answers, messages and exit statuses."""

from __future__ import annotations

import csv
import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import sklearn.datasets
from PIL import Image
from safetensors.torch import load_file, save_file

import lenext
from lenext import cli
from tests.pictures import make_folder


def lenext_command(*arguments, capsys) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of the command, run in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_help_answers_fast_and_imports_nothing_heavy():
    code = "import sys; from lenext import cli; cli.build_parser(); print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "numpy", "PIL", "rich", "sklearn"):
        assert f"'{heavy}'" not in modules
    result = subprocess.run([sys.executable, "-m", "lenext.cli", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    for command in ("demo", "train", "evaluate", "predict", "models"):
        assert f"    {command} " in result.stdout


@pytest.mark.parametrize("command", [*cli.COMMANDS, "study run"])
def test_every_command_has_help_in_the_words_of_people(command, capsys):
    status, out, _ = lenext_command(*command.split(), "--help", capsys=capsys)
    out = " ".join(out.split())
    assert status == 0
    assert out.startswith(f"usage: lenext {command} ")
    for internal in ("type: ", "Literal", "default: null", "None", "[options]", "default: True", "[{true"):
        assert internal not in out


def test_help_shows_choices_and_one_default(capsys):
    out = " ".join(lenext_command("predict", "--help", capsys=capsys)[1].split())
    assert "[--allow-urls] " in out
    assert "--language {en,zh} Of the ImageNet class names (default: en) --views" in out
    out = " ".join(lenext_command("evaluate", "--help", capsys=capsys)[1].split())
    assert "--format {table,json} Form of the answer (default: table)" in out
    out = " ".join(lenext_command("train", "--help", capsys=capsys)[1].split())
    assert "(default: true) --model" in out
    assert "dropout. (default: 0)" in out


def test_the_program_as_a_module():
    result = subprocess.run([sys.executable, "-m", "lenext", "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"lenext {lenext.__version__}\n")


# ------------------------------------------------------------------------------------------------ wrong requests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a command is missing"),
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["train"], "DATA is missing"),
        (["train", "x", "--epoch", "3"], "unknown option --epoch; did you mean '--epochs'?"),
        (["train", "x", "--epochs", "many"], "--epochs: 'many' is not a whole number"),
        (["train", "x", "--epochs", "0"], "epochs is 0; it must be greater than 0"),
        (["train", "x", "--epochs", "-1"], "epochs is -1"),
        (["train", "x", "--lr", "nan"], "is not a number"),
        (["train", "x", "--train-fraction", "0"], "train_fraction is 0.0; it must be greater than 0"),
        (["train", "x", "--train-fraction", "1.5"], "train_fraction is 1.5; it is a share between 0 and 1"),
        (["train", "x", "--optimizer", "adamm"], "--optimizer: 'adamm' is not one of adamw, adam, sgd"),
        (["train", "x", "--recipe", "alexnet-flower"], "unknown recipe 'alexnet-flower'; did you mean 'alexnet-flower"),
        (["train", "no/such/folder"], "no/such/folder does not exist"),
        (["train", "--resume", "no/such/run"], "no/such/run does not exist; a run folder was expected"),
        (["train", "x", "--resume", "run"], "--resume goes on with the settings of the run; take away data"),
        (["train", "x", "--config", "none.yaml"], "none.yaml cannot be read"),
        (["predict", "run"], "missing: PATHS"),
        (["export", "run"], "missing: --format\n        lenext export --help lists its options"),
        (["push", "run"], "missing: hf:USER/NAME\n"),
        (["serve"], "missing: RUN\n"),
        (["study", "run"], "missing: NAME\n        lenext study run --help"),
        (["predict", "no/such/run", "a.png"], "no/such/run does not exist"),
        (["predict", "x", "a.png", "--format", "xml"], "'xml' is not one of table, json, jsonl, csv, parquet"),
        (["evaluate", "no/such/run"], "no/such/run does not exist"),
        (["evaluate", "run", "--root", "photos"], "lenext evaluate run MANIFEST --root photos"),
        (["models", "resnet81"], "resnet18"),
        (["predict", "tf_eficientnet_lite0", "a.png"], "was expected; did you mean 'tf_efficientnet_lite0'?"),
        (["predict", "alexnet", "a.png"], "no public ImageNet weights of alexnet"),
        (["predict", "tf_efficientnet_lite0", "a.png", "--language", "fr"], "'fr' is not one of en, zh"),
    ],
)  # fmt: skip
def test_wrong_requests_get_one_sentence_and_status_2(arguments, message, capsys):
    status, out, err = lenext_command(*arguments, capsys=capsys)
    assert status == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2


def test_wrong_settings_that_need_data(shapes, tmp_path, capsys):
    cases = [
        (["--model", "resnet19"], "resnet18"),
        (["--arguments", '{"stemm": "small"}', "--model", "resnet18"], "stemm"),
        (["--model", "vit_tiny_patch16_224", "--image-size", "50", "--pretrained", "false"], "50"),
        (["--accelerator", "gpu"], "no CUDA device"),
        (["--pretrained", tmp_path / "none.pth"], "none.pth"),
        (["--model", "lenet5", "--val-fraction", "0.9", "--test-fraction", "0.5"], "nothing to train"),
    ]  # fmt: skip
    for arguments, message in cases:
        status, _, err = lenext_command("train", shapes, "--out", tmp_path / "out", *arguments, capsys=capsys)
        assert status == 2, arguments
        assert message in err
        assert not (tmp_path / "out" / "classifier.safetensors").exists()


def test_data_that_cannot_be_learned_from(tmp_path, capsys):
    make_folder(tmp_path / "one", ["cat"], 4, size=16)
    make_folder(tmp_path / "loose", [""], 4, size=16)
    make_folder(tmp_path / "splits", ["a", "b"], 4, size=16, splits=["train"])
    make_folder(tmp_path / "splits/val", ["a", "b", "c"], 4, size=16)
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels.csv").write_text("image,klass\na.png,x\n")
    (tmp_path / "gone.csv").write_text("image,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(20)))
    for name, message in (
        ("empty", "holds no pictures"),
        ("one", "one class only ('cat'); a classifier needs at least two"),
        ("loose", "no class folders"),
        ("splits", "class 'c' has pictures in val but none in train"),
        ("labels.csv", "no column 'label', only 'image', 'klass'"),
        ("gone.csv", "the file does not exist"),
    ):
        out = tmp_path / f"run-{name}"
        status, _, err = lenext_command("train", tmp_path / name, "--model", "lenet5", "--out", out, capsys=capsys)
        assert (status, message in err) == (2, True), (name, err)
        assert "Traceback" not in err
        assert not (out / "classifier.safetensors").exists()


def test_unknown_key_in_a_configuration_file(shapes, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("epochs: 3\nbatchsize: 4\n")
    status, _, err = lenext_command("train", shapes, "--config", tmp_path / "c.yaml", capsys=capsys)
    assert status == 2
    assert "unknown setting 'batchsize'; did you mean 'batch_size'?" in err
    (tmp_path / "c.yaml").write_text("epochs: three\n")
    status, _, err = lenext_command("train", shapes, "--config", tmp_path / "c.yaml", capsys=capsys)
    assert (status, "epochs is 'three'; it must be a whole number" in err) == (2, True)
    (tmp_path / "c.yaml").write_text("epochs: [\n")
    status, _, err = lenext_command("train", shapes, "--config", tmp_path / "c.yaml", capsys=capsys)
    assert (status, "not valid YAML" in err) == (2, True)


def test_too_many_unreadable_pictures_stop_the_run_before_it_starts(tmp_path, capsys):
    data = make_folder(tmp_path / "data", ["a", "b"], 20, size=32)
    contents = [b"", b"not a picture", (data / "a/5.png").read_bytes()[:300]]
    for i, content in enumerate(contents):
        (data / f"a/{i}.png").write_bytes(content)
    arguments = ["train", data, "--model", "lenet5", "--epochs", "1", "--test-fraction", "0"]
    status, _, err = lenext_command(*arguments, "--out", tmp_path / "run", capsys=capsys)
    assert status == 2
    assert "3 pictures of 40 (7.5 %) cannot be read" in err
    status, _, err = lenext_command(*arguments, "--check", "false", "--out", tmp_path / "run", capsys=capsys)
    assert status == 2
    assert "3 of 40 pictures (8 %) cannot be read" in err
    assert "--max-unreadable 0.08" in err
    assert not (tmp_path / "run/metrics.jsonl").exists()
    status, _, err = lenext_command(*arguments, "--max-unreadable", "0.08", "--out", tmp_path / "run2", capsys=capsys)
    assert status == 0
    unreadable = {
        row["image"]: row["reason"] for row in json.loads((tmp_path / "run2/data.json").read_text())["unreadable"]
    }
    assert unreadable.keys() == {"a/0.png", "a/1.png", "a/2.png"}
    assert "empty" in unreadable["a/0.png"]
    assert [(data / f"a/{i}.png").read_bytes() for i in range(3)] == contents  # the user's files are as they were


def test_a_share_of_the_training_pictures_is_remembered_by_the_run(shapes, run, tmp_path, capsys):
    out, whole = tmp_path / "run", json.loads((run / "data.json").read_text())
    arguments = ["train", shapes, "--model", "lenet5", "--train-fraction", "0.5", "--epochs", "1", "--out", out]
    assert lenext_command(*arguments, capsys=capsys)[0] == 0
    data = json.loads((out / "data.json").read_text())
    for name, n in whole["counts"]["train"].items():
        assert abs(data["counts"]["train"][name] - n / 2) <= n**0.5 / 2  # one standard deviation
    for split in ("val", "test"):
        assert data["counts"][split] == whole["counts"][split]
        assert data["fingerprint"][split] == whole["fingerprint"][split]
    for split in ("train", "val", "test"):
        told = lenext_command("evaluate", out, "--split", split, "--format", "json", capsys=capsys)
        assert (told[0], json.loads(told[1])["n"]) == (0, sum(data["counts"][split].values())), told[2]
    for name in ("evaluation.json", "report.html"):  # as if it had been interrupted at the very end
        (out / name).unlink()
    assert lenext_command("train", "--resume", out, capsys=capsys)[0] == 0
    assert json.loads((out / "data.json").read_text()) == data


def test_a_folder_that_is_taken_is_left_alone(run, shapes, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    status, _, err = lenext_command("train", shapes, "--out", tmp_path, capsys=capsys)
    assert (status, "is not empty; choose another --out" in err) == (2, True)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    status, _, err = lenext_command("train", shapes, "--out", run, capsys=capsys)
    assert (status, f"--resume {run}" in err) == (2, True)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_files_that_are_no_classifier(command, run, tmp_path, capsys):
    rest = ["x.png"] if command == "predict" else []
    whole = (run / "classifier.safetensors").read_bytes()
    marker = tmp_path / "executed"

    class Malicious:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Malicious()))
    (tmp_path / "empty").mkdir()
    (tmp_path / "report.html").write_text("<!doctype html>\n<title>a healthy page</title>\n")
    length = int.from_bytes(whole[:8], "little")
    header, tensors = json.loads(whole[8 : 8 + length]), load_file(run / "classifier.safetensors")
    about = header["__metadata__"]
    changed = about | {"lenext": about["lenext"].replace('"classes"', '"klasses"')}
    save_file(tensors, tmp_path / "header.safetensors", changed)
    tensors.popitem()
    save_file(tensors, tmp_path / "tensors.safetensors", about)
    for name, message in (
        ("cut.safetensors", "damaged or cut off"),
        ("header.safetensors", "does not fit ('classes')"),
        ("tensors.safetensors", "does not fit (Error(s) in loading state_dict"),
        ("pickle.pt", "is a pickle"),
        ("report.html", "is no classifier file"),
        ("empty", "is not a run folder"),
    ):
        status, _, err = lenext_command(command, tmp_path / name, *rest, capsys=capsys)
        assert (status, message in err) == (2, True), err
    assert not marker.exists()


# ------------------------------------------------------------------------------------------------------ answers


def test_run_folder_has_what_the_contract_names(run, shapes):
    for name in ("config.yaml", "data.json", "environment.json", "metrics.jsonl", "train.log", "checkpoint.safetensors",
                 "checkpoint.previous.safetensors", "classifier.safetensors", "predictions.parquet", "report.html",
                 "figures/curves.png", "figures/samples.png", "figures/confusion-test.png"):  # fmt: skip
        assert (run / name).stat().st_size > 0, name
    assert list((run / "tensorboard").glob("events*"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert set(rows[0]) == {"epoch", "step", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr",
                            "seconds", "images_per_second", "peak_memory_mib"}  # fmt: skip
    assert 0 < rows[0]["peak_memory_mib"] <= rows[1]["peak_memory_mib"]
    data = json.loads((run / "data.json").read_text())
    assert data["classes"] == ["三角", "圆"]
    assert {name: sum(counts[name] for counts in data["counts"].values()) for name in data["classes"]} == {
        "三角": 30, "圆": 30
    }  # fmt: skip
    samples = pq.read_table(run / "samples.parquet").to_pydict()
    assert {s: samples["split"].count(s) for s in data["counts"]} == {
        s: sum(c.values()) for s, c in data["counts"].items()
    }
    assert all(len(content) == 32 for content in samples["content"])
    table = pq.read_table(run / "predictions.parquet").to_pydict()
    assert Counter(table["split"]) == {s: sum(data["counts"][s].values()) for s in ("val", "test")}
    assert "圆" in (run / "report.html").read_text(encoding="utf-8")


def test_predict_json(run, shapes, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG")
    pictures = [shapes / "圆/0.png", broken, tmp_path / "none.png", shapes / "三角/1.png"]
    status, out, err = lenext_command("predict", run, *pictures, "--format", "json", capsys=capsys)
    answer = json.loads(out)
    assert status == 0
    assert "2 of 4 pictures could not be read" in err
    assert [row["image"] for row in answer] == [str(path) for path in pictures]
    for row in (answer[0], answer[3]):
        assert row["error"] is None
        assert row["label"] == row["top"][0]["label"]
        assert sum(entry["probability"] for entry in row["top"]) == pytest.approx(1, abs=1e-5)
    assert answer[1]["label"] is None
    assert "damaged or cut off" in answer[1]["error"] or "not an image" in answer[1]["error"]
    assert "does not exist" in answer[2]["error"]
    assert lenext_command("predict", run, broken, "--format", "json", capsys=capsys)[0] == 1


def test_predict_forms_agree(run, shapes, tmp_path, capsys):
    data = json.loads(lenext_command("predict", run, shapes / "圆", "--format", "json", capsys=capsys)[1])
    assert len(data) == 30
    assert [row["image"] for row in data[:3]] == [str(shapes / f"圆/{i}.png") for i in range(3)]  # natural order
    status, out, _ = lenext_command("predict", run, shapes / "圆/*.png", "--format", "csv", capsys=capsys)
    rows = list(csv.DictReader(out.splitlines()))
    assert [(row["image"], row["label"]) for row in rows] == [(row["image"], row["label"]) for row in data]
    np.testing.assert_allclose([float(r["probability"]) for r in rows], [r["probability"] for r in data], atol=1e-6)
    lenext_command("predict", run, shapes / "圆", "--format", "parquet", "--out", tmp_path / "p.parquet", capsys=capsys)
    assert pq.read_table(tmp_path / "p.parquet").to_pydict()["label"] == [row["label"] for row in data]
    status, out, _ = lenext_command("predict", run, shapes / "圆/0.png", "--top-k", "1", capsys=capsys)
    assert (status, "0.png" in out) == (0, True)
    for arguments, message in (
        ([shapes / "*.nothing"], "no file fits the pattern"),
        ([tmp_path / "."], "holds no pictures"),
        ([shapes, "--format", "parquet"], "needs a file"),
        ([shapes, "--top-k", "0"], "top-k"),
    ):
        status, _, err = lenext_command("predict", run, *arguments, capsys=capsys)
        assert (status, message in err) == (2, True)


def test_python_interface_gives_the_same_answer_for_every_input(run, shapes, capsys):
    path = shapes / "圆/3.png"
    classifier = lenext.load(run)
    assert classifier.classes == ("三角", "圆")
    image = Image.open(path)
    by_path = classifier.predict(path, top_k=2)
    for other in (str(path), path.read_bytes(), image, np.asarray(image)):
        prediction = classifier.predict(other, top_k=2)
        assert prediction.top == by_path.top
    assert (by_path.label, by_path.probability) == by_path.top[0]
    several = classifier.predict([path, b"broken", path])
    assert [p.error is None for p in several] == [True, False, True]
    assert lenext.load(run / "classifier.safetensors").predict(path).top == by_path.top
    command = json.loads(lenext_command("predict", run, path, "--format", "json", capsys=capsys)[1])[0]
    assert command["probability"] == pytest.approx(by_path.probability, abs=1e-6)


def test_saving_and_loading_changes_nothing(run, shapes, tmp_path):
    classifier = lenext.load(run)
    again = lenext.load(classifier.save(tmp_path / "copy.safetensors"))
    for a, b in zip(classifier.model.state_dict().values(), again.model.state_dict().values()):
        assert (a == b).all()
    assert (again.classes, again.preprocess, again.temperature) == (
        classifier.classes, classifier.preprocess, classifier.temperature
    )  # fmt: skip


def test_evaluate_json_is_counted_from_the_predictions(run, shapes, capsys):
    status, out, _ = lenext_command("evaluate", run, "--format", "json", capsys=capsys)
    answer = json.loads(out)
    table = pq.read_table(run / "predictions.parquet").to_pylist()
    test = [row for row in table if row["split"] == "test"]
    right = sum(row["label"] == row["prediction"] for row in test)
    assert (status, answer["n"], answer["accuracy"]) == (0, len(test), right / len(test))
    assert answer["accuracy_interval"][0] <= answer["accuracy"] <= answer["accuracy_interval"][1]
    assert set(answer["per_class"]) == {"三角", "圆"}
    # A run evaluates validation and test pictures in batches with one another, the command the test pictures alone:
    # outputs, and what is summed over probabilities, are rounded otherwise.
    before = json.loads((run / "evaluation.json").read_text())["test"]
    summed = {key: before.pop(key) for key in ("nll", "brier", "ece")}
    assert {key: answer.pop(key) for key in summed} == pytest.approx(summed, rel=1e-5)
    assert answer == before
    answer = json.loads(lenext_command("evaluate", run, "--split", "val", "--format", "json", capsys=capsys)[1])
    assert answer["n"] == len(table) - len(test)
    status, _, err = lenext_command("evaluate", run, "--split", "tset", capsys=capsys)
    assert (status, "has no split 'tset'" in err) == (2, True)


def test_evaluate_on_other_data_matches_classes_by_name(run, tmp_path, capsys):
    make_folder(tmp_path / "other", ["x", "圆"], 0)  # an empty class folder shifts nothing
    make_folder(tmp_path / "other", ["圆"], 5, size=48, seed=9)
    (tmp_path / "other/圆/9.png").write_bytes(b"")
    status, out, _ = lenext_command("evaluate", run, tmp_path / "other", "--format", "json", capsys=capsys)
    answer = json.loads(out)
    assert (status, answer["n"], answer["per_class"]["圆"]["n"]) == (0, 5, 5)
    assert [failure["image"] for failure in answer["failed"]] == ["圆/9.png"]
    make_folder(tmp_path / "other", ["方"], 2, size=48)
    status, _, err = lenext_command("evaluate", run, tmp_path / "other", capsys=capsys)
    assert (status, "'方', which the classifier does not know" in err) == (2, True)


def test_models_lists_and_describes(capsys):
    out = lenext_command("models", capsys=capsys)[1]
    for name in lenext.list_models():
        assert name in out
    out = lenext_command("models", "resnet18", capsys=capsys)[1]
    assert "11,689,512" in out
    assert "https://arxiv.org/abs/1512.03385" in out
    out = lenext_command("models", "lenet5", capsys=capsys)[1]
    assert "61,706 parameters" in out
    assert "Total params: 61,706" in out


PHOTO = Path(sklearn.datasets.__file__).parent / "images/flower.jpg"


@pytest.mark.parametrize(("language", "label"), [(None, "daisy"), ("en", "daisy"), ("zh", "雏菊")])
def test_a_network_with_imagenet_weights_answers_without_training(language, label, capsys):
    rest = ["--language", language] if language else []
    status, out, _ = lenext_command("predict", "tf_efficientnet_lite0", PHOTO, "--format", "json", *rest, capsys=capsys)
    (answer,) = json.loads(out)
    assert (status, answer["label"], len(answer["top"])) == (0, label, 5)


def test_a_classifier_of_ones_own_has_its_own_names(run, shapes, capsys):
    status, _, err = lenext_command("predict", run, PHOTO, "--language", "zh", capsys=capsys)
    assert (status, "has class names of its own" in err) == (2, True)


def test_imagenet_classifier_can_be_saved(tmp_path):
    classifier = lenext.load("tf_efficientnet_lite0", language="zh")
    assert len(set(classifier.classes)) == 1000
    assert classifier.preprocess.image_size == 224
    again = lenext.load(classifier.save(tmp_path / "imagenet.safetensors"))
    assert again.predict(PHOTO) == classifier.predict(PHOTO)


# ------------------------------------------------------------------------------------------------------- the check


def test_check_finds_a_leak_and_training_stops_at_it(tmp_path, capsys):
    data = make_folder(tmp_path / "data", ["a", "猫"], 12, size=96, splits=["train", "test"])
    status, out, _ = lenext_command("check", data, "--format", "json", capsys=capsys)
    answer = json.loads(out)
    assert (status, answer["across_splits"], answer["unreadable"]) == (0, [], [])
    assert answer["counts"]["test"] == {"a": 12, "猫": 12}
    (data / "test/猫/again.png").write_bytes((data / "train/猫/5.png").read_bytes())
    (data / "train/a/broken.png").write_bytes(b"")
    before = {path: path.read_bytes() for path in data.rglob("*.png")}
    arguments = ["check", data, "--html", tmp_path / "check.html", "--write-manifest", tmp_path / "clean.csv"]
    status, out, err = lenext_command(*arguments, "--format", "json", capsys=capsys)
    answer = json.loads(out)
    assert status == 1
    assert answer["across_splits"] == answer["exact_duplicates"] == [["train/猫/5.png", "test/猫/again.png"]]
    assert answer["unreadable"] == [{"image": "train/a/broken.png", "reason": "the file is empty (0 bytes)"}]
    assert {"near_duplicates", "missing_classes", "label_conflicts"} <= answer.keys()
    assert "猫" in (tmp_path / "check.html").read_text(encoding="utf-8")
    assert f"lenext train {tmp_path / 'clean.csv'} --root {data}" in err
    assert {path: path.read_bytes() for path in data.rglob("*.png")} == before

    training = ["train", data, "--model", "lenet5", "--epochs", "1", "--max-unreadable", "0.1", "--out"]
    status, _, err = lenext_command(*training, tmp_path / "stopped", capsys=capsys)
    assert status == 2
    assert "1 of 25 test pictures" in err
    assert "--check false trains regardless" in err
    assert not (tmp_path / "stopped").exists()
    status, _, err = lenext_command(*training, tmp_path / "regardless", "--check", "false", capsys=capsys)
    assert (status, (tmp_path / "regardless/classifier.safetensors").exists()) == (0, True)
    clean = ["train", tmp_path / "clean.csv", "--root", data, "--model", "lenet5", "--epochs", "1"]
    status, _, err = lenext_command(*clean, "--out", tmp_path / "clean", capsys=capsys)
    assert status == 0, err
    (data / "test/a/3.png").unlink()
    status, _, err = lenext_command("evaluate", tmp_path / "clean", capsys=capsys)
    assert (status, "(test/a/3.png cannot be read)" in err) == (2, True)


def test_data_that_makes_no_sense_for_an_option(shapes, tmp_path, capsys):
    several = [{"image": str(path), "label": ["x", path.parent.name]} for path in shapes.rglob("*.png")]
    (tmp_path / "several.json").write_text(json.dumps(several))
    for arguments, message in (
        (
            [tmp_path / "several.json", "--root", "/", "--loss", "cross_entropy"],
            "this data gives several: bce or focal",
        ),
        ([tmp_path / "several.json", "--root", "/", "--sampling", "balanced"], "this data gives several"),
        ([shapes, "--model", "vit_tiny_patch16_224", "--start-size", "16"], "takes inputs of one size only"),
        ([shapes, "--sync-batchnorm", "true"], "--sync-batchnorm needs GPUs"),
        ([shapes, "--unfreeze-epochs", "2"], "--freeze"),
        ([shapes, "--track", "tensorbord"], "'tensorbord' is none of tensorboard, wandb, mlflow"),
        ([shapes, "--root", tmp_path], "--root is for manifests"),
        ([shapes, "--folds", "3", "--fold", "3"], "fold is 3 of 3 folds"),
        ([shapes, "--crop-scale", "0"], "crop_scale is 0"),
        ([shapes, "--mean", "[0.5]"], "mean is [0.5]; it is three numbers between 0 and 1"),
        ([shapes, "--std", "[0.2, 0, 0.2]"], "inputs are divided by it"),
        ([shapes, "--std", "wide"], "'wide' is not a list such as [0.5, 0.5, 0.5]"),
        ([shapes, "--val-as-test", "true"], "no validation pictures of its own"),
        ([shapes, "--mixup", "-1"], "mixup is -1"),
        ([shapes, "--repeats", "3", "--batch-size", "16", "--model", "lenet5"], "not a multiple of repeats 3"),
        ([tmp_path / "shards-{000..002}.tar"], "does not exist"),
    ):
        status, _, err = lenext_command("train", *arguments, "--out", tmp_path / "out", capsys=capsys)
        assert (status, message in err) == (2, True), err
    status, _, err = lenext_command("evaluate", tmp_path, "--views", "9", capsys=capsys)
    assert status == 2
