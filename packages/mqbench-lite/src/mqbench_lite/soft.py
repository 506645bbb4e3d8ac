"""DSQ: rounding whose gradient is that of a soft staircase.

With u = x / s + z clamped to the codes, the staircase is floor(u) + 1/2 + tanh(k (u - floor(u) - 1/2)) / (2 (1 - a)). It
meets the codes at both ends of every step and their middle at 1/2, so that rounding it is rounding u; the backward pass
takes its slope. The released code has it commented out and is plain straight-through with the same ranges (`ste`).

Reference: Gong et al., DSQ, arXiv:1908.05033, eqs. (3) to (7).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mqbench_lite.fake_quant import along, fake_quantize, pass_where
from mqbench_lite.quantizers import Quantizer

SOFTNESS = 0.4
"""a: how far the unscaled staircase is from the codes at the ends of a step."""
SHARPNESS = math.log(2 / SOFTNESS - 1)
"""k, by which tanh(k / 2) = 1 - a."""


def staircase(u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The soft staircase, from code to code once for every unit of u."""
    base = u.floor()
    return base + 0.5 + 0.5 * torch.tanh(SHARPNESS * (u - base - 0.5)) / (1 - SOFTNESS)


def slope(u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The staircase's derivative within a step."""
    rising = (u - u.floor()).sub_(0.5).mul_(SHARPNESS).tanh_()
    return rising.square_().sub_(1).mul_(-0.5 * SHARPNESS / (1 - SOFTNESS))


class SoftQuantizer(Quantizer):
    """Rounds like every quantiser, and passes the gradient by the slope of the staircase within the range."""

    def quantize(self, x: Tensor) -> Tensor:
        """The nearest values of the grid."""
        return _Soft.apply(x, self.scale, self.zero_point, self.qmin, self.qmax, self.axis)  # type: ignore[no-any-return]


class _Soft(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int) -> Tensor:
        ctx.save_for_backward(x, scale.clone(), zero_point.clone())
        ctx.settings = qmin, qmax, axis
        return fake_quantize(x, scale, zero_point, qmin, qmax, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        qmin, qmax, axis = ctx.settings
        u = (x / along(scale, x, axis)).add_(along(zero_point, x, axis))
        code = u.round()
        return pass_where(code.clamp(qmin, qmax) == code, slope(u).mul_(gradients[0])), None, None, None, None, None
