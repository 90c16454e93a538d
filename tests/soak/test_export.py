"""Every kind of network in every format, and in eight bits, on raw files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from lenext.classifier import Classifier
from lenext.data.decode import decode
from lenext.data.transforms import eval_transform
from lenext.export import command
from lenext.export.formats import FORMATS
from lenext.inference.backends import torch_backend
from lenext.preprocess import Preprocess
from tests.export.classifiers import as_classifier, some_files
from tests.models.test_protocol import SMALLEST, lively, small


def small_classifier(name: str, views: int = 2) -> Classifier:
    torch.manual_seed(0)
    return as_classifier(lively(small(name)), name, Preprocess(image_size=SMALLEST[name][0]), views=views)


def squares(one: Classifier, pictures: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.stack([eval_transform(one.preprocess)(x) for x in pictures])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", SMALLEST)
def test_every_kind_of_network(name: str, form: str, tmp_path: Path) -> None:
    one = small_classifier(name)
    pictures = [decode(data, shrink_to=one.preprocess.resize) for data in some_files().values()]
    expected = one.probabilities(squares(one, pictures), torch_backend(one.model, one.preprocess))
    command.write(one, form, tmp_path, None)
    artefact = FORMATS[form].load(tmp_path)
    # A network of 33 pixels and random weights feels the last bit of a single pixel, which may round the other way.
    np.testing.assert_allclose(np.concatenate([artefact(x[None]) for x in pictures]), expected, atol=5e-3)


# Without training EfficientNet-B0's outputs differ from picture to picture by a millionth, which eight bits don't hold.
@pytest.mark.parametrize("form", ["onnx", "openvino"])
@pytest.mark.parametrize("name", [name for name in SMALLEST if name != "efficientnet_b0"])
def test_every_kind_of_network_in_eight_bits(name: str, form: str, tmp_path: Path) -> None:
    one = small_classifier(name)
    pictures = [decode(data) for data in some_files().values()]
    x = squares(one, pictures)
    expected = one.probabilities(x, torch_backend(one.model, one.preprocess))
    command.write(one, form, tmp_path, x)
    artefact = FORMATS[form].load(tmp_path)
    assert np.abs(np.concatenate([artefact(x[None]) for x in pictures]) - expected).mean() < 0.1
