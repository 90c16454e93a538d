"""The resize inside the graph gives the bytes that every other way to a prediction gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lenext.data.transforms import eval_transform
from lenext.export.graph import Answers, Square
from lenext.inference.backends import torch_backend
from lenext.preprocess import Preprocess
from tests.data.corpus import picture
from tests.export.classifiers import classifier

SIZES = [
    (640, 427),
    (427, 640),
    (40, 28),
    (301, 299),
    (74, 74),
    (64, 64),
    (900, 37),
    (30_000, 20),
    (3, 20_000),
    (5001, 7),
    (7, 300),
    (1, 1),
    (2, 3),
]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("preprocess", [{}, {"crop_fraction": 1.0}, {"image_size": 33, "crop_fraction": 0.9}])
def test_square_is_the_eval_transform(interpolation, preprocess) -> None:
    preprocess = Preprocess(**{"image_size": 64, "interpolation": interpolation} | preprocess)
    square, transform = Square(preprocess), eval_transform(preprocess)
    rng = np.random.default_rng(0)
    for size in SIZES:
        noisy = np.asarray(picture(*size)) ^ rng.integers(0, 64, (*size[::-1], 3), np.uint8)
        difference = square(torch.from_numpy(noisy)[None])[0].int() - transform(noisy).int()
        assert difference.abs().max() <= 1, size
        assert (difference != 0).float().mean() < 2e-3, size


@pytest.mark.parametrize("views", [1, 2, 8])
@pytest.mark.parametrize("settings", [{}, {"num_outputs": 1}, {"task": "multi-label"}], ids=str)
def test_answers_are_the_probabilities_of_the_classifier(views: int, settings: dict) -> None:
    one = classifier("lenet5", 32, views=views, **settings)
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8))
    expected = one.probabilities(x, torch_backend(one.model, one.preprocess))
    with torch.no_grad():
        np.testing.assert_allclose(Answers(one)(x).numpy(), expected, atol=1e-6)
