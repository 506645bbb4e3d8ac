"""The step that makes a mask, and what stands in for its derivative.

M = 1[q > 0] has the derivative 0 wherever it has one. Training takes a surrogate dM/dq instead, so that thresholds learn
and masked weights can come back.

References: Liu et al., Dynamic Sparse Training, ICLR 2020, arXiv:2005.06870 (long tail); Bengio et al., arXiv:1308.3432.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

SIGMOID_SHARPNESS = 10.0
"""beta of the sigmoid's surrogate: its slope at 0 is beta / 4, near the long tail's 2."""


def step(q: Float[Tensor, "*shape"], surrogate: str = "long_tail") -> Float[Tensor, "*shape"]:
    """1 where q > 0, else 0 (also at q = 0), with the surrogate's derivative.

    Args:
        q: margin over the threshold, any shape.
        surrogate: a key of `SURROGATES`.

    Returns:
        The mask, in q's dtype.

    Reference: spec section 2.4.
    """
    return SURROGATES[surrogate](q)


def long_tail_slope(q: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """2 - 4|q| for |q| <= 0.4; 0.4 for 0.4 < |q| <= 1; 0 beyond."""
    slope = q.abs().mul_(-4).add_(2)
    beyond = slope < -2
    return slope.clamp_(min=0.4).masked_fill_(beyond, 0)


def sigmoid_slope(q: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The derivative of sigma(beta q)."""
    gate = torch.sigmoid(SIGMOID_SHARPNESS * q)
    return SIGMOID_SHARPNESS * gate * (1 - gate)


class _LongTail(torch.autograd.Function):
    """The default: strong near the threshold, weak up to a distance of 1."""

    @staticmethod
    def forward(ctx: Any, q: Tensor) -> Tensor:
        ctx.save_for_backward(q)
        return (q > 0).to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return long_tail_slope(ctx.saved_tensors[0]).mul_(upstream[0])


class _Identity(torch.autograd.Function):
    """Straight-through: the derivative is 1 everywhere."""

    @staticmethod
    def forward(ctx: Any, q: Tensor) -> Tensor:  # noqa: ARG004 -- the signature is torch's
        return (q > 0).to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:  # noqa: ARG004
        return upstream[0]


class _Sigmoid(torch.autograd.Function):
    """The derivative of a sigmoid of sharpness beta."""

    @staticmethod
    def forward(ctx: Any, q: Tensor) -> Tensor:
        ctx.save_for_backward(q)
        return (q > 0).to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return sigmoid_slope(ctx.saved_tensors[0]).mul_(upstream[0])


SURROGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "long_tail": _LongTail.apply,
    "identity": _Identity.apply,
    "sigmoid": _Sigmoid.apply,
}
"""Steps by the name of their derivative."""
