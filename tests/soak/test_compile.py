"""Every kind of network through the compiler's own kernels: forward and backward, equal to the plain ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.inference.test_backends import require_agreement, small_network, some_pictures
from tests.models.references import close, without_chance
from tests.models.test_protocol import SMALLEST, images, lively, small


@pytest.mark.parametrize("name", SMALLEST)
def test_compiled_training_step(name: str) -> None:
    torch.manual_seed(0)
    model, x, labels = without_chance(lively(small(name))).train(), images(name, 4), torch.tensor([0, 1, 2, 3])
    gradients: list[dict[str, torch.Tensor]] = []
    statistics = {key: buffer.clone() for key, buffer in model.named_buffers()}
    torch.compiler.reset()
    for network in (model, torch.compile(model, fullgraph=True)):
        for key, buffer in model.named_buffers():
            buffer.copy_(statistics[key])
        model.zero_grad()
        logits = network(x)
        nn.functional.cross_entropy(logits, labels).backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    plain, compiled = gradients
    assert plain.keys() == compiled.keys()
    largest = max(gradient.abs().max() for gradient in plain.values())
    for key, gradient in plain.items():
        # Some gradients are zero but for rounding: a bias before a batch norm.
        assert close(compiled[key], gradient) or (compiled[key] - gradient).abs().max() <= 1e-4 * largest, key


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
def test_compiled_backend(arithmetic: str) -> None:
    require_agreement(f"compiled-{arithmetic}", small_network(), some_pictures())
