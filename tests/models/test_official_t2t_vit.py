"""T2T-ViT against its authors' computation, written out here over the tensors of their checkpoint files."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenext.models import create_model, weights
from tests.models.references import build_ours, close, images, translated

# name -> kind of the first layers, width, blocks, heads, hidden units of a perceptron per unit of width (tables 1
# and 2 of the paper), and the number of tensor elements in the authors' file: with the two things that no training
# changes, the positions and the performers' projections
NETWORKS = {
    "t2t_vit_7": ("performer", 256, 7, 4, 2, 4_310_222),
    "t2t_vit_10": ("performer", 256, 10, 4, 2, 5_889_230),
    "t2t_vit_12": ("performer", 256, 12, 4, 2, 6_941_902),
    "t2t_vit_14": ("performer", 384, 14, 6, 3, 21_545_550),
    "t2t_vit_19": ("performer", 448, 19, 7, 3, 39_177_422),
    "t2t_vit_24": ("performer", 512, 24, 8, 3, 64_105_934),
    "t2t_vit_t_14": ("transformer", 384, 14, 6, 3, 21_541_070),
    "t2t_vit_t_19": ("transformer", 448, 19, 7, 3, 39_172_942),
    "t2t_vit_t_24": ("transformer", 512, 24, 8, 3, 64_101_454),
}
TOKEN_DIM = 64  # width of the first layers
FEATURES = 32  # rows of a performer's projection
FIXED = ("pos_embed", "attention1.w", "attention2.w")


def official_shapes(
    name: str,
    *,
    tokens: str | None = None,
    depth: int | None = None,
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: int = 224,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in the authors' checkpoint, in its order. tokens, depth: the network's own."""
    kind, dim, blocks, _, ratio, _ = NETWORKS[name]
    kind, blocks, inner = tokens or kind, depth or blocks, TOKEN_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, 1 + (image_size // 16) ** 2, dim),
    }

    def add_linear(key: str, in_dim: int, out_dim: int, *, bias: bool = True) -> None:
        shapes[f"{key}.weight"] = (out_dim, in_dim)
        if bias:
            shapes[f"{key}.bias"] = (out_dim,)

    def add_convolution(key: str, in_dim: int, out_dim: int, side: int) -> None:
        shapes.update({f"{key}.weight": (out_dim, in_dim, side, side), f"{key}.bias": (out_dim,)})

    def add_norm(key: str, dim: int) -> None:
        shapes.update({f"{key}.weight": (dim,), f"{key}.bias": (dim,)})

    first = "tokens_to_token"
    if kind == "convolution":
        add_convolution(f"{first}.soft_split0", in_channels, inner, 7)
        add_convolution(f"{first}.soft_split1", inner, inner, 3)
        add_convolution(f"{first}.project", inner, dim, 3)
    else:
        for i, values in ((1, 7 * 7 * in_channels), (2, 3 * 3 * inner)):
            key = f"{first}.attention{i}"
            if kind == "performer":
                shapes[f"{key}.w"] = (FEATURES, inner)
                add_linear(f"{key}.kqv", values, 3 * inner)
                add_linear(f"{key}.proj", inner, inner)
                add_norm(f"{key}.norm1", values)
                add_norm(f"{key}.norm2", inner)
                add_linear(f"{key}.mlp.0", inner, inner)
                add_linear(f"{key}.mlp.2", inner, inner)
            else:
                add_norm(f"{key}.norm1", values)
                add_linear(f"{key}.attn.qkv", values, 3 * inner, bias=False)
                add_linear(f"{key}.attn.proj", inner, inner)
                add_norm(f"{key}.norm2", inner)
                add_linear(f"{key}.mlp.fc1", inner, inner)
                add_linear(f"{key}.mlp.fc2", inner, inner)
        add_linear(f"{first}.project", 3 * 3 * inner, dim)
    for block in range(blocks):
        key = f"blocks.{block}"
        add_norm(f"{key}.norm1", dim)
        add_linear(f"{key}.attn.qkv", dim, 3 * dim, bias=False)
        add_linear(f"{key}.attn.proj", dim, dim)
        add_norm(f"{key}.norm2", dim)
        add_linear(f"{key}.mlp.fc1", dim, ratio * dim)
        add_linear(f"{key}.mlp.fc2", ratio * dim, dim)
    add_norm("norm", dim)
    add_linear("head", dim, num_classes)
    return shapes


