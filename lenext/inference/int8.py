"""Networks of OpenVINO and ONNX with weights and activations of 8 bits, by nncf's static quantisation.

The first layers keep their precision: every later layer works on their errors, and on EfficientNet-Lite0 they cause
more than half of what the outputs move by.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

log = logging.getLogger("lenext")

PRECISE_LAYERS = 6  # from the picture on; of a small network a quarter
LAYERS = {"Conv", "Convolution", "GroupConvolution", "Gemm", "MatMul"}  # as ONNX and OpenVINO name them


def quantise(
    converted: Any, calibration: Tensor, model: nn.Module, run: Callable[[Any], Callable[[Tensor], Tensor]]
) -> Any:
    """An openvino.Model or onnx.ModelProto from uint8 (B, 3, S, S) to (B, K), in 8 bits.

    calibration: uint8 (N, 3, S, S), by whose activations the scales are set; a few hundred pictures. model: what was
    converted; the large activations of attention are evened out if that brings the outputs nearer to its own. run: its
    runtime.
    """
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        QuantizationParameters,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    logging.getLogger("nncf").setLevel(logging.ERROR)
    log.info("setting the scales of int8 by %d pictures, which takes a minute or two", len(calibration))
    onnx = not hasattr(converted, "get_parameters")  # an openvino.Model has them
    name = converted.graph.input[0].name if onnx else 0
    pictures: Sequence[Any] = [{name: x[None].numpy()} for x in calibration]
    layers, transformer = layers_with_weights(converted, onnx=onnx), is_transformer(model)
    precise = nncf.IgnoredScope(names=layers[: min(PRECISE_LAYERS, len(layers) // 4)])
    advanced = AdvancedQuantizationParameters()
    if not transformer:
        # Nothing that the pictures showed is cut off. The library's mean over them is for single activations far above
        # all.
        advanced.activations_range_estimator_params = RangeEstimatorParametersSet.MINMAX
    if onnx:
        # ONNX Runtime refuses a scale for each channel of what goes into a depthwise convolution.
        advanced.activations_quantization_params = QuantizationParameters(per_channel=False)

    def quantised(alphas: Any, *, fast: bool = False) -> Any:
        advanced.smooth_quant_alphas = alphas
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bars have no switch
            return nncf.quantize(
                converted,
                nncf.Dataset(pictures),
                subset_size=len(pictures),
                model_type=nncf.ModelType.TRANSFORMER if transformer else None,
                ignored_scope=precise,
                advanced_parameters=advanced,
                fast_bias_correction=fast,
            )

    def attempt(alphas: Any) -> Any:
        # Layer after layer on what the quantised ones before it give: less than half the error. The library cannot cut
        # every ONNX network into such pieces.
        try:
            return quantised(alphas)
        except MemoryError:
            raise
        except Exception:
            if not onnx:
                raise
            return quantised(alphas, fast=True)

    usual, off = AdvancedSmoothQuantParameters(), AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    if not transformer:
        return attempt(off)
    # Moving large activations into the weights takes a third of CAFormer's error and multiplies Swin's by seven.
    some = calibration[:32]
    exact = run(converted)(some)
    return min((attempt(usual), attempt(off)), key=lambda network: float((run(network)(some) - exact).norm()))


def layers_with_weights(converted: Any, *, onnx: bool) -> list[str]:
    """Names of an OpenVINO or ONNX network's convolutions and matrix products, from the picture on."""
    if onnx:
        return [node.name for node in converted.graph.node if node.op_type in LAYERS]
    return [op.get_friendly_name() for op in converted.get_ordered_ops() if op.get_type_name() in LAYERS]


def is_transformer(model: nn.Module) -> bool:
    """Whether it has self-attention, which lets single activations grow far larger than the rest."""
    return any(name.endswith(("qkv", "kqv")) for name, _ in model.named_modules())
