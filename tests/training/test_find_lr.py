"""The search for a learning rate: closed forms, noise, losses that explode at once, and a network left as it was."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from lenext.evaluation.lr_figure import draw_lr_search
from lenext.training.find_lr import find_lr


def descend(curvature: float):
    """One step of gradient descent on curvature / 2 * w**2, which diverges for rates above 2 / curvature."""
    weight = [1.0]

    def step(lr: float) -> float:
        loss = curvature / 2 * weight[0] ** 2
        weight[0] -= lr * curvature * weight[0]
        return loss

    return step


@pytest.mark.parametrize("curvature", [1.5, 20.0, 1000.0])
def test_on_a_parabola_the_suggestion_is_where_the_closed_form_falls_most_steeply(curvature):
    search = find_lr(descend(curvature))
    rates = np.geomspace(1e-7, 10, 100)
    weights = np.concatenate([[1.0], np.cumprod(1 - rates * curvature)])[:-1]
    falls = -np.gradient(weights**2)
    steepest = rates[falls[: (weights**2).argmin()].argmax()]
    assert search.suggestion == pytest.approx(steepest, rel=0.25)
    assert search.suggestion < 2 / curvature < search.rates[-1]
    np.testing.assert_allclose(search.losses, curvature / 2 * weights[: len(search.losses)] ** 2)


def test_the_rates_rise_by_the_same_factor_and_the_test_ends_when_the_loss_explodes():
    asked = []

    def step(lr: float) -> float:
        asked.append(lr)
        return 1.0 if lr < 1e-3 else 1e6

    search = find_lr(step, lowest=1e-5, highest=1.0, steps=51)
    assert asked[0] == pytest.approx(1e-5)
    np.testing.assert_allclose(np.divide(asked[1:], asked[:-1]), 10**0.1)
    assert asked[-1] == pytest.approx(1e-3)  # the first with the great loss is the last
    np.testing.assert_allclose(search.rates, asked)
    assert search.suggestion is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_it_ends_before_a_loss_that_is_not_finite(bad):
    search = find_lr(lambda lr: bad if lr > 0.1 else 1 / (1 + 1e3 * lr))
    assert search.rates[-1] <= 0.1
    assert np.isfinite(search.losses).all()
    assert search.suggestion is not None


def logistic_fall(seed: int):
    """A loss that falls by 1.5, most steeply at a rate of 0.01, and explodes above 1, with noise in every batch."""
    rng = np.random.default_rng(seed)

    def step(lr: float) -> float:
        return 2.3 - 1.5 / (1 + math.exp(-4 * (math.log10(lr) + 2))) + 0.1 * rng.standard_normal() + lr**8

    return step


def test_a_fall_at_a_known_rate_is_found_in_noise():
    found = [find_lr(logistic_fall(seed)).suggestion or math.nan for seed in range(20)]
    assert np.median(found) == pytest.approx(1e-2, rel=0.25)
    assert 5e-3 < min(found) < max(found) < 2e-2


def test_how_high_the_loss_explodes_says_nothing_of_where_it_fell():
    def explode(height: float):
        return find_lr(lambda lr: height if lr > 0.1 else 2.3 - 1.5 / (1 + math.exp(-4 * (math.log10(lr) + 2))))

    low, high = explode(20.0), explode(1e8)
    assert high.suggestion == low.suggestion == pytest.approx(1e-2, rel=0.5)
    assert high.cautious == low.cautious


def noise(seed: int):
    losses = iter(2.3 + 0.3 * np.random.default_rng(seed).standard_normal(100))
    return lambda lr: next(losses)


def test_a_loss_that_is_noise_alone_gives_no_suggestion():
    for seed in range(20):
        search = find_lr(noise(seed))
        assert (search.suggestion, search.cautious) == (None, None)
    assert "falls at none" in str(search)


def test_the_cautious_rate_is_a_tenth_of_that_of_the_least_loss():
    search = find_lr(lambda lr: 5 + (math.log10(lr) + 1) ** 2, highest=10.0, steps=161)
    assert search.cautious == pytest.approx(1e-2)
    assert f"--lr {search.suggestion:.1e}" in str(search).splitlines()[1]


def test_requests_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="not a number at the lowest learning rate"):
        find_lr(lambda lr: math.nan)
    with pytest.raises(ValueError, match="0 < lowest < highest"):
        find_lr(lambda lr: 1.0, lowest=1.0, highest=0.1)


def test_the_suggestion_trains_a_network_better_than_rates_far_from_it():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(256, 8)
    y = (x[:, :4]).argmax(1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def train(lr: float) -> float:
        loss = F.cross_entropy(network(x), y)
        network.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in network.parameters():
                assert parameter.grad is not None
                parameter.sub_(lr * parameter.grad)
        return loss.item()

    search = find_lr(train)
    final = {}
    assert search.suggestion is not None
    for factor in (0.01, 1.0, 100.0):
        network.load_state_dict(before)
        final[factor] = [train(factor * search.suggestion) for _ in range(60)][-1]
    assert final[1.0] == min(final.values())


def test_the_figure_shows_the_search_with_and_without_a_suggestion(tmp_path):
    sizes = []
    for name, step in {"found": descend(20.0), "none": lambda lr: 1.0}.items():
        search = find_lr(step)
        path = tmp_path / "figures" / f"{name}.png"
        draw_lr_search(search, path)
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        sizes.append(pixels.shape)
        orange = np.abs(pixels - [0xD5, 0x5E, 0x00]).sum(axis=2) < 12
        assert orange.any() == (search.suggestion is not None)
        assert (np.abs(pixels - [0x00, 0x72, 0xB2]).sum(axis=2) < 12).sum() > 300  # the smoothed curve
    assert sizes[0] == sizes[1] == (576, 1008, 3)
