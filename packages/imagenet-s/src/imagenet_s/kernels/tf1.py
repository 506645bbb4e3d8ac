"""TensorFlow 1's `resize_bilinear`: corner-aligned, two taps, no antialias."""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Float, Int, UInt8


def resize(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "{size[0]} {size[1]} 3"]:
    """Resizes with x = i * n_in / n_out in float32; the result is rounded half to even."""
    result = np.empty((*size, 3), np.uint8)
    rows, columns = taps(image.shape[0], size[0]), taps(image.shape[1], size[1])
    _interpolate(np.ascontiguousarray(image), result, *rows, *columns)
    return result


def taps(
    n_in: int, n_out: int
) -> tuple[Int[np.ndarray, {n_out}], Int[np.ndarray, {n_out}], Float[np.ndarray, {n_out}]]:
    """Lower tap, upper tap, and the upper one's share, for each output."""
    position = np.arange(n_out, dtype=np.float32) * np.float32(n_in / n_out)
    lower = np.minimum(np.floor(position).astype(np.int64), n_in - 1)
    return lower, np.minimum(lower + 1, n_in - 1), position - lower.astype(np.float32)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _interpolate(image, result, top, bottom, y_share, left, right, x_share):
    for y in range(result.shape[0]):
        for x in range(result.shape[1]):
            for c in range(3):
                upper = np.float32(image[top[y], left[x], c])
                upper += (np.float32(image[top[y], right[x], c]) - upper) * x_share[x]
                lower = np.float32(image[bottom[y], left[x], c])
                lower += (np.float32(image[bottom[y], right[x], c]) - lower) * x_share[x]
                result[y, x, c] = np.uint8(np.rint(upper + (lower - upper) * y_share[y]))
