"""ShuffleNet v1 against its authors' computation, written out here over the tensors of their checkpoint files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lenext.models import create_model
from tests.models.references import close, images, translated

# Channels after the first convolution and after each stage; stages of 4, 8 and 4 blocks (table 1 of the paper at
# width 1; the other widths as the authors train them).
CHANNELS = {
    "shufflenet_v1_x0_5_g3": (12, 120, 240, 480),
    "shufflenet_v1_x1_0_g3": (24, 240, 480, 960),
    "shufflenet_v1_x1_5_g3": (24, 360, 720, 1440),
    "shufflenet_v1_x2_0_g3": (48, 480, 960, 1920),
    "shufflenet_v1_x0_5_g8": (16, 192, 384, 768),
    "shufflenet_v1_x1_0_g8": (24, 384, 768, 1536),
    "shufflenet_v1_x1_5_g8": (24, 576, 1152, 2304),
    "shufflenet_v1_x2_0_g8": (48, 768, 1536, 3072),
}
BLOCKS = (4, 8, 4)
# Parameters in millions, as the authors' table rounds them.
MILLIONS = dict(zip(CHANNELS, (0.7, 1.9, 3.4, 5.4, 1.0, 2.4, 4.3, 6.5), strict=True))


def groups_of(name: str) -> int:
    return 8 if name.endswith("g8") else 3


def official_shapes(name: str, num_classes: int = 1000, in_channels: int = 3) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in the authors' checkpoint, in its order."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add_norm(key: str, channels: int) -> None:
        shapes.update({f"{key}.{tensor}": (channels,) for tensor in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{key}.num_batches_tracked"] = ()

    groups = groups_of(name)
    channels, *widths = CHANNELS[name]
    shapes["first_conv.0.weight"] = (channels, in_channels, 3, 3)
    add_norm("first_conv.1", channels)
    block = 0
    for width, repeats in zip(widths, BLOCKS, strict=True):
        for i in range(repeats):
            key, middle = f"features.{block}", width // 4
            # The first block of a stage sets its input beside its result; the very first reads too few channels
            # for groups.
            result = width - channels if i == 0 else width
            shapes[f"{key}.branch_main_1.0.weight"] = (middle, channels if block == 0 else channels // groups, 1, 1)
            add_norm(f"{key}.branch_main_1.1", middle)
            shapes[f"{key}.branch_main_1.3.weight"] = (middle, 1, 3, 3)
            add_norm(f"{key}.branch_main_1.4", middle)
            shapes[f"{key}.branch_main_2.0.weight"] = (result, middle // groups, 1, 1)
            add_norm(f"{key}.branch_main_2.1", result)
            channels = width
            block += 1
    shapes["classifier.0.weight"] = (num_classes, channels)
    return shapes


def official_state(name: str, num_classes: int = 1000, in_channels: int = 3) -> dict[str, Tensor]:
    """Random tensors under the official names that keep signals of moderate size through all blocks."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in official_shapes(name, num_classes, in_channels).items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(0)
        elif len(shape) > 1:
            state[key] = torch.randn(shape, generator=generator) * torch.Size(shape[1:]).numel() ** -0.5
        elif key.endswith(("weight", "running_var")):
            state[key] = torch.rand(shape, generator=generator) + 0.5
        else:
            state[key] = torch.randn(shape, generator=generator) * 0.1
    return state


