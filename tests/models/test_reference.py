"""Every model equals its reference: parameters, logits, batch statistics, gradients, preprocessing."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from lenext.models import MODELS, create_model, default_preprocess, weights

# name: (parameters at 1,000 classes, reference, side of the images that are compared)
REFERENCES = {
    "alexnet_owt": (61_100_840, "torchvision:alexnet", 96),
    "resnet18": (11_689_512, "torchvision:resnet18", 64),
    "resnet34": (21_797_672, "torchvision:resnet34", 64),
    "resnet50": (25_557_032, "torchvision:resnet50", 64),
    "resnet101": (44_549_160, "torchvision:resnet101", 64),
    "resnet152": (60_192_808, "torchvision:resnet152", 64),
    "resnext50_32x4d": (25_028_904, "torchvision:resnext50_32x4d", 64),
    "resnext101_32x8d": (88_791_336, "torchvision:resnext101_32x8d", 64),
    "tf_efficientnet_lite0": (4_652_008, "timm:tf_efficientnet_lite0", 65),
    "tf_efficientnet_lite1": (5_416_680, "timm:tf_efficientnet_lite1", 64),
    "tf_efficientnet_lite2": (6_092_072, "timm:tf_efficientnet_lite2", 97),
    "convnext_tiny": (28_589_128, "timm:convnext_tiny", 64),
    "convnext_small": (50_223_688, "timm:convnext_small", 64),
    "convnext_base": (88_591_464, "timm:convnext_base", 64),
    "convnext_large": (197_767_336, "timm:convnext_large", 64),
    "vit_tiny_patch16_224": (5_717_416, "timm:vit_tiny_patch16_224", 224),
    "vit_small_patch16_224": (22_050_664, "timm:vit_small_patch16_224", 224),
    "vit_base_patch16_224": (86_567_656, "timm:vit_base_patch16_224", 224),
    "vit_base_patch32_224": (88_224_232, "timm:vit_base_patch32_224", 224),
    "vit_large_patch16_224": (304_326_632, "timm:vit_large_patch16_224", 224),
}
# No library has these: parameters as the paper counts them, and the arguments that make it so.
PAPER_ONLY: dict[str, tuple[int, dict[str, Any]]] = {
    "lenet5": (61_706, {"num_classes": 10, "in_channels": 1}),
    "alexnet": (62_378_344, {}),
}
# Compared with fewer blocks, to save time; that all blocks are there is seen from the names and shapes.
SHORT: dict[str, dict[str, Any]] = {
    "resnet101": {"depths": (1, 1, 2, 1)},
    "resnet152": {"depths": (1, 2, 1, 1)},
    "resnext101_32x8d": {"depths": (1, 1, 2, 1)},
    "convnext_small": {"depths": (1, 1, 2, 1)},
    "convnext_base": {"depths": (1, 1, 2, 1)},
    "convnext_large": {"depths": (1, 1, 2, 1)},
    "vit_base_patch16_224": {"depth": 2},
    "vit_base_patch32_224": {"depth": 2},
    "vit_large_patch16_224": {"depth": 2},
}


def build_reference(name: str, **short: Any) -> nn.Module:
    """The reference without values: parameters on the meta device."""
    library, _, reference = REFERENCES[name][1].partition(":")
    with torch.device("meta"):
        if library == "timm":
            return timm.create_model(reference, **short)
        if short:
            groups = {"groups": 32, "width_per_group": 8} if name == "resnext101_32x8d" else {}
            block = torchvision.models.resnet.Bottleneck
            return torchvision.models.ResNet(block, list(short["depths"]), **groups)
        return torchvision.models.get_model(reference, weights=None)


def build_short(name: str, **short: Any) -> nn.Module:
    """Our model with fewer blocks, otherwise as the table has it."""
    paper: Any = importlib.import_module(f"lenext.models.{MODELS[name].paper.file}")
    return paper.VARIANTS[name](**short)


def randomise(model: nn.Module) -> nn.Module:
    """Random parameters and batch statistics that keep signals of moderate size through any depth."""
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim > 1:
                tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
            elif name.endswith(("running_var", "weight", "gamma")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("num_batches_tracked"):
                tensor.zero_()
            else:
                tensor.normal_(std=0.1, generator=generator)
    return model


def images(count: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def translated(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reference's tensors under the names of `model`."""
    adapt: Any = getattr(model, "adapt_checkpoint", lambda state: state)
    return adapt(tensors)


