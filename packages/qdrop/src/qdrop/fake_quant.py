"""Rounding to a uniform grid, and what of it is differentiable: the identity (STE), the step size (LSQ), and QDrop's mix.

With step size s, zero point z and codes from n to m, q = clamp(round(x / s) + z, n, m) and x_q = (q - z) s. Ties round to
the even code. The division is by s: times 1/s would differ at ties.

On a CPU, float32 tensors that are contiguous go through kernels of one pass each (`qdrop.kernels`); all others through
torch's operations, with the same values.

References: Esser et al., LSQ, arXiv:1902.08153, section 2.1; Wei et al., QDrop, arXiv:2203.05740, eq. (8).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FULL = 256
"""A byte's values, hence the steps in which the probability of a mask is adjustable."""


def fake_quantize(
    x: Float[Tensor, "*shape"],
    scale: Float[Tensor, "*channels"],
    zero_point: Int[Tensor, "*channels"] | int,
    qmin: int,
    qmax: int,
    axis: int | None = None,
) -> Float[Tensor, "*shape"]:
    """Rounds to the nearest value of the grid, without a gradient.

    Args:
        x: any tensor.
        scale: step size s, positive; one, or one per index of `axis`.
        zero_point: code z of the value 0, likewise.
        qmin: least code n.
        qmax: greatest code m.
        axis: the axis of the channels; None for one grid for all.
    """
    with torch.no_grad():
        if axis is None and _kernels_take(x):
            return _kernels().quantize(x, scale.item(), int(zero_point), qmin, qmax, None)
        if axis is not None:
            along = [-1 if at == axis % x.dim() else 1 for at in range(x.dim())]
            scale = scale.reshape(along)
            zero_point = zero_point.reshape(along) if isinstance(zero_point, Tensor) else zero_point
        return _quantize(x, scale, zero_point, qmin, qmax)


def lsq_fake_quantize(
    x: Float[Tensor, "*shape"],
    scale: Float[Tensor, ""],
    zero_point: Int[Tensor, ""] | int,
    qmin: int,
    qmax: int,
    grad_scale: float,
) -> Float[Tensor, "*shape"]:
    """Rounds to the grid; the gradient reaches x where its code is in [n, m], and the step size everywhere.

    Per element, d x_q / ds = round(x/s) - x/s in the range, n - z below and m - z above it.

    Args:
        x: any tensor.
        scale: step size s, positive.
        zero_point: code z of the value 0.
        qmin: least code n.
        qmax: greatest code m.
        grad_scale: g, by which the gradient of s is multiplied; LSQ's is 1 / sqrt(numel m).

    Reference: LSQ, eq. (3).
    """
    return _FakeQuantize.apply(x, scale, int(zero_point), qmin, qmax, grad_scale, None)  # type: ignore[no-any-return]


