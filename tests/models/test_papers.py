"""What single papers say: sizes, options and the checkpoints of their authors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from lenext.models import create_model, default_preprocess, weights
from lenext.models.vit import VARIANTS as VITS


def parameters(name: str, **arguments: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(name, **arguments).parameters())


def test_lenet_layer_by_layer() -> None:
    """The sizes of figure 2 of the paper, from a 32 x 32 image."""
    model = create_model("lenet5", num_classes=10, in_channels=1).eval()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_children():
        module.register_forward_hook(
            lambda _, inputs, output, name=name: shapes.update({name: tuple(output.shape[1:])})
        )
    maps = []
    x = torch.rand(1, 1, 32, 32)
    model(x)
    for stage in model.stages():  # type: ignore[operator]
        x = stage(x)
        maps.append(tuple(x.shape[1:]))
    assert [shapes[layer] for layer in ("c1", "c3", "c5", "f6", "output")] == [
        (6, 28, 28), (16, 10, 10), (120, 1, 1), (84,), (10,)
    ]  # fmt: skip
    assert maps == [(6, 14, 14), (16, 5, 5), (120, 1, 1)]  # after subsampling


def test_alexnet_layer_by_layer() -> None:
    with torch.device("meta"):
        model: Any = create_model("alexnet")
        x = torch.empty(2, 3, 224, 224)
        convolutions, maps = [], []
        for stage in model.stages():
            convolutions.append(tuple(stage[0](x).shape[1:]))
            x = stage(x)
            maps.append(tuple(x.shape[1:]))
    assert convolutions == [(96, 55, 55), (256, 27, 27), (384, 13, 13), (384, 13, 13), (256, 13, 13)]
    assert maps == [(96, 27, 27), (256, 13, 13), (384, 13, 13), (384, 13, 13), (256, 6, 6)]
    linear = [(layer.in_features, layer.out_features) for layer in (model.fc6, model.fc7, model.fc8)]
    assert linear == [(9216, 4096), (4096, 4096), (4096, 1000)]
    weighted = {key: p.numel() for key, p in model.named_parameters() if key.endswith("weight")}
    assert list(weighted.values()) == [34848, 614400, 884736, 1327104, 884736, 37748736, 16777216, 4096000]


def test_alexnet_normalisation_is_the_papers_formula() -> None:
    model: Any = create_model("alexnet", num_classes=2, image_size=63, lrn=True)
    assert parameters("alexnet", lrn=True) == parameters("alexnet")
    x = torch.randn(1, 96, 2, 2) * 50
    expected = torch.empty_like(x)
    for i in range(96):
        near = x[:, max(0, i - 2) : min(96, i + 3)]
        expected[:, i] = x[:, i] / (2 + 1e-4 * (near**2).sum(1)) ** 0.75
    torch.testing.assert_close(model.norm1(x), expected)
    plain: Any = create_model("alexnet", num_classes=2, image_size=63)
    plain.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 63, 63) * 20
    assert not torch.allclose(plain.eval()(image), model.eval()(image), rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", 11_271_432),
        ("resnet34", 21_379_592),
        ("resnet50", 23_910_152),
        ("resnext50_32x4d", 23_382_024),
    ],
)
def test_the_small_stem(name: str, expected: int) -> None:
    assert parameters(name, num_classes=200, stem="small") == expected
    with torch.device("meta"):
        model: Any = create_model(name, stem="small")
        assert model.stages()[0](torch.empty(1, 3, 64, 64)).shape == (1, 64, 64, 64)
        assert create_model(name).stages()[0](torch.empty(1, 3, 64, 64)).shape == (1, 64, 16, 16)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_options_of_residual_networks(name: str) -> None:
    assert parameters(name, stem_bias=True) == parameters(name) + 64
    model = create_model(name, num_classes=4, norm_eps=1.001e-5, stem_bias=True, zero_init_residual=True)
    norms = {key: module for key, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {module.eps for module in norms.values()} == {1.001e-5}
    last = "bn2" if name == "resnet18" else "bn3"
    zero = {key for key, module in norms.items() if bool((module.weight == 0).all())}
    assert zero == {key for key in norms if key.startswith("layer") and key.endswith(last)}


@pytest.mark.parametrize(
    ("name", "arguments", "widths", "last"),
    [
        ("resnet18", {"width": 6}, [6, 12, 24, 48], 48),
        ("resnet50", {"width": 16}, [16, 32, 64, 128], 512),
        ("resnet50", {"width": 16, "cardinality": 8, "base_width": 4}, [32, 64, 128, 256], 512),
        ("resnext50_32x4d", {"width": 16, "base_width": 1}, [32, 64, 128, 256], 512),
        ("wide_resnet50_2", {"width": 16}, [128, 256, 512, 1024], 512),
        ("vgg11", {"width": 6, "hidden_dim": 8}, [6, 12, 24, 48], 48),
    ],
)
def test_narrow_stages_keep_their_proportion(
    name: str, arguments: dict[str, Any], widths: list[int], last: int
) -> None:
    """widths: of the 3x3 convolutions, from the first to the last. last: channels of the features."""
    with torch.device("meta"):
        model: Any = create_model(name, **arguments)
        x = torch.empty(2, 3, 64, 64)
        for stage in model.stages():
            x = stage(x)
        assert x.shape == (2, last, 2, 2)
        assert model.forward_head(x).shape == (2, 1000)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert list(dict.fromkeys(c.out_channels for c in convolutions if c.kernel_size == (3, 3))) == widths


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11_bn"])
def test_narrow_networks_learn(name: str) -> None:
    """Six pictures by heart."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"hidden_dim": 32, "dropout": 0.0} if name.startswith("vgg") else {"stem": "small"}
    model = create_model(name, num_classes=3, image_size=32, width=8, **arguments).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 1, 2, 2, 2])
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(x), labels)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.8 * losses[0]


