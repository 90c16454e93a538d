"""The table, `create_model` and what it says to requests that cannot be met."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lenext.models import MODELS, create_model, default_preprocess, list_models


def test_natural_order() -> None:
    names = list_models()
    assert set(names) == set(MODELS)
    resnets = [name for name in names if name.startswith("resnet")]
    assert resnets == ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    assert names.index("alexnet") < names.index("convnext_tiny") < names.index("vit_tiny_patch16_224")


@pytest.mark.parametrize("file", sorted({entry.paper.file for entry in MODELS.values()}))
def test_one_file_explains_one_paper(file: str) -> None:
    import importlib

    module: Any = importlib.import_module(f"lenext.models.{file}")
    entries = {name: entry for name, entry in MODELS.items() if entry.paper.file == file}
    assert module.VARIANTS.keys() == entries.keys()
    for paper in {entry.paper for entry in entries.values()}:
        words = " ".join(module.__doc__.split())
        assert paper.title.lower() in words.lower()
        assert str(paper.year) in words
        assert paper.link in words
    assert "eviation" in module.__doc__
    assert len(Path(module.__file__).read_text(encoding="utf-8").splitlines()) <= 300


def test_the_table_imports_no_network() -> None:
    code = "import sys, lenext.models; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "lenext.models.weights" in answer.split()
    files = {f"lenext.models.{entry.paper.file}" for entry in MODELS.values()} | {"timm", "torchvision"}
    assert not files & set(answer.split())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"name": "resnet5"}, r"no model 'resnet5'.*Did you mean resnet50"),
        ({"name": "convnxt_tiny"}, r"Did you mean convnext_tiny"),
        ({"name": "qqqq"}, r"no model 'qqqq'\. `lenext models`"),
        ({"name": "resnet18", "num_classes": 0}, r"num_classes must be .* at least 1, not 0"),
        ({"name": "resnet18", "num_classes": 2.0}, r"num_classes must be a whole number"),
        ({"name": "resnet18", "num_classes": True}, r"num_classes must be a whole number"),
        ({"name": "resnet18", "in_channels": -1}, r"in_channels must be .* at least 1, not -1"),
        ({"name": "resnet18", "image_size": 0}, r"image_size must be .* at least 1, not 0"),
        ({"name": "vit_tiny_patch16_224", "image_size": 230}, r"16 pixels, not 230: 224 and 240 work"),
        ({"name": "vit_tiny_patch16_224", "image_size": 8}, r"16 pixels, not 8: 16 and 32 work"),
        ({"name": "alexnet", "image_size": 62}, r"62 pixels, too few for alexnet: at least 63"),
        ({"name": "resnet18", "depth": 3}, r"no argument 'depth'; it takes activation, base_width, card"),
        ({"name": "resnet18", "depths": (1, 1, 1, 1)}, r"takes no argument 'depths'"),
        ({"name": "alexnet", "drop_path": 0.1}, r"takes no argument 'drop_path'; it takes activation, dropout, lrn\."),
        ({"name": "resnet18", "stem": "tiny"}, r'stem must be "imagenet" or "small", not \'tiny\''),
        ({"name": "resnext50_32x4d", "stem": "tiny"}, r'stem must be "imagenet" or "small"'),
        ({"name": "resnet50", "width": 0}, r"width, .* whole number of at least 1, not 0"),
        ({"name": "resnet18", "width": 16.0}, r"width, .* whole number of at least 1, not 16.0"),
        ({"name": "vgg11", "width": True}, r"width, .* whole number of at least 1, not True"),
        ({"name": "resnet18", "width": 16, "cardinality": 2}, r"belong to bottleneck blocks: ResNet-50 and larger"),
        ({"name": "resnet34", "width": 16, "base_width": 64}, r"belong to bottleneck blocks: ResNet-50 and larger"),
        ({"name": "resnet50", "width": 16, "base_width": 0}, r"must be at least 1, not 1 and 0"),
        ({"name": "convnext_tiny", "drop_path": 1.0}, r"drop_path .* \[0, 1\), not 1.0"),
        ({"name": "alexnet", "dropout": 1.5}, r"dropout probability"),
    ],
)  # fmt: skip
def test_impossible_requests(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(**request_)


def test_unknown_name_of_a_preprocessing() -> None:
    with pytest.raises(ValueError, match="Did you mean resnet50"):
        default_preprocess("resnet5")


def test_image_size_builds_what_depends_on_it() -> None:
    with torch.device("meta"):
        assert create_model("vit_tiny_patch16_224", image_size=64).get_parameter("pos_embed").shape[1] == 1 + 16
        assert create_model("vit_base_patch32_224").get_parameter("pos_embed").shape[1] == 1 + 49
        assert create_model("alexnet", image_size=127).get_parameter("fc6.weight").shape[1] == 256 * 3 * 3


def test_timm_models(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = create_model("timm:resnet10t", num_classes=4, in_channels=1, image_size=64, drop_path_rate=0.1)
    assert type(model) is timm.models.ResNet
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 4)
    vit = create_model("timm:vit_tiny_patch16_224", image_size=32, depth=1)
    assert vit.get_parameter("pos_embed").shape[1] == 1 + 4

    torch.save(model.state_dict(), tmp_path / "grey.pth")
    colour = create_model("timm:resnet10t", num_classes=2, pretrained=tmp_path / "grey.pth")
    assert torch.equal(colour.get_parameter("layer1.0.conv1.weight"), model.get_parameter("layer1.0.conv1.weight"))
    assert colour.get_parameter("fc.weight").shape[0] == 2

    preprocess = default_preprocess("timm:tf_efficientnet_lite2")
    assert preprocess == default_preprocess("tf_efficientnet_lite2")


def test_timm_requests_that_cannot_be_met(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"timm has no model 'resnet5o'\. Did you mean .*resnet50"):
        create_model("timm:resnet5o")
    with pytest.raises(ValueError, match=r"could not build resnet10t: .*no_such_thing"):
        create_model("timm:resnet10t", no_such_thing=1)

    real_import = builtins.__import__

    def without_timm(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "timm":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    with pytest.raises(ValueError, match=r"needs timm, which is not installed: pip install timm"):
        create_model("timm:resnet10t")
