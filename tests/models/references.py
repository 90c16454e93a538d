"""The implementations that the zoo is compared with, built without values, and random values for them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from lenext.models import MODELS

# name -> reference, such as "torchvision:resnet50"
REFERENCES = {
    name: entry.reference for name, entry in MODELS.items() if entry.reference.startswith(("torchvision:", "timm:"))
}


def _bottlenecks(*depths: int, **arguments: Any) -> Callable[[], nn.Module]:
    block = torchvision.models.resnet.Bottleneck
    return lambda: torchvision.models.ResNet(block, list(depths), **arguments)


def _narrow_vgg(name: str) -> nn.Module:
    """torchvision's, with hidden layers of 32 units: nearly all its parameters are there."""
    vgg: Any = torchvision.models.get_model(name, weights=None, init_weights=False)
    linear = [nn.Linear(25088, 32), nn.Linear(32, 32), nn.Linear(32, 1000)]
    for i, layer in zip((0, 3, 6), linear, strict=True):
        vgg.classifier[i] = layer
    return vgg


def _dense(*depths: int) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.DenseNet(32, depths, 64)


# Compared with fewer blocks, to save time: our arguments, and the reference's (timm) or its constructor. That all
# blocks are there is seen from the names and shapes of all parameters.
SHORT: dict[str, tuple[dict[str, Any], dict[str, Any] | Callable[[], nn.Module]]] = {
    "resnet101": ({"depths": (1, 1, 2, 1)}, _bottlenecks(1, 1, 2, 1)),
    "resnet152": ({"depths": (1, 2, 1, 1)}, _bottlenecks(1, 2, 1, 1)),
    "resnext101_32x8d": ({"depths": (1, 1, 2, 1)}, _bottlenecks(1, 1, 2, 1, groups=32, width_per_group=8)),
    "wide_resnet50_2": ({"depths": (1, 1, 2, 1)}, _bottlenecks(1, 1, 2, 1, width_per_group=128)),
    "densenet169": ({"depths": (2, 3, 4, 2)}, _dense(2, 3, 4, 2)),
    "densenet201": ({"depths": (1, 2, 5, 3)}, _dense(1, 2, 5, 3)),
    "convnext_small": ({"depths": (1, 1, 2, 1)}, {"depths": (1, 1, 2, 1)}),
    "convnext_base": ({"depths": (1, 1, 2, 1)}, {"depths": (1, 1, 2, 1)}),
    "convnext_large": ({"depths": (1, 1, 2, 1)}, {"depths": (1, 1, 2, 1)}),
}
_MIXERS: dict[str, Callable[[], nn.Module]] = {
    "mixer_b16_224": partial(timm.models.mlp_mixer.MlpMixer, num_blocks=2, embed_dim=768),
    "mixer_l16_224": partial(timm.models.mlp_mixer.MlpMixer, num_blocks=2, embed_dim=1024),
    "convmixer_1024_20_ks9_p14": partial(timm.models.convmixer.ConvMixer, 1024, 2, kernel_size=9, patch_size=14),
    "convmixer_1536_20": partial(timm.models.convmixer.ConvMixer, 1536, 2, kernel_size=9, patch_size=7),
}
SHORT |= {name: ({"depth": 2}, reference) for name, reference in _MIXERS.items()}
for _name in MODELS:
    if _name.startswith("vgg") and _name != "vgg11_bn":
        SHORT[_name] = ({"hidden_dim": 32}, partial(_narrow_vgg, _name))
    elif _name.startswith(("vit_base", "vit_large", "deit_base", "deit_small_distilled")):
        SHORT[_name] = ({"depth": 2}, {"depth": 2})
    elif _name.startswith(("swin_small", "swin_base")):
        SHORT[_name] = ({"depths": (1, 2, 2, 1)}, {"depths": (1, 2, 2, 1)})

# Side of the images that are compared, where 64 pixels are not enough or not right.
SIZES = {"alexnet_owt": 96, "tf_efficientnet_lite0": 65, "tf_efficientnet_lite2": 97} | {
    name: 224 for name in MODELS if "_224" in name
}


