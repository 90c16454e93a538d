"""The Visual Attention Network against a plain second computation of it, which no library has.

Guo et al. 2022, "Visual Attention Network", https://arxiv.org/abs/2202.09741, sections 3.1 and 3.2 and table 2;
names and numeric details as in https://github.com/Visual-Attention-Network/VAN-Classification. The reference below
uses nothing of the package.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lenext.models import create_model, weights
from tests.models.references import build_ours, close, images, translated

# name -> channels of the four stages, their blocks
OFFICIAL: dict[str, tuple[Sequence[int], Sequence[int]]] = {
    "van_b0": ((32, 64, 160, 256), (3, 3, 5, 2)),
    "van_b1": ((64, 128, 320, 512), (2, 2, 4, 2)),
    "van_b2": ((64, 128, 320, 512), (3, 3, 12, 3)),
    "van_b3": ((64, 128, 320, 512), (3, 5, 27, 3)),
}
EXPANSION = (8, 8, 4, 4)  # of the feed-forward part, by stage
SHORT = (1, 2, 1, 1)


def official_shapes(
    channels: Sequence[int], depths: Sequence[int], in_channels: int = 3, num_classes: int = 1000
) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the authors' checkpoints."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(key: str, out: int, inputs: int, size: int) -> None:
        shapes[f"{key}.weight"], shapes[f"{key}.bias"] = (out, inputs, size, size), (out,)

    def batch_norm(key: str, dim: int) -> None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{key}.{name}"] = (dim,)
        shapes[f"{key}.num_batches_tracked"] = ()

    before = in_channels
    for stage, (dim, depth, expansion) in enumerate(zip(channels, depths, EXPANSION, strict=True), start=1):
        convolution(f"patch_embed{stage}.proj", dim, before, 7 if stage == 1 else 3)
        batch_norm(f"patch_embed{stage}.norm", dim)
        for i in range(depth):
            block = f"block{stage}.{i}"
            shapes[f"{block}.layer_scale_1"] = shapes[f"{block}.layer_scale_2"] = (dim,)
            batch_norm(f"{block}.norm1", dim)
            convolution(f"{block}.attn.proj_1", dim, dim, 1)
            convolution(f"{block}.attn.spatial_gating_unit.conv0", dim, 1, 5)
            convolution(f"{block}.attn.spatial_gating_unit.conv_spatial", dim, 1, 7)
            convolution(f"{block}.attn.spatial_gating_unit.conv1", dim, dim, 1)
            convolution(f"{block}.attn.proj_2", dim, dim, 1)
            batch_norm(f"{block}.norm2", dim)
            convolution(f"{block}.mlp.fc1", expansion * dim, dim, 1)
            convolution(f"{block}.mlp.dwconv.dwconv", expansion * dim, 1, 3)
            convolution(f"{block}.mlp.fc2", dim, expansion * dim, 1)
        shapes[f"norm{stage}.weight"] = shapes[f"norm{stage}.bias"] = (dim,)
        before = dim
    shapes["head.weight"], shapes["head.bias"] = (num_classes, before), (num_classes,)
    return shapes


def random_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Values that keep the signals of moderate size: a gate multiplies two of them in every block."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in shapes.items():
        tensor = torch.zeros(shape)
        if key.endswith("num_batches_tracked"):
            tensor = tensor.long()
        elif "layer_scale" in key:
            tensor.uniform_(0.1, 0.5, generator=generator)
        elif len(shape) > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
        elif key.endswith(("weight", "running_var")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            tensor.normal_(std=0.1, generator=generator)
        state[key] = tensor
    return state


def reference(
    state: dict[str, Tensor], x: Tensor, depths: Sequence[int], moved: dict[str, Tensor] | None = None
) -> Tensor:
    """Images (B, C, H, W) -> logits (B, num_classes).

    moved: with it, the batch's own statistics normalise, as in training, and it gets the running ones after the step.
    """

    def convolve(key: str, x: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
        weight, bias = state[f"{key}.weight"], state[f"{key}.bias"]
        groups = x.shape[1] if weight.shape[1] == 1 else 1  # one filter a channel, or all
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    def batch_norm(key: str, x: Tensor) -> Tensor:
        mean, variance = state[f"{key}.running_mean"], state[f"{key}.running_var"]
        if moved is not None:
            n = x.shape[0] * x.shape[2] * x.shape[3]
            running_mean, running_variance = mean, variance
            mean = x.sum(dim=(0, 2, 3)) / n
            variance = ((x - mean[:, None, None]) ** 2).sum(dim=(0, 2, 3)) / n
            moved[f"{key}.running_mean"] = 0.9 * running_mean + 0.1 * mean.detach()
            moved[f"{key}.running_var"] = 0.9 * running_variance + 0.1 * variance.detach() * n / (n - 1)
        weight = state[f"{key}.weight"] / (variance + 1e-5).sqrt()
        return (x - mean[:, None, None]) * weight[:, None, None] + state[f"{key}.bias"][:, None, None]

    def large_kernel_attention(key: str, x: Tensor) -> Tensor:
        attention = convolve(f"{key}.conv0", x, padding=2)
        attention = convolve(f"{key}.conv_spatial", attention, padding=9, dilation=3)
        attention = convolve(f"{key}.conv1", attention)
        return attention * x

    def attend(key: str, x: Tensor) -> Tensor:
        y = F.gelu(convolve(f"{key}.proj_1", x))
        y = large_kernel_attention(f"{key}.spatial_gating_unit", y)
        return convolve(f"{key}.proj_2", y) + x

    def feed_forward(key: str, x: Tensor) -> Tensor:
        x = convolve(f"{key}.fc1", x)
        x = F.gelu(convolve(f"{key}.dwconv.dwconv", x, padding=1))
        return convolve(f"{key}.fc2", x)

    for stage, depth in enumerate(depths, start=1):
        stride, padding = (4, 3) if stage == 1 else (2, 1)
        x = convolve(f"patch_embed{stage}.proj", x, stride, padding)
        x = batch_norm(f"patch_embed{stage}.norm", x)
        for i in range(depth):
            block = f"block{stage}.{i}"
            scale_1, scale_2 = (state[f"{block}.layer_scale_{n}"][:, None, None] for n in (1, 2))
            x = x + scale_1 * attend(f"{block}.attn", batch_norm(f"{block}.norm1", x))
            x = x + scale_2 * feed_forward(f"{block}.mlp", batch_norm(f"{block}.norm2", x))
        pixels = x.permute(0, 2, 3, 1)  # (B, H, W, dim)
        weight, bias = state[f"norm{stage}.weight"], state[f"norm{stage}.bias"]
        x = F.layer_norm(pixels, weight.shape, weight, bias, eps=1e-6).permute(0, 3, 1, 2)
    return F.linear(x.mean(dim=(2, 3)), state["head.weight"], state["head.bias"])


def test_the_authors_checkpoint_loads(tmp_path: Path) -> None:
    """As their training program saves it, under the name of the published file."""
    state = random_state(official_shapes(*OFFICIAL["van_b0"]))
    path = tmp_path / "van_tiny_754.pth.tar"
    content = {"epoch": 309, "arch": "van_tiny", "state_dict": state, "version": 2, "metric": 75.4}
    torch.save({**content, "args": argparse.Namespace(model="van_tiny", drop_path=0.1)}, path)
    model = create_model("van_b0", pretrained=path).eval()
    x = images(2, 64)
    with torch.inference_mode():
        expected = reference(state, x, OFFICIAL["van_b0"][1])
        assert expected.std() > 0.1, "the comparison would see nothing"
        assert close(model(x), expected)


@pytest.mark.parametrize(
    ("name", "height", "width", "in_channels"),
    [("van_b0", 75, 75, 5), ("van_b1", 64, 101, 1), ("van_b2", 64, 64, 3), ("van_b3", 97, 64, 3)],
)
def test_logits(name: str, height: int, width: int, in_channels: int, tmp_path: Path) -> None:
    """With fewer blocks: those of a stage differ in nothing. Sides that 32 does not divide are rounded up."""
    state = random_state(official_shapes(OFFICIAL[name][0], SHORT, in_channels))
    torch.save({"state_dict": state}, tmp_path / "authors.pth.tar")
    model = build_ours(name, depths=SHORT, in_channels=in_channels).eval()
    weights.load_pretrained(model, name, tmp_path / "authors.pth.tar")
    x = images(2, max(height, width), in_channels)[:, :, :height, :width]
    with torch.inference_mode():
        expected = reference(state, x, SHORT)
        assert expected.std() > 0.1, "the comparison would see nothing"
        assert close(model(x), expected)


def test_logits_of_values_so_small_that_epsilon_counts(tmp_path: Path) -> None:
    state = random_state(official_shapes(OFFICIAL["van_b0"][0], SHORT))
    for key, tensor in state.items():
        if key.endswith("running_var"):
            tensor.mul_(1e-5)
        elif not tensor.is_floating_point():
            continue
        elif key.endswith("running_mean") or key.startswith("patch_embed") or "layer_scale" in key:
            tensor.mul_(1e-3)
    torch.save({"state_dict": state}, tmp_path / "authors.pth.tar")
    model = build_ours("van_b0", depths=SHORT).eval()
    weights.load_pretrained(model, "van_b0", tmp_path / "authors.pth.tar")
    x = images(2, 64)
    with torch.inference_mode():
        expected = reference(state, x, SHORT)
        assert expected.std() > 0.1, "the comparison would see nothing"
        assert close(model(x), expected)


@pytest.mark.parametrize("name", OFFICIAL)
def test_names_and_shapes_of_the_full_network(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
        state = {key: torch.empty(shape) for key, shape in official_shapes(*OFFICIAL[name]).items()}
    ours = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert ours == {key: tensor.shape for key, tensor in translated(model, state).items()}


def test_training(tmp_path: Path) -> None:
    """Logits, running statistics and the gradient of every parameter, from the batch's own statistics."""
    state = random_state(official_shapes(OFFICIAL["van_b0"][0], SHORT, num_classes=7))
    torch.save({"state_dict": state}, tmp_path / "authors.pth.tar")
    model = build_ours("van_b0", depths=SHORT, num_classes=7).double().train()
    weights.load_pretrained(model, "van_b0", tmp_path / "authors.pth.tar")
    parameters = {key for key, _ in model.named_parameters()}
    x, labels = images(4, 64).double(), torch.tensor([0, 2, 4, 6])
    state = {key: tensor.double() for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    for key, tensor in state.items():
        tensor.requires_grad_("running" not in key)

    moved: dict[str, Tensor] = {}
    logits, expected = model(x), reference(state, x, SHORT, moved=moved)
    assert close(logits, expected)
    for output in (logits, expected):
        F.cross_entropy(output, labels).backward()
    statistics = {key: buffer for key, buffer in model.named_buffers() if "running" in key}
    assert statistics.keys() == moved.keys()
    for key, buffer in statistics.items():
        assert close(buffer, moved[key]), key

    gradients: dict[str, Any] = {key: tensor.grad for key, tensor in state.items() if tensor.requires_grad}
    gradients = translated(model, gradients)
    assert gradients.keys() == parameters
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert parameter.grad is not None, f"{key} gets no gradient"
        if key.startswith("patch_embed") and key.endswith("proj.bias"):  # the normalisation takes it away again
            assert parameter.grad.abs().max() < 1e-12
            continue
        assert parameter.grad.abs().max() > 0, f"{key} gets no gradient"
        assert close(parameter.grad, gradients[key]), key