def norm(state: dict[str, Tensor], key: str, x: Tensor) -> Tensor:
    mean, variance, scale, shift = (
        state[f"{key}.{tensor}"].view(-1, 1, 1) for tensor in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def grouped(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """A 1x1 convolution in which each group of outputs reads its own group of inputs."""
    n, m = x.shape[1] // groups, weight.shape[0] // groups
    parts = [F.conv2d(x[:, g * n : (g + 1) * n], weight[g * m : (g + 1) * m]) for g in range(groups)]
    return torch.cat(parts, dim=1)


def windows(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Each channel on its own: its 3x3 windows, zero outside the image, weighted by (C, 3, 3) and summed."""
    padded = F.pad(x, (1, 1, 1, 1))
    _, _, H, W = x.shape
    total = torch.zeros_like(x[:, :, ::stride, ::stride])
    for i in range(3):
        for j in range(3):
            total += weight[:, i, j].view(-1, 1, 1) * padded[:, :, i : i + H : stride, j : j + W : stride]
    return total


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Deals the channels out to the groups in turn, like cards."""
    return torch.cat([x[:, g::groups] for g in range(groups)], dim=1)


def reference(state: dict[str, Tensor], x: Tensor, groups: int) -> Tensor:
    """The authors' logits in evaluation mode: (B, in_channels, H, W) -> (B, num_classes)."""
    x = F.conv2d(x, state["first_conv.0.weight"], stride=2, padding=1)
    x = norm(state, "first_conv.1", x).relu()
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for block in range(sum(BLOCKS)):
        first_of_stage = block in (0, 4, 12)
        key = f"features.{block}.branch_main"
        y = grouped(x, state[f"{key}_1.0.weight"], 1 if block == 0 else groups)
        y = norm(state, f"{key}_1.1", y).relu()
        y = windows(y, state[f"{key}_1.3.weight"].squeeze(1), 2 if first_of_stage else 1)
        y = norm(state, f"{key}_1.4", y)
        y = grouped(shuffle(y, groups), state[f"{key}_2.0.weight"], groups)
        y = norm(state, f"{key}_2.1", y)
        if first_of_stage:
            average = torch.full((x.shape[1], 3, 3), 1 / 9)
            x = torch.cat([windows(x, average, 2), y.relu()], dim=1)
        else:
            x = (x + y).relu()
    return x.mean(dim=(2, 3)) @ state["classifier.0.weight"].T


@pytest.mark.parametrize("name", CHANNELS)
def test_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
        state = {key: torch.empty(shape) for key, shape in official_shapes(name).items()}
    expected = translated(model, state)
    assert {key: t.shape for key, t in model.state_dict().items()} == {key: t.shape for key, t in expected.items()}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert round(parameters / 1e6, 1) == MILLIONS[name]
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert parameters == sum(t.numel() for key, t in state.items() if not key.endswith(buffers))


@pytest.mark.parametrize("name", CHANNELS)
def test_logits(name: str, tmp_path: Path) -> None:
    """From a file as the authors' training writes it, from several devices."""
    state = official_state(name)
    torch.save({"state_dict": {f"module.{key}": t for key, t in state.items()}}, tmp_path / "checkpoint.pth.tar")
    model = create_model(name, pretrained=tmp_path / "checkpoint.pth.tar").eval()
    x = images(2, 64)
    with torch.inference_mode():
        expected, logits = reference(state, x, groups_of(name)), model(x)
    assert logits.shape == (2, 1000)
    assert expected.std() > 0.05, "the comparison would see nothing"
    assert close(logits, expected)


@pytest.mark.parametrize("name", ["shufflenet_v1_x0_5_g3", "shufflenet_v1_x0_5_g8"])
@pytest.mark.parametrize(("height", "width", "in_channels"), [(224, 224, 3), (96, 96, 1), (97, 75, 4)])
def test_other_images(name: str, height: int, width: int, in_channels: int, tmp_path: Path) -> None:
    """A bare state dict, as the authors' last file is; where a map is not 7x7 at the end, all of it is averaged."""
    state = official_state(name, 10, in_channels)
    torch.save(state, tmp_path / "model.pth")
    model = create_model(name, num_classes=10, in_channels=in_channels, pretrained=tmp_path / "model.pth").eval()
    x = images(2, max(height, width), in_channels)[:, :, :height, :width]
    with torch.inference_mode():
        expected, logits = reference(state, x, groups_of(name)), model(x)
    assert expected.std() > 0.05, "the comparison would see nothing"
    assert close(logits, expected)


@pytest.mark.parametrize("name", CHANNELS)
def test_gradients_reach_every_parameter(name: str) -> None:
    model = create_model(name, num_classes=5).train()
    F.cross_entropy(model(images(4, 64)), torch.tensor([1, 2, 3, 4])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad, key
        assert parameter.grad is not None, f"{key} gets no gradient"
        assert parameter.grad.abs().max() > 0, f"{key} gets no gradient"
