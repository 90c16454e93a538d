"""What is done to pictures on their way into training: it acts, and does not depend on who does it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import lenext
from lenext.training import begin
from tests.pictures import make_folder

EVERYTHING = {
    "crop_scale": 0.3, "flip": "both", "policy": "trivialaugment", "color_jitter": 0.3, "erasing": 0.3, "repeats": 2,
    "mixup": 0.4, "cutmix": 1.0, "sampling": "balanced",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = make_folder(tmp_path_factory.mktemp("data"), ["a", "b"], 20, size=32)
    return make_folder(root, ["c"], 8, size=32, seed=1)


def weights(folder, out, **settings) -> dict[str, torch.Tensor]:
    given = {"data": str(folder), "model": "lenet5", "epochs": 2, "batch_size": 8, "precision": "float32", **settings}
    given |= {"channels_last": False}
    return lenext.load(begin.train(begin.configure(given), out)).model.state_dict()


def equal(first, second) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_weights_depend_neither_on_workers_nor_on_the_cache(folder, tmp_path):
    first = weights(folder, tmp_path / "1", workers=0, cache=True, **EVERYTHING)
    assert equal(first, weights(folder, tmp_path / "2", workers=2, cache=False, **EVERYTHING))


def test_every_setting_acts(folder, tmp_path):
    plain = weights(folder, tmp_path / "plain", augment="none")
    for name, value in EVERYTHING.items():
        assert not equal(plain, weights(folder, tmp_path / name, augment="none", **{name: value})), name


def test_folds_are_a_partition_of_what_is_not_for_testing(folder, tmp_path):
    from lenext import runs

    seen: list[str] = []
    tests = set()
    for fold in range(3):
        run = tmp_path / str(fold)
        weights(folder, run, epochs=1, folds=3, fold=fold)
        table = runs.read_samples(run).to_pylist()
        seen += [row["image"] for row in table if row["split"] == "val"]
        tests.add(tuple(row["image"] for row in table if row["split"] == "test"))
        assert json.loads((run / "data.json").read_text())["counts"]["val"]["c"] > 0
    assert len(tests) == 1
    assert len(seen) == len(set(seen)) == 48 - len(next(iter(tests)))


def test_inputs_are_normalised_as_asked_and_the_classifier_knows_it(folder, tmp_path):
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 1]}
    trained = lenext.load(begin.train(begin.configure({
        "data": str(folder), "model": "lenet5", "epochs": 1, "speed": "off", **given,
    }), tmp_path / "run"))  # fmt: skip
    assert (trained.preprocess.mean, trained.preprocess.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 1.0))
    grey = np.full((32, 32, 3), 51, np.uint8)  # 0.2 of white
    expected = ((0.2 - torch.tensor(given["mean"])) / torch.tensor(given["std"])).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    with torch.inference_mode():
        logits = trained.model.eval()(expected) / trained.temperature
    found = trained.predict(grey, top_k=3)
    assert dict(found.top)[trained.classes[0]] == pytest.approx(logits.softmax(1)[0, 0].item(), abs=1e-4)
