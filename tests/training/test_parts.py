"""Losses, schedules, optimisers and the linear classifier against independent references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from lenext.models import create_model
from lenext.models.pooled import PooledNetwork, choose_taps, pool
from lenext.training.objective import compute_loss, correct, num_outputs
from lenext.training.optim import default_lr, learning_rate, make_optimizer, parameter_groups
from lenext.training.quick import fit_linear
from lenext.training.speed import fastest_speed


def test_losses_are_torchs_weighted_means():
    generator = torch.Generator().manual_seed(0)
    outputs, labels = torch.randn(9, 4, generator=generator), torch.randint(4, (9,), generator=generator)
    weights = torch.rand(9, generator=generator)
    expected = np.average(F.cross_entropy(outputs, labels, reduction="none", label_smoothing=0.1), weights=weights)
    assert compute_loss("cross_entropy", outputs, labels, weights, 0.1).item() == pytest.approx(expected, abs=1e-6)
    binary = labels % 2
    two = torch.cat([torch.zeros(9, 1), outputs[:, :1]], 1)  # a sigmoid is a softmax against zero
    for smoothing in (0.0, 0.1):
        assert compute_loss("bce", outputs[:, :1], binary, weights, smoothing).item() == pytest.approx(
            compute_loss("cross_entropy", two, binary, weights, smoothing).item(), abs=1e-6
        )
    assert correct(outputs[:, :1], binary) == correct(two, binary)
    assert num_outputs("bce", 2) == 1
    with pytest.raises(ValueError, match="for two classes, the data has 3"):
        num_outputs("bce", 3)


def test_weight_zero_takes_a_picture_out():
    outputs, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    weights = torch.tensor([1.0, 1, 1, 0, 0, 0])
    assert torch.isclose(
        compute_loss("cross_entropy", outputs, labels, weights, 0), F.cross_entropy(outputs[:3], labels[:3])
    )


def schedule(name, **options):
    options = {"peak": 0.1, "steps_per_epoch": 10, "epochs": 5, **options}
    return [learning_rate(step, schedule=name, **options) for step in range(50)]


def test_cosine_is_torchs_after_its_warm_up():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    expected = []
    for _ in range(40):
        expected.append(float(reference.get_last_lr()[0]))
        optimizer.step()
        reference.step()
    rates = schedule("cosine", warmup_epochs=1)
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 100)
    np.testing.assert_allclose(rates[10:], expected, atol=1e-12)


def test_decay_holds_one_epoch_and_then_falls_by_five_percent_an_epoch():
    rates = schedule("decay", lr_decay=0.95)
    np.testing.assert_allclose(rates, np.repeat(0.1 * 0.95 ** np.arange(5), 10))
    assert schedule("constant") == [0.1] * 50


def test_norms_biases_and_tokens_do_not_decay():
    model = create_model("vit_tiny_patch16_224", num_classes=2, image_size=32)
    decayed, spared = parameter_groups(model, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    assert {names[id(p)].rpartition(".")[2] for p in decayed["params"]} == {"weight"}
    free = {names[id(p)] for p in spared["params"]}
    assert {"cls_token", "pos_embed"} <= free
    assert len(free) + len(decayed["params"]) == len(names)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_optimisers_minimise(name):
    torch.manual_seed(0)
    model, x = nn.Linear(5, 1), torch.randn(64, 5)
    y = x @ torch.randn(5, 1)
    optimizer = make_optimizer(model, name, lr=0.05, weight_decay=0.0)
    losses = []
    for _ in range(100):
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    assert default_lr("sgd", False, 256) == 0.1


def test_linear_classifier_is_the_one_of_scikit_learn():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 12)).astype(np.float32)
    y = (x[:, :3] + 0.7 * rng.normal(size=(300, 3))).argmax(1)
    weights = rng.uniform(0.2, 2, 300).astype(np.float32)
    penalty = 0.02
    theta = fit_linear(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(weights), 3, penalty)
    # scikit-learn: C times the summed loss plus half the squared weights.
    reference = LogisticRegression(C=1 / (penalty * weights.sum()), tol=1e-8, max_iter=1000).fit(x, y, weights)
    np.testing.assert_allclose(theta[:-1].T.numpy(), reference.coef_, atol=5e-3)


def test_pooled_network_computes_plain_statistics_of_its_taps():
    backbone = create_model("resnet18", num_classes=2).eval()
    taps, dims = choose_taps(backbone, 64)
    assert dims == (64, 128, 256, 512)
    network = PooledNetwork(backbone, taps=taps, dims=dims, num_classes=3).eval()
    x = torch.randn(2, 3, 64, 64)
    maps = []
    hooks = [
        getattr(backbone, f"layer{i}").register_forward_hook(lambda m, a, out: maps.append(out)) for i in (1, 2, 3, 4)
    ]
    with torch.inference_mode():
        backbone(x)
        expected = torch.cat([f(m) for m in maps for f in (
            lambda m: m.mean((2, 3)), lambda m: m.amax((2, 3)), lambda m: m.flatten(2).std(2, correction=0)
        )], 1)  # fmt: skip
        torch.testing.assert_close(network.features(x), expected, atol=1e-4, rtol=1e-4)
    for hook in hooks:
        hook.remove()
    tokens = torch.randn(2, 7, 5)
    torch.testing.assert_close(pool(tokens)[:, :5], tokens.mean(1))


def test_speed_takes_the_fastest_that_agrees_and_leaves_the_model_alone():
    model = create_model("lenet5", num_classes=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
    speed = fastest_speed(model, x, lambda out: F.cross_entropy(out.float(), y))
    assert speed.images_per_second > 0
    assert not fastest_speed(model, x, lambda out: F.cross_entropy(out.float(), y), "float32").bfloat16
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())

    class Rounded(nn.Module):
        """Right in float32, far off in bfloat16: 257 and 256 are the same number there."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[257.0], [256.0]]))

        def forward(self, x):
            outputs = F.linear(torch.ones(len(x), 1), self.weight)
            return outputs.float() - 256

    assert not fastest_speed(Rounded(), x, lambda out: F.cross_entropy(out, torch.zeros(8).long())).bfloat16
