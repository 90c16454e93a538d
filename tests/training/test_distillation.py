# mypy: disable-error-code="arg-type,index,operator,union-attr"
"""Distillation against the papers' formulas, and teachers of other classes, sizes and normalisations."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit, log_softmax, rel_entr, softmax
from torch import Tensor, nn

from lenext.classifier import Classifier
from lenext.data.transforms import normalise
from lenext.models import create_model
from lenext.preprocess import Preprocess
from lenext.training.distillation import Distillation, student
from lenext.training.objective import make_objective

CLASSES = ("cat", "dog", "fox")
HALF = Preprocess(image_size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
LABELS = torch.tensor([0, 1, 2, 0, 1])
B, K, T = len(LABELS), len(CLASSES), 3.0


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


PIXELS = torch.randint(256, (B, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
INPUTS = normalise(PIXELS, HALF)
OUTPUTS = 2 * numbers(B, K, seed=1)


def make_teacher(classes=CLASSES, preprocess=HALF, outputs: int | None = None, temperature: float = 1.0) -> Classifier:
    """A linear map of the pixels, with a dropout that would show if it were ever in training mode."""
    torch.manual_seed(3)
    side = preprocess.image_size
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * side * side, outputs or len(classes)))
    nn.init.normal_(model[2].weight, std=0.2)
    return Classifier(model, {}, tuple(classes), preprocess, temperature=temperature)


def answers(teacher: Classifier, x: Tensor) -> np.ndarray:
    """Logits of the teacher, by hand."""
    weight, bias = (p.detach().numpy().astype(np.float64) for p in teacher.model[2].parameters())
    return x.flatten(1).numpy().astype(np.float64) @ weight.T + bias


def make(
    teacher: Classifier, *, objective=None, kind="soft", weight=0.5, temperature=T, classes=CLASSES
) -> Distillation:
    objective = objective or make_objective("cross_entropy", len(classes))
    return Distillation(
        objective, teacher, classes=classes, preprocess=HALF, kind=kind, weight=weight, temperature=temperature
    )


def kullback_leibler(teacher: np.ndarray, outputs: Tensor, temperature: float) -> np.ndarray:
    q, p = softmax(teacher / temperature, 1), softmax(outputs.double().numpy() / temperature, 1)
    return rel_entr(q, p).sum(1)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_soft_is_hintons_sum(weight):
    teacher = make_teacher()
    losses = make(teacher, weight=weight)(OUTPUTS, LABELS, INPUTS)
    labels = F.cross_entropy(OUTPUTS, LABELS, reduction="none").numpy()
    expected = (1 - weight) * labels + weight * T**2 * kullback_leibler(answers(teacher, INPUTS), OUTPUTS, T)
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-5)


def test_at_a_high_temperature_soft_matches_logits():
    """Section 2.1 of Hinton et al.: the gradient tends to (z - v) / N for logits of mean zero; theirs lacks our T."""
    teacher = make_teacher()
    outputs = (OUTPUTS - OUTPUTS.mean(1, keepdim=True)).requires_grad_()
    make(teacher, weight=1.0, temperature=1000.0)(outputs, LABELS, INPUTS).sum().backward()
    v = answers(teacher, INPUTS)
    expected = (outputs.detach().numpy() - (v - v.mean(1, keepdims=True))) / K
    np.testing.assert_allclose(outputs.grad, expected, atol=0.02)


def test_hard_is_the_cross_entropy_of_the_teachers_winner():
    """Equation 3 of Touvron et al., with the two heads of a student, and with its only one."""
    teacher = make_teacher()
    heads = (OUTPUTS, 2 * numbers(B, K, seed=2))
    winners = torch.from_numpy(answers(teacher, INPUTS).argmax(1))
    assert not torch.equal(winners, LABELS)
    distillation = make(teacher, kind="hard")
    for outputs, from_teacher in ((heads, heads[1]), (OUTPUTS, OUTPUTS)):
        expected = F.cross_entropy(OUTPUTS, LABELS, reduction="none") / 2
        expected += F.cross_entropy(from_teacher, winners, reduction="none") / 2
        torch.testing.assert_close(distillation(outputs, LABELS, INPUTS), expected)
    torch.testing.assert_close(distillation.answers(heads), (heads[0] + heads[1]) / 2)
    assert distillation.answers(OUTPUTS) is OUTPUTS


def test_classes_are_found_by_name_and_the_rest_left_out():
    teacher = make_teacher(("fox", "owl", "cat", "dog"))
    losses = make(teacher, weight=1.0)(OUTPUTS, LABELS, INPUTS)
    known = answers(teacher, INPUTS)[:, [2, 3, 0]]
    np.testing.assert_allclose(losses, T**2 * kullback_leibler(known, OUTPUTS, T), rtol=1e-4)
    with pytest.raises(
        ValueError, match=r"does not know the class 'elk', 'gnu'; it knows 'fox', 'owl', 'cat' and 1 more"
    ):
        make(teacher, classes=("cat", "elk", "gnu"))


def test_a_teacher_gets_its_own_normalisation_and_size():
    size = 12
    own = Preprocess(image_size=size, mean=(0.2, 0.5, 0.8), std=(0.3, 0.2, 0.1), interpolation="bicubic")
    teacher = make_teacher(preprocess=own)
    distillation = make(teacher)
    resized = F.interpolate(PIXELS.float(), (size, size), mode="bicubic", antialias=True)
    expected = answers(
        teacher, (resized / 255 - torch.tensor(own.mean).view(3, 1, 1)) / torch.tensor(own.std).view(3, 1, 1)
    )
    np.testing.assert_allclose(distillation.teach(INPUTS), expected, atol=1e-3)
    # A student whose input grows over the run: what is already of the right size is left alone.
    exact = normalise(torch.randint(256, (2, 3, size, size), dtype=torch.uint8), HALF)
    raw = exact * 0.5 + 0.5
    expected = answers(teacher, (raw - torch.tensor(own.mean).view(3, 1, 1)) / torch.tensor(own.std).view(3, 1, 1))
    np.testing.assert_allclose(distillation.teach(exact), expected, atol=1e-3)


def test_large_pictures_are_made_smaller_without_aliasing():
    """Stripes of one pixel are grey to a teacher of half the size."""
    teacher = make_teacher(preprocess=Preprocess(image_size=8, mean=HALF.mean, std=HALF.std))
    stripes = torch.ones(1, 3, 24, 24)
    stripes[..., ::2] = -1
    grey = answers(teacher, torch.zeros(1, 3, 8, 8))
    assert abs(make(teacher).teach(stripes).numpy() - grey).max() < 0.3
    assert abs(answers(teacher, stripes[..., ::3, ::3]) - grey).max() > 1


def test_a_teacher_is_as_sure_as_its_own_temperature_says():
    teacher = make_teacher(temperature=2.5)
    np.testing.assert_allclose(make(teacher).teach(INPUTS), answers(teacher, INPUTS) / 2.5, atol=1e-5)


def test_two_classes_with_one_output_on_either_side_or_both():
    classes = CLASSES[:2]
    labels, logit = LABELS % 2, OUTPUTS[:, :1]
    both = torch.cat([torch.zeros(B, 1), logit], 1)
    binary = make_objective("bce", 2)
    for outputs in (1, 2):
        teacher = make_teacher(classes, outputs=outputs)
        expected = make(teacher, classes=classes)(both, labels, INPUTS)
        known = answers(teacher, INPUTS)
        known = np.concatenate([np.zeros((B, 1)), known], 1) if outputs == 1 else known
        soft = T**2 * kullback_leibler(known, both, T)
        np.testing.assert_allclose(
            expected, (F.cross_entropy(both, labels, reduction="none").numpy() + soft) / 2, rtol=1e-4, atol=1e-5
        )
        for kind in ("soft", "hard"):
            expected = make(teacher, classes=classes, kind=kind)(both, labels, INPUTS)
            losses = make(teacher, classes=classes, kind=kind, objective=binary)(logit, labels, INPUTS)
            torch.testing.assert_close(losses, expected)


def test_every_sigmoid_learns_the_probability_of_its_class():
    teacher = make_teacher()
    log_q = log_softmax(answers(teacher, INPUTS), 1)
    objective = make_objective("bce", K)
    q = expit((log_q - np.log1p(-np.exp(log_q))) / T)
    p = expit(OUTPUTS.double().numpy() / T)
    expected = T**2 * (rel_entr(q, p) + rel_entr(1 - q, 1 - p)).mean(1)
    distillation = make(teacher, objective=objective, weight=1.0)
    np.testing.assert_allclose(distillation(OUTPUTS, LABELS, INPUTS), expected, rtol=1e-3, atol=1e-5)
    perfect = torch.from_numpy(log_q - np.log1p(-np.exp(log_q))).float()
    np.testing.assert_allclose(distillation(perfect, LABELS, INPUTS), 0, atol=1e-4)  # at any temperature
    hard = make(teacher, objective=objective, weight=1.0, kind="hard")(OUTPUTS, LABELS, INPUTS)
    winners = F.one_hot(torch.from_numpy(log_q.argmax(1)), K).float()
    expected = F.binary_cross_entropy_with_logits(OUTPUTS, winners, reduction="none").mean(1)
    torch.testing.assert_close(hard, expected)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_a_teacher_without_doubt_gives_finite_gradients(loss):
    teacher = make_teacher()
    nn.init.normal_(teacher.model[2].weight, std=100)
    outputs = (50 * OUTPUTS).requires_grad_()
    losses = make(teacher, objective=make_objective(loss, K))(outputs, LABELS, INPUTS)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(outputs.grad).all()


def test_every_label_of_several_is_learned_from_a_teacher_of_several():
    objective = make_objective("bce", K, several=True)
    sets = (numbers(B, K, seed=4) > 0).float()
    teacher = make_teacher(("fox", "dog", "cat"), temperature=2.0)
    with pytest.raises(ValueError, match="a picture one label, and these pictures have several; take a teacher"):
        make(teacher, objective=objective)
    teacher.task = "multi-label"
    known = answers(teacher, INPUTS)[:, [2, 1, 0]] / 2
    q, p = expit(known / T), expit(OUTPUTS.double().numpy() / T)
    labels = F.binary_cross_entropy_with_logits(OUTPUTS, sets, reduction="none").mean(1)
    expected = (labels.numpy() + T**2 * (rel_entr(q, p) + rel_entr(1 - q, 1 - p)).mean(1)) / 2
    np.testing.assert_allclose(make(teacher, objective=objective)(OUTPUTS, sets, INPUTS), expected, rtol=1e-4)
    winners = torch.from_numpy(known > 0).float()
    expected = F.binary_cross_entropy_with_logits(OUTPUTS, winners, reduction="none").mean(1)
    hard = make(teacher, objective=objective, kind="hard", weight=1.0)(OUTPUTS, sets, INPUTS)
    torch.testing.assert_close(hard, expected)
    with pytest.raises(ValueError, match="a picture several labels, and these pictures have one; take a teacher"):
        make(teacher)


def test_the_teacher_is_no_part_of_what_is_trained_but_moves_along():
    teacher = make_teacher()
    teacher.model.train()
    distillation = make(teacher)
    distillation.train()
    before = copy.deepcopy(teacher.model.state_dict())
    outputs = OUTPUTS.clone().requires_grad_()
    first = distillation(outputs, LABELS, INPUTS)
    first.sum().backward()
    assert torch.equal(first, distillation(outputs, LABELS, INPUTS))  # its dropout would differ
    assert not list(distillation.parameters())
    assert not distillation.state_dict()
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not distillation.teach(INPUTS.clone().requires_grad_()).requires_grad
    assert all(torch.equal(value, before[name]) for name, value in teacher.model.state_dict().items())
    distillation.to("meta")
    assert {p.device.type for p in teacher.model.parameters()} == {"meta"}
    assert {b.device.type for b in distillation.buffers()} == {"meta"}


def test_the_teacher_computes_in_the_autocast_it_is_called_in():
    teacher, seen = make_teacher(), []
    teacher.model.register_forward_hook(lambda module, x, outputs: seen.append(outputs.dtype))
    distillation = make(teacher)
    exact = distillation(OUTPUTS, LABELS, INPUTS)
    with torch.autocast("cpu", torch.bfloat16):
        losses = distillation(OUTPUTS.bfloat16(), LABELS, INPUTS.contiguous(memory_format=torch.channels_last))
        assert distillation.teach(INPUTS).dtype == torch.float32
    assert seen == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, exact, rtol=0.05, atol=0.05)


def test_a_student_with_a_token_gives_both_heads_in_training_on_the_same_parameters():
    network = create_model("deit_tiny_distilled_patch16_224", num_classes=K, image_size=32).eval()
    x = numbers(2, 3, 32, 32)
    both = student(network)
    assert both is not None
    assert {id(p) for p in both.parameters()} == {id(p) for p in network.parameters()}
    expected = network.forward_distilled(x)
    assert torch.equal(both(x), network(x))  # the network is in evaluation mode, whatever holds it
    heads = both.train()(x)
    torch.testing.assert_close(heads, expected)  # no dropout by default
    make(make_teacher(preprocess=Preprocess(image_size=32)), kind="hard")(
        heads, torch.tensor([0, 1]), x
    ).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (network.head.weight, network.head_dist.weight))
    assert student(create_model("lenet5", num_classes=K)) is None
