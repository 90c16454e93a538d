"""`lenext train` with nothing more said, and the recipes, end to end on small data of the right form."""

from __future__ import annotations

import json
import shutil
import signal
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import lenext
from lenext.models.pooled import CombinedNetwork, PooledNetwork
from lenext.models.weights import has_offline_weights
from lenext.training import begin
from tests.pictures import make_folder
from tests.training.test_faults import assert_equal_runs, command, wait_for_epoch


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    """Ten classes with Chinese names, 64 x 64 in colour."""
    classes = ["苹果", "香蕉", "樱桃", "葡萄", "柠檬", "芒果", "桃子", "梨", "西瓜", "草莓"]
    return make_folder(tmp_path_factory.mktemp("ten") / "水果", classes, 24, size=64)


def test_the_default_uses_the_packaged_weights_in_two_steps(ten, tmp_path, monkeypatch):
    assert has_offline_weights("tf_efficientnet_lite0"), "the dev extra installs the packaged weights"
    monkeypatch.chdir(ten.parent)
    run = begin.train(begin.configure({"data": ten.name, "epochs": 2}), tmp_path / "run")
    monkeypatch.chdir(tmp_path)  # the run knows its data from anywhere
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["model"], config["pretrained"], config["image_size"]) == ("tf_efficientnet_lite0", True, 128)
    assert None not in [config[key] for key in ("epochs", "batch_size", "lr", "channels_last")]
    quick = lenext.load(run / "quick.safetensors")
    assert isinstance(quick.model, PooledNetwork)
    results = json.loads((run / "evaluation.json").read_text())
    assert results["test"]["accuracy"] > 0.9  # ten shapes that differ in form and colour
    assert set(results["test"]["per_class"]) == {folder.name for folder in ten.iterdir()}
    choices = " ".join(json.loads((run / "choices.json").read_text()))
    assert "--model NAME" in choices
    with_fonts = (run / "report.html").read_text(encoding="utf-8")
    assert "草莓" in with_fonts
    classifier = lenext.load(run)
    assert classifier.predict(ten / "草莓/0.png", top_k=3).label == "草莓"


