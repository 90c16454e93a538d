"""Arithmetic of training and the number of workers, chosen by timing real steps on this machine, and remembered."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor, nn

from lenext import runs
from lenext.data.loader import AHEAD
from lenext.inference.backends import processor_has_bfloat16
from lenext.training import devices

log = logging.getLogger("lenext")
Batch = TypeVar("Batch")

# bfloat16 rounds to 8 bits of mantissa; a network whose loss, or the norm of whose gradients, moves by more than this
# share on one batch is not safe in it.
LOSS_TOLERANCE = 0.05
GRADIENT_TOLERANCE = 0.25
# A network this slow (seconds a step) needs no second look, and its user no longer wait.
SLOW_STEP = 4.0
# Nor does a candidate that begins so many times slower than the best, though its first step builds kernels.
HOPELESS = 1.7
# Compiling is tried where training takes longer than so many times the seconds that compiling a layer may take.
COMPILE_WORTH = 10.0
COMPILE_SECONDS = {"cpu": 2.0, "cuda": 0.7}
# More workers than needed take memory and cores from others: fewer win within this share of the best rate.
WORKERS_MARGIN = 0.05


@dataclass(frozen=True)
class Speed:
    """bfloat16: autocast; channels_last: memory format; compile: torch.compile. images_per_second: 0 if not measured.

    micro_batch: pictures at once that fitted the memory, 0 if that is not known.
    """

    bfloat16: bool
    channels_last: bool
    compile: bool = False
    images_per_second: float = 0.0
    micro_batch: int = 0

    def __str__(self) -> str:
        layout = "channels-last" if self.channels_last else "contiguous"
        return f"{'bfloat16' if self.bfloat16 else 'float32'}, {layout}{', compiled' if self.compile else ''}"


# ------------------------------------------------------------------------------------------------- arithmetic


def fastest_arithmetic(
    model: nn.Module,
    x: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    *,
    precision: str = "auto",
    channels_last: bool | None = None,
    compile: bool | None = False,
    remaining: Callable[[float], float] = lambda rate: 0.0,
    steps: int = 2,
) -> Speed:
    """Time forward and backward of each candidate on a real batch; the fastest that agrees with float32.

    x: float32 (B, ...) on the device of the model. loss_of: outputs -> loss, a scalar.
    precision: auto, or float32 or bfloat16 to fix it. channels_last: fixes the memory format. compile: fixes that too;
    None: tried where the training is long enough. remaining: images/s -> seconds that the training will take.
    The model is left as it was: a copy is timed.
    """
    # A CPU without bfloat16 takes minutes for a step in it. Else from the likely winner to the reference, so that a
    # candidate that is hopeless beside it costs a single step.
    tries_bfloat16 = precision == "bfloat16" or x.device.type != "cpu" or processor_has_bfloat16()
    candidates = [
        Speed(bfloat16, last)
        for bfloat16 in ((True, False) if tries_bfloat16 else (False,))
        for last in (True, False)
        if precision in ("auto", "bfloat16" if bfloat16 else "float32") and channels_last in (None, last)
    ]
    model = copy.deepcopy(model).train()
    results: list[tuple[Speed, tuple[float, float]]] = []
    fastest = math.inf
    for candidate in candidates:
        figures, seconds, _ = _timed(model, x, loss_of, candidate, steps, fastest)
        fastest = min(fastest, seconds)
        results.append((dataclasses.replace(candidate, images_per_second=len(x) / seconds), figures))
        log.debug("%s: %.1f images/s, loss %.5g, gradient %.5g", candidate, len(x) / seconds, *figures)
    exact, reference = results[-1]
    results.sort(key=lambda result: result[0].images_per_second, reverse=True)
    best = next((speed for speed, figures in results if precision != "auto" or _agree(figures, reference)), exact)
    faster = [
        speed
        for speed, (loss, _) in results
        if speed.images_per_second > best.images_per_second and _close(loss, reference[0], LOSS_TOLERANCE)
    ]
    best = _first_within_noise(model, x, loss_of, faster, exact) or best
    if compile is False or (compile is None and not _may_pay(model, x, remaining(best.images_per_second))):
        return best
    compiled = dataclasses.replace(best, compile=True)
    try:
        model.compile()
        figures, seconds, first = _timed(model, x, loss_of, compiled, steps)
    except Exception as error:  # no compiler, or a network that the compiler cannot take, trains as it is
        log.log(logging.WARNING if compile else logging.DEBUG, "not compiled: %s", str(error).strip().split("\n")[0])
        return best
    finally:
        torch.compiler.reset()
    rate = len(x) / seconds
    log.debug("%s: %.1f images/s after %.0f s, loss %.5g, gradient %.5g", compiled, rate, first, *figures)
    compiled = dataclasses.replace(compiled, images_per_second=rate)
    if compile:
        return compiled
    # Training compiles for itself, and once more for batches of another size: the last one of an epoch is smaller.
    pays = 2 * first + remaining(rate) < remaining(best.images_per_second)
    return compiled if pays and _agree(figures, reference) else best


def _timed(
    model: nn.Module,
    x: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    speed: Speed,
    steps: int,
    fastest: float = math.inf,
) -> tuple[tuple[float, float], float, float]:
    """((loss, norm of its gradients), seconds of the fastest step, seconds of the first one, which builds kernels).

    fastest: seconds of a step of the best candidate so far; one that is hopeless beside it gets no second look.
    """
    inputs = _laid_out(model, x, speed)
    seconds: list[float] = []
    while len(seconds) <= steps and (
        not seconds or min(seconds) <= min(SLOW_STEP, HOPELESS * fastest) or (speed.compile and len(seconds) < 2)
    ):
        start = time.perf_counter()
        loss = _step(model, inputs, loss_of, speed)
        if x.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        model.zero_grad(set_to_none=True)
    return (loss.item(), norm.item()), min(seconds[1:] or seconds), seconds[0]


def _laid_out(model: nn.Module, x: Tensor, speed: Speed) -> Tensor:
    """The batch in a candidate's memory format, and the model, in place, as well."""
    layout = devices.memory_format(model, x.device, channels_last=speed.channels_last)
    model.to(memory_format=layout)
    return x.contiguous(memory_format=layout) if x.ndim == 4 else x


