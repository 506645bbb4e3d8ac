"""Passes over float32 on a CPU, compiled by numba when this module is first imported and kept in its cache.

Values are divided by the step size and rounded as IEEE says, without `fastmath`: a product with 1/s would take other
codes at ties than an engine does. Only sums may be reordered.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

PIECE = 4096
"""Elements of a row where one grid serves all: 16 KiB, and few enough for a sum in one precision."""
THREADS_FROM = 2**20
"""Elements below which starting threads costs more than it saves."""


def round_to_grid(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int, *, with_mask: bool
) -> tuple[Tensor, Tensor | None]:
    """Grid values of x and, if wanted, which elements lie within the range.

    Args:
        x: contiguous, float32.
        scale: step sizes, [] or one for each index of `axis`.
        zero_point: codes of 0, likewise.
        qmin: least code.
        qmax: greatest code.
        axis: of the channels.
        with_mask: whether the mask is wanted.
    """
    y = np.empty(x.shape, np.float32)  # NumPy's memory comes in huge pages
    mask = np.empty(x.shape if with_mask else 0, np.bool_)
    _in_threads(_round, _flat(x), y.reshape(-1), mask.reshape(-1), *_grids(x, scale, zero_point, axis), qmin, qmax)
    return torch.from_numpy(y), torch.from_numpy(mask) if with_mask else None


def pass_where(mask: Tensor, upstream: Tensor) -> Tensor:
    """The gradient where the mask is True, else 0."""
    gradient = np.empty(upstream.shape, np.float32)
    _in_threads(_pass_where, _flat(upstream), _flat(mask), gradient.reshape(-1), PIECE)
    return torch.from_numpy(gradient)


def learned_gradients(
    x: Tensor, upstream: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the step sizes and of the real zero points, before any gain."""
    if x.numel() == 0:
        return upstream.clone(), torch.zeros_like(scale), torch.zeros_like(scale)
    scales, zeros, inner = _grids(x, scale, zero_point, axis)
    of_x = np.empty(x.shape, np.float32)
    sums = np.zeros((2, -(-x.numel() // inner)))
    _in_threads(_learn, _flat(x), _flat(upstream), of_x.reshape(-1), sums, scales, zeros, inner, qmin, qmax)
    by_channel = sums.reshape(2, -1, len(scales)).sum(1) if scale.dim() else sums.sum(1)
    of_scale, of_zero = torch.from_numpy(np.asarray(by_channel, np.float32))
    return torch.from_numpy(of_x), of_scale, of_zero


def clip_gradients(x: Tensor, upstream: Tensor, low: float, high: float) -> tuple[Tensor, float, float]:
    """The gradient where x lies in [low, high], and its sums over what lies below and above."""
    of_x, sums = np.empty(x.shape, np.float32), np.zeros((2, -(-x.numel() // PIECE)))
    _in_threads(_clip, _flat(x), _flat(upstream), of_x.reshape(-1), sums, low, high)
    return torch.from_numpy(of_x), float(sums[0].sum()), float(sums[1].sum())


def _grids(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Step sizes, zero points and the length of rows that share one; row r has that of channel r modulo channels."""
    inner = PIECE if scale.dim() == 0 else max(x.shape[axis % x.dim() + 1 :].numel(), 1)
    return _flat(scale), _flat(zero_point.float()), inner


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy().reshape(-1)


def _in_threads(kernel: Callable[..., None], x: np.ndarray, *arguments: Any) -> None:
    """Shares the elements among as many threads as torch uses, each of them whole rows."""
    threads = torch.get_num_threads() if len(x) >= THREADS_FROM else 1
    if threads == 1:
        return kernel(0, threads, x, *arguments)
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(kernel, share, threads, x, *arguments) for share in range(threads)]:
            done.result()
    return None


# What follows is compiled; `no_type_check` keeps the tests' shape checks out of it. The loop over one row is a function
# of its own, which LLVM vectorises.


@numba.njit
@no_type_check
def _rows(share, shares, length, inner):
    """First and last row of one thread's share."""
    rows = -(-length // inner)
    return rows * share // shares, rows * (share + 1) // shares


@numba.njit(error_model="numpy")
@no_type_check
def _round_row(x, y, s, z, n, m):
    for i in range(len(x)):
        code = np.rint(x[i] / s) + z
        low = n if code < n else code
        y[i] = ((m if low > m else low) - z) * s


@numba.njit(error_model="numpy")
@no_type_check
def _round_row_masked(x, y, mask, s, z, n, m):
    for i in range(len(x)):
        code = np.rint(x[i] / s) + z
        low = n if code < n else code
        clamped = m if low > m else low
        y[i] = (clamped - z) * s
        mask[i] = clamped == code


@numba.njit(
    "void(int64, int64, float32[::1], float32[::1], boolean[::1], float32[::1], float32[::1], int64, int64, int64)",
    cache=True, nogil=True, error_model="numpy",
)  # fmt: skip
@no_type_check
def _round(share, shares, x, y, mask, scales, zeros, inner, qmin, qmax):
    n, m, channels = np.float32(qmin), np.float32(qmax), len(scales)
    first, last = _rows(share, shares, len(x), inner)
    for row in range(first, last):
        part, channel = slice(row * inner, min((row + 1) * inner, len(x))), row % channels
        if len(mask):
            _round_row_masked(x[part], y[part], mask[part], scales[channel], zeros[channel], n, m)
        else:
            _round_row(x[part], y[part], scales[channel], zeros[channel], n, m)


@numba.njit
@no_type_check
def _pass_row(upstream, mask, gradient):
    for i in range(len(mask)):
        gradient[i] = upstream[i] if mask[i] else np.float32(0)


@numba.njit("void(int64, int64, float32[::1], boolean[::1], float32[::1], int64)", cache=True, nogil=True)
@no_type_check
def _pass_where(share, shares, upstream, mask, gradient, inner):
    first, last = _rows(share, shares, len(mask), inner)
    part = slice(first * inner, min(last * inner, len(mask)))
    _pass_row(upstream[part], mask[part], gradient[part])


@numba.njit(error_model="numpy")
@no_type_check
def _learn_row(x, g, of_x, by_step, by_zero, s, z, n, m):
    for i in range(len(x)):
        steps = x[i] / s
        code = np.rint(steps) + z
        low = n if code < n else code
        clamped = m if low > m else low
        inside = clamped == code
        of_x[i] = g[i] if inside else np.float32(0)
        by_step[i] = (clamped - z - (steps if inside else np.float32(0))) * g[i]
        by_zero[i] = np.float32(0) if inside else -s * g[i]


@numba.njit(fastmath={"reassoc"})
@no_type_check
def _sum(terms):
    total = 0.0
    for i in range(len(terms)):
        total += terms[i]
    return total


@numba.njit(
    "void(int64, int64, float32[::1], float32[::1], float32[::1], float64[:, ::1], float32[::1], float32[::1], int64, int64, int64)",
    cache=True, nogil=True, error_model="numpy",
)  # fmt: skip
@no_type_check
def _learn(share, shares, x, g, of_x, sums, scales, zeros, inner, qmin, qmax):
    n, m, channels = np.float32(qmin), np.float32(qmax), len(scales)
    by_step, by_zero = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    first, last = _rows(share, shares, len(x), inner)
    for row in range(first, last):
        s, z, end = scales[row % channels], zeros[row % channels], min((row + 1) * inner, len(x))
        for begin in range(row * inner, end, PIECE):
            part = slice(begin, min(begin + PIECE, end))
            size = len(x[part])
            _learn_row(x[part], g[part], of_x[part], by_step[:size], by_zero[:size], s, z, n, m)
            sums[0, row] += _sum(by_step[:size])
            sums[1, row] += _sum(by_zero[:size])


@numba.njit
@no_type_check
def _clip_row(x, g, of_x, below, above, low, high):
    for i in range(len(x)):
        under, over = x[i] < low, x[i] > high
        of_x[i] = np.float32(0) if under | over else g[i]
        below[i] = g[i] if under else np.float32(0)
        above[i] = g[i] if over else np.float32(0)


@numba.njit(
    "void(int64, int64, float32[::1], float32[::1], float32[::1], float64[:, ::1], float64, float64)",
    cache=True, nogil=True,
)  # fmt: skip
@no_type_check
def _clip(share, shares, x, g, of_x, sums, low, high):
    low, high = np.float32(low), np.float32(high)
    below, above = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    first, last = _rows(share, shares, len(x), PIECE)
    for row in range(first, last):
        part = slice(row * PIECE, min((row + 1) * PIECE, len(x)))
        size = len(x[part])
        _clip_row(x[part], g[part], of_x[part], below[:size], above[:size], low, high)
        sums[0, row] = _sum(below[:size])
        sums[1, row] = _sum(above[:size])