def test_convnext_sizes() -> None:
    """Without the classifier, and with one output: what a binary classifier on ConvNeXt has."""
    for name, backbone, binary in (
        ("convnext_tiny", 27_820_128, 27_820_897),
        ("convnext_base", 87_566_464, 87_567_489),
    ):
        with torch.device("meta"):
            model = create_model(name, num_classes=1)
        assert sum(p.numel() for p in model.parameters()) == binary
        head = sum(p.numel() for p in model.get_submodule("head.fc").parameters())
        assert binary - head == backbone


def test_convnext_layer_scale() -> None:
    model = create_model("convnext_tiny", num_classes=2, layer_scale=0.5)
    scales = [p for key, p in model.named_parameters() if key.endswith("gamma")]
    assert len(scales) == 18
    assert all(bool((scale == 0.5).all()) for scale in scales)
    assert parameters("convnext_tiny", layer_scale=None) == parameters("convnext_tiny") - sum(s.numel() for s in scales)
    with torch.inference_mode():
        x = torch.randn(1, 3, 32, 32)
        assert create_model("convnext_tiny", num_classes=2, layer_scale=None)(x).isfinite().all()


def test_convnext_checkpoints_of_the_authors(tmp_path: Path) -> None:
    """Their file, as their code names and nests it; the expected network is timm's, which translates it."""
    torch.manual_seed(2)
    reference = timm.create_model("convnext_tiny", depths=(3, 3, 9, 3), num_classes=6).eval()
    renames = (
        ("stem.", "downsample_layers.0."),
        *((f"stages.{i}.downsample.", f"downsample_layers.{i}.") for i in (1, 2, 3)),
        (".blocks.", "."),
        (".conv_dw.", ".dwconv."),
        (".mlp.fc", ".pwconv"),
        ("head.norm.", "norm."),
        ("head.fc.", "head."),
    )
    official: dict[str, Tensor] = {}
    for key, tensor in reference.state_dict().items():
        tensor.normal_(std=0.1)
        for ours, theirs in renames:
            key = key.replace(ours, theirs)
        official[key] = tensor
    assert {"downsample_layers.1.0.weight", "stages.2.8.pwconv1.bias", "norm.bias"} <= official.keys()
    torch.save({"model": official}, tmp_path / "convnext.pth")
    model = create_model("convnext_tiny", num_classes=6, pretrained=tmp_path / "convnext.pth").eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), reference(x), rtol=1e-4, atol=1e-4)


def test_vit_positions_of_another_image_size(tmp_path: Path) -> None:
    torch.manual_seed(3)
    reference: Any = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=4).eval()
    nn.init.normal_(reference.get_parameter("pos_embed"))
    torch.save(reference.state_dict(), tmp_path / "224.pth")
    for size in (160, 288):
        model = VITS["vit_tiny_patch16_224"](depth=2, num_classes=4, image_size=size).eval()
        weights.load_pretrained(model, "vit_tiny_patch16_224", tmp_path / "224.pth")
        reference.set_input_size(img_size=size)
        with torch.inference_mode():
            x = torch.randn(1, 3, size, size)
            torch.testing.assert_close(model(x), reference(x), rtol=1e-4, atol=1e-4)
        reference.set_input_size(img_size=224)
        reference.load_state_dict(torch.load(tmp_path / "224.pth", weights_only=True))


