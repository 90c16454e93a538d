from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from lenext.classifier import Classifier, load
from lenext.data.transforms import eval_transform, normalise
from lenext.evaluation import explain
from lenext.models import create_model
from lenext.models.pooled import CombinedNetwork, PooledNetwork, choose_taps
from lenext.preprocess import Preprocess
from tests.pictures import photograph

KINDS = {
    "lenet5": 32,
    "alexnet_owt": 224,
    "vgg11": 64,
    "googlenet": 128,
    "resnet18": 128,
    "densenet121": 128,
    "mobilenet_v2": 128,
    "efficientnet_b0": 128,
    "convnext_tiny": 128,
    "vit_tiny_patch16_224": 224,
    "deit_tiny_distilled_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "t2t_vit_7": 224,
    "mixer_s16_224": 224,
    "poolformer_s12": 128,
}


def classifier_of(model: nn.Module, size: int, classes: int = 5, task: str = "single-label") -> Classifier:
    return Classifier(
        model=model.eval(),
        architecture={"name": "a network"},
        classes=tuple(f"class {i}" for i in range(classes)),
        preprocess=Preprocess(image_size=size, crop_fraction=1.0),
        task=task,  # type: ignore[arg-type]
    )


def network(name: str, size: int, classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    model = create_model(name, num_classes=classes, image_size=size).eval()
    for module in model.modules():  # as training leaves them: deep networks with fresh statistics give almost nothing
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model


def picture(size: int, name: str = "china.jpg") -> torch.Tensor:
    return eval_transform(Preprocess(image_size=size, crop_fraction=1.0))(photograph(name))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_network_has_a_heat_map_and_stays_as_it_was(name):
    size = KINDS[name]
    model = network(name, size)
    before = copy.deepcopy(model.state_dict())
    heat = explain.heat_map(classifier_of(model, size), picture(size))
    assert heat.shape == (size, size)
    assert heat.dtype == np.float32
    assert heat.min() >= 0
    assert heat.max() == pytest.approx(1, abs=1e-5)
    assert heat.std() > 0.01  # it says where
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "size", "layer", "places"),
    [
        ("resnet18", 128, lambda m: m.layer4[-1], None),
        ("convnext_tiny", 128, lambda m: m.stages()[-1], None),
        # The class token reads the patches in the last block: what it reads leaves the block before.
        ("vit_tiny_patch16_224", 224, lambda m: m.blocks[-2], 14),
    ],
)
def test_evidence_is_that_of_an_independent_library(name, size, layer, places):
    grad_cam = pytest.importorskip("pytorch_grad_cam", reason="pip install grad-cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = network(name, size).double()  # values of a fresh network are small
    x = normalise(picture(size)[None], Preprocess()).double()

    def as_map(tokens):
        return tokens[:, 1:].transpose(1, 2).reshape(1, -1, places, places)

    cam = grad_cam.HiResCAM(model, [layer(model)], reshape_transform=as_map if places else None)
    cam(x, [ClassifierOutputTarget(3)])
    seen = cam.activations_and_grads
    theirs = cam.get_cam_image(
        x, layer(model), None, seen.activations[0].numpy(), seen.gradients[0].numpy(), eigen_smooth=False
    )
    seen.release()
    ours = next(
        found[0]
        for leaves, outputs in explain.readings(model, x)
        if (found := explain.evidence(leaves, explain.class_score(outputs, 3, several=True)))[0].any()
    )
    np.testing.assert_allclose(ours.numpy(), theirs[0], rtol=1e-3, atol=1e-5 * np.abs(theirs).max())


def pooled(size: int = 128, classes: int = 5) -> PooledNetwork:
    backbone = network("resnet18", size)
    taps, dims = choose_taps(backbone, size)
    model = PooledNetwork(backbone, taps=taps, dims=dims, num_classes=classes).eval()
    model.scale.uniform_(0.5, 2)
    model.shift.uniform_(0, 1)
    return model


def test_of_a_pooled_network_nothing_of_the_score_is_left_out():
    """Averages, maxima and deviations are homogeneous, so gradient times value sums to the value (Euler), less what
    the head subtracts."""
    model = pooled()
    x = normalise(picture(128)[None], Preprocess())
    (leaves, outputs) = next(explain.readings(model, x))
    torch.testing.assert_close(outputs, model(x))
    maps = explain.evidence(leaves, outputs[0, 2])
    with torch.no_grad():
        expected = outputs[0, 2] - model.head.bias[2]
    torch.testing.assert_close(sum(m.sum() for m in maps), expected, rtol=1e-3, atol=1e-3)
    spread = torch.stack([explain.spread(m, 128) for m in maps])
    torch.testing.assert_close(spread.sum(), expected, rtol=0.1, atol=1e-3)
    torch.testing.assert_close(explain.together(maps).sum(), expected, rtol=1e-3, atol=1e-3)


def test_of_a_pooled_network_regions_are_shown_not_points():
    """A maximum is one point of its map, which a person would not see."""
    heat = explain.heat_map(classifier_of(pooled(), 128), picture(128))
    assert (heat > 0.5).mean() > 0.02


def test_a_combined_network_is_looked_into_in_both_branches():
    quick = pooled()
    torch.manual_seed(1)
    tuned = create_model("resnet18", num_classes=5, image_size=128).eval()
    model = CombinedNetwork(quick, tuned, boundary=5).eval()
    x = normalise(picture(128)[None], Preprocess())
    leaves, outputs = next(explain.readings(model, x))
    torch.testing.assert_close(outputs, model(x))
    maps = explain.evidence(leaves, explain.class_score(outputs, None, several=False))
    assert len(maps) == len(quick.taps) + 2  # what the quick head subtracts, and the map of the tuned branch
    assert all(m.any() for m in maps)
    assert explain.heat_map(classifier_of(model, 128), picture(128)).max() == pytest.approx(1, abs=1e-5)


def test_what_speaks_for_one_of_two_classes_speaks_against_the_other():
    x = normalise(picture(128)[None], Preprocess())
    for outputs in (1, 2):
        model = network("resnet18", 128, outputs)
        maps = []
        for k in (0, 1):
            leaves, logits = next(explain.readings(model, x))
            maps.append(explain.evidence(leaves, explain.class_score(logits, k, several=False))[0])
        torch.testing.assert_close(maps[0], -maps[1])
        assert maps[0].abs().max() > 0


@pytest.mark.parametrize(("top", "left"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_trained_network_looks_where_the_object_is(top, left):
    classifier = load("tf_efficientnet_lite0")
    flower = photograph("flower.jpg")[60:380, 120:440]
    canvas = np.full((640, 640, 3), 128, np.uint8)
    canvas[320 * top : 320 * (top + 1), 320 * left : 320 * (left + 1)] = flower
    pixels = eval_transform(classifier.preprocess)(canvas)
    heat = explain.heat_map(classifier, pixels)
    half = len(heat) // 2
    share = heat[half * top : half * (top + 1), half * left : half * (left + 1)].sum() / heat.sum()
    assert share > 0.7
    shown = explain.overlay(pixels, heat)
    assert shown.shape == (*heat.shape, 3)
    assert shown.dtype == np.uint8
    coloured = np.ptp(shown.astype(int), axis=2)
    assert (heat == 0).any()
    assert coloured[heat == 0].max() == 0
    assert coloured[heat > 0.5].min() > 50


def test_predictions_in_other_threads_are_not_disturbed():
    model = network("resnet18", 96)
    classifier = classifier_of(model, 96)
    x = normalise(torch.stack([picture(96), picture(96, "flower.jpg")]), classifier.preprocess)
    with torch.no_grad():
        expected = model(x)

    def predict(_: int) -> torch.Tensor:
        with torch.no_grad():
            return model(x)

    def look(_: int) -> np.ndarray:
        return explain.heat_map(classifier, picture(96))

    with ThreadPoolExecutor(4) as pool:
        heats, answers = pool.map(look, range(8)), pool.map(predict, range(16))
        assert all(torch.allclose(answer, expected, atol=1e-5) for answer in answers)
        assert len({heat.tobytes() for heat in heats}) == 1


def test_a_network_without_maps_says_so():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
    with pytest.raises(ValueError, match="a network has no feature maps"):
        explain.heat_map(classifier_of(model, 32), picture(32))
