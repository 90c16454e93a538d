"""The engine's settings through whole runs: several labels, teachers, growing inputs, the search for a rate."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import lenext
from lenext import cli, runs
from lenext.inference.memory import in_parts
from lenext.models import lenet
from lenext.training import begin, devices, loop, task
from tests.pictures import make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data"), ["a", "b", "c"], 16, size=32)


@pytest.fixture
def quick_end(monkeypatch):
    """Runs end without report and figures."""
    monkeypatch.setattr(loop, "finish_run", lambda *_: None)


PLAIN = {"model": "lenet5", "epochs": 3, "batch_size": 8, "precision": "float32", "channels_last": True, "lr": 0.01}


def weights(folder, out, **settings):
    run = begin.train(begin.configure({"data": str(folder), **PLAIN, "workers": 0, **settings}), out)
    return load_file(run / "checkpoint.safetensors")


def differs(first, second) -> bool:
    names = [name for name in first if name.startswith("model.")]
    return any(not torch.equal(first[name], second[name]) for name in names)


SETTINGS = {
    "micro_batch": 3, "momentum": 0.5, "schedule": "one_cycle", "layer_decay": 0.5, "warmup_epochs": 1.0,
    "final_lr": 0.5, "clip_norm": 0.1, "sam": 0.1, "freeze": 0.5, "label_smoothing": 0.2, "loss": "focal",
    "logit_adjustment": 1.0, "class_weights": "balanced", "optimizer": "muon", "weight_decay": 0.3,
    "nesterov": True, "mixup": 0.4,
}  # fmt: skip


def test_every_setting_of_the_engine_acts(folder, tmp_path, quick_end):
    uneven = tmp_path / "uneven"
    for number, name in enumerate("abc"):
        (uneven / name).mkdir(parents=True)
        for i in range(16 - 5 * number):
            (uneven / name / f"{i}.png").write_bytes((folder / name / f"{i}.png").read_bytes())
    plain = {"optimizer": "sgd", "check": False}
    first = weights(uneven, tmp_path / "plain", **plain)
    assert not differs(first, weights(uneven, tmp_path / "again", **plain))
    for name, value in SETTINGS.items():
        assert differs(first, weights(uneven, tmp_path / name, **plain | {name: value})), name


def test_frozen_layers_stay_and_are_let_go(folder, tmp_path, quick_end):
    start = lenext.create_model("lenet5", num_classes=3, image_size=32)
    names = [name for name, _ in start.named_parameters()]
    frozen = weights(folder, tmp_path / "1", freeze=1.0, epochs=1)
    longer = weights(folder, tmp_path / "2", freeze=1.0, epochs=2)
    still = [name for name in names if torch.equal(frozen[f"model.{name}"], longer[f"model.{name}"])]
    assert still == [name for name in names if not name.startswith("output")]
    freed = weights(folder, tmp_path / "3", freeze=1.0, unfreeze_epochs=2, epochs=3)
    assert not any(torch.equal(freed[f"model.{name}"], frozen[f"model.{name}"]) for name in names)


def test_several_labels_are_learned_from_a_manifest_of_lists(tmp_path):
    """A square of a colour for each label: red, green, both or none."""
    rng, rows = np.random.default_rng(0), []
    for i in range(120):
        pixels = rng.integers(0, 80, (32, 32, 3), dtype=np.uint8)
        labels = [name for bit, name in enumerate(["红", "绿"]) if i >> bit & 1]
        for name in labels:
            y, x = rng.integers(0, 20, 2)
            pixels[y : y + 12, x : x + 12, ["红", "绿"].index(name)] = 255
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "label": labels})
    (tmp_path / "data.json").write_text(json.dumps(rows, ensure_ascii=False))
    settings = {"data": str(tmp_path / "data.json"), **PLAIN, "epochs": 12, "mixup": 0.2, "class_weights": "balanced"}
    run = begin.train(begin.configure({**settings, "lr": 0.003, "check": False}), tmp_path / "run")
    classifier = lenext.load(run)
    assert classifier.task == "multi-label"
    assert runs.read_json(run / "evaluation.json")["test"]["mean_average_precision"] > 0.9
    both = classifier.predict(str(tmp_path / "3.png"))
    assert {label for label, _ in both.top} == {"红", "绿"}
    assert sum(probability for _, probability in both.top) > 1.2  # each has a probability of its own
    assert runs.read_metrics(run)[-1]["val_accuracy"] > 0.7


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_students_answers_come_nearer_to_its_teachers(folder, tmp_path, kind):
    """The teacher has its names shifted by one: what it says is not what the labels say."""
    teacher = begin.train(begin.configure({"data": str(folder), **PLAIN, "epochs": 8}), tmp_path / "teacher")
    classifier = lenext.load(teacher)
    classifier.classes = ("b", "c", "a")
    classifier.save(tmp_path / "teacher.safetensors")
    settings = {"data": str(folder), **PLAIN, "epochs": 8, "teacher": str(tmp_path / "teacher.safetensors")}
    run = begin.train(
        begin.configure(settings | {"distillation": kind, "distillation_weight": 1.0, "select": "val_loss"}),
        tmp_path / "run",
    )
    final = load_file(run / "checkpoint.safetensors")
    student = lenext.load(run)
    student.model.load_state_dict({k.removeprefix("model."): v for k, v in final.items() if k.startswith("model.")})
    pictures = tuple(str(path) for path in sorted(folder.rglob("*.png")))
    same = [a.label == b.label for a, b in zip(student.predict(pictures), classifier.predict(pictures))]
    assert np.mean(same) > 0.8


def test_a_distillation_token_learns_from_the_teacher(folder, run, tmp_path, quick_end):
    settings = {"model": "deit_tiny_distilled_patch16_224", "image_size": 32, "lr": 1e-4, "epochs": 1}
    plain = weights(folder, tmp_path / "plain", **settings)
    teacher = begin.train(begin.configure({"data": str(folder), **PLAIN}), tmp_path / "teacher")
    (tmp_path / "teacher/classifier.safetensors").stat()
    taught = weights(folder, tmp_path / "taught", **settings, teacher=str(teacher), distillation="hard")
    assert differs(plain, taught)
    assert plain.keys() == taught.keys()  # nothing of the teacher is kept with the student


def test_inputs_grow_evenly_and_end_at_their_size():
    sizes = [task.input_size(epoch, 9, 16, 28) for epoch in range(1, 10)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 16
    assert sizes[6:] == [28, 28, 28]  # two thirds of the run are over
    assert set(sizes) == {16, 20, 24, 28}
    assert [task.input_size(epoch, 9, None, 28) for epoch in (1, 9)] == [28, 28]
    assert task.input_size(1, 1, 16, 28) == 16


def test_small_inputs_come_first(folder, tmp_path, quick_end, monkeypatch):
    seen: list[int] = []
    put = task.Layout.put

    def note(self, x):
        seen.append(x.shape[-1])
        return put(self, x)

    monkeypatch.setattr(task.Layout, "put", note)
    weights(
        folder,
        tmp_path / "run",
        model="resnet18",
        pretrained=False,
        image_size=32,
        start_size=24,
        lr=0.001,
        speed="off",
    )
    changes = [size for size, before in zip(seen, [0, *seen]) if size != before]
    assert changes == [32, 24, 32, 28, 32]  # a trial at full size; two epochs, each validated at 32; the last epoch


def test_the_search_for_a_rate_draws_a_curve_and_trains_nothing(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(
            ["train", str(folder), "--model", "lenet5", "--batch-size", "8", "--find-lr", "--out", str(tmp_path / "lr")]
        )
    assert end.value.code == 0
    assert "learning rates from 1.0e-07" in capsys.readouterr().out
    assert Image.open(tmp_path / "lr/find-lr.png").size[0] > 400
    assert len(json.loads((tmp_path / "lr/find-lr.json").read_text())["rates"]) > 30
    assert not (tmp_path / "lr/config.yaml").exists()


def test_probe_needs_pretrained_features(folder, tmp_path):
    with pytest.raises(ValueError, match="recipe probe is a linear classifier on pretrained features"):
        begin.train(
            begin.configure({"data": str(folder), "recipe": "probe", "model": "lenet5", "pretrained": False}),
            tmp_path / "r",
        )


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"teacher": "resnet18"}, "--teacher"), ({"loss": "focal"}, "--loss focal"), ({"mixup": 0.2}, "--mixup"),
     ({"ema": 0.9}, "--ema"), ({"epochs": 3}, "--epochs"), ({"augment": "light"}, "--augment"),
     ({"devices": 2}, "--devices")],
)  # fmt: skip
def test_probe_refuses_what_it_has_no_use_for(folder, tmp_path, monkeypatch, settings, named):
    monkeypatch.setattr(devices, "launch", lambda *_, **__: Fabric(accelerator="cpu", devices=1))
    given = {"data": str(folder), "recipe": "probe", "model": "tf_efficientnet_lite0", **settings}
    with pytest.raises(ValueError, match=rf"recipe probe .*{named}|{named}: recipe probe"):
        begin.train(begin.configure(given), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_an_answer_that_does_not_fit_the_memory_is_made_in_parts():
    network, asked = nn.Linear(5, 2), []

    def small(x):
        asked.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return network(x)

    x = torch.randn(11, 5)
    torch.testing.assert_close(in_parts(small)(x), network(x))
    assert max(asked[1:]) < 11
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        in_parts(network)(torch.randn(4, 6))


def test_validation_asks_for_twice_what_trains_at_once(folder, tmp_path, quick_end, monkeypatch):
    asked = []
    forward = lenet.LeNet5.forward

    def note(self, x):
        if not self.training:
            asked.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(lenet.LeNet5, "forward", note)
    weights(folder, tmp_path / "run", epochs=1, batch_size=8, micro_batch=2, speed="off")
    assert max(asked) == 4


def test_a_network_that_will_be_divided_is_neither_moved_nor_tried(folder, tmp_path):
    network, layout = nn.Linear(2, 2), task.Layout()
    layout.place(network, channels_last=False, device=torch.device("meta"), divided=True)
    assert layout.device.type == "meta"
    assert network.weight.device.type == "cpu"
    layout.place(network, channels_last=False, device=torch.device("meta"))
    assert network.weight.device.type == "meta"
    with pytest.raises(ValueError, match=r"--strategy fsdp: .*--epochs"):
        weights(folder, tmp_path / "run", strategy="fsdp", channels_last=None, epochs=None)