def test_vit_drops_units_where_the_paper_does() -> None:
    """After the positions, after attention and after both linear layers of the perceptron."""
    shapes: list[tuple[int, ...]] = []
    model = VITS["vit_tiny_patch16_224"](depth=1, num_classes=2, image_size=32, dropout=0.1)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    model(torch.randn(1, 3, 32, 32))
    assert shapes == [(1, 5, 192), (1, 5, 192), (1, 5, 768), (1, 5, 192)]


def test_vit_arrays_of_the_authors(tmp_path: Path) -> None:
    """Their `.npz`, read by us and by timm."""
    generator = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return generator.normal(scale=0.2, size=shape).astype(np.float32)

    arrays = {
        "cls": array(1, 1, 192),
        "embedding/kernel": array(16, 16, 3, 192),
        "embedding/bias": array(192),
        "Transformer/posembed_input/pos_embedding": array(1, 197, 192),
        "Transformer/encoder_norm/scale": array(192),
        "Transformer/encoder_norm/bias": array(192),
        "head/kernel": array(192, 7),
        "head/bias": array(7),
    }
    for i in range(2):
        block = f"Transformer/encoderblock_{i}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            arrays[f"{block}/{norm}/scale"] = array(192)
            arrays[f"{block}/{norm}/bias"] = array(192)
        for part in ("query", "key", "value"):
            arrays[f"{block}/MultiHeadDotProductAttention_1/{part}/kernel"] = array(192, 3, 64)
            arrays[f"{block}/MultiHeadDotProductAttention_1/{part}/bias"] = array(3, 64)
        arrays[f"{block}/MultiHeadDotProductAttention_1/out/kernel"] = array(3, 64, 192)
        arrays[f"{block}/MultiHeadDotProductAttention_1/out/bias"] = array(192)
        for layer, shape in (("Dense_0", (192, 768)), ("Dense_1", (768, 192))):
            arrays[f"{block}/MlpBlock_3/{layer}/kernel"] = array(*shape)
            arrays[f"{block}/MlpBlock_3/{layer}/bias"] = array(shape[1])
    np.savez(tmp_path / "vit.npz", **arrays)  # type: ignore[arg-type]

    reference: Any = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=7).eval()
    reference.load_pretrained(str(tmp_path / "vit.npz"))
    model = VITS["vit_tiny_patch16_224"](depth=2, num_classes=7).eval()
    weights.load_pretrained(model, "vit_tiny_patch16_224", tmp_path / "vit.npz")
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), reference(x), rtol=1e-3, atol=1e-3)
    incomplete = {key: a for key, a in arrays.items() if "encoderblock_1/MultiHead" not in key or "value" not in key}
    np.savez(tmp_path / "incomplete.npz", **incomplete)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.qkv\.weight \(384x192 in the file, 576x192 in the network"):
        weights.load_pretrained(model, "vit_tiny_patch16_224", tmp_path / "incomplete.npz")


PHOTOS = {"flower.jpg": 985, "china.jpg": 698}  # daisy, palace


@pytest.mark.skipif(not weights.has_offline_weights("tf_efficientnet_lite0"), reason="its package is not installed")
@pytest.mark.parametrize("photo", PHOTOS)
def test_packaged_weights_recognise_photos(photo: str) -> None:
    from PIL import Image
    from sklearn.datasets import load_sample_image
    from torchvision.transforms.v2 import functional as F

    preprocess = default_preprocess("tf_efficientnet_lite0")
    image = F.pil_to_tensor(Image.fromarray(load_sample_image(photo)))
    x = F.resize(image, [preprocess.resize], interpolation=F.InterpolationMode.BICUBIC)
    x = F.center_crop(x, [preprocess.image_size]).unsqueeze(0) / 255
    x = F.normalize(x, list(preprocess.mean), list(preprocess.std))

    model = create_model("tf_efficientnet_lite0", pretrained=True).eval()
    reference = timm.create_model("tf_efficientnet_lite0").eval()
    packaged = torch.load(weights.default_weights("tf_efficientnet_lite0"), weights_only=True)
    reference.load_state_dict(dict(zip(reference.state_dict(), packaged.values(), strict=True)))
    with torch.inference_mode():
        logits, expected = model(x), reference(x)
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert logits.argmax().item() == PHOTOS[photo]