def positions(count: int, dim: int) -> Tensor:
    """The fixed table (1, count, dim): sines and cosines of the place in the row of tokens, class token first."""
    table = torch.empty(1, count, dim)
    for i in range(count):
        for j in range(0, dim, 2):
            angle = i / 10000 ** (j / dim)
            table[0, i, j], table[0, i, j + 1] = math.sin(angle), math.cos(angle)
    return table


def official_state(name: str, *, seed: int = 0, **arguments: Any) -> dict[str, Tensor]:
    """Random tensors under the official names that keep signals of moderate size, and the fixed ones by formula."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in official_shapes(name, **arguments).items():
        normal = torch.randn(shape, generator=generator)
        if key == "pos_embed":
            state[key] = positions(shape[1], shape[2])
        elif key.endswith(".w"):  # orthogonal rows
            state[key] = torch.linalg.qr(normal.T).Q.T * FEATURES**0.5
        elif len(shape) > 1 and key != "cls_token":
            state[key] = normal * torch.Size(shape[1:]).numel() ** -0.5
        elif "norm" in key and key.endswith("weight"):
            state[key] = torch.rand(shape, generator=generator) + 0.5
        else:
            state[key] = normal * 0.1
        if key.endswith("kqv.weight"):
            # Kernels of long keys and queries vanish: at 0.3 their sum is far above the epsilon it is kept from
            # zero with, at 0.6 it is near.
            state[key][: 2 * TOKEN_DIM] *= 0.3 if "attention1" in key else 0.6
    return state


def norm(state: dict[str, Tensor], key: str, x: Tensor) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * state[f"{key}.weight"] + state[f"{key}.bias"]


def linear(state: dict[str, Tensor], key: str, x: Tensor) -> Tensor:
    y = x @ state[f"{key}.weight"].T
    return y + state[f"{key}.bias"] if f"{key}.bias" in state else y


def perceptron(state: dict[str, Tensor], first: str, second: str, x: Tensor) -> Tensor:
    x = linear(state, first, x)
    x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    return linear(state, second, x)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return (q @ k.transpose(1, 2) * scale).softmax(dim=2) @ v


def soft_split(x: Tensor, side: int, stride: int, padding: int) -> Tensor:
    """A token for each window, which is all its values: (B, C, H, W) -> (B, number of windows, C * side * side)."""
    _, _, H, W = x.shape
    x = F.pad(x, (padding,) * 4)
    rows = range(0, H + 2 * padding - side + 1, stride)
    columns = range(0, W + 2 * padding - side + 1, stride)
    return torch.stack([x[:, :, i : i + side, j : j + side].flatten(1) for i in rows for j in columns], dim=1)


def as_map(x: Tensor, height: int) -> Tensor:
    """Tokens back in their places: (B, N, C) -> (B, C, height, N / height)."""
    return x.transpose(1, 2).unflatten(2, (height, -1))


def token_performer(state: dict[str, Tensor], key: str, x: Tensor) -> Tensor:
    k, q, v = linear(state, f"{key}.kqv", norm(state, f"{key}.norm1", x)).split(TOKEN_DIM, dim=2)

    def features(x: Tensor) -> Tensor:
        half_square = (x**2).sum(2, keepdim=True) / 2
        return (x @ state[f"{key}.w"].T - half_square).exp() / FEATURES**0.5

    kernel = features(q) @ features(k).transpose(1, 2)  # of every query with every key
    y = kernel @ v / (kernel.sum(2, keepdim=True) + 1e-8)
    x = v + linear(state, f"{key}.proj", y)
    return x + perceptron(state, f"{key}.mlp.0", f"{key}.mlp.2", norm(state, f"{key}.norm2", x))


def token_transformer(state: dict[str, Tensor], key: str, x: Tensor) -> Tensor:
    scale = x.shape[2] ** -0.5  # of the window's values, not of the queries'
    q, k, v = linear(state, f"{key}.attn.qkv", norm(state, f"{key}.norm1", x)).split(TOKEN_DIM, dim=2)
    x = v + linear(state, f"{key}.attn.proj", attend(q, k, v, scale))
    return x + perceptron(state, f"{key}.mlp.fc1", f"{key}.mlp.fc2", norm(state, f"{key}.norm2", x))


def block(state: dict[str, Tensor], key: str, x: Tensor, heads: int) -> Tensor:
    dim = x.shape[2] // heads
    q, k, v = linear(state, f"{key}.attn.qkv", norm(state, f"{key}.norm1", x)).chunk(3, dim=2)
    outputs = []
    for head in range(heads):
        own = slice(head * dim, (head + 1) * dim)
        outputs.append(attend(q[:, :, own], k[:, :, own], v[:, :, own], dim**-0.5))
    x = x + linear(state, f"{key}.attn.proj", torch.cat(outputs, dim=2))
    return x + perceptron(state, f"{key}.mlp.fc1", f"{key}.mlp.fc2", norm(state, f"{key}.norm2", x))


def reference(state: dict[str, Tensor], x: Tensor, tokens: str, heads: int) -> Tensor:
    """The authors' logits in evaluation mode: (B, in_channels, H, W), sides divisible by 16 -> (B, num_classes)."""
    B, _, H, _ = x.shape
    key = "tokens_to_token"
    if tokens == "convolution":
        for layer, stride, padding in (("soft_split0", 4, 2), ("soft_split1", 2, 1), ("project", 2, 1)):
            x = F.conv2d(x, state[f"{key}.{layer}.weight"], state[f"{key}.{layer}.bias"], stride, padding)
        x = x.flatten(2).transpose(1, 2)
    else:
        tokens_to_tokens = token_performer if tokens == "performer" else token_transformer
        x = tokens_to_tokens(state, f"{key}.attention1", soft_split(x, 7, 4, 2))
        x = soft_split(as_map(x, H // 4), 3, 2, 1)
        x = tokens_to_tokens(state, f"{key}.attention2", x)
        x = soft_split(as_map(x, H // 8), 3, 2, 1)
        x = linear(state, f"{key}.project", x)
    x = torch.cat([state["cls_token"].repeat(B, 1, 1), x], dim=1) + state["pos_embed"]
    depth = sum(key.endswith("norm1.weight") and key.startswith("blocks.") for key in state)
    for i in range(depth):
        x = block(state, f"blocks.{i}", x, heads)
    return linear(state, "head", norm(state, "norm", x)[:, 0])


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
        state = {key: torch.empty(shape) for key, shape in official_shapes(name).items()}
    expected = translated(model, state)
    assert {key: t.shape for key, t in model.state_dict().items()} == {key: t.shape for key, t in expected.items()}
    assert sum(parameter.numel() for parameter in model.parameters()) == NETWORKS[name][-1]
    assert sum(math.prod(shape) for shape in official_shapes(name).values()) == NETWORKS[name][-1]
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}
    layers = model.get_submodule("tokens_to_token").modules()
    dropped = {module.p for module in layers if isinstance(module, nn.Dropout)}
    assert dropped == {0.1 if NETWORKS[name][0] == "performer" else 0.0}


def test_names_and_shapes_with_convolutions() -> None:
    with torch.device("meta"):
        model = create_model("t2t_vit_14", tokens="convolution")
    shapes = official_shapes("t2t_vit_14", tokens="convolution")
    assert {key: tuple(t.shape) for key, t in model.state_dict().items()} == shapes


def test_whole_network(tmp_path: Path) -> None:
    """From a file as timm's training program, which the authors use, writes it: the averaged weights are the ones."""
    state, last = (official_state("t2t_vit_7", seed=seed) for seed in (0, 1))
    content = {
        "epoch": 309,
        "arch": "t2t_vit_7",
        "state_dict": {f"module.{key}": tensor for key, tensor in last.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "args": argparse.Namespace(model="t2t_vit_7", lr=1e-3),
        "version": 2,
        "state_dict_ema": state,
    }
    torch.save(content, tmp_path / "71.7_T2T_ViT_7.pth.tar")
    model = create_model("t2t_vit_7", pretrained=tmp_path / "71.7_T2T_ViT_7.pth.tar").eval()
    x = images(1, 224)
    with torch.inference_mode():
        expected, logits = reference(state, x, "performer", 4), model(x)
    assert logits.shape == (1, 1000)
    assert expected.std() > 0.05, "the comparison would see nothing"
    assert close(logits, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_of_two_blocks(name: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"depth": 2, "num_classes": 10, "image_size": 64}
    state = official_state(name, **sizes)
    torch.save({"state_dict_ema": state}, tmp_path / "official.pth.tar")
    model = build_ours(name, **sizes).eval()
    weights.load_pretrained(model, name, tmp_path / "official.pth.tar")
    x = images(2, 64)
    tokens, _, _, heads, _, _ = NETWORKS[name]
    with torch.inference_mode():
        expected, logits = reference(state, x, tokens, heads), model(x)
    assert expected.std() > 0.05, "the comparison would see nothing"
    assert close(logits, expected)


@pytest.mark.parametrize("tokens", ["performer", "transformer", "convolution"])
@pytest.mark.parametrize(("size", "in_channels"), [(96, 1), (128, 4)])
def test_other_tokens_and_images(tokens: str, size: int, in_channels: int, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"depth": 2, "tokens": tokens, "num_classes": 10}
    sizes |= {"image_size": size, "in_channels": in_channels}
    state = official_state("t2t_vit_7", **sizes)
    torch.save({"state_dict": {f"module.{key}": t for key, t in state.items()}}, tmp_path / "official.pth.tar")
    model = build_ours("t2t_vit_7", **sizes).eval()
    weights.load_pretrained(model, "t2t_vit_7", tmp_path / "official.pth.tar")
    x = images(2, size, in_channels)
    with torch.inference_mode():
        expected, logits = reference(state, x, tokens, 4), model(x)
    assert expected.std() > 0.05, "the comparison would see nothing"
    assert close(logits, expected)


@pytest.mark.parametrize(("size", "in_channels"), [(224, 3), (64, 1)])
def test_fresh_networks_have_the_fixed_tables(size: int, in_channels: int) -> None:
    model = build_ours("t2t_vit_7", depth=1, image_size=size, in_channels=in_channels)
    assert close(model.get_parameter("pos_embed"), positions(1 + (size // 16) ** 2, 256))
    for i in (1, 2):
        w = model.get_parameter(f"tokens_to_token.attention{i}.w")
        assert close(w @ w.T, FEATURES * torch.eye(FEATURES))


@pytest.mark.parametrize("tokens", ["performer", "transformer", "convolution"])
def test_gradients_reach_every_parameter(tokens: str) -> None:
    """All but what is fixed."""
    model = build_ours("t2t_vit_7", depth=2, tokens=tokens, num_classes=5, image_size=32).train()
    F.cross_entropy(model(images(4, 32)), torch.tensor([1, 2, 3, 4])).backward()
    for key, parameter in model.named_parameters():
        if key.endswith(FIXED):
            assert not parameter.requires_grad, key
            continue
        assert parameter.requires_grad, key
        assert parameter.grad is not None, f"{key} gets no gradient"
        assert parameter.grad.abs().max() > 0, f"{key} gets no gradient"
