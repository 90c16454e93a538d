"""Every kind of network through the compiler's own kernels: forward and backward, equal to the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.inference.test_backends import require_agreement, small_network, some_pictures
from tests.models.references import without_chance
from tests.models.test_protocol import SMALLEST, images, lively, small


@pytest.mark.parametrize("name", SMALLEST)
def test_compiled_training_step(name: str) -> None:
    """Near the gradients in float64, as the plain step is: a deep network without residuals magnifies rounding.

    A kernel that is wrong is wrong by its whole size; one activation that rounding moves over the corner of a ReLU6
    changes a gradient by half a hundredth.
    """
    torch.manual_seed(0)
    model, x, labels = without_chance(lively(small(name))).train(), images(name, 4), torch.tensor([0, 1, 2, 3])
    exact = gradients(copy.deepcopy(model).double(), x.double(), labels)
    plain = gradients(copy.deepcopy(model), x, labels)
    torch.compiler.reset()
    compiled = gradients(model, x, labels, compiled=True)
    assert plain.keys() == compiled.keys() == exact.keys()
    largest = max(gradient.norm() for gradient in exact.values())
    for key, gradient in exact.items():
        # Some gradients are zero but for rounding: a bias before a batch norm.
        allowed = 10 * (plain[key] - gradient).norm() + 2e-2 * gradient.norm() + 1e-6 * largest
        assert (compiled[key] - gradient).norm() <= allowed, key


def gradients(model: nn.Module, x: Tensor, labels: Tensor, *, compiled: bool = False) -> dict[str, Tensor]:
    network = torch.compile(model, fullgraph=True) if compiled else model
    nn.functional.cross_entropy(network(x), labels).backward()
    return {key: p.grad.double() for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
def test_compiled_backend(arithmetic: str) -> None:
    require_agreement(f"compiled-{arithmetic}", small_network(), some_pictures())
