# mypy: disable-error-code="arg-type,index,operator,union-attr"
"""Losses against torch, torchvision, timm, scikit-learn, and what their papers say of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from timm.loss import BinaryCrossEntropy
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from lenext.training.objective import correct, make_objective, num_outputs

B, K = 9, 4
COUNTS = np.array([500, 40, 3, 57])


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


OUTPUTS = 3 * numbers(B, K)
LABELS = torch.arange(B) % K
SHARES = numbers(B, K, seed=1).softmax(1)
SETS = (numbers(B, K, seed=2) > 0).float()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [LABELS, SHARES], ids=["labels", "shares"])
def test_cross_entropy_is_torchs(targets, smoothing):
    losses = make_objective("cross_entropy", K, label_smoothing=smoothing)(OUTPUTS, targets)
    torch.testing.assert_close(losses, F.cross_entropy(OUTPUTS, targets, reduction="none", label_smoothing=smoothing))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sigmoids_of_single_labels_are_timms_mean_over_the_classes(smoothing):
    objective = make_objective("bce", K, label_smoothing=smoothing)
    expected = BinaryCrossEntropy(smoothing=smoothing)(OUTPUTS, LABELS)
    torch.testing.assert_close(objective(OUTPUTS, LABELS).mean(), expected)
    # timm smooths shares while it mixes them.
    smooth = SHARES * (1 - smoothing) + smoothing / K
    torch.testing.assert_close(objective(OUTPUTS, SHARES).mean(), BinaryCrossEntropy()(OUTPUTS, smooth))


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_several_labels_take_sigmoids_and_smooth_towards_the_middle(loss):
    objective = make_objective(loss, K, several=True, label_smoothing=0.1)
    expected = F.binary_cross_entropy_with_logits(OUTPUTS, SETS * 0.9 + 0.05, reduction="none").mean(1)
    torch.testing.assert_close(objective(OUTPUTS, SETS), expected)


@pytest.mark.parametrize("targets", [LABELS % 2, SHARES[:, :2] / SHARES[:, :2].sum(1, keepdim=True)])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"logit_adjustment": 1.5}, {"class_weights": "balanced"}]
)
def test_one_sigmoid_is_a_softmax_against_zero(targets, options):
    options = {**options, "counts": COUNTS[:2]}
    one, two = (make_objective(loss, 2, **options) for loss in ("bce", "cross_entropy"))
    logit = OUTPUTS[:, :1]
    logits = torch.cat([torch.zeros_like(logit), logit], 1)
    torch.testing.assert_close(one(logit, targets), two(logits, targets))
    assert torch.equal(correct(logit, targets), correct(logits, targets))


def test_focal_loss_counts_easy_pictures_as_little_as_the_paper_says():
    """Section 3.2, gamma 2: at p = 0.9 a hundredth of the cross-entropy, at 0.968 about a thousandth."""
    p = torch.tensor([0.9, 0.968])
    logits = torch.stack([p.log(), (1 - p).log()], 1)
    shares = make_objective("focal", 2)(logits, torch.zeros(2).long()) / -p.log()
    assert shares[0].item() == pytest.approx(1 / 100, rel=1e-3)
    assert shares[1].item() == pytest.approx(1 / 1000, rel=0.03)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_is_torchvisions(gamma):
    reference = sigmoid_focal_loss(OUTPUTS, SETS, alpha=-1, gamma=gamma)
    losses = make_objective("focal", K, several=True, focal_gamma=gamma)(OUTPUTS, SETS)
    torch.testing.assert_close(losses, reference.mean(1))
    logits = torch.stack([torch.zeros(B), OUTPUTS[:, 0]], 1)
    losses = make_objective("focal", 2, focal_gamma=gamma)(logits, SETS[:, 0].long())
    torch.testing.assert_close(losses, reference[:, 0])


@pytest.mark.parametrize("several", [False, True])
def test_focal_loss_without_gamma_is_the_plain_one_and_that_of_shares_their_mean(several):
    targets = SETS if several else SHARES
    focal, plain = (make_objective(loss, K, several=several, focal_gamma=0.0) for loss in ("focal", "bce"))
    if not several:
        plain = make_objective("cross_entropy", K)
    torch.testing.assert_close(focal(OUTPUTS, targets), plain(OUTPUTS, targets))
    focal = make_objective("focal", K, several=several)
    other = targets.flip(0)
    mixed = focal(OUTPUTS, 0.3 * targets + 0.7 * other)
    torch.testing.assert_close(mixed, 0.3 * focal(OUTPUTS, targets) + 0.7 * focal(OUTPUTS, other))


@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "focal"])
@pytest.mark.parametrize("several", [False, True])
def test_certain_answers_have_finite_losses_and_gradients(loss, several):
    outputs = torch.tensor([[200.0, -200, 0, 0], [0, 50, -50, 50]], requires_grad=True)
    targets = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0]])
    losses = make_objective(loss, K, several=several, focal_gamma=0.5)(outputs, targets)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(outputs.grad).all()


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.repeat(np.arange(K), COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(K), y=labels)
    weights = make_objective("cross_entropy", K, counts=COUNTS, class_weights="balanced").class_weights
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_effective_numbers_are_those_of_the_paper():
    """Proposition 1 as the sum it stands for: 1 + beta + ... + beta^(n - 1)."""
    weights = make_objective("cross_entropy", K, counts=COUNTS, class_weights="effective").class_weights.numpy()
    numbers = np.array([(0.999 ** np.arange(n)).sum() for n in COUNTS])
    np.testing.assert_allclose(weights * numbers, (weights * numbers)[0].repeat(K), rtol=1e-5)
    assert np.average(weights, weights=COUNTS) == pytest.approx(1, rel=1e-6)
    balanced = make_objective("cross_entropy", K, counts=COUNTS, class_weights="balanced").class_weights.numpy()
    assert weights[2] / weights[0] < balanced[2] / balanced[0]


@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "focal"])
def test_class_weights_multiply_the_losses_of_pictures(loss):
    options = {"counts": COUNTS, "label_smoothing": 0.1}
    plain, weighted = (make_objective(loss, K, class_weights=kind, **options) for kind in ("none", "balanced"))
    weights = torch.from_numpy(COUNTS.sum() / (K * COUNTS)).float()
    torch.testing.assert_close(weighted(OUTPUTS, LABELS), weights[LABELS] * plain(OUTPUTS, LABELS))
    torch.testing.assert_close(weighted(OUTPUTS, SHARES), (SHARES @ weights) * plain(OUTPUTS, SHARES))


def test_several_labels_weigh_what_is_present_up_to_ten():
    objective = make_objective("bce", K, several=True, counts=COUNTS, class_weights="balanced")
    weights = torch.from_numpy(COUNTS.sum() / (K * COUNTS)).float()
    assert weights.max() > 10
    expected = F.binary_cross_entropy_with_logits(OUTPUTS, SETS, pos_weight=weights.clamp_max(10), reduction="none")
    torch.testing.assert_close(objective(OUTPUTS, SETS), expected.mean(1))


def test_a_class_without_pictures_has_finite_weight_and_prior():
    for kind in ("balanced", "effective"):
        objective = make_objective("bce", 3, counts=np.array([5, 0, 15]), class_weights=kind, logit_adjustment=1.0)
        assert torch.isfinite(objective(torch.zeros(3, 3), torch.arange(3))).all()
        assert objective.class_weights[[0, 2]] @ torch.tensor([5.0, 15]) == pytest.approx(20, rel=1e-6)


def test_logit_adjustment_is_the_papers_loss():
    """Equation 10: the softmax cross-entropy of logits plus tau times the log of the class's share."""
    losses = make_objective("cross_entropy", K, counts=COUNTS, logit_adjustment=0.7)(OUTPUTS, LABELS)
    adjusted = OUTPUTS + 0.7 * torch.from_numpy(np.log(COUNTS / COUNTS.sum())).float()
    torch.testing.assert_close(losses, F.cross_entropy(adjusted, LABELS, reduction="none"))


