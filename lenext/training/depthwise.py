"""Gradients of depthwise convolutions in bfloat16 on CPUs: in float32 where oneDNN has only slow kernels for them.

In bfloat16 the forward pass of a depthwise convolution is fast, and so is the backward pass of a 3 x 3 kernel at stride
1. The gradient of the input at other strides (10 times) and that of larger kernels (2 to 4 times) are slower than in
float32 with conversion included, and would take much of the time that a MobileNet or an EfficientNet trains.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import grad

# Taps of a kernel up to which its gradient is fast in bfloat16.
FAST_TAPS = 9


def hasten_depthwise(model: nn.Module) -> None:
    """Give the depthwise 2-D convolutions of a model, in place, the faster gradients under bfloat16 on the CPU.

    Parameters, their names and the results of the forward pass stay as they are; in float32, without gradients and on
    GPUs nothing changes at all. Reaches what computes by nn.Conv2d's own forward.
    """
    for module in model.modules():
        if (
            isinstance(module, nn.Conv2d)
            and module.groups == module.in_channels == module.out_channels > 1
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        ):
            module._conv_forward = types.MethodType(_conv_forward, module)  # type: ignore[method-assign]


def _conv_forward(self: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled():
        dtype = torch.get_autocast_dtype("cpu")
        if dtype == torch.bfloat16:
            bias = None if bias is None else bias.to(dtype)
            return _Depthwise.apply(x.to(dtype), weight.to(dtype), bias, self.stride, self.padding, self.dilation)
    return nn.Conv2d._conv_forward(self, x, weight, bias)


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution: x (B, C, H, W), weight (C, 1, K, K), bias (C,) or None, all of them bfloat16."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any) -> Tensor:
        return torch.conv2d(x, weight, bias, stride, padding, dilation, len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, stride, padding, dilation = inputs
        ctx.save_for_backward(x, weight)
        ctx.how = (stride, padding, dilation, len(weight))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        strided, large = max(ctx.how[0]) > 1, weight[0, 0].numel() > FAST_TAPS
        exact = g.float() if strided or large else g
        g_x = g_weight = g_bias = None
        if ctx.needs_input_grad[0]:
            if strided:
                g_x = grad.conv2d_input(x.shape, weight.float(), exact, *ctx.how).to(x.dtype)
            else:
                g_x = grad.conv2d_input(x.shape, weight, g, *ctx.how)
        if ctx.needs_input_grad[1]:
            if large:
                g_weight = grad.conv2d_weight(x.float(), weight.shape, exact, *ctx.how).to(weight.dtype)
            else:
                g_weight = grad.conv2d_weight(x, weight.shape, g, *ctx.how)
        if ctx.needs_input_grad[2]:
            g_bias = g.sum((0, 2, 3))
        return g_x, g_weight, g_bias, None, None, None