def qdrop_fake_quantize(
    x: Float[Tensor, "*shape"],
    scale: Float[Tensor, ""],
    zero_point: Int[Tensor, ""] | int,
    qmin: int,
    qmax: int,
    keep: float,
    generator: torch.Generator | None = None,
    *,
    grad_scale: float | None = None,
    mask: Bool[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """Rounds each element to the grid with probability `keep` and leaves the others as they are.

    The gradient of x is 1 where it was left; that of the step size comes from the rounded elements alone.

    Args:
        x: any tensor.
        scale: step size s, positive.
        zero_point: code z of the value 0.
        qmin: least code n.
        qmax: greatest code m.
        keep: probability that an element is rounded, in steps of 1/256 (`random_mask`); 1 is `lsq_fake_quantize`.
        generator: source of the mask; None for torch's own.
        grad_scale: g, by which the gradient of s is multiplied; None: 1 / sqrt(numel m).
        mask: which elements are rounded, instead of a random draw.
    """
    if mask is None and keep != 1:
        mask = random_mask(x.shape, keep, generator, x.device)
    if grad_scale is None:
        grad_scale = (max(x.numel(), 1) * qmax) ** -0.5
    return _FakeQuantize.apply(x, scale, int(zero_point), qmin, qmax, grad_scale, mask)  # type: ignore[no-any-return]


def random_mask(
    shape: Sequence[int], keep: float, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Bool[Tensor, "*shape"]:
    """Draws True with probability round(256 keep) / 256, independently per element.

    An element costs a random byte. On a CPU the bytes are hashes of their places and of a seed that the generator gives.
    """
    shape, threshold = torch.Size(shape), round(FULL * keep)
    if threshold >= FULL:
        return torch.ones(shape, dtype=torch.bool, device=device)
    if torch.device(device).type == "cpu":
        seed = torch.empty((), dtype=torch.int64).random_(-(2**63), None, generator=generator).item()
        return _kernels().random_mask(shape, threshold, seed)  # type: ignore[no-any-return]
    draws = torch.empty(shape, dtype=torch.uint8, device=device).random_(0, FULL, generator=generator)
    return draws < threshold


def mix(
    quantized: Float[Tensor, "*shape"], full: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Takes the quantised value where the mask is True, else the full-precision one; without a gradient.

    On a CPU, `torch.where` takes thirty times as long: its branches on random bits are mispredicted.
    """
    quantized, full = quantized.detach(), full.detach()
    if all(_kernels_take(each) for each in (quantized, full)):
        return _kernels().mix(quantized, full, mask.contiguous())  # type: ignore[no-any-return]
    return torch.where(mask, quantized, full)


class _FakeQuantize(torch.autograd.Function):
    """All differentiable variants; a mask of None rounds everything. Keeps x, and computes codes again in `backward`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: int,
        qmin: int,
        qmax: int,
        grad_scale: float,
        mask: Tensor | None,
    ) -> Tensor:
        mask = None if mask is None else mask.contiguous()
        ctx.save_for_backward(x, scale, mask)
        ctx.settings = zero_point, qmin, qmax, grad_scale
        if _kernels_take(x):
            return _kernels().quantize(x, scale.item(), zero_point, qmin, qmax, mask)
        x_q = _quantize(x, scale, zero_point, qmin, qmax)
        return x_q if mask is None else torch.where(mask, x_q, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = gradients
        x, scale, mask = ctx.saved_tensors
        zero_point, qmin, qmax, grad_scale = ctx.settings
        if _kernels_take(x):
            grid, wanted = (scale.item(), zero_point, qmin, qmax), ctx.needs_input_grad[:2]
            of_x, of_scale = _kernels().differentiate(x, upstream.contiguous(), *grid, mask, *wanted)
            of_scale = None if of_scale is None else scale.new_tensor(of_scale * grad_scale)
        else:
            of_x, of_scale = _differentiate(x, upstream, scale, zero_point, qmin, qmax, mask)
            of_scale = (of_scale * grad_scale).to(scale)
        return of_x, of_scale, None, None, None, None, None


def _quantize(x: Tensor, scale: Tensor, zero_point: int | Tensor, qmin: int, qmax: int) -> Tensor:
    """The grid's nearest values by torch's operations; half precision is computed in single."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    code = (exact / scale).round_().add_(zero_point).clamp_(qmin, qmax)
    return code.sub_(zero_point).mul_(scale).to(x.dtype)


def _differentiate(
    x: Tensor, upstream: Tensor, scale: Tensor, zero_point: int, qmin: int, qmax: int, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of x and s by torch's operations; the range includes its ends, whatever this torch says of `clamp`."""
    steps = x.to(torch.promote_types(x.dtype, torch.float32)) / scale
    code = steps.round().add_(zero_point)
    inside = (code >= qmin) & (code <= qmax)
    of_scale = code.clamp_(qmin, qmax).sub_(zero_point) - torch.where(inside, steps, 0)
    if mask is not None:
        of_scale, inside = torch.where(mask, of_scale, 0), inside | ~mask
    return torch.where(inside, upstream, 0), (of_scale * upstream).sum(dtype=widest(x))


def widest(like: Tensor) -> torch.dtype:
    """Double precision, which Apple's processors lack."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def _kernels_take(x: Tensor) -> bool:
    return x.is_cpu and x.dtype is torch.float32 and x.is_contiguous()


@functools.cache
def _kernels() -> ModuleType:
    """Loads numba when the first tensor asks for it."""
    from qdrop import kernels

    return kernels
