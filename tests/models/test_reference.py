"""Every network equals its reference: parameters, logits, batch statistics, gradients, preprocessing, weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from lenext.models import MODELS, catalogue, create_model, default_preprocess, weights
from tests.models.references import (
    REFERENCES,
    SHORT,
    build_ours,
    build_reference,
    close,
    images,
    narrow_resnet,
    narrow_vgg11_bn,
    randomise,
    size_of,
    translated,
    without_chance,
)

# Networks that no library has: parameters as the papers and the authors' own code count them.
COUNTS = {
    "lenet5": 61_706,
    "alexnet": 62_378_344,
    "zfnet": 62_357_608,
    "shufflenet_v1_x0_5_g3": 717_324,
    "shufflenet_v1_x1_0_g3": 1_864_728,
    "shufflenet_v1_x1_5_g3": 3_441_168,
    "shufflenet_v1_x2_0_g3": 5_449_776,
    "shufflenet_v1_x0_5_g8": 1_010_448,
    "shufflenet_v1_x1_0_g8": 2_433_768,
    "shufflenet_v1_x1_5_g8": 4_268_952,
    "shufflenet_v1_x2_0_g8": 6_521_232,
    "t2t_vit_7": 4_310_222,
    "t2t_vit_10": 5_889_230,
    "t2t_vit_12": 6_941_902,
    "t2t_vit_14": 21_545_550,
    "t2t_vit_19": 39_177_422,
    "t2t_vit_24": 64_105_934,
    "t2t_vit_t_14": 21_541_070,
    "t2t_vit_t_19": 39_172_942,
    "t2t_vit_t_24": 64_101_454,
    "van_b0": 4_105_800,
    "van_b1": 13_861_800,
    "van_b2": 26_578_472,
    "van_b3": 44_765_608,
    "as_mlp_tiny": 28_282_696,
    "as_mlp_small": 49_594_696,
    "as_mlp_base": 87_752_808,
}
# Their gradients hang on which side of zero a rounding error puts a ReLU: compared in double precision.
DOUBLE = ("densenet",)


def test_every_model_has_a_reference_or_a_reason() -> None:
    assert not REFERENCES.keys() & COUNTS.keys()
    assert REFERENCES.keys() | COUNTS.keys() == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_cost_are_those_of_the_table(name: str) -> None:
    parameters, multiply_adds = catalogue.count(name)
    assert (parameters, multiply_adds) == (MODELS[name].parameters, MODELS[name].multiply_adds)
    if name in COUNTS:
        assert parameters == COUNTS[name]
        return
    reference = build_reference(name)
    assert parameters == sum(parameter.numel() for parameter in reference.parameters())
    with torch.device("meta"):
        model = create_model(name)
    theirs = translated(model, reference.state_dict())
    assert {key: t.shape for key, t in model.state_dict().items()} == {key: t.shape for key, t in theirs.items()}


@pytest.mark.parametrize("name", REFERENCES)
def test_outputs_statistics_and_gradients(name: str, tmp_path: Path) -> None:
    """In evaluation: logits. In training: logits, running statistics, the gradient of every parameter."""
    reference = without_chance(randomise(build_reference(name, short=True))).eval()
    path = tmp_path / "reference.pth"
    torch.save(reference.state_dict(), path)
    if name in SHORT:
        model = build_ours(name, **SHORT[name][0])
        weights.load_pretrained(model, name, path)
    else:
        model = create_model(name, pretrained=path)
    without_chance(model).eval()
    x, labels = images(4, size_of(name)), torch.tensor([1, 2, 3, 4])
    with torch.inference_mode():
        expected, logits = reference(x[:2]), model(x[:2])
    assert expected.std() > 0.05, "the comparison would see nothing"
    assert close(logits, expected)

    if name.startswith(DOUBLE):
        reference, model, x = reference.double(), model.double(), x.double()
    expected, logits = reference.train()(x), model.train()(x)
    assert close(logits, expected)
    for output in (expected, logits):
        nn.functional.cross_entropy(output, labels).backward()
    statistics = translated(model, dict(reference.named_buffers()))
    for key, buffer in model.named_buffers():
        if key in statistics:
            assert close(buffer, statistics[key]), key
    gradients = {key: p.grad for key, p in reference.named_parameters() if p.grad is not None}
    gradients = translated(model, gradients)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{key} gets no gradient"
        assert parameter.grad.abs().max() > 0, f"{key} gets no gradient"
        assert close(parameter.grad, gradients[key]), key


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("resnet18", {}), ("resnet50", {}), ("resnext50_32x4d", {"base_width": 1}), ("vgg11_bn", {})],
)
def test_narrow_networks_are_those_of_timm(name: str, arguments: dict[str, Any]) -> None:
    reference = narrow_vgg11_bn(16) if name == "vgg11_bn" else narrow_resnet(name, 16)
    randomise(reference).eval()
    model = create_model(name, width=16, **arguments).eval()
    model.load_state_dict(translated(model, reference.state_dict()))
    x = images(2, 64)
    with torch.inference_mode():
        expected = reference(x)
        assert expected.std() > 0.05, "the comparison would see nothing"
        assert close(model(x), expected)


@pytest.mark.parametrize("name", REFERENCES)
def test_default_weights_and_preprocessing_are_the_references(name: str) -> None:
    entry, preprocess = MODELS[name], default_preprocess(name)
    library, _, reference = entry.reference.partition(":")
    scheme, _, place = (entry.weights or "").partition(":")
    if library == "torchvision":
        default: Any = torchvision.models.get_model_weights(reference).DEFAULT
        assert (scheme, f"https://download.pytorch.org/models/{place}") == ("torchvision", default.url)
        assert (entry.top1, entry.source) == (default.meta["_metrics"]["ImageNet-1K"]["acc@1"], "torchvision")
        transforms = default.transforms()
        assert preprocess.image_size == transforms.crop_size[0]
        assert preprocess.resize == transforms.resize_size[0]
        assert preprocess.interpolation == transforms.interpolation.value
        if name != "googlenet":  # torchvision renormalises inside this one
            assert (list(preprocess.mean), list(preprocess.std)) == (transforms.mean, transforms.std)
        return
    repository = place.removesuffix("/model.safetensors") if scheme == "hub" else f"timm/{reference}.in1k"
    cfg = timm.get_pretrained_cfg(repository.removeprefix("timm/") if scheme else reference)
    assert cfg is not None
    assert cfg.hf_hub_id == (repository if scheme else None)
    assert preprocess.image_size == cfg.input_size[1]
    assert preprocess.resize == math.floor(cfg.input_size[1] / cfg.crop_pct)
    assert (preprocess.mean, preprocess.std) == (cfg.mean, cfg.std)
    assert preprocess.interpolation == cfg.interpolation


def test_googlenet_sees_the_pixels_that_torchvision_shows_it() -> None:
    """torchvision normalises by ImageNet's statistics and, for these weights, undoes it inside the network."""
    reference: Any = torchvision.models.googlenet(
        weights=None, aux_logits=False, init_weights=False, transform_input=True
    )
    transforms: Any = torchvision.models.GoogLeNet_Weights.DEFAULT.transforms()
    pixels = torch.rand(1, 3, 8, 8)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (transforms.mean, transforms.std))
    preprocess = default_preprocess("googlenet")
    ours = (pixels - preprocess.mean[0]) / preprocess.std[0]
    torch.testing.assert_close(ours, reference._transform_input((pixels - mean) / std), rtol=1e-4, atol=1e-5)
    assert len({*preprocess.mean, *preprocess.std}) == 1


@pytest.mark.parametrize("name", MODELS)
def test_every_row_says_who_publishes_what(name: str) -> None:
    entry = MODELS[name]
    assert (entry.top1 is None) == (entry.source == "")
    assert entry.source in ("", "torchvision", "timm", "authors", "paper")
    assert entry.weights is None or entry.weights.partition(":")[0] in ("package", "torchvision", "hub", "url", "page")
    assert entry.weights is None or entry.source in ("torchvision", "timm", "authors")
