"""What every network promises: stages, head, sizes, channels, regularisation, saving, exporting."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lenext.models import MODELS, catalogue, create_model, weights
from lenext.models.layers import ACTIVATIONS, DropPath, LayerNorm2d, drop_path_rates, norm2d, round_channels
from tests.models.references import build_ours

# The smallest network of each kind, the side of the images to try it on, and what makes it shorter still.
FOUR = {"depths": (1, 1, 1, 1)}
SMALLEST: dict[str, tuple[int, dict[str, Any]]] = {
    "lenet5": (32, {}),
    "alexnet": (67, {}),
    "zfnet": (65, {}),
    "alexnet_owt": (67, {}),
    "vgg11": (33, {"hidden_dim": 32}),
    "vgg11_bn": (33, {"hidden_dim": 32}),
    "googlenet": (33, {}),
    "resnet18": (33, {}),
    "resnet50": (32, FOUR),
    "resnext50_32x4d": (32, FOUR),
    "wide_resnet50_2": (32, FOUR),
    "densenet121": (33, {"depths": (2, 2, 1, 2)}),
    "seresnet50": (32, FOUR),
    "mobilenetv1_100": (33, {}),
    "shufflenet_v1_x0_5_g3": (33, {"depths": (2, 2, 2)}),
    "shufflenet_v1_x0_5_g8": (33, {"depths": (2, 2, 2)}),
    "mobilenet_v2": (33, {}),
    "shufflenet_v2_x0_5": (33, {"depths": (2, 2, 2)}),
    "mobilenet_v3_small": (33, {}),
    "efficientnet_b0": (33, {}),
    "tf_efficientnet_lite0": (33, {}),
    "efficientnet_v2_s": (33, {"depths": (2, 2, 2, 2, 2, 2)}),
    "vit_tiny_patch16_224": (32, {"depth": 2}),
    "deit_tiny_patch16_224": (32, {"depth": 2}),
    "deit_tiny_distilled_patch16_224": (32, {"depth": 2}),
    "t2t_vit_7": (32, {"depth": 2}),
    "t2t_vit_t_14": (32, {"depth": 2}),
    "swin_tiny_patch4_window7_224": (64, {"depths": (2, 2, 1, 1)}),
    "mixer_s16_224": (32, {"depth": 2}),
    "as_mlp_tiny": (32, FOUR),
    "poolformer_s12": (65, FOUR),
    "poolformerv2_s12": (65, FOUR),
    "convformer_s18": (33, FOUR),
    "caformer_s18": (32, FOUR),
    "convmixer_768_32": (33, {"depth": 2}),
    "convnext_tiny": (32, FOUR),
    "van_b0": (33, FOUR),
}
BUILT_FOR_A_SIZE = [name for name in SMALLEST if not catalogue.takes_any_size(name)]
ANY_SIZE = [name for name in SMALLEST if catalogue.takes_any_size(name)]
TOKENS = ("vit_", "deit_", "t2t_", "mixer_")


def small(name: str, **arguments: Any) -> Any:
    size, shorter = SMALLEST[name]
    if name in BUILT_FOR_A_SIZE:
        arguments = {"image_size": size, **arguments}
    return build_ours(name, **{"num_classes": 5, **shorter, **arguments})


def images(name: str, count: int = 2, in_channels: int = 3) -> Tensor:
    size, _ = SMALLEST[name]
    return torch.randn(count, in_channels, size, size)


def lively(model: nn.Module) -> nn.Module:
    """Values that let every branch matter: initial layer scales and residual branches are often near zero."""
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim > 1 and parameter[0].numel() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif key.endswith(("weight", "gamma", "scale")) or "scale" in key:
            nn.init.ones_(parameter)
    return model


def test_every_file_is_tried() -> None:
    assert {MODELS[name].paper.file for name in SMALLEST} == {entry.paper.file for entry in MODELS.values()}


@pytest.mark.parametrize("name", SMALLEST)
def test_stages_then_head_is_forward(name: str) -> None:
    model, x = small(name).eval(), images(name)
    with torch.inference_mode():
        features = x.clone()
        for stage in model.stages():
            before = features.clone()
            output = stage(features)
            assert torch.equal(features, before), "a stage changes the output of the one before"
            features = output
        assert features.ndim == (3 if name.startswith(TOKENS) else 4)
        torch.testing.assert_close(model.forward_head(features), model(x), rtol=0, atol=0)
    assert len(model.stages()) >= 3


@pytest.mark.parametrize("name", SMALLEST)
def test_stages_and_head_share_all_parameters(name: str) -> None:
    with torch.device("meta"):
        model = small(name)
    staged = {id(p) for stage in model.stages() for p in stage.parameters()}
    for head_name in weights.head_names(model):
        head = model.get_submodule(head_name)
        assert isinstance(head, nn.Linear)
        assert head.out_features == 5
        assert not staged & {id(p) for p in head.parameters()}
    everything = {id(p) for p in model.parameters()}
    assert staged < everything
    in_the_head = {
        "lenet5": 4,
        "alexnet": 6,
        "zfnet": 6,
        "alexnet_owt": 6,
        "vgg11": 6,
        "vgg11_bn": 6,
        "shufflenet_v1_x0_5_g3": 1,
        "shufflenet_v1_x0_5_g8": 1,
        "mobilenet_v3_small": 4,
        "convnext_tiny": 4,
        "deit_tiny_distilled_patch16_224": 4,
        "convformer_s18": 8,
        "caformer_s18": 8,
        "poolformerv2_s12": 4,
        "poolformer_s12": 4,
    }
    assert len(everything) - len(staged) == in_the_head.get(name, 2)


@pytest.mark.parametrize("name", SMALLEST)
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    """Also with two channels and five classes."""
    model, x = lively(small(name, in_channels=2)).train(), images(name, count=4, in_channels=2)
    logits = model(x)
    assert logits.shape == (4, 5)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().max() > 0, key
    frozen = [key for key, parameter in model.named_parameters() if not parameter.requires_grad]
    if name.startswith("t2t_vit"):  # tables that the authors save with the weights
        assert all(key == "pos_embed" or key.endswith(".w") for key in frozen)
    else:
        assert not frozen


@pytest.mark.parametrize("name", ANY_SIZE)
def test_any_size_from_the_smallest(name: str) -> None:
    model = small(name).eval()
    smallest = max(catalogue.smallest_size(name), 8)
    with torch.inference_mode():
        for height, width in ((smallest, smallest), (smallest + 9, smallest + 22)):
            assert model(torch.randn(1, 3, height, width)).isfinite().all()


@pytest.mark.parametrize("name", [name for name in SMALLEST if catalogue.smallest_size(name) > 1])
def test_the_smallest_size_is_the_smallest(name: str) -> None:
    smallest = catalogue.smallest_size(name)
    with torch.device("meta"):
        model = create_model(name, image_size=smallest)
        assert model(torch.empty(2, 3, smallest, smallest)).shape == (2, 1000)
        with pytest.raises(ValueError, match=f"too few for {name}: at least {smallest}|image_size"):
            create_model(name, image_size=smallest - 1)
        if name in ANY_SIZE:
            with pytest.raises(RuntimeError):
                model(torch.empty(2, 3, smallest - 1, smallest - 1))


OTHER_SIZES = {"alexnet": 127, "zfnet": 97, "swin_tiny_patch4_window7_224": 96}


@pytest.mark.parametrize("name", [name for name in BUILT_FOR_A_SIZE if name != "lenet5"])
def test_another_size_works_and_takes_the_weights_or_says_why(name: str, tmp_path: Path) -> None:
    size = OTHER_SIZES.get(name, 48)
    model = small(name).eval()
    torch.save(model.state_dict(), tmp_path / "small.pth")
    other = small(name, image_size=size).eval()
    with torch.inference_mode():
        assert other(torch.randn(1, 3, size, size)).isfinite().all()
    if name in ("alexnet", "zfnet", "mixer_s16_224"):  # linear layers over positions
        with pytest.raises(ValueError, match=rf"do not fit {name} .* of another shape"):
            weights.load_pretrained(other, name, tmp_path / "small.pth")
        return
    weights.load_pretrained(other, name, tmp_path / "small.pth")
    for key, parameter in model.named_parameters():
        if other.get_parameter(key).shape == parameter.shape:
            assert torch.equal(other.get_parameter(key), parameter), key
    again = small(name).eval()
    weights.load_pretrained(again, name, tmp_path / "small.pth")
    with torch.inference_mode():
        x = images(name)
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", SMALLEST)
def test_weights_for_colour_serve_grey_pictures(name: str, tmp_path: Path) -> None:
    colour = lively(small(name)).eval()
    torch.save(colour.state_dict(), tmp_path / "colour.pth")
    grey = small(name, in_channels=1).eval()
    if name.startswith("t2t_vit"):  # the first layer is an attention between patches, norm included
        with pytest.raises(ValueError, match=r"of another shape: tokens_to_token"):
            weights.load_pretrained(grey, name, tmp_path / "colour.pth")
        return
    weights.load_pretrained(grey, name, tmp_path / "colour.pth")
    x = images(name, in_channels=1)
    with torch.inference_mode():
        expected = colour(x.expand(-1, 3, -1, -1))
        assert (grey(x) - expected).abs().max() <= 1e-4 * expected.abs().max()


REGULARISED = [
    (argument, name) for argument in ("dropout", "drop_path") for name in SMALLEST if catalogue.takes(name, argument)
]


@pytest.mark.parametrize(("argument", "name"), REGULARISED)
def test_regularisation_acts_in_training_only(argument: str, name: str) -> None:
    shorter = {"depths": (2, 2, 2, 2)} if argument == "drop_path" and SMALLEST[name][1] is FOUR else {}
    x, model = images(name), lively(small(name, **{argument: 0.5}, **shorter))
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # its running statistics would make the outputs differ anyway,
            module.get_buffer("running_var").fill_(0.3)  # and those of a fresh network make signals fade
    with torch.inference_mode():
        answers = [model(x) for _ in range(8)]
        assert any(not torch.equal(answers[0], answer) for answer in answers[1:])
        model.eval()
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", [name for name in SMALLEST if catalogue.takes(name, "stem")])
def test_the_small_stem_keeps_small_pictures_large(name: str) -> None:
    size, shorter = 32, SMALLEST[name][1]
    x = torch.randn(2, 3, size, size)
    small_stem = build_ours(name, num_classes=5, stem="small", **shorter).eval()
    usual = build_ours(name, num_classes=5, **shorter).eval()
    with torch.inference_mode():
        first = small_stem.stages()[0](x)  # type: ignore[operator]
        assert first.shape[-2:] == (size, size)
        for stage in usual.stages()[1:]:  # type: ignore[operator]
            assert isinstance(stage, nn.Module)
        assert small_stem(x).isfinite().all()
        assert usual.stages()[0](x).shape[-1] <= size // 2  # type: ignore[operator]
    with pytest.raises(ValueError, match='stem must be "imagenet" or "small", not \'tiny\''):
        create_model(name, stem="tiny")


@pytest.mark.parametrize("name", [name for name in SMALLEST if catalogue.takes(name, "norm")])
@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
def test_norms(name: str, norm: str) -> None:
    kinds = {"batch": nn.BatchNorm2d, "group": nn.GroupNorm, "layer": LayerNorm2d}
    model = small(name, norm=norm).train()
    found = {type(module) for module in model.modules()} & {*kinds.values()}
    assert found == ({kinds[norm]} if norm in kinds else set())
    model(images(name)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match=r'norm must be "batch", "group", "layer" or "none", not .rms'):
        small(name, norm="rms")


@pytest.mark.parametrize("name", [name for name in SMALLEST if catalogue.takes(name, "activation")])
def test_activations(name: str) -> None:
    x = images(name)
    outputs = []
    for activation in ("relu", "gelu", "tanh"):
        torch.manual_seed(0)
        model = lively(small(name, activation=activation)).eval()
        with torch.inference_mode():
            outputs.append(model(x))
        kinds = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
        assert any(isinstance(module, kinds[activation]) for module in model.modules())
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])
    with pytest.raises(ValueError, match=r"activation must be one of relu, .*, not 'swoosh'"):
        small(name, activation="swoosh")


def test_layers_by_name() -> None:
    x = torch.randn(2, 48, 3, 3)
    group = norm2d("group", 48)
    assert isinstance(group, nn.GroupNorm)
    assert group.num_groups == 16  # 32 does not divide 48
    for name in ACTIVATIONS:
        assert ACTIVATIONS[name]()(x.clone()).shape == x.shape
    assert [round_channels(value) for value in (3, 8.8, 8.9, 12, 18.9, 100.1)] == [8, 8, 16, 16, 24, 104]


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


@pytest.mark.parametrize("name", SMALLEST)
def test_saved_weights_come_back(name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model, x = lively(small(name)).eval(), images(name)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    again = small(name).eval()
    weights.load_pretrained(again, name, tmp_path / "weights.safetensors")
    with torch.inference_mode():
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", SMALLEST)
def test_torch_export_and_onnx_with_any_batch_size(name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = lively(small(name)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(name, count=2),), dynamic_shapes=({0: batch},))
    x = images(name, count=3)
    with torch.inference_mode():
        expected = model(x)
        scale = expected.abs().max()
        assert (program.module()(x) - expected).abs().max() <= 1e-4 * scale
    with warnings.catch_warnings(action="ignore"):
        onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx is not None
    session = onnxruntime.InferenceSession(onnx.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert (torch.from_numpy(logits) - expected).abs().max() <= 1e-4 * scale


@pytest.mark.parametrize("name", SMALLEST)
def test_compile_autocast_and_channels_last(name: str) -> None:
    """One graph without breaks; the kernels of the compiler are tried by `make soak`."""
    model, x = lively(small(name)).eval(), images(name)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    with torch.inference_mode():
        expected = model(x)
    scale = expected.abs().max()
    with torch.no_grad():
        assert (compiled(x) - expected).abs().max() <= 1e-4 * scale
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert (model(x).float() - expected).abs().max() <= 0.1 * scale
    model = model.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert (model(x.to(memory_format=torch.channels_last)) - expected).abs().max() <= 1e-4 * scale
    with torch.autocast("cpu", torch.bfloat16):
        nn.functional.cross_entropy(model.train()(images(name, 3)).float(), torch.tensor([0, 1, 2])).backward()


def test_openvino_agrees_on_padding_that_follows_the_input() -> None:
    openvino = pytest.importorskip("openvino")
    model, x = small("tf_efficientnet_lite0").eval(), images("tf_efficientnet_lite0")
    with warnings.catch_warnings(action="ignore"):  # tracing warns of every size that becomes a constant
        converted = openvino.convert_model(model, example_input=x)
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.inference_mode():
        expected = model(x)
    torch.testing.assert_close(torch.from_numpy(compiled(x.numpy())[0]), expected, rtol=1e-3, atol=1e-4)
