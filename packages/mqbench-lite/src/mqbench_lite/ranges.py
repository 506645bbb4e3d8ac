"""From a range of values to a step size and a zero point.

Reference: MQBench, arXiv:2111.03759, section 2.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST_SCALE = float(torch.finfo(torch.float32).eps)
"""Step size below which none goes; that of a channel that is zero throughout."""


def grid_of_range(
    low: Float[Tensor, "*c"],
    high: Float[Tensor, "*c"],
    qmin: int,
    qmax: int,
    *,
    symmetric: bool,
    power_of_two: bool = False,
) -> tuple[Float32[Tensor, "*c"], Int32[Tensor, "*c"]]:
    """The step sizes and zero points of grids that cover ranges and 0.

    Args:
        low: least values.
        high: greatest values.
        qmin: least code; 0 for a grid without a sign.
        qmax: greatest code.
        symmetric: whether the zero point is 0.
        power_of_two: whether the step size is a power of two.
    """
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    if symmetric:
        width = torch.maximum(-low, high)
        scale = (width / ((qmax - qmin) / 2 if qmin < 0 else qmax - qmin)).clamp(min=LEAST_SCALE)
        zero_point = torch.zeros_like(scale)
    else:
        scale = ((high - low) / (qmax - qmin)).clamp(min=LEAST_SCALE)
        zero_point = (qmin - (low / scale).round()).clamp(qmin, qmax)
    if power_of_two:
        scale = nearest_power_of_two(scale)
        if not symmetric:
            zero_point = (qmin - (low / scale).round()).clamp(qmin, qmax)
    return scale, zero_point.to(torch.int32)


def nearest_power_of_two(scale: Float32[Tensor, "*c"]) -> Float32[Tensor, "*c"]:
    """2^round(log2 s), exactly; rounding counts as the identity, so that the slope is 2^round(log2 s) / s."""
    return _PowerOfTwo.apply(scale)  # type: ignore[no-any-return]


class _PowerOfTwo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(scale)  # s = mantissa 2^exponent, mantissa in [1/2, 1)
        exponent = exponent - (mantissa < 0.5**0.5).to(exponent.dtype)
        power = ((exponent + 127) << 23).to(torch.int32).view(torch.float32)  # the bits of 2^exponent
        ctx.save_for_backward(scale, power)
        return power

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        scale, power = ctx.saved_tensors
        return gradients[0] * power / scale