@pytest.mark.parametrize(("loss", "classes"), [("cross_entropy", K), ("bce", K), ("bce", 2)])
def test_adjusted_logits_of_pictures_that_say_nothing_favour_no_class(loss, classes):
    """With the same input for all pictures the best plain logits give the classes' shares; adjusted, all are equal."""
    counts = COUNTS[:classes]
    outputs = torch.zeros(1, num_outputs(loss, classes), requires_grad=True)
    labels = torch.from_numpy(np.repeat(np.arange(classes), counts))
    slopes = []
    for tau in (0.0, 1.0):
        losses = make_objective(loss, classes, counts=counts, logit_adjustment=tau)(
            outputs.expand(len(labels), -1), labels
        )
        slopes.append(torch.autograd.grad(losses.mean(), outputs)[0].abs().max().item())
    assert slopes[0] > 0.05
    assert slopes[1] < 1e-6


@pytest.mark.parametrize("options", [{"loss": "cross_entropy"}, {"loss": "focal"}, {"loss": "bce", "several": True}])
def test_losses_are_float32_under_autocast_and_of_bfloat16(options):
    objective = make_objective(num_classes=K, counts=COUNTS, class_weights="balanced", **options)
    targets = SETS if objective.several else SHARES
    expected = objective(OUTPUTS.bfloat16().float(), targets)
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective(OUTPUTS.bfloat16(), targets)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)


def test_objectives_have_no_state_and_move_as_one():
    objective = make_objective("cross_entropy", K, counts=COUNTS, class_weights="balanced", logit_adjustment=1.0)
    assert not objective.state_dict()
    assert not list(objective.parameters())
    assert {buffer.device.type for buffer in objective.to("meta").buffers()} == {"meta"}


def test_right_is_the_winner_or_every_label():
    outputs = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 3, 2]])
    assert correct(outputs, torch.tensor([0, 0, 1])).tolist() == [True, False, True]
    assert correct(outputs, torch.tensor([[0.6, 0.4, 0], [0.6, 0, 0.4], [0, 1, 0]])).tolist() == [True, False, True]
    assert correct(torch.tensor([[1.0], [-1], [1]]), torch.tensor([1, 1, 0])).tolist() == [True, False, False]
    several = torch.tensor([[1.0, -1, 1], [-1, -1, -1], [1, 1, 1]])
    sets = torch.tensor([[1.0, 0, 0.7], [0.4, 0, 0], [1, 0, 1]])
    assert correct(several, sets, several=True).tolist() == [True, True, False]


def test_outputs_of_the_last_layer():
    assert [num_outputs("bce", n) for n in (2, 3, 1000)] == [1, 3, 1000]
    assert [num_outputs(loss, 2) for loss in ("cross_entropy", "focal")] == [2, 2]
    assert [num_outputs("bce", n, several=True) for n in (1, 2, 5)] == [1, 2, 5]


def test_what_does_not_fit_the_labels_is_refused_with_the_mend():
    with pytest.raises(ValueError, match="the data has one; add pictures of another class"):
        num_outputs("bce", 1)
    with pytest.raises(ValueError, match="several labels; leave it out, or use --class-weights"):
        make_objective("bce", K, several=True, counts=COUNTS, logit_adjustment=1.0)
