"""Single-pass kernels for float32 on a CPU, compiled by numba when this module is first imported and kept in its cache.

No `fastmath` on values: a product with 1/s or a fused multiply-add rounds elsewhere than torch does, and codes would
differ at ties. Only sums may be reordered.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

BLOCK = 4096
"""Elements whose products are summed at once: 16 KiB stay in the first cache. Sums do not depend on the threads."""

PARALLEL_FROM = 2**20
"""Elements below which starting threads costs more than they save."""


def quantize(x: Tensor, scale: float, zero_point: int, qmin: int, qmax: int, mask: Tensor | None) -> Tensor:
    """Grid values of x, or x where the mask is False."""
    x_flat = _flat(x)
    y = np.empty(x.shape, np.float32)  # NumPy's memory comes in huge pages
    _in_threads(_quantize, x_flat, _bytes(mask), y.reshape(-1), scale, zero_point, qmin, qmax)
    return torch.from_numpy(y)


def differentiate(
    x: Tensor,
    upstream: Tensor,
    scale: float,
    zero_point: int,
    qmin: int,
    qmax: int,
    mask: Tensor | None,
    of_x: bool = True,
    of_scale: bool = True,
) -> tuple[Tensor | None, float | None]:
    """Gradients of x and of the step size, None where not asked for."""
    x_flat = _flat(x)
    grad_x = np.empty(x.shape if of_x else 0, np.float32)
    sums = np.zeros(-(-len(x_flat) // BLOCK) if of_scale else 0)
    arrays = x_flat, _bytes(mask), _flat(upstream), grad_x.reshape(-1), sums
    _in_threads(_differentiate, *arrays, scale, zero_point, qmin, qmax)
    return torch.from_numpy(grad_x) if of_x else None, float(sums.sum()) if of_scale else None


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


NO_MASK = np.empty(0, np.uint8)


def _bytes(mask: Tensor | None) -> np.ndarray:
    return NO_MASK if mask is None else mask.view(torch.uint8).numpy().reshape(-1)


def _in_threads(kernel: Callable[..., None], x: np.ndarray, *arguments: Any) -> None:
    """Shares the blocks among as many threads as torch uses; no result depends on how."""
    blocks = -(-len(x) // BLOCK)
    threads = torch.get_num_threads() if len(x) >= PARALLEL_FROM else 1
    if threads == 1:
        return kernel(0, blocks, x, *arguments)
    shares = pairwise(blocks * share // threads for share in range(threads + 1))
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(kernel, *share, x, *arguments) for share in shares]:
            done.result()
    return None


# What follows is compiled; `no_type_check` keeps the tests' shape checks out of it. Each loop over a block is a function
# of its own, because LLVM vectorises it there and gives up on it amid the others.


@numba.njit
@no_type_check
def _steps(x, s, z, n, m):
    """Of one element: x / s, its unclamped code, and its clamped code. NaN stays NaN."""
    steps = x / s
    code = np.rint(steps) + z
    low = n if code < n else code
    return steps, code, m if low > m else low


@numba.njit(error_model="numpy")
@no_type_check
def _quantize_all(x, y, s, z, n, m):
    for i in range(len(x)):
        y[i] = (_steps(x[i], s, z, n, m)[2] - z) * s


@numba.njit(error_model="numpy")
@no_type_check
def _quantize_some(x, mask, y, s, z, n, m):
    for i in range(len(x)):
        x_q = (_steps(x[i], s, z, n, m)[2] - z) * s
        y[i] = x_q if mask[i] else x[i]


@numba.njit(error_model="numpy")
@no_type_check
def _grad_x_all(x, g, grad_x, s, z, n, m):
    for i in range(len(x)):
        code = _steps(x[i], s, z, n, m)[1]
        grad_x[i] = g[i] if (code >= n) & (code <= m) else np.float32(0)


@numba.njit(error_model="numpy")
@no_type_check
def _grad_x_some(x, mask, g, grad_x, s, z, n, m):
    for i in range(len(x)):
        code = _steps(x[i], s, z, n, m)[1]
        grad_x[i] = g[i] if ((code >= n) & (code <= m)) | (mask[i] == 0) else np.float32(0)


@numba.njit(error_model="numpy")
@no_type_check
def _products_all(x, g, products, s, z, n, m):
    for i in range(len(x)):
        steps, code, clamped = _steps(x[i], s, z, n, m)
        inside = steps if (code >= n) & (code <= m) else np.float32(0)
        products[i] = (clamped - z - inside) * g[i]


@numba.njit(error_model="numpy")
@no_type_check
def _products_some(x, mask, g, products, s, z, n, m):
    for i in range(len(x)):
        steps, code, clamped = _steps(x[i], s, z, n, m)
        inside = steps if (code >= n) & (code <= m) else np.float32(0)
        products[i] = (clamped - z - inside) * g[i] if mask[i] else np.float32(0)


@numba.njit(fastmath={"reassoc"})
@no_type_check
def _sum(products):
    total = 0.0
    for i in range(len(products)):
        total += products[i]
    return total


@numba.njit(
    "void(int64, int64, float32[::1], uint8[::1], float32[::1], float64, int64, int64, int64)",
    cache=True, nogil=True, error_model="numpy",
)  # fmt: skip
@no_type_check
def _quantize(first, last, x, mask, y, scale, zero_point, qmin, qmax):
    """Blocks from `first` to `last`; an empty mask rounds all."""
    grid = np.float32(scale), np.float32(zero_point), np.float32(qmin), np.float32(qmax)
    part = slice(first * BLOCK, min(last * BLOCK, len(x)))
    if len(mask):
        _quantize_some(x[part], mask[part], y[part], *grid)
    else:
        _quantize_all(x[part], y[part], *grid)


@numba.njit(
    "void(int64, int64, float32[::1], uint8[::1], float32[::1], float32[::1], float64[::1], float64, int64, int64, int64)",
    cache=True, nogil=True, error_model="numpy",
)  # fmt: skip
@no_type_check
def _differentiate(first, last, x, mask, g, grad_x, sums, scale, zero_point, qmin, qmax):
    """Blocks from `first` to `last`; an empty `grad_x` or `sums` is not asked for."""
    grid = np.float32(scale), np.float32(zero_point), np.float32(qmin), np.float32(qmax)
    products = np.empty(BLOCK, np.float32)
    for block in range(first, last):
        part = slice(block * BLOCK, min((block + 1) * BLOCK, len(x)))
        if len(grad_x):
            if len(mask):
                _grad_x_some(x[part], mask[part], g[part], grad_x[part], *grid)
            else:
                _grad_x_all(x[part], g[part], grad_x[part], *grid)
        if len(sums):
            some = products[: len(x[part])]
            if len(mask):
                _products_some(x[part], mask[part], g[part], some, *grid)
            else:
                _products_all(x[part], g[part], some, *grid)
            sums[block] = _sum(some)


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


@numba.njit(error_model="numpy")
@no_type_check
def _regularise_row(sigmoid, beta):
    total = 0.0
    for i in range(len(sigmoid)):
        h = _rectify(sigmoid[i])[1]
        total += 1.0 - abs(np.float64(2 * h - 1)) ** beta
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
        if (stretched >= 0) & (stretched <= 1):
            grad[i] -= weight * 2 * beta * np.sign(centred) * abs(centred) ** (beta - 1) * slope


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
