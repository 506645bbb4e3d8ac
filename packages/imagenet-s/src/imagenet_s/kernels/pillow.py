"""Pillow's resampling to the bit: antialiased filters in two fixed-point passes, rounded to uint8 between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, no_type_check

import numba
import numpy as np
from jaxtyping import Float, Int, UInt8

PRECISION = 22  # bits of a weight after the point

# The window's constants are single precision in Pillow, which a few pixels in a million show.
_HAMMING_MEAN, _HAMMING_SWING = float(np.float32(0.54)), float(np.float32(0.46))

Order = Literal["horizontal-first", "vertical-first"]


def resize(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], filter_name: str, *, order: Order = "horizontal-first"
) -> UInt8[np.ndarray, "{size[0]} {size[1]} 3"]:
    """Resizes as Pillow does; a side that keeps its length is not touched.

    Args:
        image: uint8 pixels.
        size: (height, width), each at least 1.
        filter_name: "nearest", "box", "bilinear", "hamming", "bicubic" or "lanczos".
        order: of the two passes. Pillow up to 12 has the horizontal one first always, Pillow 13 not always: `pass_order`.
    """
    height, width = size
    if filter_name == "nearest":
        rows, columns = nearest_indices(image.shape[0], height), nearest_indices(image.shape[1], width)
        return np.ascontiguousarray(image[rows[:, None], columns[None, :]])
    passes: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda pixels: _along_width(pixels, width, filter_name),
        lambda pixels: _along_height(pixels, height, filter_name),
    ]
    for one in passes if order == "horizontal-first" else passes[::-1]:
        image = one(image)
    return np.ascontiguousarray(image)


def pass_order(shape: tuple[int, int], size: tuple[int, int], major: int | None = None) -> Order:
    """Which pass Pillow runs first, found by experiment.

    Up to version 12 the horizontal one, always. Version 13 has the vertical one first when the height shrinks, and
    by more than twice as many pixels as the width does: so in all of 6000 random shapes.

    Args:
        shape: (height, width) of the input.
        size: (height, width) of the output.
        major: of Pillow's version; the installed one's where None.
    """
    if major is None:
        import PIL

        major = int(PIL.__version__.partition(".")[0])
    lost_rows, lost_columns = shape[0] - size[0], shape[1] - size[1]
    return "vertical-first" if major >= 13 and lost_rows > max(0, 2 * lost_columns) else "horizontal-first"


def nearest_indices(n_in: int, n_out: int) -> Int[np.ndarray, {n_out}]:
    """Input index of each output, floor((i + 0.5) n_in / n_out), the step added up in floats as Pillow does."""
    step = n_in / n_out
    positions = np.cumsum(np.concatenate([[step * 0.5], np.full(n_out - 1, step)]))
    return np.minimum(positions.astype(np.int64), n_in - 1)


@lru_cache(maxsize=256)
def weights(
    n_in: int, n_out: int, filter_name: str
) -> tuple[Int[np.ndarray, {n_out}], Int[np.ndarray, {n_out}], Float[np.ndarray, "{n_out} taps"]]:
    """First tap, number of taps, and weights of sum 1 for each output."""
    kernel, radius = FILTERS[filter_name]
    scale = n_in / n_out
    stretch = max(1.0, scale)
    support = radius * stretch
    first, count = np.empty(n_out, np.int64), np.empty(n_out, np.int64)
    values = np.zeros((n_out, math.ceil(support) * 2 + 1))
    for i in range(n_out):
        centre = (i + 0.5) * scale
        # int() truncates towards zero, as C does; below zero the clip hides the difference.
        low = max(0, int(centre - support + 0.5))
        high = min(n_in, int(centre + support + 0.5))
        taps = [kernel((x - centre + 0.5) * (1.0 / stretch)) for x in range(low, high)]
        total = 0.0
        for tap in taps:  # in this order: the sum's last bits decide roundings
            total += tap
        first[i], count[i] = low, high - low
        values[i, : high - low] = [tap / total if total else tap for tap in taps]
    for array in (first, count, values):
        array.flags.writeable = False
    return first, count, values


@lru_cache(maxsize=256)
def fixed_point(
    n_in: int, n_out: int, filter_name: str
) -> tuple[Int[np.ndarray, {n_out}], Int[np.ndarray, {n_out}], Int[np.ndarray, "{n_out} taps"]]:
    """The weights times 2^22, rounded half away from zero."""
    first, count, values = weights(n_in, n_out, filter_name)
    scaled = values * (1 << PRECISION)
    return first, count, np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)


def _box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def _triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _hamming(x: float) -> float:
    x = abs(x)
    if x == 0.0:
        return 1.0
    if x >= 1.0:
        return 0.0
    x *= math.pi
    return math.sin(x) / x * (_HAMMING_MEAN + _HAMMING_SWING * math.cos(x))


def _cubic(x: float) -> float:
    a = -0.5
    x = abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


def _sinc(x: float) -> float:
    if x == 0.0:
        return 1.0
    x *= math.pi
    return math.sin(x) / x


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


FILTERS: dict[str, tuple[Callable[[float], float], float]] = {
    "box": (_box, 0.5),
    "bilinear": (_triangle, 1.0),
    "hamming": (_hamming, 1.0),
    "bicubic": (_cubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
"""Kernel and radius by name."""


def _along_width(image: np.ndarray, width: int, filter_name: str) -> np.ndarray:
    if image.shape[1] == width:
        return image
    result = np.empty((image.shape[0], width, image.shape[2]), np.uint8)
    _horizontal(np.ascontiguousarray(image), result, *fixed_point(image.shape[1], width, filter_name))
    return result


def _along_height(image: np.ndarray, height: int, filter_name: str) -> np.ndarray:
    if image.shape[0] == height:
        return image
    rows = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    result = np.empty((height, rows.shape[1]), np.uint8)
    _vertical(rows, result, *fixed_point(image.shape[0], height, filter_name))
    return result.reshape(height, *image.shape[1:])


# What follows is compiled; `no_type_check` keeps the tests' shape checks out of it.


@numba.njit(cache=True, nogil=True)
@no_type_check
def _horizontal(image, result, first, count, weight):
    for y in range(result.shape[0]):
        for x in range(result.shape[1]):
            red = green = blue = np.int32(1 << 21)
            start = first[x]
            for tap in range(count[x]):
                w = weight[x, tap]
                red += w * np.int32(image[y, start + tap, 0])
                green += w * np.int32(image[y, start + tap, 1])
                blue += w * np.int32(image[y, start + tap, 2])
            result[y, x, 0] = min(max(red >> 22, 0), 255)
            result[y, x, 1] = min(max(green >> 22, 0), 255)
            result[y, x, 2] = min(max(blue >> 22, 0), 255)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _vertical(rows, result, first, count, weight):
    total = np.empty(rows.shape[1], np.int32)
    for y in range(result.shape[0]):
        total[:] = 1 << 21
        for tap in range(count[y]):
            _add_row(total, rows[first[y] + tap], weight[y, tap])
        for x in range(rows.shape[1]):
            result[y, x] = min(max(total[x] >> 22, 0), 255)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _add_row(total, row, w):
    for x in range(len(total)):
        total[x] += w * np.int32(row[x])
