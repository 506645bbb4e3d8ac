"""AdaRound's kernels for float32 on a CPU: the soft weight with its regulariser, and the gradient of both, in one pass each.

A weight is taken as rows of one step size each. The sigmoid is torch's, whose last bit decides whether h is inside at 0.
"""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from qdrop.power import power


def soften(
    sigmoid: Tensor, base: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, beta: float | None
) -> tuple[Tensor, float]:
    """AdaRound's soft weight and the sum of its regulariser, 0 where beta is None."""
    rows = scale.shape[0] if scale.dim() else 1
    soft = np.empty(sigmoid.shape, np.float32)
    arrays = [_flat(tensor).reshape(rows, -1) for tensor in (sigmoid, base)]
    grid = _flat(scale), _flat(zero_point), qmin, qmax
    total = _soften(*arrays, soft.reshape(rows, -1), *grid, 0.0 if beta is None else beta)
    return torch.from_numpy(soft), total


def harden(
    sigmoid: Tensor,
    base: Tensor,
    scale: Tensor,
    of_soft: Tensor | None,
    qmin: int,
    qmax: int,
    beta: float,
    of_regulariser: float,
) -> Tensor:
    """Gradient of alpha, from those of the soft weight and of the regulariser."""
    rows = scale.shape[0] if scale.dim() else 1
    upstream = torch.zeros_like(sigmoid) if of_soft is None else of_soft.contiguous()
    grad = np.empty(sigmoid.shape, np.float32)
    arrays = [_flat(tensor).reshape(rows, -1) for tensor in (sigmoid, base, upstream)]
    _harden(*arrays, grad.reshape(rows, -1), _flat(scale), qmin, qmax, beta, of_regulariser)
    return torch.from_numpy(grad)


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy().reshape(-1)


# What follows is compiled; `no_type_check` keeps the tests' shape checks out of it.

STRETCH, LOW = np.float32(1.2), np.float32(-0.1)  # zeta - gamma and gamma of AdaRound


@numba.njit
@no_type_check
def _rectify(sigmoid):
    """The stretched sigmoid and h, which is it clamped to [0, 1]."""
    stretched = sigmoid * STRETCH + LOW
    above = stretched if stretched > 0 else np.float32(0)
    return stretched, above if above < 1 else np.float32(1)


@numba.njit(error_model="numpy")
@no_type_check
def _soften_row(sigmoid, base, soft, s, z, n, m):
    for i in range(len(soft)):
        code = base[i] + _rectify(sigmoid[i])[1]
        low = n if code < n else code
        soft[i] = ((m if low > m else low) - z) * s


@numba.njit(fastmath={"reassoc"}, error_model="numpy")
@no_type_check
def _regularise_row(sigmoid, beta):
    total = 0.0
    for i in range(len(sigmoid)):
        h = _rectify(sigmoid[i])[1]
        total += 1.0 - power(abs(np.float64(2 * h - 1)), beta)
    return total


@numba.njit(
    "float64(float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[::1], float32[::1], int64, int64, float64)",
    cache=True, nogil=True, error_model="numpy",
)  # fmt: skip
@no_type_check
def _soften(sigmoid, base, soft, scale, zero_point, qmin, qmax, beta):
    """Rows of one step size each; a beta of 0 leaves the regulariser out."""
    n, m, total = np.float32(qmin), np.float32(qmax), 0.0
    for row in range(len(soft)):
        _soften_row(sigmoid[row], base[row], soft[row], scale[row], zero_point[row], n, m)
        if beta > 0:
            total += _regularise_row(sigmoid[row], beta)
    return total


@numba.njit(error_model="numpy")
@no_type_check
def _harden_row(sigmoid, base, g, grad, s, n, m):
    for i in range(len(grad)):
        stretched, h = _rectify(sigmoid[i])
        code = base[i] + h
        passing = g[i] * s if (code >= n) & (code <= m) else np.float32(0)
        slope = STRETCH * sigmoid[i] * (np.float32(1) - sigmoid[i])
        grad[i] = passing * slope if (stretched >= 0) & (stretched <= 1) else np.float32(0)


@numba.njit(error_model="numpy")
@no_type_check
def _repel_row(sigmoid, grad, beta, weight):
    for i in range(len(grad)):
        stretched, h = _rectify(sigmoid[i])
        centred = 2 * np.float64(h) - 1
        slope = STRETCH * sigmoid[i] * (np.float32(1) - sigmoid[i])
        towards = 2 * beta * power(abs(centred), beta - 1)
        push = weight * (towards if centred >= 0 else -towards) * slope
        grad[i] -= push if (stretched >= 0) & (stretched <= 1) else 0.0


@numba.njit(
    "void(float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[::1], int64, int64, float64, float64)",
    cache=True, nogil=True, error_model="numpy",
)  # fmt: skip
@no_type_check
def _harden(sigmoid, base, g, grad, scale, qmin, qmax, beta, weight):
    """The same rows backward; a weight of 0 leaves the regulariser out."""
    n, m = np.float32(qmin), np.float32(qmax)
    for row in range(len(grad)):
        _harden_row(sigmoid[row], base[row], g[row], grad[row], scale[row], n, m)
        if weight != 0:
            _repel_row(sigmoid[row], grad[row], beta, weight)
