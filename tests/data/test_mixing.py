from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torchvision.transforms import v2

from lenext.data.mixing import blend, cut, mix, random_box

# With a batch of two, our partner (from the other end) and torchvision's (the one before) are the same picture.
X = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
TARGETS = torch.eye(2)


def test_mixup_is_torchvisions_for_the_same_share():
    reference = v2.MixUp(num_classes=2)
    for share in (0.0, 0.3, 1.0):
        x, targets = blend(X, TARGETS, share)
        labels = torch.arange(2)
        parameters = {"lam": share, "labels": labels, "batch_size": 2}
        torch.testing.assert_close(x, reference.transform(X, parameters))
        torch.testing.assert_close(targets, reference.transform(labels, parameters))


def test_cutmix_is_torchvisions_for_the_same_box():
    reference = v2.CutMix(num_classes=2)
    for top, bottom, left, right in ((2, 9, 0, 30), (0, 20, 0, 30), (5, 5, 7, 9), (0, 3, 25, 30)):
        x, targets = cut(X, TARGETS, (top, bottom, left, right))
        labels = torch.arange(2)
        share = 1 - (bottom - top) * (right - left) / 600
        parameters = {"box": (left, top, right, bottom), "lam_adjusted": share, "labels": labels, "batch_size": 2}
        assert torch.equal(x, reference.transform(X, parameters))
        torch.testing.assert_close(targets, reference.transform(labels, parameters))


def test_boxes_are_distributed_as_torchvisions():
    reference = v2.CutMix(alpha=1.0, num_classes=2)
    torch.manual_seed(0)
    theirs = np.array([reference.make_params([X])["box"] for _ in range(3000)])
    rng = np.random.default_rng(0)
    ours = np.array([random_box(20, 30, 1 - rng.beta(1, 1), rng) for _ in range(3000)])[:, [2, 0, 3, 1]]
    for column in range(4):  # few values: compare their frequencies
        a, b = (np.bincount(boxes[:, column], minlength=31) / 3000 for boxes in (ours, theirs))
        assert np.abs(a - b).sum() < 0.2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_pictures_and_targets_get_the_same_share(dtype, mixup, cutmix):
    # Picture i is filled with its own number: the pixels' mean tells who is in it, and by how much.
    B = 4
    x = (torch.arange(B).view(B, 1, 1, 1) * 60).expand(B, 3, 16, 16).to(dtype)
    methods = set()
    for seed in range(30):
        mixed, targets = mix(x, torch.eye(B), mixup=mixup, cutmix=cutmix, seed=seed)
        assert mixed.dtype == dtype
        torch.testing.assert_close(targets.sum(1), torch.ones(B))
        expected = targets @ (torch.arange(B) * 60.0)
        torch.testing.assert_close(mixed.float().mean((1, 2, 3)), expected, atol=1.0, rtol=0.01)
        methods.add("cutmix" if len(mixed[0].unique()) == 2 else "mixup")
        again = mix(x, torch.eye(B), mixup=mixup, cutmix=cutmix, seed=seed)
        assert torch.equal(mixed, again[0])
    if not cutmix:
        assert methods == {"mixup"}
    if mixup and cutmix:
        assert methods == {"mixup", "cutmix"}


def test_shares_follow_the_beta_distribution():
    x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    shares = [float(mix(x, torch.eye(2), mixup=0.4, cutmix=0, seed=seed)[0][1]) for seed in range(2000)]
    assert kstest(shares, "beta", (0.4, 0.4)).pvalue > 1e-4


def test_without_parameters_nothing_is_mixed():
    x, targets = mix(X, TARGETS, mixup=0, cutmix=0, seed=0)
    assert torch.equal(x, X)
    assert torch.equal(targets, TARGETS)
