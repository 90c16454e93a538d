"""Frozen layers stay as they are, are let go from the head down, and fixed parameters are never trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lenext.models import create_model
from lenext.training.freezing import freeze, frozen_share, keep_still
from lenext.training.optim import layers, make_optimizer


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("share", "frozen"), [(0.0, 0), (0.5, 5), (0.3, 3), (1.0, 9)])
def test_a_share_of_the_layers_is_frozen_and_the_head_never(share, frozen):
    model = create_model("resnet18", num_classes=3)
    freeze(model, share)
    assert [all(p.requires_grad for p in layer) for layer in layers(model)] == [False] * frozen + [True] * (10 - frozen)
    freeze(model, 0.0)
    assert all(p.requires_grad for p in model.parameters())


def test_what_a_network_declares_fixed_is_never_let_go():
    model = create_model("t2t_vit_7", num_classes=3, image_size=32)
    before = trained(model)
    assert len(before) < len(list(model.parameters()))
    freeze(model, 1.0)
    assert trained(model) == {"head.weight", "head.bias"}
    freeze(model, 0.0)
    assert trained(model) == before


def test_frozen_layers_stay_bit_for_bit_and_train_once_let_go():
    model = create_model("resnet18", num_classes=3)
    freeze(model, 0.5)
    optimizer = make_optimizer(model, "adamw", lr=0.01, weight_decay=0.1)

    def step():
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.train()
        keep_still(model)
        model(torch.randn(4, 3, 32, 32)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}

    moved = step()
    assert moved
    assert all(name.startswith(("layer3", "layer4", "fc")) for name in moved)
    assert {"layer3.0.bn1.running_mean", "fc.weight"} <= moved
    freeze(model, 0.0)
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight"} <= step()


def test_dropped_gradients_of_a_frozen_layer_are_not_applied():
    model = create_model("lenet5", num_classes=3)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    freeze(model, 1.0)
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["output.weight", "output.bias"]


def test_only_what_is_wholly_frozen_is_kept_still():
    model = create_model("resnet18", num_classes=3)
    freeze(model, 0.3)  # the stem and both blocks of layer1
    model.train()
    keep_still(model)
    still = {name for name, module in model.named_modules() if not module.training}
    assert {"bn1", "layer1", "layer1.1.bn2"} <= still
    assert not [name for name in still if not name.startswith(("conv1", "bn1", "layer1"))]
    assert model.training


def test_layers_are_let_go_evenly():
    assert [frozen_share(epoch, 0.8, 4) for epoch in range(1, 7)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0, 0])
    assert [frozen_share(epoch, 0.8, 0) for epoch in (1, 100)] == [0.8, 0.8]
