"""AS-MLP against a plain second computation of it, which no library has.

Lian et al. 2021, "AS-MLP: An Axial Shifted MLP Architecture for Vision", https://arxiv.org/abs/2107.08391, section 3;
names and numeric details as in https://github.com/svip-lab/AS-MLP. The reference below uses nothing of the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lenext.models import create_model, weights
from tests.models.references import build_ours, close, images, translated

# name -> channels of the first stage, which double from stage to stage; blocks of the four stages
OFFICIAL: dict[str, tuple[int, Sequence[int]]] = {
    "as_mlp_tiny": (96, (2, 2, 6, 2)),
    "as_mlp_small": (96, (2, 2, 18, 2)),
    "as_mlp_base": (128, (2, 2, 18, 2)),
}
SHIFT = 5  # groups of channels, which move by -2, -1, 0, 1 and 2 pixels
SHORT = (1, 2, 1, 1)


def official_shapes(
    dim: int, depths: Sequence[int], in_channels: int = 3, num_classes: int = 1000
) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the authors' checkpoints."""
    shapes: dict[str, tuple[int, ...]] = {}

    def affine(key: str, out: int, *inputs: int) -> None:
        shapes[f"{key}.weight"], shapes[f"{key}.bias"] = (out, *inputs), (out,)

    affine("patch_embed.proj", dim, in_channels, 4, 4)
    affine("patch_embed.norm", dim)
    for stage, depth in enumerate(depths):
        for i in range(depth):
            block = f"layers.{stage}.blocks.{i}"
            affine(f"{block}.norm1", dim)
            for name in ("conv1", "conv2_1", "conv2_2", "conv3"):
                affine(f"{block}.axial_shift.{name}", dim, dim, 1, 1)
            affine(f"{block}.axial_shift.norm1", dim)
            affine(f"{block}.axial_shift.norm2", dim)
            affine(f"{block}.norm2", dim)
            affine(f"{block}.mlp.fc1", 4 * dim, dim, 1, 1)
            affine(f"{block}.mlp.fc2", dim, 4 * dim, 1, 1)
        if stage < len(depths) - 1:
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * dim, 4 * dim, 1, 1)
            affine(f"layers.{stage}.downsample.norm", 4 * dim)
            dim = 2 * dim
    affine("norm", dim)
    affine("head", num_classes, dim)
    return shapes