def test_fine_tuning_changes_the_upper_part_alone_and_resumes_exactly(ten, tmp_path):
    """What a kill leaves behind is what is on the disk while the process is stopped: a copy of that is resumed, and
    compared with the run that goes on. (Two runs may measure another backend as the fastest and differ in rounding.)
    """
    settings = ["--epochs", "3", "--image-size", "64", "--precision", "float32", "--channels-last", "true"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    process = command("train", ten, "--out", whole, *settings)
    wait_for_epoch(whole, 1, process)
    process.send_signal(signal.SIGSTOP)
    shutil.copytree(whole, run)
    process.send_signal(signal.SIGCONT)
    assert process.wait() == 0
    assert not (run / "report.html").exists()
    assert command("train", "--resume", run).wait() == 0
    assert_equal_runs(run, whole)
    classifier = lenext.load(run)
    original = lenext.create_model("tf_efficientnet_lite0", num_classes=10, pretrained=True).state_dict()
    if isinstance(classifier.model, CombinedNetwork):
        branch: Any = classifier.model.tuned
        tuned = branch.state_dict()
        changed = {
            name for name in tuned if tuned[name].is_floating_point() and not torch.equal(tuned[name], original[name])
        }
        lower = {name for name in tuned if name.startswith(("conv_stem", "bn1", "blocks.0.", "blocks.4."))}
        assert not changed & lower
        assert {name.split(".")[0] for name in changed} >= {"blocks", "conv_head", "classifier"}
        x = torch.rand(2, 3, 64, 64)
        with torch.inference_mode():
            quick, both = classifier.model.quick(x), classifier.model(x)
            features = x
            for stage in branch.stages():
                features = stage(features)
            alone = branch.forward_head(features)
            expected = (quick * classifier.model.quick_scale + alone) / 2
        torch.testing.assert_close(both, expected, atol=1e-4, rtol=1e-4)


def test_from_scratch_small_pictures_get_a_small_stem_and_are_learned(ten, tmp_path):
    config = begin.configure({"data": str(ten), "model": "resnet18", "pretrained": False, "epochs": 4, "seed": 1})
    run = begin.train(config, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["image_size"], config["arguments"]) == (64, {"stem": "small"})
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train_loss"] < 0.7 * rows[0]["train_loss"]
    assert max(row["val_accuracy"] for row in rows) > 0.3  # a tenth is chance


@pytest.mark.parametrize(
    ("recipe", "changed"),
    [
        ("scratch-small", {}),
        ("scratch-vit", {}),
        ("imagenet", {"model": "resnet18"}),
        ("finetune", {"model": "tf_efficientnet_lite0"}),
        ("vit-finetune", {"model": "vit_tiny_patch16_224", "pretrained": False}),
    ],
)
def test_every_setting_of_a_recipe_trains(ten, tmp_path, recipe, changed):
    settings = {"data": str(ten), "recipe": recipe, "image_size": 32, "batch_size": 64, "epochs": 1, "speed": "off"}
    run = begin.train(begin.configure({**settings, **changed}), tmp_path / "run")
    [row] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([row["train_loss"], row["val_loss"]]).all()
    top = lenext.load(run).predict(ten / "草莓/0.png", top_k=10).top
    assert sum(probability for _, probability in top) == pytest.approx(1)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """A JSON manifest of 0/1 labels."""
    root = make_folder(tmp_path_factory.mktemp("binary"), ["no", "yes"], 12, size=48)
    rows = [{"image": f"{name}/{i}.png", "label": label} for label, name in enumerate(("no", "yes")) for i in range(12)]
    (root / "data.json").write_text(json.dumps(rows))
    return root / "data.json"


def test_recipe_convnext_binary(manifest, tmp_path):
    config = begin.configure({"recipe": "convnext-tiny-binary", "data": str(manifest), "image_size": 48, "epochs": 3})
    run = begin.train(config, tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([row["lr"] for row in rows], [5e-5, 5e-5 * 0.95, 5e-5 * 0.95**2])
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["batch_size"], config["optimizer"], config["patience"], config["select"]) == (
        16,
        "adam",
        2,
        "val_loss",
    )
    classifier = lenext.load(run)
    assert sum(parameter.numel() for parameter in classifier.model.parameters()) == 27_820_897
    assert classifier.classes == ("0", "1")
    top = classifier.predict(manifest.parent / "yes/1.png").top
    assert sum(probability for _, probability in top) == pytest.approx(1)
    assert "27,820,897" in (run / "model.txt").read_text()
    assert begin.configure({"recipe": "convnext-tiny-binary"}).image_size == 512
    base = begin.configure({"recipe": "convnext-base-binary"})
    assert (base.model, base.lr, base.batch_size, base.val_fraction) == ("convnext_base", 5e-6, 8, 0.125)


def test_recipe_birds(tmp_path):
    birds = make_folder(tmp_path / "birds", ["喜鹊", "麻雀", "燕子", "乌鸦"], 10, size=64)
    config = begin.configure({"recipe": "resnext50-birds", "data": str(birds), "image_size": 64, "epochs": 1})
    run = begin.train(config, tmp_path / "run")
    counts = json.loads((run / "data.json").read_text())["counts"]
    assert set(counts) == {"train", "val"}
    assert all(1 <= counts["val"][name] <= 4 for name in counts["val"])  # 2 of 10, give or take a standard deviation
    model: Any = lenext.load(run).model
    assert model.conv1.bias is not None
    assert model.bn1.eps == 1.001e-5
    published = begin.configure({"recipe": "resnext50-birds"})
    assert (published.lr, published.batch_size, published.epochs, published.seed) == (1e-3, 8, 10, 123)


def test_recipe_flowers_with_an_early_stop(tmp_path):
    flowers = make_folder(tmp_path, ["daisy", "rose"], 4, size=64, splits=["train", "val"])
    settings = {
        "recipe": "alexnet-flowers",
        "data": str(flowers),
        "epochs": 8,
        "patience": 1,
        "batch_size": 4,
        "lr": 1e-30,
    }
    run = begin.train(begin.configure(settings), tmp_path / "run")
    rows = (run / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2  # at this rate no weight moves, nothing improves, and patience ends it
    assert "stopping" in (run / "train.log").read_text()
    classifier = lenext.load(run)
    assert (classifier.preprocess.mean, classifier.preprocess.image_size) == ((0.5, 0.5, 0.5), 224)
    shutil.rmtree(run)  # AlexNet's checkpoints are large
