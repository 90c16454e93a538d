"""Ways to run a trained network, by name: a library and an arithmetic, such as openvino-bfloat16.

A backend is a function from uint8 pictures (B, 3, S, S) to float32 outputs (B, K); normalisation is part of it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import math
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lenext.data.transforms import normalise
from lenext.inference.int8 import quantise
from lenext.inference.memory import in_parts
from lenext.preprocess import Preprocess

Backend = Callable[[Tensor], Tensor]

PLAIN = "pytorch-float32"
LARGEST_PART = 4  # pictures that OpenVINO takes at once: more overflow the caches of a core
# Every name, with the package that it needs beside PyTorch.
NAMES: dict[str, str | None] = {
    PLAIN: None,
    "pytorch-bfloat16": None,
    "cuda-float32": None,
    "cuda-tf32": None,
    "cuda-float16": None,
    "cuda-bfloat16": None,
    "compiled-float32": None,
    "compiled-bfloat16": None,
    "openvino-float32": "openvino",
    "openvino-bfloat16": "openvino",
    "openvino-int8": "nncf",
    "onnxruntime-float32": "onnxruntime",
    "onnxruntime-int8": "onnxruntime",
}


class Normalised(nn.Module):
    """uint8 pictures (B, 3, S, S) -> float32 outputs (B, K)."""

    def __init__(self, model: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.model, self.preprocess = model.eval(), preprocess

    def forward(self, x: Tensor) -> Tensor:
        return self.model(normalise(x, self.preprocess)).float()


@functools.cache
def processor_has_bfloat16() -> bool:
    """Whether this CPU has instructions that bfloat16 gains from; without, PyTorch takes ten times as long."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def make_backend(name: str, model: nn.Module, preprocess: Preprocess, calibration: Tensor | None = None) -> Backend:
    """The backend of a name. The model stays as it is.

    calibration: uint8 (N, 3, S, S), pictures of the kind to come, by which an int8 backend sets its scales.
    Raises ValueError for an unknown name, a missing package or GPU, or a network that the library cannot take.
    """
    require(name)  # before anything takes time
    library, _, arithmetic = name.partition("-")
    if library in ("pytorch", "compiled"):
        return torch_backend(model, preprocess, arithmetic, compiled=library == "compiled")
    if library == "cuda":
        try:
            return torch_backend(copy.deepcopy(model).cuda(), preprocess, arithmetic)
        except torch.OutOfMemoryError:
            raise ValueError(f"the backend {name} has no room in the GPU's memory: it is full of other work") from None
    if arithmetic == "int8" and calibration is None:
        raise ValueError(f"the backend {name} needs pictures to set its scales by: those that its training had")
    convert, run = {"openvino": (to_openvino, run_openvino), "onnxruntime": (to_onnx, run_onnx)}[library]
    try:
        converted = convert(Normalised(model, preprocess), preprocess.image_size)
        if arithmetic == "int8":
            assert calibration is not None
            converted = quantise(converted, calibration, model, run)
        return run(converted, bfloat16=arithmetic == "bfloat16")
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(f"the backend {name} cannot take this network: {reason}") from error


def require(name: str) -> None:
    """ValueError for a name that there is not, or that this machine lacks a package for."""
    if name not in NAMES:
        raise ValueError(f"there is no backend {name!r}; there are auto, {', '.join(NAMES)}")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"the backend {name} needs a GPU, and PyTorch sees none here; name another with --backend")
    package = NAMES[name]
    if package is not None and importlib.util.find_spec(package) is None:
        extra = "fast" if package == "openvino" else "export"
        raise ValueError(f"the backend {name} needs the package {package}: pip install 'lenext[{extra}]'")


# ----------------------------------------------------------------------------------------------------- PyTorch


