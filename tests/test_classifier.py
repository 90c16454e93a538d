"""A classifier keeps its backend from call to call."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from lenext.classifier import Classifier
from lenext.inference import choose
from lenext.models.pooled import build_network
from lenext.preprocess import Preprocess

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.fixture
def classifier() -> Classifier:
    architecture = {"name": "lenet5", "num_outputs": 3, "image_size": 32, "arguments": {}}
    return Classifier(build_network(architecture).eval(), architecture, ("a", "b", "c"), Preprocess(image_size=32))


def test_what_is_made_is_kept_until_the_weights_change(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    made, make = [], choose.make_backend

    def make_frozen(name, model, preprocess, calibration):
        """With weights of its own, as other libraries have them."""
        made.append(name)
        return make("pytorch-float32", copy.deepcopy(model), preprocess)

    monkeypatch.setattr(choose, "make_backend", make_frozen)

    def probabilities(which: Classifier) -> dict[str, float]:
        return dict(which.predict(PICTURE, backend="openvino-float32").top)

    before = probabilities(classifier)
    assert probabilities(classifier) == before
    assert len(made) == 1
    for number, copied in enumerate((copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))), 2):
        assert probabilities(copied) == before
        assert len(made) == number
    list(classifier.model.parameters())[-1].data[-1] += 1
    after = probabilities(classifier)
    assert after == pytest.approx(dict(classifier.predict(PICTURE).top), abs=1e-6)
    assert after != before
    assert len(made) == 4


def test_what_is_kept_costs_nothing_and_is_taken_for_few_pictures_too(classifier: Classifier, monkeypatch) -> None:
    sample, plain = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), choose.PLAIN
    found = choose.Choice("openvino-float32", plain=0.002, chosen=0.001, making=1.0)
    monkeypatch.setattr(choose, "_recall", lambda key: found)
    monkeypatch.setattr(choose, "make_backend", lambda *_: lambda x: x)
    running = []
    for pictures in (500, 5000, 500, choose.FEWEST - 1):
        classifier.backend("auto", sample, pictures)
        running.append(classifier.running)
    assert running == [plain, "openvino-float32", "openvino-float32", plain]
