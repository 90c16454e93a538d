"""What every network promises: stages, head, sizes, channels, regularisation, saving, exporting."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lenext.models import convnext, create_model, vit
from lenext.models.layers import DropPath, LayerNorm2d, drop_path_rates

# The smallest network of each file, and the side of the images to try it on.
SMALLEST = {
    "lenet5": 32,
    "alexnet": 67,
    "alexnet_owt": 67,
    "resnet18": 33,
    "resnet50": 32,
    "resnext50_32x4d": 32,
    "tf_efficientnet_lite0": 33,
    "vit_tiny_patch16_224": 32,
    "convnext_tiny": 32,
}


def small(name: str, **arguments: Any) -> Any:
    return create_model(name, num_classes=5, image_size=SMALLEST[name], **arguments)


def images(name: str, count: int = 2, in_channels: int = 3) -> Tensor:
    return torch.randn(count, in_channels, SMALLEST[name], SMALLEST[name])


@pytest.mark.parametrize("name", SMALLEST)
def test_stages_then_head_is_forward(name: str) -> None:
    model, x = small(name).eval(), images(name)
    with torch.inference_mode():
        features = x.clone()
        for stage in model.stages():
            features = stage(features)
        assert features.ndim == (3 if "vit" in name else 4)
        torch.testing.assert_close(model.forward_head(features), model(x), rtol=0, atol=0)
    assert len(model.stages()) >= 3


@pytest.mark.parametrize("name", SMALLEST)
def test_stages_and_head_share_all_parameters(name: str) -> None:
    with torch.device("meta"):
        model = small(name)
    staged = {id(p) for stage in model.stages() for p in stage.parameters()}
    head = model.get_submodule(model.head_name)
    assert isinstance(head, nn.Linear)
    assert head.out_features == 5
    everything = {id(p) for p in model.parameters()}
    assert staged < everything
    assert not staged & {id(p) for p in head.parameters()}
    before_head = {
        "lenet5": 2,
        "alexnet": 4,
        "alexnet_owt": 4,
        "convnext_tiny": 2,
    }  # linear layers and a norm after pooling
    assert len(everything) - len(staged) == 2 + before_head.get(name, 0)


@pytest.mark.parametrize("name", SMALLEST)
def test_a_stage_leaves_the_output_of_the_one_before_as_it_was(name: str) -> None:
    model, x = small(name).eval(), images(name)
    with torch.inference_mode():
        for stage in model.stages():
            before = x.clone()
            y = stage(x)
            assert torch.equal(x, before)
            x = y


@pytest.mark.parametrize("name", SMALLEST)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model, x = small(name, in_channels=2).train(), images(name, count=4, in_channels=2)
    logits = model(x)
    assert logits.shape == (4, 5)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "tf_efficientnet_lite0", "convnext_tiny"])
def test_any_size_from_the_smallest(name: str) -> None:
    model = create_model(name, num_classes=3).eval()
    smallest = getattr(model, "min_image_size", 8)
    with torch.inference_mode():
        for height, width in ((smallest, smallest), (smallest + 9, smallest + 22)):
            assert model(torch.randn(1, 3, height, width)).isfinite().all()


@pytest.mark.parametrize("name", ["alexnet", "alexnet_owt", "convnext_tiny"])
def test_the_smallest_size_is_the_smallest(name: str) -> None:
    with torch.device("meta"):
        model: Any = create_model(name)
        smallest = model.min_image_size
        model = create_model(name, image_size=smallest)
        assert model(torch.empty(1, 3, smallest, smallest)).shape == (1, 1000)
        with pytest.raises(ValueError, match=f"too few for {name}: at least {smallest}"):
            create_model(name, image_size=smallest - 1)
        with pytest.raises(RuntimeError):
            model(torch.empty(1, 3, smallest - 1, smallest - 1))


REGULARISED = {
    "dropout": ("alexnet", "alexnet_owt", "tf_efficientnet_lite0", "vit_tiny_patch16_224"),
    "drop_path": (
        "resnet18",
        "resnet50",
        "resnext50_32x4d",
        "tf_efficientnet_lite0",
        "vit_tiny_patch16_224",
        "convnext_tiny",
    ),
}


@pytest.mark.parametrize(
    ("argument", "name"), [(argument, name) for argument in REGULARISED for name in REGULARISED[argument]]
)
def test_regularisation_acts_in_training_only(argument: str, name: str) -> None:
    x, model = images(name), small(name, **{argument: 0.5})
    for key, parameter in model.named_parameters():
        if parameter.ndim > 1:  # large enough for every branch to matter
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif key.endswith("gamma"):
            nn.init.ones_(parameter)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # its running statistics would make the outputs differ anyway
    with torch.inference_mode():
        assert not torch.allclose(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))


def test_drop_path() -> None:
    assert drop_path_rates(0.2, 3) == pytest.approx([0.0, 0.1, 0.2])
    layer = DropPath(0.25).train()
    x = torch.ones(4000, 2, 3)
    y = layer(x)
    per_sample = y.flatten(1)
    assert bool((per_sample == per_sample[:, :1]).all()), "a sample is dropped whole"
    assert sorted(y.unique().tolist()) == pytest.approx([0.0, 1 / 0.75])
    assert y.mean().item() == pytest.approx(1.0, abs=0.03)
    assert layer.eval()(x) is x
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match="drop_path"):
            DropPath(rate)


def test_layer_norm_2d_normalises_channels_of_each_pixel() -> None:
    layer, x = LayerNorm2d(6, eps=1e-6), torch.randn(2, 6, 3, 4) * 5 + 1
    y = layer(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 3, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.std(1, correction=0), torch.ones(2, 3, 4), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_saved_weights_come_back(name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model, x = small(name).eval(), images(name)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    again = small(name, pretrained=tmp_path / "weights.safetensors").eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def short(name: str) -> nn.Module:
    """As `small`, with few blocks, where that saves the converters much time."""
    if name == "vit_tiny_patch16_224":
        return vit.VARIANTS[name](image_size=SMALLEST[name], num_classes=5, depth=2).eval()
    if name == "convnext_tiny":
        return convnext.VARIANTS[name](num_classes=5, depths=(1, 1, 1, 1)).eval()
    return small(name).eval()


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_tiny_patch16_224", "convnext_tiny"])
def test_torch_export_with_any_batch_size(name: str) -> None:
    model = short(name)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(name, count=2),), dynamic_shapes=({0: batch},))
    x = images(name, count=3)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


def test_openvino_agrees_on_padding_that_follows_the_input() -> None:
    openvino = pytest.importorskip("openvino")
    model, x = short("tf_efficientnet_lite0"), images("tf_efficientnet_lite0")
    with warnings.catch_warnings(action="ignore"):  # tracing warns of every size that becomes a constant
        converted = openvino.convert_model(model, example_input=x)
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.inference_mode():
        expected = model(x)
    torch.testing.assert_close(torch.from_numpy(compiled(x.numpy())[0]), expected, rtol=1e-3, atol=1e-4)
