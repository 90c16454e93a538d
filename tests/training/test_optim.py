"""Layers, parameter groups, optimisers and schedules against torch, timm and closed forms."""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

import numpy as np
import pytest
import timm.optim
import torch
import torch.nn.functional as F
from torch import nn

from lenext.models import create_model
from lenext.training.muon import hidden_kernels, orthogonalise
from lenext.training.optim import (
    FRESH_SCALE,
    default_lr,
    layers,
    learning_rate,
    make_optimizer,
    parameter_groups,
)

OPTIMIZERS = ["adamw", "adam", "sgd", "lamb", "lion", "muon"]


def build(name: str) -> Any:
    """A network; ours without memory behind it, as only names and shapes matter here."""
    with torch.device("cpu" if name.startswith("timm:") else "meta"):
        return create_model(name, num_classes=7)


def names_of(model: nn.Module, layer: list[nn.Parameter]) -> set[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)] for p in layer}


# ------------------------------------------------------------------------------------------------- layers and groups
@pytest.mark.parametrize(
    ("name", "number", "first", "last"),
    [
        ("resnet18", 1 + 8 + 1, "conv1.weight", {"fc.weight", "fc.bias"}),
        ("resnet50", 1 + 16 + 1, "conv1.weight", {"fc.weight", "fc.bias"}),
        ("vgg16_bn", 13 + 3, "features.0.weight", {"classifier.6.weight", "classifier.6.bias"}),
        ("vit_tiny_patch16_224", 1 + 12 + 1, "pos_embed", {"head.weight", "head.bias"}),
        ("t2t_vit_7", 3 + 7 + 1, "cls_token", {"head.weight", "head.bias"}),
        ("convnext_tiny", 1 + 18 + 3 + 1, "stem.0.weight", {"head.fc.weight", "head.fc.bias"}),
        ("van_b0", 4 + 13 + 1, "patch_embed1.proj.weight", {"head.weight", "head.bias"}),
        ("timm:resnet18", 1 + 8 + 1, "conv1.weight", {"fc.weight", "fc.bias"}),
        ("timm:vit_tiny_patch16_224", 1 + 12 + 1, "cls_token", {"head.weight", "head.bias"}),
    ],
)
def test_layers_are_stem_blocks_and_head_with_every_parameter_once(name, number, first, last):
    model = build(name)
    found = layers(model)
    assert len(found) == number
    assert first in names_of(model, found[0])
    assert names_of(model, found[-1]) == last
    ids = [id(p) for layer in found for p in layer]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))


def test_containers_of_any_network_are_descended_into():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions = nn.Parameter(torch.zeros(1, 3, 8))
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 1, 8) for _ in range(3))
            self.norm = nn.LayerNorm(8)

    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), Encoder(), nn.Linear(8, 2))
    found = [names_of(model, layer) for layer in layers(model)]
    assert [len(layer) for layer in found] == [5, 12, 12, 14, 2]
    assert found[0] == {"0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "1.positions"}
    assert {"1.norm.weight", "1.layers.2.linear1.weight"} <= found[3]
    assert found[4] == {"2.weight", "2.bias"}


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224"])
def test_norms_biases_tokens_and_tables_do_not_decay_as_timm_says(name):
    model = build(name)
    groups = parameter_groups(model, 0.05)
    mine = {name for group in groups if group["weight_decay"] for name in names_of(model, group["params"])}
    spare: set[str] = model.no_weight_decay()
    reference = timm.optim.param_groups_weight_decay(model, 0.05, no_weight_decay_list=spare)
    assert mine == names_of(model, next(g["params"] for g in reference if g["weight_decay"]))
    assert {g["weight_decay"] for g in groups} == {0.0, 0.05}


def test_rates_fall_by_layer_from_the_head_as_in_timm():
    model = build("timm:vit_tiny_patch16_224")

    def scales(groups):
        return {name: g["lr_scale"] for g in groups for name in names_of(model, g["params"])}

    mine = scales(parameter_groups(model, 0.05, layer_decay=0.7))
    reference = scales(timm.optim.param_groups_layer_decay(model, 0.05, layer_decay=0.7))
    assert mine == pytest.approx(reference)
    fresh = scales(parameter_groups(model, 0.05, layer_decay=0.7, fresh=model.head))
    assert fresh["head.bias"] == FRESH_SCALE
    assert fresh["norm.bias"] == pytest.approx(0.7)


def test_what_a_network_declares_fixed_is_in_no_group():
    model = build("t2t_vit_7")
    held = {name for group in parameter_groups(model, 0.05) for name in names_of(model, group["params"])}
    assert {name for name, _ in model.named_parameters()} - held == {
        "pos_embed", "tokens_to_token.attention1.w", "tokens_to_token.attention2.w",
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------------- optimisers
def small_network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6 * 16, 3)
    )


