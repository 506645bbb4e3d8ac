"""Rounding to a uniform grid and back, and what of it is differentiable.

With step size s, zero point z and codes from n to m: q = clamp(round(x / s) + z, n, m) and x_hat = (q - z) s. Ties round
to the even code. The division is by s, and z is added after rounding, as ONNX has it: x (1/s) and round(x/s + z) give
other codes at ties. The gradient of rounding is taken as 1 (straight-through) where the code lies in [n, m], both ends
included, by an explicit mask: torch's releases differ in the gradient of `clamp` at its ends.

On a CPU, contiguous float32 tensors go through kernels of one pass each (`mqbench_lite.kernels`), all others through
torch's operations, with the same values.

References: MQBench, arXiv:2111.03759, section 2; Esser et al., LSQ, arXiv:1902.08153, eq. (3).
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable


def fake_quantize(
    x: Float[Tensor, "*shape"],
    scale: Float[Tensor, "*channels"],
    zero_point: Int[Tensor, "*channels"],
    qmin: int,
    qmax: int,
    axis: int = 0,
) -> Float[Tensor, "*shape"]:
    """The nearest values of the grid; the gradient passes straight through within the range.

    Args:
        x: any tensor.
        scale: step size s, positive: [], or one for each index of `axis`.
        zero_point: code z of 0, likewise.
        qmin: least code n.
        qmax: greatest code m.
        axis: axis of the channels.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _round(x, scale, zero_point, qmin, qmax, axis, with_mask=False)[0]
    return _StraightThrough.apply(x, scale, zero_point, qmin, qmax, axis)  # type: ignore[no-any-return]


def learned_fake_quantize(
    x: Float[Tensor, "*shape"],
    scale: Float[Tensor, "*channels"],
    offset: Float[Tensor, "*channels"],
    qmin: int,
    qmax: int,
    axis: int = 0,
    *,
    gain: float,
) -> Float[Tensor, "*shape"]:
    """The nearest values of a grid whose step size, and zero point, are learned.

    Per element, the slope in s is round(x/s) - x/s within the range, n - z below and m - z above it; that in z is 0
    within and -s outside. Rounding the zero point, and keeping it among the codes, counts as the identity.

    Args:
        x: any tensor.
        scale: step size s, positive: [], or one for each index of `axis`.
        offset: real zero point, likewise; z is the nearest code.
        qmin: least code n.
        qmax: greatest code m.
        axis: axis of the channels.
        gain: g, by which the gradients of s and z are multiplied; LSQ's is 1 / sqrt(N m).

    Reference: LSQ, eqs. (3) and (4); LSQ+, arXiv:2004.09576, eqs. (3) to (5).
    """
    return _Learned.apply(x, scale, offset, qmin, qmax, axis, gain)  # type: ignore[no-any-return]


def codes_of(
    x: Float[Tensor, "*shape"],
    scale: Float[Tensor, "*channels"],
    zero_point: Int[Tensor, "*channels"],
    qmin: int,
    qmax: int,
    axis: int = 0,
) -> Int32[Tensor, "*shape"]:
    """The codes q of the nearest values of the grid; arguments as for `fake_quantize`."""
    scale, zero_point = along(scale.detach(), x, axis), along(zero_point, x, axis)
    exact = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    return (exact / scale).round_().add_(zero_point).clamp_(qmin, qmax).to(torch.int32)


def along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Values of channels in a shape that meets x along the axis; a single one as it is."""
    if values.dim() == 0:
        return values
    return values.reshape([-1 if at == axis % x.dim() else 1 for at in range(x.dim())])


class _StraightThrough(torch.autograd.Function):
    """Keeps a mask of one byte an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int) -> Tensor:
        x_hat, mask = _round(x, scale, zero_point, qmin, qmax, axis, with_mask=True)
        ctx.save_for_backward(mask)
        return x_hat

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        return pass_where(mask, gradients[0]), None, None, None, None, None


