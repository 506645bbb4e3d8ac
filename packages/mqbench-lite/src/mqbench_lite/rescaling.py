"""From accumulators to codes, in the float32 operations and the order of ONNX Runtime's kernels on x86-64 with AVX2.

Codes are float32 tensors of integers from which the zero point is taken already, so that padding is 0. On a CPU each
formula is one pass of a compiled loop; elsewhere torch's operations give the same numbers. A fused multiply-add is
computed in float64, in which product and sum are exact for codes and step sizes that occur.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mqbench_lite.accumulation import along


def quantize(x: Float[Tensor, "*shape"], scale: float, low: int, high: int) -> Float[Tensor, "*shape"]:
    """Codes clamp(round(x / s), low, high), half to even.

    Args:
        x: values.
        scale: step size s, a float32.
        low: least code minus the zero point.
        high: greatest code minus the zero point.
    """
    if not _is_plain(x):
        return torch.div(x, torch.tensor(scale, dtype=torch.float32, device=x.device)).round_().clamp_(low, high)
    codes = torch.empty_like(x)
    _quantize(_flat(x), _flat(codes), np.float32(scale), np.float32(low), np.float32(high))
    return codes


def requantize(
    accumulators: Float[Tensor, "*shape"], multipliers: Float[Tensor, " c"], axis: int, low: int, high: int
) -> Float[Tensor, "*shape"]:
    """Codes clamp(round(float32(a) M[c]), low, high); float32 accumulators are overwritten.

    Args:
        accumulators: sums of integers, exact, of float32 or float64.
        multipliers: M, float32; one, or one for each index of the axis.
        axis: the axis of the channels.
        low: least code minus the zero point.
        high: greatest code minus the zero point.

    Reference: MLAS, `MlasRequantizeOutput`.
    """
    values = accumulators.to(torch.float32)
    if not _is_plain(values):
        return values.mul_(along(multipliers.to(values.device), values, axis)).round_().clamp_(low, high)
    channels = multipliers.numpy()
    inner = (
        int(np.prod(values.shape[axis % values.dim() + 1 :], dtype=np.int64)) if len(channels) > 1 else values.numel()
    )
    _requantize(_flat(values), channels, max(inner, 1), np.float32(low), np.float32(high))
    return values


def rescale(
    accumulators: Float[Tensor, "*shape"], multipliers: Float[Tensor, " c"], axis: int
) -> Float[Tensor, "*shape"]:
    """Values float32(a) M[c]."""
    values = accumulators.to(torch.float32)
    return values * along(multipliers.to(values.device), values, axis)


def add(
    a: Float[Tensor, "*a"],
    b: Float[Tensor, "*b"],
    scales: Sequence[float],
    zero_points: Sequence[int],
    low: int,
    high: int,
) -> Float[Tensor, "*shape"]:
    """Codes of a sum, from ratios r of the operands' step sizes to the result's.

    With stored codes p and q and zero points z, round(fma(p, r_a, fma(q, r_b, z_c - fma(r_a, z_a, r_b z_b)))). An operand
    of one element joins the constant part by a product and a sum that are rounded apart.

    Args:
        a: first operand.
        b: second operand, broadcast.
        scales: step sizes of the first, the second, the result.
        zero_points: of their stored codes.
        low: least code minus the zero point.
        high: greatest code minus the zero point.

    Reference: MLAS, `MlasQLinearAddKernelAvx2Helper`.
    """
    s_a, s_b, s_c = (np.float32(scale) for scale in scales)
    z_a, z_b, z_c = (np.float32(zero_point) for zero_point in zero_points)
    r_a, r_b = s_a / s_c, s_b / s_c
    fixed = z_c - np.float32(np.float64(r_a) * np.float64(z_a) + np.float64(r_b * z_b))
    if a.shape == b.shape and a.numel() > 1 and _is_plain(a) and _is_plain(b):
        codes = torch.empty_like(a)
        grid = (r_a, r_b, fixed, z_a, z_b, z_c, np.float32(low), np.float32(high))
        _add(_flat(a), _flat(b), _flat(codes), *grid)
        return codes
    start = torch.tensor(fixed, dtype=torch.float32, device=a.device)
    spans = _spans(a, b)
    if spans == "a":
        start, first, second = start + (a + float(z_a)) * float(r_a), b + float(z_b), None
        ratio_first = r_b
    elif spans == "b":
        start, first, second = start + (b + float(z_b)) * float(r_b), a + float(z_a), None
        ratio_first = r_a
    else:
        first, second, ratio_first = a + float(z_a), b + float(z_b), r_a
    if second is not None:
        start = (second.double() * float(r_b) + start.double()).float()
    total = (first.double() * float(ratio_first) + start.double()).float()
    return total.round_().sub_(float(z_c)).clamp_(low, high)


def multiply(
    a: Float[Tensor, "*a"],
    b: Float[Tensor, "*b"],
    scales: Sequence[float],
    zero_point: int,
    low: int,
    high: int,
) -> Float[Tensor, "*shape"]:
    """Codes round(float32(a b) r + z_c) of a product, r = s_a s_b / s_c; no operation is fused.

    Args:
        a: first operand.
        b: second operand, broadcast.
        scales: step sizes of the first, the second, the result.
        zero_point: of the result's stored codes.
        low: least code minus the zero point.
        high: greatest code minus the zero point.

    Reference: MLAS, `MlasQLinearMulKernel`.
    """
    s_a, s_b, s_c = (np.float32(scale) for scale in scales)
    ratio = float(s_a * s_b / s_c)
    return (a * b).mul_(ratio).add_(float(zero_point)).round_().sub_(float(zero_point)).clamp_(low, high)


def _spans(a: Tensor, b: Tensor) -> str:
    """Which operand a broadcasting engine sees as one number for each stretch of the other.

    The engine walks the shared trailing axes as one stretch; where one operand does not change along it, its kernel for a
    single number runs.
    """
    rank = max(a.dim(), b.dim())
    shape_a, shape_b = (1,) * (rank - a.dim()) + tuple(a.shape), (1,) * (rank - b.dim()) + tuple(b.shape)
    axes = [(m, n) for m, n in zip(shape_a, shape_b, strict=True) if (m, n) != (1, 1)]
    if not axes:
        return "a"
    m, n = axes[-1]
    return "both" if m == n else ("a" if m == 1 else "b")


def _is_plain(x: Tensor) -> bool:
    return x.is_cpu and x.dtype is torch.float32 and x.is_contiguous()


def _flat(x: Tensor) -> np.ndarray:
    return x.detach().numpy().reshape(-1)


@numba.njit("void(float32[::1], float32[::1], float32, float32, float32)", cache=True, nogil=True, error_model="numpy")
@no_type_check
def _quantize(x, codes, scale, low, high):
    for i in range(len(x)):
        codes[i] = min(max(np.rint(x[i] / scale), low), high)


@numba.njit("void(float32[::1], float32[::1], int64, float32, float32)", cache=True, nogil=True)
@no_type_check
def _requantize(values, multipliers, inner, low, high):
    channels = len(multipliers)
    if inner == 1:
        for start in range(0, len(values), channels):
            for c in range(channels):
                values[start + c] = min(max(np.rint(values[start + c] * multipliers[c]), low), high)
        return
    for block in range(len(values) // inner):
        multiplier = multipliers[block % channels]
        for i in range(block * inner, (block + 1) * inner):
            values[i] = min(max(np.rint(values[i] * multiplier), low), high)


_SEVEN = ", ".join(["float32"] * 8)


@numba.njit(f"void(float32[::1], float32[::1], float32[::1], {_SEVEN})", cache=True, nogil=True)
@no_type_check
def _add(a, b, codes, r_a, r_b, fixed, z_a, z_b, z_c, low, high):
    for i in range(len(a)):
        inner = np.float32(np.float64(b[i] + z_b) * np.float64(r_b) + np.float64(fixed))
        total = np.float32(np.float64(a[i] + z_a) * np.float64(r_a) + np.float64(inner))
        codes[i] = min(max(np.rint(total) - z_c, low), high)