def train(model, optimizer, steps, start=0, lr=0.01):
    losses = []
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step % 4)
        x = torch.randn(16, 3, 8, 8, generator=generator)
        y = x.mean((2, 3)).argmax(1)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def make(model, name, **options):
    return make_optimizer(model, name, lr=0.01, weight_decay=0.01, **options)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_minimise(name):
    model = small_network()
    losses = train(model, make(model, name), 60, lr={"lion": 0.003, "sgd": 0.05}.get(name, 0.01))
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:3])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_of_tensors_and_json_resumes_bit_for_bit(name):
    straight = small_network().to(memory_format=torch.channels_last)
    train(straight, make(straight, name, layer_decay=0.8), 6)

    model = small_network().to(memory_format=torch.channels_last)
    optimizer = make(model, name, layer_decay=0.8)
    train(model, optimizer, 3)
    state = optimizer.state_dict()
    tensors = {i: {k: v.clone() for k, v in s.items() if torch.is_tensor(v)} for i, s in state["state"].items()}
    groups = json.loads(json.dumps(state["param_groups"]))
    model = copy.deepcopy(model)
    optimizer = make(model, name, layer_decay=0.8)
    optimizer.load_state_dict({"state": tensors, "param_groups": groups})
    train(model, optimizer, 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(straight.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_memory_format_changes_nothing(name):
    plain, last = small_network(), small_network().to(memory_format=torch.channels_last)
    gradients = [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) for i, p in enumerate(plain.parameters())
    ]
    for model in (plain, last):
        optimizer = make(model, name)
        for _ in range(3):
            for p, gradient in zip(model.parameters(), gradients):
                p.grad = torch.empty_like(p).copy_(gradient)
            optimizer.step()
    assert last[3].weight.is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(plain.parameters(), last.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_gets_its_first_gradient_later_starts_as_the_rest_did(name):
    """As when frozen layers are let go: the first step of a late parameter is the first step of an early one."""
    moved = []
    for late in (False, True):
        model = small_network()
        optimizer = make(model, name, momentum=0.9)
        for step in range(2):
            torch.manual_seed(0)
            for number, p in enumerate(model.parameters()):
                gradient = torch.randn_like(p)
                p.grad = gradient if number or step or not late else None
            before = model[0].weight.clone()
            optimizer.step()
            if step == late:
                moved.append(model[0].weight - before)
    if name == "lamb":  # counts steps for all together, and so corrects no bias in the late one
        assert moved[1].norm() > 0
    else:
        torch.testing.assert_close(*moved)


def test_momentum_and_nesterov_are_torchs_own():
    model, reference = small_network(), small_network()
    groups = [
        {"params": [p], "weight_decay": 0.01 if p.ndim > 1 else 0.0, "lr_scale": 1.0} for p in reference.parameters()
    ]
    train(model, make(model, "sgd", momentum=0.8, nesterov=True), 4)
    train(reference, torch.optim.SGD(groups, lr=0.01, momentum=0.8, nesterov=True, foreach=False), 4)
    for a, b in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="set --momentum"):
        make(model, "sgd", momentum=0.0, nesterov=True)


def test_lamb_without_decay_is_adam_and_clips_nothing():
    model, reference = small_network(), small_network()
    optimizers = [
        make_optimizer(model, "lamb", lr=0.01, weight_decay=0.0),
        torch.optim.Adam(reference.parameters(), lr=0.01, eps=1e-6),
    ]
    for step in range(4):
        for network, optimizer in zip((model, reference), optimizers):
            torch.manual_seed(step)
            for p in network.parameters():
                p.grad = 10**step * torch.randn_like(p)
            optimizer.step()
    for a, b in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_lion_decays_and_steps_by_signs():
    model = small_network()
    optimizer = make_optimizer(model, "lion", lr=0.01, weight_decay=0.5)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    for p, start in zip(model.parameters(), before):
        decay = 0.5 if p.ndim > 1 else 0.0
        torch.testing.assert_close(p.detach(), start * (1 - 0.01 * decay) - 0.01 * p.grad.sign())


def test_a_missing_package_and_a_wrong_name_are_said(monkeypatch):
    model = small_network()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'lenext\[optimizers\]'"):
        make(model, "lion")
    with pytest.raises(ValueError, match="choose one of adamw"):
        make(model, "adagrad")


# -------------------------------------------------------------------------------------------------------------- muon
@pytest.mark.parametrize("shape", [(2, 6, 6), (2, 6, 40), (3, 40, 6), (1, 5, 9)])
def test_orthogonalised_matrices_have_the_directions_of_the_svd(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    singular = u.mT @ orthogonalise(x) @ v.mT  # diagonal, and near the identity
    diagonal = singular.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.6
    assert diagonal.max() < 1.25
    torch.testing.assert_close(singular, torch.diag_embed(diagonal), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (9, 9)])
def test_muon_of_a_matrix_is_torchs(shape):
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(5, *shape)
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.Linear(shape[1], shape[0], bias=False), nn.Linear(2, 2))
    mine, reference = model[1].weight, nn.Parameter(start.clone())
    mine.data.copy_(start)
    ours = make_optimizer(model, "muon", lr=0.1, weight_decay=0.1, momentum=0.9)
    theirs = torch.optim.Muon([reference], lr=0.1, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        mine.grad, reference.grad = gradient.clone(), gradient.clone()
        ours.step()
        theirs.step()
    # Torch iterates in bfloat16, whose steps are 1/256.
    assert (mine - reference).norm() < 0.02 * (reference - start).norm()


def test_muon_takes_hidden_kernels_and_adamw_the_rest():
    model = build("resnext50_32x4d")
    chosen = names_of(model, [p for p in model.parameters() if id(p) in hidden_kernels(model, layers(model))])
    assert "layer1.0.conv1.weight" in chosen
    assert "layer1.0.downsample.0.weight" in chosen
    # The stem, grouped convolutions, norms and the head.
    assert not chosen & {"conv1.weight", "layer1.0.conv2.weight", "layer1.0.bn1.weight", "fc.weight"}
    model = build("vit_tiny_patch16_224")
    chosen = names_of(model, [p for p in model.parameters() if id(p) in hidden_kernels(model, layers(model))])
    assert len(chosen) == 12 * 4
    assert all(name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight")) for name in chosen)


def test_the_rest_under_muon_moves_as_under_adamw():
    model, reference = small_network(), small_network()
    optimizers = [make(model, "muon"), make(reference, "adamw")]
    for step in range(3):
        for network, optimizer in zip((model, reference), optimizers):
            torch.manual_seed(step)
            for p in network.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
    for (name, a), b in zip(model.named_parameters(), reference.parameters()):
        assert torch.equal(a, b) == (name != "3.weight")


def test_a_muon_step_has_the_size_of_adamws_usual_one():
    model = small_network()
    before = model[3].weight.detach().clone()
    optimizer = make_optimizer(model, "muon", lr=1.0, weight_decay=0.0)
    model[3].weight.grad = torch.randn_like(before)
    optimizer.step()
    assert (model[3].weight.detach() - before).square().mean().sqrt() == pytest.approx(0.2, rel=0.2)


# --------------------------------------------------------------------------------------------------------- schedules
def rates(name, **options):
    options = {"peak": 0.1, "steps_per_epoch": 10, "epochs": 5, **options}
    return [learning_rate(step, schedule=name, **options) for step in range(50)]


def torchs(make_scheduler, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = make_scheduler(optimizer)
    found = []
    for _ in range(steps):
        found.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return found


SCHEDULERS = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("name", "options", "make_scheduler"),
    [
        ("cosine", {}, lambda o: SCHEDULERS.CosineAnnealingLR(o, T_max=40)),
        ("cosine", {"final_lr": 0.2}, lambda o: SCHEDULERS.CosineAnnealingLR(o, T_max=40, eta_min=0.02)),
        ("constant", {}, lambda o: SCHEDULERS.ConstantLR(o, factor=1)),
        ("decay", {"lr_decay": 0.9}, lambda o: SCHEDULERS.StepLR(o, 10, 0.9)),
        ("step", {"lr_decay": 0.1, "lr_epochs": 2}, lambda o: SCHEDULERS.StepLR(o, 20, 0.1)),
        ("exponential", {"lr_decay": 0.9}, lambda o: SCHEDULERS.ExponentialLR(o, 0.9**0.1)),
    ],
)
def test_schedules_are_torchs_after_a_linear_warm_up(name, options, make_scheduler):
    found = rates(name, warmup_epochs=1, **options)
    np.testing.assert_allclose(found[:10], np.arange(1, 11) / 100)
    np.testing.assert_allclose(found[10:], torchs(make_scheduler, 40), atol=1e-12)


@pytest.mark.parametrize("final_lr", [0.0, 0.01])
def test_one_cycle_is_torchs_and_takes_no_other_warm_up(final_lr):
    final = 1 / (25 * final_lr) if final_lr else 1e30
    expected = torchs(lambda o: SCHEDULERS.OneCycleLR(o, max_lr=0.1, total_steps=50, final_div_factor=final), 50)
    np.testing.assert_allclose(rates("one_cycle", final_lr=final_lr, warmup_epochs=2), expected, atol=1e-12)


def test_an_unknown_schedule_is_said():
    with pytest.raises(ValueError, match="choose one of cosine"):
        rates("linear")


def test_default_rates_grow_with_the_batch():
    assert default_lr("sgd", False, 256) == 0.1
    assert default_lr("sgd", False, 512) == 0.2
    assert default_lr("adamw", True, 256) == pytest.approx(2 * default_lr("adamw", True, 64))
    assert default_lr("lion", False, 64) < default_lr("adamw", False, 64) < default_lr("lamb", False, 64)
    assert default_lr("lamb", False, 512) == pytest.approx(0.005, rel=0.2)