def random_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in shapes.items():
        tensor = torch.zeros(shape)
        if len(shape) > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
        elif key.endswith("weight"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            tensor.normal_(std=0.1, generator=generator)
        state[key] = tensor
    return state


def shifted(x: Tensor, axis: int) -> Tensor:
    """Moves each channel of (B, C, H, W) along the height (axis 2) or the width (axis 3), zeros coming in.

    Four groups have ceil(C / 5) channels and move by -2, -1, 0 and 1 pixels, the rest by 2. To move by n puts the
    value of pixel i at pixel i + n.
    """
    _, C, H, W = x.shape
    size = -(-C // SHIFT)
    margin = SHIFT // 2
    padded = F.pad(x, (margin, margin, margin, margin))
    moved = []
    for c in range(C):
        by = c // size - SHIFT // 2
        top, left = (margin - by, margin) if axis == 2 else (margin, margin - by)
        moved.append(padded[:, c, top : top + H, left : left + W])
    return torch.stack(moved, dim=1)


def reference(state: dict[str, Tensor], x: Tensor, depths: Sequence[int]) -> Tensor:
    """Images (B, C, H, W) -> logits (B, num_classes)."""

    def normalise(key: str, x: Tensor) -> Tensor:
        """Over the channels and pixels of an image together."""
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=(1, 2, 3), keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt()
        return x * state[f"{key}.weight"][:, None, None] + state[f"{key}.bias"][:, None, None]

    def project(key: str, x: Tensor) -> Tensor:
        """One matrix for every pixel."""
        y = torch.einsum("oi,bihw->bohw", state[f"{key}.weight"][:, :, 0, 0], x)
        return y + state[f"{key}.bias"][:, None, None] if f"{key}.bias" in state else y

    def axial_shift(key: str, x: Tensor) -> Tensor:
        x = F.gelu(normalise(f"{key}.norm1", project(f"{key}.conv1", x)))
        across = F.gelu(project(f"{key}.conv2_1", shifted(x, 3)))
        down = F.gelu(project(f"{key}.conv2_2", shifted(x, 2)))
        return project(f"{key}.conv3", normalise(f"{key}.norm2", across + down))

    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4)
    x = normalise("patch_embed.norm", x)
    for stage, depth in enumerate(depths):
        for i in range(depth):
            block = f"layers.{stage}.blocks.{i}"
            x = x + axial_shift(f"{block}.axial_shift", normalise(f"{block}.norm1", x))
            y = F.gelu(project(f"{block}.mlp.fc1", normalise(f"{block}.norm2", x)))
            x = x + project(f"{block}.mlp.fc2", y)
        if stage < len(depths) - 1:
            corners = [x[:, :, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
            x = normalise(f"layers.{stage}.downsample.norm", torch.cat(corners, dim=1))
            x = project(f"layers.{stage}.downsample.reduction", x)
    return F.linear(normalise("norm", x).mean(dim=(2, 3)), state["head.weight"], state["head.bias"])


def test_the_shift_of_a_row_by_hand() -> None:
    """Seven channels of four pixels: three groups of two, and one channel is left for the fourth."""
    row = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = torch.tensor([[3, 4, 0, 0], [3, 4, 0, 0], [2, 3, 4, 0], [2, 3, 4, 0], *[[1, 2, 3, 4]] * 2, [0, 1, 2, 3]])
    assert torch.equal(shifted(row.expand(1, 7, 1, 4), axis=3)[0, :, 0], expected)
    assert torch.equal(shifted(row.view(4, 1).expand(1, 7, 4, 1), axis=2)[0, :, :, 0], expected)


def test_the_authors_checkpoint_loads(tmp_path: Path) -> None:
    """The whole network, with the weights where their program looks for them."""
    state = random_state(official_shapes(*OFFICIAL["as_mlp_tiny"]))
    path = tmp_path / "asmlp_tiny_patch4_shift5_224.pth"
    torch.save({"model": state, "max_accuracy": 81.3, "epoch": 299}, path)
    model = create_model("as_mlp_tiny", pretrained=path).eval()
    x = images(2, 64)
    with torch.inference_mode():
        expected = reference(state, x, OFFICIAL["as_mlp_tiny"][1])
        assert expected.std() > 0.1, "the comparison would see nothing"
        assert close(model(x), expected)


@pytest.mark.parametrize(
    ("name", "height", "width", "in_channels"),
    [("as_mlp_tiny", 96, 96, 5), ("as_mlp_small", 64, 128, 1), ("as_mlp_base", 64, 64, 3)],
)
def test_logits(name: str, height: int, width: int, in_channels: int, tmp_path: Path) -> None:
    """With fewer blocks: those of a stage differ in nothing."""
    state = random_state(official_shapes(OFFICIAL[name][0], SHORT, in_channels, num_classes=10))
    torch.save({"model": state}, tmp_path / "authors.pth")
    model = build_ours(name, depths=SHORT, in_channels=in_channels, num_classes=10).eval()
    weights.load_pretrained(model, name, tmp_path / "authors.pth")
    x = images(2, max(height, width), in_channels)[:, :, :height, :width]
    with torch.inference_mode():
        expected = reference(state, x, SHORT)
        assert expected.std() > 0.1, "the comparison would see nothing"
        assert close(model(x), expected)


def test_logits_of_values_so_small_that_epsilon_counts(tmp_path: Path) -> None:
    state = random_state(official_shapes(OFFICIAL["as_mlp_tiny"][0], SHORT, num_classes=10))
    for key, tensor in state.items():
        if any(part in key for part in ("patch_embed.", ".conv", ".fc2.", ".reduction.")):
            tensor.mul_(3e-3)
    torch.save({"model": state}, tmp_path / "authors.pth")
    model = build_ours("as_mlp_tiny", depths=SHORT, num_classes=10).eval()
    weights.load_pretrained(model, "as_mlp_tiny", tmp_path / "authors.pth")
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
    """Logits and the gradient of every parameter; a map of 2 x 2 pixels loses what moves by two."""
    state = random_state(official_shapes(OFFICIAL["as_mlp_tiny"][0], SHORT, num_classes=7))
    torch.save({"model": state}, tmp_path / "authors.pth")
    model = build_ours("as_mlp_tiny", depths=SHORT, num_classes=7).train()
    weights.load_pretrained(model, "as_mlp_tiny", tmp_path / "authors.pth")
    x, labels = images(4, 64), torch.tensor([0, 2, 4, 6])
    for tensor in state.values():
        tensor.requires_grad_()
    logits, expected = model(x), reference(state, x, SHORT)
    assert close(logits, expected)
    for output in (logits, expected):
        F.cross_entropy(output, labels).backward()
    gradients: dict[str, Any] = {key: tensor.grad for key, tensor in state.items()}
    gradients = translated(model, gradients)
    assert gradients.keys() == {key for key, _ in model.named_parameters()}
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert parameter.grad is not None, f"{key} gets no gradient"
        assert parameter.grad.abs().max() > 0, f"{key} gets no gradient"
        assert close(parameter.grad, gradients[key]), key
