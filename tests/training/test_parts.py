"""The linear classifier and pooled features against independent references."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from lenext.models import create_model
from lenext.models.pooled import PooledNetwork, choose_taps, pool
from lenext.training.quick import fit_linear


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