def _step(model: nn.Module, inputs: Tensor, loss_of: Callable[[Tensor], Tensor], speed: Speed) -> Tensor:
    """The loss; gradients are left with the parameters. The same draws every time."""
    torch.manual_seed(0)
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=speed.bfloat16):
        loss = loss_of(model(inputs))
    loss.backward()
    return loss


def _first_within_noise(
    model: nn.Module, x: Tensor, loss_of: Callable[[Tensor], Tensor], candidates: Sequence[Speed], reference: Speed
) -> Speed | None:
    """The first candidate that moves the gradient of a batch no farther than leaving out half of its pictures does.

    Some networks amplify any rounding, so that float32 is itself far from the exact gradient: a pretrained
    EfficientNet on grey pictures, whose batch norms have nearly constant channels, is one. A gradient that depends on
    the pictures drawn is worth no less for an error below that of the draw.
    """

    def gradient(x: Tensor, speed: Speed) -> list[Tensor]:
        _step(model, _laid_out(model, x, speed), loss_of, speed)
        found = [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad(set_to_none=True)
        return found

    def distance(found: list[Tensor]) -> float:
        return nn.utils.get_total_norm([a - b for a, b in zip(found, exact, strict=True)]).item()

    if not candidates or len(x) < 4:  # batch norm cannot train on a half of one picture
        return None
    exact = gradient(x, reference)
    noise = distance(gradient(x[: len(x) // 2], reference))
    for speed in candidates:
        moved = distance(gradient(x, speed))
        log.debug("%s: the gradient is %.3g from float32's, half of the pictures %.3g", speed, moved, noise)
        if moved <= noise:
            return speed
    return None


def bytes_for_backward(model: nn.Module, x: Tensor, loss_of: Callable[[Tensor], Tensor]) -> int:
    """Bytes that a forward pass in float32 keeps for the backward pass, weights left out: they grow with the pictures.

    x: (B, ...) on the device of the model, of which a copy is used. loss_of: outputs -> loss, a scalar.
    """
    model = copy.deepcopy(model).train()
    standing = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in standing:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = loss_of(model(x))  # as long as it lives, no two tensors have the same place
    del loss
    return sum(kept.values())


def _agree(figures: tuple[float, float], reference: tuple[float, float]) -> bool:
    """Whether loss and gradient are those of the reference, within what rounding may do. Not a number never agrees."""
    return all(map(_close, figures, reference, (LOSS_TOLERANCE, GRADIENT_TOLERANCE)))


def _close(figure: float, other: float, tolerance: float) -> bool:
    return abs(figure - other) <= tolerance * max(abs(other), 1e-6)


def _may_pay(model: nn.Module, x: Tensor, seconds: float) -> bool:
    """Whether a training of so many seconds is long enough for compiling to make up for the time it takes itself."""
    layers = sum(1 for m in model.modules() if next(m.parameters(recurse=False), None) is not None)
    if seconds < COMPILE_WORTH * COMPILE_SECONDS[x.device.type] * layers:
        return False
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


# ---------------------------------------------------------------------------------------------------- workers


def fastest_workers(
    make_batches: Callable[[int], Iterator[Batch]],
    step: Callable[[Batch], object],
    candidates: Sequence[int],
    batches: int = 8,
) -> int:
    """Which number of workers trains fastest, end to end: real batches through the loader and real steps.

    make_batches: a number of workers -> the batches of an epoch. A smaller number within WORKERS_MARGIN of the best
    rate wins. A single candidate is not timed.
    """
    if len(candidates) == 1:
        return candidates[0]
    rates: dict[int, float] = {}
    for workers in sorted(candidates):
        source = make_batches(workers)
        # Workers start, and what they have prepared by then is taken away: a queue that is full says nothing.
        step(next(source))
        for _ in islice(source, AHEAD * workers):
            pass
        start, done = time.perf_counter(), 0
        for batch in islice(source, batches):
            step(batch)
            done += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        rates[workers] = done / (time.perf_counter() - start)
        if close := getattr(source, "close", None):
            close()
        log.debug("%d workers: %.2f batches/s", workers, rates[workers])
    return min(n for n, rate in rates.items() if rate >= (1 - WORKERS_MARGIN) * max(rates.values()))


# ----------------------------------------------------------------------------------------------------- memory


def remembered(key: dict[str, Any]) -> Speed | None:
    """What was measured under this key before; None if nothing was, or the file is damaged."""
    try:
        speed = Speed(**runs.recall("speed", key))
    except TypeError:
        return None
    types = get_type_hints(Speed)
    whole = all(type(getattr(speed, name)) is kind for name, kind in types.items())
    return speed if whole and math.isfinite(speed.images_per_second) and speed.images_per_second > 0 else None


def remember(key: dict[str, Any], speed: Speed) -> None:
    """Keep a measurement for the next training of this kind. key: what it depends on, in JSON's types."""
    runs.remember("speed", key, dataclasses.asdict(speed))
