"""Running a trained network fast: the backends on this machine, timed on real pictures, the fastest that agrees.

A backend is a function from uint8 pictures (B, 3, S, S) to float32 outputs (B, K); normalisation is part of it.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lenext.data.transforms import normalise
from lenext.preprocess import Preprocess

Backend = Callable[[Tensor], Tensor]
log = logging.getLogger("lenext")

# Converting and compiling a network costs seconds; below this number of pictures plain PyTorch is done earlier.
WORTH_MEASURING = 200
# Answers of different backends may differ by this share of the outputs' norm: many networks stay below it in bfloat16,
# those with narrow linear bottlenecks (MobileNet's and EfficientNet's) do not and are answered in float32.
ANSWER_ERROR = 1e-2


def torch_backend(model: nn.Module, preprocess: Preprocess, *, bfloat16: bool = False) -> Backend:
    """Eager PyTorch where the model's weights are, channels-last, float32 or bfloat16 autocast."""
    device = next(model.parameters()).device
    model = model.eval().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(x: Tensor) -> Tensor:
        inputs = normalise(x.to(device), preprocess).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            return model(inputs).float().cpu()

    return run


@functools.cache
def _openvino_core() -> Any:
    """One for the life of the process: its plugins must outlive everything that was compiled with them."""
    import openvino

    return openvino.Core()


def openvino_backends(model: nn.Module, preprocess: Preprocess) -> dict[str, Callable[[], Backend]]:
    """{name: maker} for OpenVINO's CPU plugin in float32 and bfloat16; normalisation is part of the traced network."""
    import warnings

    import openvino

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.eval()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(normalise(x, preprocess))

    size = preprocess.image_size
    example = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer announces its own deprecation to users who cannot act on it
        converted = openvino.convert_model(Normalised(), example_input=example, input=[-1, 3, size, size])

    def make(precision: str) -> Backend:
        settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        compiled = _openvino_core().compile_model(converted, "CPU", settings)
        request = compiled.create_infer_request()

        def run(x: Tensor) -> Tensor:
            assert compiled is not None  # held as long as its request is: the request alone does not keep it
            return torch.from_numpy(np.array(request.infer({0: x.numpy()})[0], dtype=np.float32))

        return run

    return {"openvino float32": lambda: make("f32"), "openvino bfloat16": lambda: make("bf16")}


def fastest_backend(
    model: nn.Module,
    preprocess: Preprocess,
    sample: Tensor,
    pictures: int,
    *,
    tolerance: float = ANSWER_ERROR,
    only: str | None = None,
) -> tuple[str, Backend]:
    """(name, backend) of the fastest backend whose outputs agree with float32 PyTorch.

    sample: uint8 (B, 3, S, S), real pictures. pictures: how many there are to run; few are not worth measuring.
    tolerance: largest error allowed, as a share of the outputs' norm.
    only: the name of the backend to take without measuring.
    Agreement is measured on a few pictures, speed on the whole sample.
    """
    plain = torch_backend(model, preprocess)
    if only == "pytorch float32":
        return only, plain
    if only is None and (next(model.parameters()).device.type != "cpu" or pictures < WORTH_MEASURING):
        return "pytorch float32", plain
    few = sample[:4]
    reference = plain(few)
    candidates: dict[str, Callable[[], Backend]] = {}
    if importlib.util.find_spec("openvino"):
        try:
            candidates = openvino_backends(model, preprocess)
        except Exception as error:  # a network that cannot be converted still runs in PyTorch
            log.info("OpenVINO cannot take this network: %s", error)
    if not candidates:
        candidates = {
            "pytorch float32": lambda: plain,
            "pytorch bfloat16": lambda: torch_backend(model, preprocess, bfloat16=True),
        }
    if only is not None:
        if only not in candidates:
            raise ValueError(f"the backend {only!r}, which the run began with, is not on this machine")
        return only, candidates[only]()
    best, best_rate, best_backend = "pytorch float32", 0.0, plain
    for name, make in candidates.items():
        backend = make()
        difference = float((backend(few) - reference).norm() / reference.norm().clamp_min(1e-6))
        start = time.perf_counter()
        backend(sample)
        rate = len(sample) / (time.perf_counter() - start)
        log.debug("%s: %.0f images/s, difference %.1e", name, rate, difference)
        if difference <= tolerance and rate > best_rate:
            best, best_rate, best_backend = name, rate, backend
    return best, best_backend
