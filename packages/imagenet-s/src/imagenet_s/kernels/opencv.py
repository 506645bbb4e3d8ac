"""OpenCV's resize from its definition; the library itself rounds in 11-bit fixed point, so a level or two may differ."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, UInt8

from imagenet_s.kernels import pillow
from imagenet_s.kernels.separable import Taps, interpolate, to_uint8


def resize(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], operator: str
) -> UInt8[np.ndarray, "{size[0]} {size[1]} 3"]:
    """Resizes by "nearest", "nearest-exact", "linear", "area", "cubic" or "lanczos4"."""
    if operator in NEAREST:
        rows, columns = (NEAREST[operator](n_in, n_out) for n_in, n_out in zip(image.shape, size, strict=False))
        return np.ascontiguousarray(image[rows[:, None], columns[None, :]])
    return to_uint8(exact(image, size, operator))


def exact(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], operator: str
) -> Float[np.ndarray, "{size[0]} {size[1]} 3"]:
    """What the weighted operators mean, before rounding."""
    sides = tuple(zip(image.shape, size, strict=False))
    if operator == "linear" and all(n_in == 2 * n_out for n_in, n_out in sides):
        operator = "area"  # OpenCV's own shortcut
    taps: Callable[[int, int], Taps]
    if operator == "area":
        taps = area if all(n_in >= n_out for n_in, n_out in sides) else area_enlarging
    else:
        taps = WEIGHTED[operator]
    return interpolate(image, *(taps(n_in, n_out) for n_in, n_out in sides))


def nearest(n_in: int, n_out: int) -> Int[np.ndarray, {n_out}]:
    """floor(i n_in / n_out): half a pixel off the centre."""
    return np.minimum(np.floor(np.arange(n_out) * (1.0 / (n_out / n_in))).astype(np.int64), n_in - 1)


def nearest_exact(n_in: int, n_out: int, major: int | None = None) -> Int[np.ndarray, {n_out}]:
    """floor((i + 0.5) n_in / n_out); where a centre falls on an edge between pixels, rounding decides.

    Args:
        n_in: length of the input.
        n_out: length of the output.
        major: of OpenCV's version, the installed one's where None: 5 adds up the step in floats, as Pillow does; 4
            computes with 16 bits after the point.
    """
    if major is None:
        import cv2

        major = int(cv2.__version__.partition(".")[0])
    if major >= 5:
        return pillow.nearest_indices(n_in, n_out)
    step = ((n_in << 16) + n_out // 2) // n_out
    return np.clip((step * np.arange(n_out, dtype=np.int64) + step // 2 - n_in % 2) >> 16, 0, n_in - 1)


def linear(n_in: int, n_out: int) -> Taps:
    """Two taps about the centre; beyond the outermost centres the border's value."""
    lower, share = _split(np.clip(_centres(n_in, n_out), 0, n_in - 1))
    return _clamped(n_in, lower, (0, 1), np.stack([1 - share, share], axis=1))


def area(n_in: int, n_out: int) -> Taps:
    """The mean over each output's stretch of the input, parts of pixels counted by their part."""
    scale = n_in / n_out
    start, stop = np.arange(n_out) * scale, (np.arange(n_out) + 1) * scale
    lower = np.floor(start + 1e-9).astype(np.int64)
    pixels = lower[:, None] + np.arange(int(np.ceil(scale)) + 1)
    covered = np.minimum(pixels + 1, stop[:, None]) - np.maximum(pixels, start[:, None])
    weight = np.clip(covered, 0, 1)
    return Taps(np.minimum(pixels, n_in - 1), weight / weight.sum(axis=1, keepdims=True))


def area_enlarging(n_in: int, n_out: int) -> Taps:
    """What AREA turns into where a side grows: a pixel's own value but for the stretch that crosses into the next."""
    i = np.arange(n_out, dtype=np.float64)
    lower = np.floor(i * (1.0 / (n_out / n_in))).astype(np.int64)
    # In single precision, as OpenCV has it: what is nearly a whole pixel there becomes one, and so none.
    share = ((i + 1) - (lower + 1) * (n_out / n_in)).astype(np.float32)
    share = np.where(share <= 0, 0.0, share - np.floor(share)).astype(np.float64)
    return _clamped(n_in, lower, (0, 1), np.stack([1 - share, share], axis=1))


def cubic(n_in: int, n_out: int) -> Taps:
    """Four taps of Keys' kernel with a = -0.75, not antialiased."""
    lower, share = _split(_centres(n_in, n_out))
    return _clamped(n_in, lower, (-1, 0, 1, 2), cubic_weights(share))


def lanczos4(n_in: int, n_out: int) -> Taps:
    """Eight taps of sinc(x) sinc(x / 4), scaled to sum 1, not antialiased."""
    lower, share = _split(_centres(n_in, n_out))
    offsets = tuple(range(-3, 5))
    distance = share[:, None] - np.array(offsets)
    weight = np.sinc(distance) * np.sinc(distance / 4)
    return _clamped(n_in, lower, offsets, weight / weight.sum(axis=1, keepdims=True))


def cubic_weights(share: Float[np.ndarray, n], a: float = -0.75) -> Float[np.ndarray, "n 4"]:
    """Keys' kernel at the four taps around a point that lies `share` after the second."""
    distance = np.abs(share[:, None] - np.array([-1, 0, 1, 2]))
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


NEAREST: dict[str, Callable[[int, int], np.ndarray]] = {"nearest": nearest, "nearest-exact": nearest_exact}
"""Operators that copy pixels: which, by lengths of the input and the output."""

WEIGHTED: dict[str, Callable[[int, int], Taps]] = {"linear": linear, "cubic": cubic, "lanczos4": lanczos4}
"""Operators whose taps depend on one side alone."""


def _centres(n_in: int, n_out: int) -> Float[np.ndarray, {n_out}]:
    return (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5


def _split(position: Float[np.ndarray, n]) -> tuple[Int[np.ndarray, n], Float[np.ndarray, n]]:
    lower = np.floor(position).astype(np.int64)
    return lower, position - lower


def _clamped(
    n_in: int, lower: Int[np.ndarray, n], offsets: tuple[int, ...], weight: Float[np.ndarray, "n taps"]
) -> Taps:
    return Taps(np.clip(lower[:, None] + np.array(offsets), 0, n_in - 1), weight)
