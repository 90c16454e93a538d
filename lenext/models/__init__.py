"""The zoo: one table (`zoo.csv`, read by `table.py`), name -> paper and its file. One row is one model.

Every network is an `nn.Module` that also says how it is put together, so that its features can be frozen,
cached, tapped:

    model.stages() -> list[nn.Module]       from the image to the last features, each one tensor to one tensor
    model.forward_head(features) -> logits  pooling, dropout, classifier
    model.head_name -> str                  dotted name of the final linear layer

    model(x) == model.forward_head(features), where features is x passed through the stages in order

The stages share their parameters with the model. A file of the zoo holds one paper: its class and, at the
bottom, `VARIANTS`, name -> constructor. The class may have `min_image_size` (pixels), `head_names` (where several
linear layers classify) and a method `adapt_checkpoint(state) -> state`, which translates the checkpoints of others.
`timm:NAME` builds a network of timm as it is.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from functools import partial
from pathlib import Path
from typing import Any

from natsort import natsorted
from torch import nn

from lenext.models.table import MODELS, Entry, Paper
from lenext.models.weights import load_pretrained
from lenext.preprocess import Preprocess

__all__ = ["MODELS", "Entry", "Paper", "create_model", "default_preprocess", "list_models"]


def create_model(
    name: str,
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: int | None = None,
    pretrained: bool | str | Path = False,
    **architecture_arguments: Any,
) -> nn.Module:
    """A network of the zoo, from images (B, in_channels, image_size, image_size) to logits (B, num_classes).

    name: one of `list_models()`, or `timm:NAME` for any network of the installed timm.
    image_size: side of the square input, pixels; None is the paper's. Networks that end in a global pooling
    take any size above their smallest; the others are built for this one.
    pretrained: False, True (the default weights of that name, downloaded once and verified), or the path of a
    checkpoint. A classifier for another number of classes is replaced; the logger "lenext" says so.
    architecture_arguments: what the network's class takes besides, such as `drop_path=0.1`.

    Raises ValueError for a name, an argument, a size or weights that do not fit, saying what would.
    """
    _check("num_classes", num_classes)
    _check("in_channels", in_channels)
    if image_size is not None:
        _check("image_size", image_size)
    if name.startswith("timm:"):
        model = _create_timm(name, num_classes, in_channels, image_size, pretrained, architecture_arguments)
    else:
        model = _create(name, num_classes, in_channels, image_size, architecture_arguments)
    if pretrained is not False and not (pretrained is True and name.startswith("timm:")):
        load_pretrained(model, name, pretrained)
    return model


def _create(
    name: str, num_classes: int, in_channels: int, image_size: int | None, arguments: dict[str, Any]
) -> nn.Module:
    paper = importlib.import_module(f"lenext.models.{_entry(name).paper.file}")
    build: partial[nn.Module] = paper.VARIANTS[name]
    parameters = inspect.signature(build.func).parameters.values()
    taken = {parameter.name for parameter in parameters if parameter.default is not inspect.Parameter.empty}
    if image_size is not None and "image_size" in taken:
        _check_size(name, image_size, build.func)
        build = partial(build, image_size=image_size)
    taken -= {"num_classes", "in_channels", "image_size"}
    for argument in arguments:
        if argument not in taken:
            raise ValueError(f"{name} takes no argument {argument!r}; it takes {_listed(taken) or 'none'}.")
    model = build(num_classes=num_classes, in_channels=in_channels, **arguments)
    if image_size is not None:
        _check_size(name, image_size, model)  # a small stem takes smaller images
    return model


def _check_size(name: str, image_size: int, network: Any) -> None:
    smallest = getattr(network, "min_image_size", 1)
    if image_size < smallest:
        raise ValueError(f"image_size is {image_size} pixels, too few for {name}: at least {smallest} are needed.")


def _create_timm(
    name: str,
    num_classes: int,
    in_channels: int,
    image_size: int | None,
    pretrained: bool | str | Path,
    arguments: dict[str, Any],
) -> nn.Module:
    timm = _timm(name)
    timm_name = name.removeprefix("timm:")
    if image_size is not None and timm.get_pretrained_cfg(timm_name).fixed_input_size:
        arguments = {"img_size": image_size, **arguments}  # only these networks are built for a size
    try:
        return timm.create_model(
            timm_name,
            pretrained=pretrained is True,
            num_classes=num_classes,
            in_chans=in_channels,
            **arguments,
        )
    except Exception as error:  # timm raises many kinds: for arguments, sizes, tags, downloads
        hint = "; without network, give the path of a checkpoint" if pretrained is True else ""
        raise ValueError(f"timm could not build {timm_name}: {error}{hint}.") from error


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"{name} needs timm, which is not installed: pip install timm") from error
    timm_name = name.removeprefix("timm:")
    if not timm.is_model(timm_name):
        raise ValueError(f"timm has no model {timm_name!r}.{_nearest(timm_name, timm.list_models())}")
    return timm


def list_models() -> list[str]:
    """Names of the zoo in natural order: resnet18, resnet34, resnet50, resnet101."""
    return natsorted(MODELS)


def default_preprocess(name: str) -> Preprocess:
    """What the default weights of `name` expect to be done to a picture. ValueError for an unknown name."""
    if not name.startswith("timm:"):
        return _entry(name).preprocess
    cfg = _timm(name).get_pretrained_cfg(name.removeprefix("timm:"))
    size = cfg.input_size[-1]
    return Preprocess(
        image_size=size,
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        interpolation="bilinear" if cfg.interpolation == "bilinear" else "bicubic",
        crop_fraction=size / math.floor(size / cfg.crop_pct),  # as timm's evaluation resizes
    )


def _entry(name: str) -> Entry:
    if name not in MODELS:
        raise ValueError(f"There is no model {name!r}.{_nearest(name, list_models())} `lenext models` lists them all.")
    return MODELS[name]


def _check(what: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{what} must be a whole number of at least 1, not {value!r}.")


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
