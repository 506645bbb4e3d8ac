"""Counting and scoring for the range search, compiled by numba when this module is first imported and kept in its cache.

Candidates are compared by their errors alone, so that these may be computed with `fastmath`; what leaves a quantiser may not
(`mqbench_lite.kernels`).
"""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np
from torch import Tensor


def count_in_bins(values: Tensor, counts: np.ndarray, per_width: float) -> None:
    """Adds each value of a float32 tensor to the bin `floor(value * per_width)`; the middle bin begins at 0."""
    _count(values.contiguous().numpy(), counts, per_width)


def candidate_errors(
    points: np.ndarray, weights: np.ndarray, scales: np.ndarray, zeros: np.ndarray, qmin: int, qmax: int, p: float
) -> np.ndarray:
    """Sum of weight |x_hat - x|^p for every row and candidate grid, float64 [C, J].

    Args:
        points: values, float32 [C, K].
        weights: how often each occurs, float32 [C, K], or [C, 0] where each occurs once.
        scales: step sizes of the candidates, float32 [C, J].
        zeros: their zero points, float32 [C, J].
        qmin: least code.
        qmax: greatest code.
        p: exponent.
    """
    errors = np.empty(scales.shape)
    _score(points, weights, scales, zeros, errors, qmin, qmax, p)
    return errors


# What follows is compiled; `no_type_check` keeps the tests' shape checks out of it.


@numba.njit("void(float32[::1], int64[::1], float64)", cache=True, nogil=True)
@no_type_check
def _count(values, counts, per_width):
    middle, factor, last = len(counts) // 2, np.float32(per_width), len(counts) - 1
    for i in range(len(values)):
        at = int(np.floor(values[i] * factor)) + middle
        counts[min(max(at, 0), last)] += 1


@numba.njit(fastmath=True, error_model="numpy")
@no_type_check
def _squares(points, s, z, n, m):
    inverse, total = np.float32(1) / s, np.float32(0)
    for i in range(len(points)):
        code = min(max(np.rint(points[i] * inverse) + z, n), m)
        off = (code - z) * s - points[i]
        total += off * off
    return total


@numba.njit(fastmath=True, error_model="numpy")
@no_type_check
def _weighted_squares(points, weights, s, z, n, m):
    inverse, total = np.float32(1) / s, np.float32(0)
    for i in range(len(points)):
        code = min(max(np.rint(points[i] * inverse) + z, n), m)
        off = (code - z) * s - points[i]
        total += off * off * weights[i]
    return total


@numba.njit(fastmath=True, error_model="numpy")
@no_type_check
def _powers(points, weights, s, z, n, m, p):
    inverse, total = np.float32(1) / s, np.float32(0)
    for i in range(len(points)):
        code = min(max(np.rint(points[i] * inverse) + z, n), m)
        off = abs((code - z) * s - points[i])
        total += off**p * (weights[i] if len(weights) else np.float32(1))
    return total


@numba.njit(
    "void(float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[:, ::1], float64[:, ::1], int64, int64, float64)",
    cache=True, nogil=True, error_model="numpy",
)  # fmt: skip
@no_type_check
def _score(points, weights, scales, zeros, errors, qmin, qmax, p):
    n, m, p = np.float32(qmin), np.float32(qmax), np.float32(p)
    for c in range(len(points)):
        for j in range(scales.shape[1]):
            s, z = scales[c, j], zeros[c, j]
            if p != 2:
                errors[c, j] = _powers(points[c], weights[c], s, z, n, m, p)
            elif weights.shape[1]:
                errors[c, j] = _weighted_squares(points[c], weights[c], s, z, n, m)
            else:
                errors[c, j] = _squares(points[c], s, z, n, m)