class _Learned(torch.autograd.Function):
    """Keeps x, which the operation before it holds anyway, and finds the codes again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, offset: Tensor, qmin: int, qmax: int, axis: int, gain: float
    ) -> Tensor:
        zero_point = offset.round().clamp(qmin, qmax)
        ctx.save_for_backward(x, scale, zero_point)
        ctx.settings = qmin, qmax, axis, gain
        return _round(x, scale, zero_point, qmin, qmax, axis, with_mask=False)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,), (x, scale, zero_point) = gradients, ctx.saved_tensors
        qmin, qmax, axis, gain = ctx.settings
        if kernels_take(x, upstream, scale):
            found = _kernels().learned_gradients(x, upstream, scale, zero_point, qmin, qmax, axis)
        else:
            found = _learned_gradients(x, upstream, scale, zero_point, qmin, qmax, axis)
        of_x, of_scale, of_zero = found
        return of_x, (of_scale * gain).to(scale.dtype), (of_zero * gain).to(scale.dtype), None, None, None, None


def pass_where(mask: Tensor, upstream: Tensor) -> Tensor:
    """The gradient where the mask is True, else 0, whatever it was there."""
    if kernels_take(upstream) and mask.is_contiguous():
        return _kernels().pass_where(mask, upstream)  # type: ignore[no-any-return]
    return torch.where(mask, upstream, 0)


def clip_gradients(x: Tensor, upstream: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient where x lies in [low, high], and its sums over what lies below and above."""
    if kernels_take(x, upstream):
        of_x, below, above = _kernels().clip_gradients(x, upstream, low.item(), high.item())
        return of_x, high.new_tensor(below), high.new_tensor(above)
    under, over = x < low, x > high
    below, above = (torch.where(where, upstream, 0).sum().to(high.dtype) for where in (under, over))
    return torch.where(under | over, 0, upstream), below, above


def kernels_take(*tensors: Tensor) -> bool:
    """Whether all of them are what the compiled kernels read."""
    return all(t.is_cpu and t.dtype is torch.float32 and t.is_contiguous() for t in tensors)


def _round(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int, *, with_mask: bool
) -> tuple[Tensor, Tensor | None]:
    if kernels_take(x, scale):
        return _kernels().round_to_grid(x, scale, zero_point, qmin, qmax, axis, with_mask=with_mask)  # type: ignore[no-any-return]
    with torch.no_grad():
        scale, zero_point = along(scale, x, axis), along(zero_point, x, axis)
        code = (_exact(x) / scale).round_().add_(zero_point)
        clamped = code.clamp(qmin, qmax)
        mask = clamped == code if with_mask else None
        return clamped.sub_(zero_point).mul_(scale).to(x.dtype), mask


def _learned_gradients(
    x: Tensor, upstream: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, s and z by torch's operations."""
    wide_scale, wide_zero = along(scale, x, axis), along(zero_point, x, axis)
    steps = _exact(x) / wide_scale
    code = steps.round().add_(wide_zero)
    clamped = code.clamp(qmin, qmax)
    inside = clamped == code
    by_step = clamped.sub_(wide_zero).sub_(torch.where(inside, steps, 0)).mul_(upstream)
    by_zero = torch.where(inside, 0, -wide_scale * upstream)
    others = [at for at in range(x.dim()) if scale.dim() == 0 or at != axis % x.dim()]
    double = torch.float32 if x.device.type == "mps" else torch.float64  # Apple's processors lack it
    of_scale, of_zero = (terms.sum(others, dtype=double) if others else terms for terms in (by_step, by_zero))
    return torch.where(inside, upstream, 0), of_scale.reshape(scale.shape), of_zero.reshape(scale.shape)


def _exact(x: Tensor) -> Tensor:
    """Half precision is computed in single."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@functools.cache
def _kernels() -> ModuleType:
    """Loads numba when the first tensor asks for it."""
    from mqbench_lite import kernels

    return kernels
