"""The fastest backend whose answers agree with plain PyTorch in float32, by measurement on real pictures.

The choice is kept in the user's cache folder, by machine and network, so that the next command begins at once. With it
are the seconds by which that command knows whether making the backend pays for its number of pictures.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lenext import runs
from lenext.inference.backends import NAMES, PLAIN, Backend, make_backend, processor_has_bfloat16, torch_backend
from lenext.preprocess import Preprocess
from lenext.version import __version__

log = logging.getLogger("lenext")

# Fewer pictures are done in plain PyTorch before it is known what else would do.
FEWEST = 32
# Looking for the fastest backend takes ten seconds and more. What plain PyTorch does sooner is not worth it.
WORTH_SECONDS = 10.0
# For so many pictures it is worth it with any network; also to be said where nobody knows how many will come.
WORTH_MEASURING = 1_000_000
# Answers of different backends may differ by this share of the outputs' norm. float32 backends differ by a millionth;
# many networks stay below a hundredth in bfloat16, those with narrow linear bottlenecks (MobileNet's) do not.
SAME = 1e-3
CLOSE = 1e-2
# Tried in this order, those of the processor only where there is no GPU. Compiling with PyTorch takes minutes and int8
# needs pictures: both only by name.
FEW = ("cuda-float32", "cuda-tf32", "cuda-float16", "cuda-bfloat16", "openvino-float32", "openvino-bfloat16")
CANDIDATES = (*FEW, "onnxruntime-float32", PLAIN, "pytorch-bfloat16")
ROUNDS = 3
TINY = torch.finfo(torch.float32).tiny  # outputs may be as small as they like: untrained networks' are


@dataclass(frozen=True)
class Choice:
    """What was found. plain, chosen: seconds a picture in plain PyTorch and with the fastest backend. making: seconds
    until that had its first answers."""

    backend: str
    plain: float
    chosen: float
    making: float

    def pays(self, pictures: int) -> bool:
        """Whether so many pictures are done sooner, though the backend must be made first."""
        return pictures * (self.plain - self.chosen) > self.making


class Kept:
    """The backend that was made last, for whoever asks again. A copy begins without: compiled code cannot be copied."""

    def __init__(self) -> None:
        self._made: tuple[object, tuple[str, Backend]] | None = None

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()

    def find(self, key: object) -> tuple[str, Backend] | None:
        """What was made for this key. What was made for another goes, before there are two in memory."""
        made = self._made
        if made is not None and made[0] == key:
            return made[1]
        self._made = None
        return None

    def keep(self, key: object, made: tuple[str, Backend]) -> None:
        self._made = key, made


def fastest_backend(
    model: nn.Module,
    preprocess: Preprocess,
    sample: Tensor,
    pictures: int,
    *,
    tolerance: float = CLOSE,
    only: str | None = None,
    candidates: Sequence[str] = FEW,
    calibration: Callable[[], Tensor] | None = None,
    kept: Kept | None = None,
) -> tuple[str, Backend]:
    """(name, backend) of the fastest backend whose outputs agree with float32 PyTorch.

    sample: uint8 (B, 3, S, S), real pictures. pictures: how many there are to run; where plain PyTorch is done with
    them sooner than another backend would be made or found, it is plain PyTorch.
    tolerance: largest error allowed, as a share of the outputs' norm.
    only: the name of the backend to take without measuring. candidates: names to measure; those whose package is
    missing are passed over. calibration: gives uint8 (N, 3, S, S), the pictures by which an int8 backend, which is
    taken only by name, sets its scales. kept: holds the backend for the next call with the same weights.
    Agreement is measured on a few pictures, speed on the whole sample. Raises ValueError for an unknown name in `only`
    and for a tolerance that is no share.
    """
    if not 0 <= tolerance <= 1:
        raise ValueError(f"--tolerance is {tolerance}; it is a share of the outputs' size, from 0 to 1")
    plain = torch_backend(model, preprocess)
    on_cpu = next(model.parameters()).device.type == "cpu"
    if only == PLAIN or (only is None and (not on_cpu or pictures < FEWEST)):
        return PLAIN, plain
    key, kept = _key(model, preprocess, sample, tolerance, candidates), kept or Kept()
    if found := kept.find((only, key)):
        return found
    if only is not None:
        pictures_of_training = calibration() if only.endswith("int8") and calibration else None
        found = only, make_backend(only, model, preprocess, pictures_of_training)
    else:
        choice = _recall(key)
        if choice is not None and not choice.pays(pictures):
            return PLAIN, plain
        found = None if choice is None else _make(choice, model, preprocess)
        if found is None:
            if pictures * _seconds(plain, sample[:4]) < WORTH_SECONDS:
                return PLAIN, plain
            choice, backend = _measure(model, preprocess, sample, tolerance, candidates)
            found = choice.backend, backend
            runs.remember("backends", key, asdict(choice))
    if found[0] != PLAIN:
        kept.keep((only, key), found)
    return found


def remembered_backend(
    model: nn.Module,
    preprocess: Preprocess,
    sample: Tensor,
    *,
    tolerance: float = CLOSE,
    candidates: Sequence[str] = CANDIDATES,
) -> tuple[str, Backend] | None:
    """(name, backend) of what `fastest_backend` found on this machine before, however long it takes to make; None where
    it has not looked yet.

    sample: uint8 (B, 3, S, S); what it shows does not matter.
    """
    choice = _recall(_key(model, preprocess, sample, tolerance, candidates))
    return None if choice is None else _make(choice, model, preprocess)


def _make(choice: Choice, model: nn.Module, preprocess: Preprocess) -> tuple[str, Backend] | None:
    try:
        return choice.backend, make_backend(choice.backend, model, preprocess)
    except ValueError as error:  # no more: a GPU may be full
        log.debug("%s", error)
        return None


def _measure(
    model: nn.Module, preprocess: Preprocess, sample: Tensor, tolerance: float, candidates: Sequence[str]
) -> tuple[Choice, Backend]:
    """The choice, and the backend that is made already."""
    plain, few = torch_backend(model, preprocess), sample[:4]
    reference = plain(few)
    usable = _usable(candidates)
    if usable != [PLAIN]:
        log.info("looking for the fastest way to compute on this machine, which is kept: %s", ", ".join(usable))
    best: tuple[str, Backend] | None = None
    making = {PLAIN: 0.0}
    for name in usable:
        begin = time.perf_counter()
        try:
            backend = plain if name == PLAIN else make_backend(name, model, preprocess)
            outputs = backend(few)
        except (ValueError, torch.OutOfMemoryError) as error:  # what cannot be converted still runs in PyTorch
            log.debug("%s", error)
            continue
        making.setdefault(name, time.perf_counter() - begin)
        difference = float((outputs - reference).norm() / reference.norm().clamp_min(TINY))
        log.debug("%s: difference %.1e", name, difference)
        if difference <= tolerance and (best is None or _is_faster((name, backend), best, sample)):
            best = name, backend
    name, backend = best or (PLAIN, plain)
    return Choice(name, _seconds(plain, sample), _seconds(backend, sample), making[name]), backend


def _usable(candidates: Sequence[str]) -> list[str]:
    """Those of the candidates that are worth trying on this machine, with what can stand in for them."""
    if torch.cuda.is_available() and (found := [name for name in candidates if name.startswith("cuda")]):
        return found
    names = [name for name in candidates if not name.startswith("cuda")]
    found = [name for name in names if NAMES[name] is None or importlib.util.find_spec(NAMES[name] or "")]
    if not any(name.startswith("openvino") for name in found):
        found += [name for name in (PLAIN, "pytorch-bfloat16") if name not in found]
    return [name for name in found if name != "pytorch-bfloat16" or processor_has_bfloat16()]


def _is_faster(one: tuple[str, Backend], other: tuple[str, Backend], sample: Tensor) -> bool:
    """Whether the first of two, which run in turn: what else the machine does, now or later, falls on both alike."""
    seconds: dict[str, float] = {}
    for name, backend in (one, other) * ROUNDS:
        seconds[name] = min(_seconds(backend, sample), seconds.get(name, float("inf")))
    log.debug(" against ".join(f"{name}, {1 / spent:.0f} images/s" for name, spent in seconds.items()))
    return seconds[one[0]] < seconds[other[0]]


def _seconds(backend: Backend, sample: Tensor) -> float:
    """Seconds a picture. The first of two runs is not counted: kernels are made in it, and ONNX Runtime's threads wait
    busily for more after their last one, which took a quarter of OpenVINO's speed with MobileNetV3."""
    backend(sample)
    begin = time.perf_counter()
    backend(sample)
    return (time.perf_counter() - begin) / len(sample)