def test_every_model_has_a_reference_or_a_reason() -> None:
    assert REFERENCES.keys() | PAPER_ONLY.keys() == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_parameters(name: str) -> None:
    expected, arguments = (REFERENCES[name][0], {}) if name in REFERENCES else PAPER_ONLY[name]
    with torch.device("meta"):
        model = create_model(name, **arguments)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    if name in REFERENCES:
        reference = translated(model, build_reference(name).state_dict())
        ours = model.state_dict()
        assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in reference.items()}


@pytest.mark.parametrize("name", REFERENCES)
def test_logits(name: str, tmp_path: Path) -> None:
    _, _, size = REFERENCES[name]
    short = SHORT.get(name, {})
    reference = randomise(build_reference(name, **short)).eval()
    path = tmp_path / "reference.pth"
    torch.save(reference.state_dict(), path)
    if short:
        model = build_short(name, **short).eval()
        weights.load_pretrained(model, name, path)
    else:
        model = create_model(name, pretrained=path).eval()
    x = images(2, size)
    with torch.inference_mode():
        expected, logits = reference(x), model(x)
    assert expected.std() > 0.05, "the comparison would see nothing"
    assert close(logits, expected)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {}),
        ("resnext50_32x4d", {}),
        ("tf_efficientnet_lite0", {"dropout": 0.0}),
        ("convnext_tiny", {}),
        ("vit_tiny_patch16_224", {}),
    ],
)
def test_training_step(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    """In training mode: logits from batch statistics, running statistics, the gradient of every parameter."""
    _, _, size = REFERENCES[name]
    reference = randomise(build_reference(name)).train()
    torch.save(reference.state_dict(), tmp_path / "reference.pth")
    model = create_model(name, pretrained=tmp_path / "reference.pth", **arguments).train()
    x, labels = images(4, size), torch.tensor([1, 2, 3, 4])
    expected, logits = reference(x), model(x)
    assert close(logits, expected)
    for output in (expected, logits):
        nn.functional.cross_entropy(output, labels).backward()

    statistics = translated(model, dict(reference.named_buffers()))
    for key, buffer in model.named_buffers():
        assert close(buffer, statistics[key]), key
    gradients = {key: p.grad for key, p in reference.named_parameters() if p.grad is not None}
    gradients = translated(model, gradients)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{key} gets no gradient"
        assert parameter.grad.abs().max() > 0, f"{key} gets no gradient"
        assert close(parameter.grad, gradients[key]), key


def close(ours: Tensor, reference: Tensor) -> bool:
    """Equal to a ten-thousandth of the reference's largest value."""
    return bool((ours - reference).abs().max() <= 1e-4 * reference.abs().max())


@pytest.mark.parametrize("name", REFERENCES)
def test_default_weights_and_preprocessing_are_the_references(name: str) -> None:
    preprocess = default_preprocess(name)
    library, _, reference = REFERENCES[name][1].partition(":")
    if library == "torchvision":
        default: Any = torchvision.models.get_model_weights(reference).DEFAULT
        assert default.url == f"https://download.pytorch.org/models/{weights.TORCHVISION[name]}"
        transforms = default.transforms()
        assert preprocess.image_size == transforms.crop_size[0]
        assert preprocess.resize == transforms.resize_size[0]
        assert (list(preprocess.mean), list(preprocess.std)) == (transforms.mean, transforms.std)
        assert preprocess.interpolation == transforms.interpolation.value
    else:
        repository = weights.HUGGING_FACE.get(name, f"timm/{reference}.in1k")
        cfg = timm.get_pretrained_cfg(repository.removeprefix("timm/"))
        assert cfg is not None
        assert cfg.hf_hub_id == repository
        assert preprocess.image_size == cfg.input_size[1]
        assert preprocess.crop_fraction == cfg.crop_pct
        assert (preprocess.mean, preprocess.std) == (cfg.mean, cfg.std)
        assert preprocess.interpolation == cfg.interpolation
