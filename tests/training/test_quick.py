"""The quick classifier: what its linear layer minimises where classes are rare."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lenext.training import begin, quick, two_steps
from lenext.training.objective import frequency_weights
from tests.pictures import make_folder

N, D, K = 200, 4, 3


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, D) of three classes, one of them rare, whose places overlap."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(N, generator=generator) > torch.tensor([0.5, 0.9])[:, None]).sum(0)
    return torch.randn(N, D, generator=generator) + torch.eye(K, D)[y], y


def test_logit_adjustment_is_that_of_the_loss(features):
    """The gradient of the shifted, penalised loss is zero at the fit, by autograd and not by the shortcut."""
    x, y = features
    shift = (torch.bincount(y) / N).log()
    labels = {"train": y, "val": y}
    fitted = quick._fit_views([torch.cat([x, x])], labels, torch.ones(N), shift, {})
    network = torch.nn.Module()
    network.register_buffer("shift", torch.zeros(D))
    network.register_buffer("scale", torch.zeros(D))
    network.head = torch.nn.Linear(D, K)
    quick._install(network, fitted)  # type: ignore[arg-type]
    answers = network.head((x - x.mean(0)) / x.std(0))
    weight = network.head.weight
    loss = F.cross_entropy(answers + shift, y) + fitted["penalty"] / 2 * (weight**2).sum()
    gradients = torch.autograd.grad(loss, [weight, network.head.bias])
    assert max(gradient.abs().max().item() for gradient in gradients) < 1e-3
    assert fitted["val_loss"] == pytest.approx(F.cross_entropy(answers, y).item(), rel=1e-4)
    plain = quick._fit_views([torch.cat([x, x])], labels, torch.ones(N), torch.zeros(K), {})
    rare = int(torch.bincount(y).argmin())
    assert (answers.argmax(1) == rare).sum() > (x @ plain["theta"][:-1] + plain["theta"][-1]).argmax(1).eq(rare).sum()


class Stop(Exception):
    """The fit is not needed."""


def test_class_weights_and_adjustment_reach_the_fit(tmp_path, monkeypatch):
    data = make_folder(tmp_path / "data", ["a", "b"], 20, size=32)
    asked: dict[str, Any] = {}
    for i in range(5, 20):
        (data / "b" / f"{i}.png").unlink()

    def note(*arguments, **options):
        asked.update(options, labels=arguments[5]["train"], weights=arguments[6])
        raise Stop

    monkeypatch.setattr(quick, "train_quick", note)
    settings = {"data": str(data), "image_size": 64, "class_weights": "balanced", "logit_adjustment": 2.0, "views": 5}
    with pytest.raises(Stop):
        begin.train(begin.configure({**settings, "recipe": "probe"}), tmp_path / "run")
    counts = torch.bincount(asked["labels"])
    assert counts[0] > 2 * counts[1]
    torch.testing.assert_close(
        asked["weights"].double(), frequency_weights(counts, "balanced")[asked["labels"]], rtol=1e-5, atol=0.0
    )
    np.testing.assert_allclose(asked["shift"], 2 * np.log(counts.numpy() / counts.sum().item()), rtol=1e-5)
    assert asked["answer_views"] == 5


def test_a_run_that_goes_on_where_its_backend_is_missing_takes_another(monkeypatch, caplog):
    """Begun on a machine with a GPU, gone on with on one without."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert two_steps._as_before("cuda-tf32") is None
    assert "the backend cuda-tf32 needs a GPU" in caplog.text
    assert "last digits may differ" in caplog.text
    assert two_steps._as_before("pytorch-float32") == "pytorch-float32"
    assert two_steps._as_before(None) is None
