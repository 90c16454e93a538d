"""Every kind of network through the compiler's own kernels: forward and backward, equal to the plain ones."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.inference.test_backends import require_agreement, small_network, some_pictures
from tests.models.references import without_chance
from tests.models.test_protocol import SMALLEST, images, lively, small


@pytest.mark.parametrize("name", SMALLEST)
def test_compiled_training_step(name: str) -> None:
    torch.compiler.reset()
    require_exact_gradients(name, functools.partial(gradients, compiled=True), share=1e-5)


def require_exact_gradients(name: str, of: Callable[..., dict[str, Tensor]], *, share: float) -> None:
    """As near to the gradients in float64 as the plain step, whose inputs change by no more than rounding does.

    Deep networks magnify rounding, and where it moves one activation over the corner of a ReLU6 the gradient jumps: by
    half a hundredth in MobileNetV2, whose compiled step is exact to 1e-13 in float64.
    of: (network, x, labels) -> gradients. share: of a gradient's norm, for what else may round.
    """
    torch.manual_seed(0)
    model, x, labels = without_chance(lively(small(name))).train(), images(name, 4), torch.tensor([0, 1, 2, 3])
    exact = gradients(copy.deepcopy(model).double(), x.double(), labels)
    rounded = [x, *(x * (1 + 2e-7 * torch.randn_like(x)) for _ in range(8))]
    plain = [gradients(copy.deepcopy(model), inputs, labels) for inputs in rounded]
    ours = of(model, x, labels)
    assert plain[0].keys() == ours.keys() == exact.keys()
    largest = max(gradient.norm() for gradient in exact.values())
    for key, gradient in exact.items():
        # Some gradients are zero but for rounding: a bias before a batch norm.
        rounding = max((one[key] - gradient).norm() for one in plain)
        allowed = 3 * rounding + share * gradient.norm() + 1e-6 * largest
        assert (ours[key].cpu() - gradient).norm() <= allowed, key


def gradients(model: nn.Module, x: Tensor, labels: Tensor, *, compiled: bool = False) -> dict[str, Tensor]:
    network = torch.compile(model, fullgraph=True) if compiled else model
    nn.functional.cross_entropy(network(x), labels).backward()
    return {key: p.grad.double() for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
def test_compiled_backend(arithmetic: str) -> None:
    require_agreement(f"compiled-{arithmetic}", small_network(), some_pictures())
