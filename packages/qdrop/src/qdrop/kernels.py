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
    """Grid values of x where the mask is True, else x; a mask of None is True throughout."""
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
    of_x: bool,
    of_scale: bool,
) -> tuple[Tensor | None, float | None]:
    """Gradients of x and of the step size, None where not asked for."""
    x_flat = _flat(x)
    grad_x = np.empty(x.shape if of_x else 0, np.float32)
    sums = np.zeros(-(-len(x_flat) // BLOCK) if of_scale else 0)
    arrays = _bytes(mask), _flat(upstream), grad_x.reshape(-1), sums
    _in_threads(_differentiate, x_flat, *arrays, scale, zero_point, qmin, qmax)
    return torch.from_numpy(grad_x) if of_x else None, float(sums.sum()) if of_scale else None


def random_mask(shape: torch.Size, threshold: int, seed: int) -> Tensor:
    """True where a byte is below `threshold`; the bytes are hashes of their places, so that all lanes draw at once."""
    mask = np.empty(shape, np.bool_)
    _in_threads(_draw, mask.reshape(-1).view(np.uint8), threshold, seed)
    return torch.from_numpy(mask)


def mix(quantized: Tensor, full: Tensor, mask: Tensor) -> Tensor:
    """Elements of `quantized` where the mask is True, else of `full`."""
    mixed = np.empty(full.shape, np.float32)
    _in_threads(_mix, _flat(quantized), _flat(full), _bytes(mask), mixed.reshape(-1))
    return torch.from_numpy(mixed)


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy().reshape(-1)


ALL = np.empty(0, np.uint8)


def _bytes(mask: Tensor | None) -> np.ndarray:
    return ALL if mask is None else mask.view(torch.uint8).numpy().reshape(-1)


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
def _gradients_all(x, g, grad_x, products, s, z, n, m):
    for i in range(len(x)):
        steps, code, clamped = _steps(x[i], s, z, n, m)
        inside = (code >= n) & (code <= m)
        grad_x[i] = g[i] if inside else np.float32(0)
        products[i] = (clamped - z - (steps if inside else np.float32(0))) * g[i]


@numba.njit(error_model="numpy")
@no_type_check
def _gradients_some(x, mask, g, grad_x, products, s, z, n, m):
    for i in range(len(x)):
        steps, code, clamped = _steps(x[i], s, z, n, m)
        inside, rounded = (code >= n) & (code <= m), mask[i] != 0
        grad_x[i] = g[i] if inside | (not rounded) else np.float32(0)
        product = (clamped - z - (steps if inside else np.float32(0))) * g[i]
        products[i] = product if rounded else np.float32(0)


@numba.njit(fastmath={"reassoc"})
@no_type_check
def _sum(products):
    total = 0.0
    for i in range(len(products)):
        total += products[i]
    return total


@numba.njit
@no_type_check
def _choose(quantized, full, mask, mixed):
    for i in range(len(mixed)):
        one, other = quantized[i], full[i]
        mixed[i] = one if mask[i] else other


@numba.njit("void(int64, int64, float32[::1], float32[::1], uint8[::1], float32[::1])", cache=True, nogil=True)
@no_type_check
def _mix(first, last, quantized, full, mask, mixed):
    part = slice(first * BLOCK, min(last * BLOCK, len(full)))
    _choose(quantized[part], full[part], mask[part], mixed[part])


GOLDEN, FIRST, SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@numba.njit
@no_type_check
def _hash(words, counter, seed):
    """SplitMix64: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014, figure 17."""
    for i in range(len(words)):
        z = seed + (counter + np.uint64(i)) * GOLDEN
        z = (z ^ (z >> np.uint64(30))) * FIRST
        z = (z ^ (z >> np.uint64(27))) * SECOND
        words[i] = z ^ (z >> np.uint64(31))


@numba.njit
@no_type_check
def _below(draws, mask, threshold):
    for i in range(len(mask)):
        mask[i] = draws[i] < threshold


@numba.njit("void(int64, int64, uint8[::1], int64, int64)", cache=True, nogil=True)
@no_type_check
def _draw(first, last, mask, threshold, seed):
    words = np.empty(BLOCK // 8, np.uint64)
    for block in range(first, last):
        _hash(words, np.uint64(block * len(words) + 1), np.uint64(seed))
        _below(words.view(np.uint8), mask[block * BLOCK : (block + 1) * BLOCK], np.uint8(threshold))


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
    products, unwanted = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for block in range(first, last):
        part = slice(block * BLOCK, min((block + 1) * BLOCK, len(x)))
        size = len(x[part])
        of_x = grad_x[part] if len(grad_x) else unwanted[:size]
        if len(mask):
            _gradients_some(x[part], mask[part], g[part], of_x, products[:size], *grid)
        else:
            _gradients_all(x[part], g[part], of_x, products[:size], *grid)
        if len(sums):
            sums[block] = _sum(products[:size])