# ------------------------------------------------------------------------------------------------------ memory


def _recall(key: dict[str, Any]) -> Choice | None:
    """None also for what is no choice: a file in a cache may hold anything."""
    kept = runs.recall("backends", key)
    try:
        choice = Choice(kept["backend"], *(float(kept[name]) for name in ("plain", "chosen", "making")))
    except (TypeError, KeyError, ValueError):
        return None
    return choice if choice.backend in tuple(NAMES) else None


def _key(
    model: nn.Module, preprocess: Preprocess, sample: Tensor, tolerance: float, candidates: Sequence[str]
) -> dict[str, Any]:
    """What a choice depends on: machine, packages, network and what is asked of it."""
    packages = {name for name in NAMES.values() if name is not None and importlib.util.find_spec(name)}
    return {
        "lenext": __version__,
        "torch": torch.__version__,
        "processor": runs.processor_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: _version(name) for name in sorted(packages)},
        "network": network_digest(model),
        "preprocess": preprocess.to_dict(),
        "side": sample.shape[-1],  # how many pictures there were at once matters little
        "tolerance": tolerance,
        "candidates": list(candidates),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # one that goes by another name, such as onnxruntime-gpu
        return None


def network_digest(model: nn.Module) -> str:
    """Of a network's layers and everything in its state."""
    digest = hashlib.sha1(str(model).encode())  # the fastest of hashlib's: 1 GB a second and more
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 4:  # as backends lay them: of (O, H, W, I) in memory nothing is copied
            tensor = tensor.permute(0, 2, 3, 1)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
