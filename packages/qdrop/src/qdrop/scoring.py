"""Scores of candidate grids: histograms, bounds from them, and sums of |x_q - x|^p over the data.

Kernels are compiled by numba when this module is first imported; tensors on other devices take torch's operations.
"""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from qdrop.power import power

BLOCK = 4096
"""Values that all candidates see before the next ones are read."""

ROUNDING = 1e-6
"""Of the greatest magnitude: more than float32's rounding moves a value, its bin's edge, or its nearest code."""

INEXACT = 1e-9
"""More than the relative error of a bound's sum."""


def histogram(rows: Tensor, low: Tensor, high: Tensor, bins: int) -> Tensor:
    """Counts of each row's values in equal bins from low to high."""
    if not _kernels_take(rows):
        low, high = low.to(rows.device)[:, None], high.to(rows.device)[:, None]
        per_width = torch.where(high > low, bins / (high - low).double(), 0)
        index = ((rows - low) * per_width).long().clamp_(0, bins - 1)
        index += torch.arange(len(rows), device=rows.device)[:, None] * bins
        return torch.bincount(index.flatten(), minlength=len(rows) * bins).view(len(rows), bins).double()
    counts = np.zeros((len(low), bins))
    if rows.numel():
        _histogram(rows.numpy(), low.double().numpy(), high.double().numpy(), counts)
    return torch.from_numpy(counts)


def bounds(
    counts: Tensor,
    low: Tensor,
    high: Tensor,
    alive: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    qmin: int,
    qmax: int,
    p: float,
) -> tuple[Tensor, Tensor]:
    """What the score of each live candidate is at least and at most; infinite for the others."""
    least, most = (np.full(alive.shape, np.inf) for _ in range(2))
    arrays = [tensor.double().numpy() for tensor in (counts, low, high)]
    grids = alive.numpy(), scales.double().contiguous().numpy(), zero_points.double().contiguous().numpy()
    _bounds(*arrays, *grids, float(qmin), float(qmax), p, least, most)
    return torch.from_numpy(least), torch.from_numpy(most)


def errors(rows: Tensor, alive: Tensor, scales: Tensor, zero_points: Tensor, qmin: int, qmax: int, p: float) -> Tensor:
    """Sum of |x_q - x|^p over each row for each live candidate; 0 for the others. Rounds as `fake_quantize` does."""
    if not _kernels_take(rows):
        sums = torch.zeros(alive.shape, dtype=torch.float64, device=rows.device)
        for k in alive.any(0).nonzero().flatten().tolist():
            scale, zero_point = (found[:, k, None].to(rows) for found in (scales, zero_points))
            code = (rows / scale).round_().add_(zero_point).clamp_(qmin, qmax)
            sums[:, k] = code.sub_(zero_point).mul_(scale).sub_(rows).abs_().double().pow_(p).sum(1)
        return sums * alive.to(sums.device)
    found = np.zeros(alive.shape)
    if rows.numel():
        grids = scales.contiguous().numpy(), zero_points.float().contiguous().numpy()
        _errors(rows.numpy(), alive.numpy(), *grids, float(qmin), float(qmax), p, found)
    return torch.from_numpy(found)


def _kernels_take(rows: Tensor) -> bool:
    return rows.is_cpu


# What follows is compiled; `no_type_check` keeps the tests' shape checks out of it.


@numba.njit(
    "void(float32[:, ::1], float64[::1], float64[::1], float64[:, ::1])", cache=True, nogil=True, error_model="numpy"
)
@no_type_check
def _histogram(rows, low, high, counts):
    bins = counts.shape[1]
    for row in range(len(rows)):
        width = high[row] - low[row]
        per_width = bins / width if width > 0 else 0.0
        for i in range(rows.shape[1]):
            index = int((rows[row, i] - low[row]) * per_width)
            counts[row, min(index, bins - 1)] += 1


@numba.njit(error_model="numpy")
@no_type_check
def _distances(x, distances, s, z, n, m):
    """From each value to its nearest on the grid."""
    for i in range(len(x)):
        code = np.rint(x[i] / s) + z
        low = n if code < n else code
        distances[i] = abs(((m if low > m else low) - z) * s - x[i])


@numba.njit(fastmath={"reassoc", "contract"}, error_model="numpy")
@no_type_check
def _sum_of_powers(distances, p):
    total = 0.0
    for i in range(len(distances)):
        total += power(np.float64(distances[i]), p)
    return total


@numba.njit(fastmath={"reassoc", "contract"}, error_model="numpy")
@no_type_check
def _weighted_powers(distances, counts, shift, p):
    total = 0.0
    for i in range(len(distances)):
        total += counts[i] * power(max(distances[i] + shift, 0.0), p)
    return total


@numba.njit(cache=True, nogil=True, error_model="numpy")
@no_type_check
def _bounds(counts, low, high, alive, scales, zero_points, qmin, qmax, p, least, most):
    """A value is within half a bin of its bin's centre, and so is its distance within that of the centre's."""
    bins = counts.shape[1]
    for row in range(len(counts)):
        filled = np.flatnonzero(counts[row])
        width = (high[row] - low[row]) / bins
        half = width / 2 + ROUNDING * max(-low[row], high[row])
        centres, weights = low[row] + (filled + 0.5) * width, counts[row][filled]
        distances = np.empty(len(filled))
        for k in range(alive.shape[1]):
            if alive[row, k]:
                _distances(centres, distances, scales[row, k], zero_points[row, k], qmin, qmax)
                least[row, k] = _weighted_powers(distances, weights, -half, p) * (1 - INEXACT)
                most[row, k] = _weighted_powers(distances, weights, half, p) * (1 + INEXACT)


@numba.njit(cache=True, nogil=True, error_model="numpy")
@no_type_check
def _errors(rows, alive, scales, zero_points, qmin, qmax, p, sums):
    n, m = np.float32(qmin), np.float32(qmax)
    distances = np.empty(BLOCK, np.float32)
    for row in range(len(rows)):
        live = np.flatnonzero(alive[row])
        for start in range(0, rows.shape[1], BLOCK):
            block = rows[row, start : start + BLOCK]
            of_block = distances[: len(block)]
            for k in live:
                _distances(block, of_block, scales[row, k], zero_points[row, k], n, m)
                sums[row, k] += _sum_of_powers(of_block, p)