def torch_backend(
    model: nn.Module, preprocess: Preprocess, arithmetic: str = "float32", *, compiled: bool = False
) -> Backend:
    """PyTorch where the model's weights are, channels-last; eager or compiled.

    arithmetic: float32; bfloat16 or float16 by autocast; tf32, float32 of which a GPU multiplies ten bits of mantissa.
    """
    device = next(model.parameters()).device
    model = model.eval().to(memory_format=torch.channels_last)
    network: Any = torch.compile(model, dynamic=True) if compiled else model
    low = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(arithmetic)

    @torch.inference_mode()
    def run(x: Tensor) -> Tensor:
        inputs = normalise(x.to(device), preprocess).to(memory_format=torch.channels_last)
        with _tf32(arithmetic == "tf32"), torch.autocast(device.type, low, enabled=low is not None):
            return network(inputs).float().cpu()

    return in_parts(run)


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Whether a GPU may leave out thirteen bits of float32's mantissa; PyTorch's default is yes for convolutions."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


# ---------------------------------------------------------------------------------------------------- OpenVINO


@functools.cache
def openvino_core() -> Any:
    """One for the life of the process: its plugins must outlive everything that was compiled with them."""
    import openvino

    return openvino.Core()


def to_openvino(network: nn.Module, size: int) -> Any:
    """A network from uint8 (B, 3, size, size) to (B, K) as an openvino.Model."""
    import openvino

    example = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer announces its own deprecation to users who cannot act on it
        return openvino.convert_model(network.eval(), example_input=example, input=[-1, 3, size, size])


def run_openvino(converted: Any, *, bfloat16: bool = False) -> Backend:
    """On OpenVINO's CPU plugin: a lone picture on all cores at once, several in small parts, each on cores of its own.

    Parts need not wait for one another at every layer. Beside other work, such as the decoding of what comes next, that
    is 1.3 to 2 times as fast, and on a quiet machine no slower.
    """
    import openvino

    def compiled_for(hint: str) -> Any:
        settings = {"INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32", "PERFORMANCE_HINT": hint}
        return openvino_core().compile_model(converted, "CPU", settings)

    alone, together = compiled_for("LATENCY"), compiled_for("THROUGHPUT")
    streams = together.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    queue, in_use = openvino.AsyncInferQueue(together, streams), threading.Lock()

    def run(x: Tensor) -> Tensor:
        with in_use:  # the requests are the same for every thread that asks
            return answers(x)

    def answers(x: Tensor) -> Tensor:
        assert together is not None  # held as long as its queue is: the queue alone may not keep it
        if len(x) == 1:
            return torch.from_numpy(np.array(alone({0: x.numpy()})[0], dtype=np.float32))
        # Shared with the library, which takes what lies in a row for what it is: a mirrored or turned picture does not.
        parts = x.contiguous().split(min(math.ceil(len(x) / streams), LARGEST_PART))
        outputs: list[Any] = [None] * len(parts)

        def done(request: Any, number: int) -> None:
            outputs[number] = np.array(request.get_output_tensor(0).data, dtype=np.float32)

        queue.set_callback(done)
        for number, part in enumerate(parts):
            queue.start_async({0: part.numpy()}, number, share_inputs=True)
        queue.wait_all()
        return torch.from_numpy(np.concatenate(outputs))

    return run


# ------------------------------------------------------------------------------------------------ ONNX Runtime


def to_onnx(network: nn.Module, size: int) -> Any:
    """A network from uint8 (B, 3, size, size) to (B, K) as an onnx.ModelProto, from "pictures" to "outputs"."""
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    return onnx_of(network, example, {0: "pictures_at_once"}, ("pictures", "outputs"))


def onnx_of(module: nn.Module, example: Tensor, dimensions: dict[int, str], names: tuple[str, str]) -> Any:
    """A module of one tensor as an onnx.ModelProto.

    dimensions: those of its input that may have any length, with their names. names: of input and output.
    """
    import onnx

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        path = Path(folder) / "network.onnx"
        torch.onnx.export(
            module.eval(),
            (example,),
            path,
            dynamo=True,
            input_names=[names[0]],
            output_names=[names[1]],
            dynamic_shapes=({place: torch.export.Dim(name) for place, name in dimensions.items()},),
            external_data=False,
            verbose=False,
        )
        return onnx.load(path)


def run_onnx(converted: Any, *, bfloat16: bool = False) -> Backend:
    """On ONNX Runtime's CPU provider, which has no bfloat16."""
    import onnxruntime

    assert not bfloat16
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(converted.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0].astype(np.float32, copy=False))

    return run
