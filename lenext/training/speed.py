"""Precision and memory format of training, chosen by timing real steps on this machine."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

log = logging.getLogger("lenext")

# bfloat16 rounds to 8 bits of mantissa; a network whose loss moves by more than this on one batch is not safe in it.
LOSS_TOLERANCE = 0.05


@dataclass(frozen=True)
class Speed:
    """bfloat16: autocast; channels_last: memory format. images_per_second as measured, 0 if not."""

    bfloat16: bool
    channels_last: bool
    images_per_second: float = 0.0

    def __str__(self) -> str:
        layout = "channels-last" if self.channels_last else "contiguous"
        return f"{'bfloat16' if self.bfloat16 else 'float32'}, {layout}"


def fastest_speed(
    model: nn.Module,
    x: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    precision: str = "auto",
    channels_last: bool | None = None,
    steps: int = 2,
) -> Speed:
    """Time forward and backward of each candidate on a real batch; the fastest whose loss agrees with float32.

    x: float32 (B, 3, S, S) on the device of the model. precision: auto, or float32 or bfloat16 to fix it.
    channels_last: fixes the memory format.
    The model is left as it was: a copy is timed.
    """
    candidates = [
        Speed(bfloat16, last)
        for bfloat16 in (False, True)
        for last in (False, True)
        if precision in ("auto", "bfloat16" if bfloat16 else "float32") and channels_last in (None, last)
    ]
    model = copy.deepcopy(model).train()
    reference = None
    best = candidates[-1]
    for candidate in candidates:
        layout = torch.channels_last if candidate.channels_last else torch.contiguous_format
        model.to(memory_format=layout)
        inputs = x.contiguous(memory_format=layout) if x.ndim == 4 else x
        seconds = []
        for _ in range(steps + 1):  # the first run builds kernels and is not counted
            start = time.perf_counter()
            torch.manual_seed(0)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=candidate.bfloat16):
                loss = loss_of(model(inputs))
            loss.backward()
            model.zero_grad(set_to_none=True)
            if x.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            if min(seconds) > 4:  # a slow network needs no second look, and its user no longer wait
                break
        rate = len(x) / min(seconds[1:] or seconds)
        if reference is None:
            reference = loss.item()
        difference = abs(loss.item() - reference) / max(abs(reference), 1e-6)
        log.debug("%s: %.1f images/s, loss differs by %.1e", candidate, rate, difference)
        if (precision != "auto" or difference <= LOSS_TOLERANCE) and rate > best.images_per_second:
            best = Speed(candidate.bfloat16, candidate.channels_last, rate)
    return best
