"""The formats of an export: how each is written, and how its own runtime runs what was written.

For ONNX and OpenVINO the two halves of the graph are converted apart and joined, so that int8 is for the network alone:
the resize works with more than 8 bits.
"""

from __future__ import annotations

import errno
import importlib.util
import io
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lenext.classifier import Classifier
from lenext.export.graph import Answers, Square
from lenext.inference import backends
from lenext.inference.int8 import quantise

# uint8 (B, H, W, 3), pictures of one size -> probabilities (B, K)
Artefact = Callable[[np.ndarray], np.ndarray]
EXAMPLE = torch.zeros(2, 40, 60, 3, dtype=torch.uint8)
LARGEST_XML = 2**24  # bytes, of OpenVINO's description of a network beside its weights
SIDES = {0: "pictures_at_once", 1: "height", 2: "width"}


@dataclass(frozen=True)
class Format:
    """write: (classifier, folder, calibration), the last uint8 (N, 3, S, S) for int8 and None for float32.
    load: a folder that was written, in the format's own runtime. files: what makes the model, the first its name.
    packages: what is needed beside PyTorch."""

    write: Callable[[Classifier, Path, Tensor | None], object]
    load: Callable[[Path], Artefact]
    files: tuple[str, ...]
    packages: tuple[str, ...] = ()

    def require(self, *, int8: bool) -> None:
        """ValueError, with the command that mends it, where this machine lacks a package."""
        for package in (*self.packages, *(["nncf"] if int8 else [])):
            if importlib.util.find_spec(package) is None:
                raise ValueError(f"this export needs the package {package}: pip install 'lenext[export]'")

    def size(self, folder: Path) -> int:
        """Bytes of the model."""
        return sum((folder / name).stat().st_size for name in self.files)


# -------------------------------------------------------------------------------------------------------- ONNX


def write_onnx(classifier: Classifier, folder: Path, calibration: Tensor | None) -> None:
    import onnx
    from onnx import compose

    size = classifier.preprocess.image_size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    network = backends.onnx_of(Answers(classifier), example, {0: SIDES[0]}, ("square", "probabilities"))
    if calibration is not None:
        network = quantise(network, calibration, classifier.model, backends.run_onnx)
    square = compose.add_prefix(square_onnx(classifier), "square/", rename_inputs=False)
    network = compose.add_prefix(network, "network/", rename_outputs=False)
    ends = [(square.graph.output[0].name, network.graph.input[0].name)]
    model = compose.merge_models(square, network, io_map=ends, producer_name="lenext")
    onnx.save(model, folder / "model.onnx")


def square_onnx(classifier: Classifier) -> Any:
    return backends.onnx_of(Square(classifier.preprocess), EXAMPLE, SIDES, ("pictures", "square"))


def load_onnx(folder: Path) -> Artefact:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(None, {"pictures": pictures})[0]


# ---------------------------------------------------------------------------------------------------- OpenVINO


def write_openvino(classifier: Classifier, folder: Path, calibration: Tensor | None) -> None:
    import openvino

    network = backends.to_openvino(Answers(classifier), classifier.preprocess.image_size)
    if calibration is not None:
        network = quantise(network, calibration, classifier.model, backends.run_openvino)
    square = backends.openvino_core().read_model(square_onnx(classifier).SerializeToString())
    for entrance in network.input(0).get_target_inputs():
        entrance.replace_source_output(square.output(0).get_node().input_value(0))
    model = openvino.Model(network.get_results(), square.get_parameters(), "lenext")
    model.output(0).set_names({"probabilities"})
    path = folder / "model.xml"
    try:
        openvino.save_model(model, path, compress_to_fp16=False)  # half the size, but not the same answers
    except RuntimeError:  # says that a file could not be written, not why, and may have removed what there was of it
        weights = sum(tensor.nbytes for tensor in classifier.model.state_dict().values())
        if shutil.disk_usage(folder).free < weights + LARGEST_XML:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise


def load_openvino(folder: Path) -> Artefact:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    model = backends.openvino_core().compile_model(folder / "model.xml", "CPU", settings)
    return lambda pictures: np.array(model(pictures)[0])


# ------------------------------------------------------------------------------------------------ torch.export


def write_torch(classifier: Classifier, folder: Path, calibration: Tensor | None) -> None:
    assert calibration is None, "int8 is for runtimes that have it"
    graph = nn.Sequential(Square(classifier.preprocess), Answers(classifier)).eval()
    sides = ({place: torch.export.Dim(name) for place, name in SIDES.items()},)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        file = io.BytesIO()  # a full disk would end the process in PyTorch's own writer
        torch.export.save(torch.export.export(graph, (EXAMPLE,), dynamic_shapes=sides), file)
    (folder / "model.pt2").write_bytes(file.getbuffer())


def load_torch(folder: Path) -> Artefact:
    model = torch.export.load(folder / "model.pt2").module()

    @torch.inference_mode()
    def run(pictures: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(pictures)).numpy()

    return run


FORMATS = {
    "onnx": Format(write_onnx, load_onnx, ("model.onnx",), ("onnx", "onnxscript", "onnxruntime")),
    "openvino": Format(write_openvino, load_openvino, ("model.xml", "model.bin"), ("openvino", "onnx", "onnxscript")),
    "torch": Format(write_torch, load_torch, ("model.pt2",)),
}
