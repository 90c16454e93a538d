"""The hastened depthwise convolution against torch's own, in float64 where rounding must not hide a mistake."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lenext.models import create_model
from lenext.training import depthwise
from lenext.training.depthwise import hasten_depthwise


def gradients(module, x, bfloat16=True):
    x = x.clone().requires_grad_()
    module.zero_grad()
    torch.manual_seed(1)  # of dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        y = module(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [y.float(), x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 1, 1, 1), (3, 2, 1, 1), (5, 1, 2, 1), (5, 2, 2, 1), (7, 1, 3, 1), (5, (1, 2), (0, 2), (2, 1)), (2, 2, 0, 1)],
)
def test_gradients_are_those_of_float32_within_the_rounding_of_bfloat16(kernel, stride, padding, dilation):
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, kernel, stride, padding, dilation, groups=6)
    hasty = copy.deepcopy(plain)
    hasten_depthwise(hasty)
    x = torch.randn(3, 6, 13, 14).contiguous(memory_format=torch.channels_last)
    expected = gradients(plain, x, bfloat16=False)
    got = gradients(hasty, x)
    assert torch.equal(got[0], gradients(plain, x)[0])  # the forward pass is the same to the bit
    for value, reference in zip(got, expected):
        assert value.dtype == torch.float32
        assert (value - reference).norm() <= 0.01 * reference.norm()


def test_only_depthwise_convolutions_change_and_only_under_bfloat16(monkeypatch):
    calls = []
    original = depthwise._Depthwise.apply

    def apply(*args):
        calls.append(len(args))
        return original(*args)

    monkeypatch.setattr(depthwise._Depthwise, "apply", apply)
    torch.manual_seed(0)
    model = create_model("mobilenet_v2", num_classes=3).train()
    names = list(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    before = [g.clone() for g in gradients(model, x, bfloat16=False)]
    torch.manual_seed(0)
    model = create_model("mobilenet_v2", num_classes=3).train()
    hasten_depthwise(model)
    assert list(model.state_dict()) == names
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(model, x, bfloat16=False)))
    assert not calls
    gradients(model, x)
    assert len(calls) == 17  # a depthwise convolution in each of its inverted residuals
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(x)
    assert len(calls) == 17


def test_a_copy_computes_with_its_own_weights():
    model = nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False)
    hasten_depthwise(model)
    other = copy.deepcopy(model)
    nn.init.zeros_(other.weight)
    x = torch.randn(1, 4, 8, 8)
    y, _, of_weight = gradients(other, x)
    assert not y.any()
    assert of_weight.any()
    assert gradients(model, x)[0].any()