def size_of(name: str) -> int:
    return SIZES.get(name, 64)


def build_reference(name: str, *, short: bool = False) -> nn.Module:
    """The reference on the meta device: shapes without values. short: with few blocks, where SHORT says how."""
    library, _, reference = REFERENCES[name].partition(":")
    arguments = SHORT[name][1] if short and name in SHORT else {}
    # timm's Swin computes its index tables when it is built.
    with torch.device("cpu" if short and name.startswith("swin") else "meta"):
        if callable(arguments):
            return arguments()
        if library == "timm":
            return timm.create_model(reference, **arguments)
        extra = {"aux_logits": False, "init_weights": False} if reference == "googlenet" else {}
        return torchvision.models.get_model(reference, weights=None, **extra)


def build_ours(name: str, **arguments: Any) -> nn.Module:
    """Our network with arguments that users do not have, such as fewer blocks."""
    paper: Any = importlib.import_module(f"lenext.models.{MODELS[name].paper.file}")
    return paper.VARIANTS[name](**arguments)


def narrow_resnet(name: str, width: int) -> nn.Module:
    """timm's with `width` channels in the first stage.

    timm's plain stem has 64 whatever the stages have, so its deep one makes room for a 7x7 convolution. Its
    base_width is of a first stage of 64 channels and shrinks with `width`: 4 make groups of width / 16.
    """
    basic, bottleneck = timm.models.resnet.BasicBlock, timm.models.resnet.Bottleneck
    arguments: dict[str, Any] = {
        "resnet18": {"block": basic, "layers": (2, 2, 2, 2)},
        "resnet50": {"block": bottleneck, "layers": (3, 4, 6, 3)},
        "resnext50_32x4d": {"block": bottleneck, "layers": (3, 4, 6, 3), "cardinality": 32, "base_width": 4},
    }[name]
    channels = (width, 2 * width, 4 * width, 8 * width)
    with torch.device("meta"):
        model: Any = timm.models.resnet.ResNet(channels=channels, stem_type="deep", stem_width=width // 2, **arguments)
        model.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
    return model


def narrow_vgg11_bn(width: int) -> nn.Module:
    """timm's with `width` channels in the first level."""
    levels: tuple[tuple[int, ...], ...] = ((1,), (2,), (4, 4), (8, 8), (8, 8))
    layers = [layer for level in levels for layer in (*(factor * width for factor in level), "M")]
    with torch.device("meta"):
        return timm.models.vgg.VGG(layers, norm_layer=nn.BatchNorm2d)


def randomise(model: nn.Module) -> nn.Module:
    """Random parameters and batch statistics that keep signals of moderate size through any depth."""
    computed = {
        key: buffer.clone()
        for key, buffer in model.named_buffers()
        if buffer.device.type != "meta" and not key.endswith(("running_mean", "running_var"))
    }
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                tensor.zero_()
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.ndim > 1 and tensor[0].numel() > 1:
                tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
            elif name.endswith(("weight", "gamma", "scale")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                tensor.normal_(std=0.1, generator=generator)
    for key, buffer in computed.items():
        model.get_buffer(key).copy_(buffer)
    return model


def without_chance(model: nn.Module) -> nn.Module:
    """All that is random in training set to nothing."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | torchvision.ops.StochasticDepth):
            module.p = 0.0
        if hasattr(module, "drop_prob"):  # timm's DropPath
            module.drop_prob = 0.0  # type: ignore[assignment]
    return model


def images(count: int, size: int, in_channels: int = 3) -> Tensor:
    return torch.randn(count, in_channels, size, size, generator=torch.Generator().manual_seed(1))


def translated(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reference's tensors under the names of `model`."""
    adapt: Any = getattr(model, "adapt_checkpoint", lambda state: state)
    return adapt(dict(tensors))


def close(ours: Tensor, reference: Tensor) -> bool:
    """Equal to a ten-thousandth of the reference's largest value."""
    return bool((ours - reference).abs().max() <= 1e-4 * reference.abs().max())
