"""torch's interpolate on uint8: weights of 16 bits at most, rounded to uint8 between the passes, horizontal first."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, UInt8

from imagenet_s.kernels import opencv, pillow
from imagenet_s.kernels.separable import Taps

_PLAIN = {"bilinear": opencv.linear, "bicubic": opencv.cubic}


def resize(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], mode: str, *, antialias: bool = False
) -> UInt8[np.ndarray, "{size[0]} {size[1]} 3"]:
    """Resizes by "nearest", "nearest-exact", "bilinear" or "bicubic", half-pixel centres.

    With `antialias` the kernels are Pillow's (bicubic a = -0.5); without, OpenCV's (a = -0.75).
    """
    height, width = size
    if mode.startswith("nearest"):
        shift = np.float32(0.5 if mode == "nearest-exact" else 0.0)
        rows, columns = _nearest(image.shape[0], height, shift), _nearest(image.shape[1], width, shift)
        return np.ascontiguousarray(image[rows[:, None], columns[None, :]])
    if image.shape[1] != width:
        image = _pass(image, taps(image.shape[1], width, mode, antialias=antialias))
    if image.shape[0] != height:
        turned = _pass(image.transpose(1, 0, 2), taps(image.shape[0], height, mode, antialias=antialias))
        image = turned.transpose(1, 0, 2)
    return np.ascontiguousarray(image)


def taps(n_in: int, n_out: int, mode: str, *, antialias: bool) -> Taps:
    """The weights before they are cut to 16 bits."""
    if not antialias:
        return _PLAIN[mode](n_in, n_out)
    first, _, weight = pillow.weights(n_in, n_out, mode)
    return Taps(np.minimum(first[:, None] + np.arange(weight.shape[1]), n_in - 1), weight)


def _pass(image: UInt8[np.ndarray, "h w 3"], along: Taps) -> UInt8[np.ndarray, "h q 3"]:
    """One pass along the width with as many bits as let the largest weight fit in 16."""
    along = _merged(along)
    bits = _precision(float(along.weight.max()))
    scaled = along.weight * (1 << bits)
    fixed = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)
    total = np.einsum("hqtc,qt->hqc", image[:, along.index].astype(np.int32), fixed) + (1 << (bits - 1))
    return np.clip(total >> bits, 0, 255).astype(np.uint8)


def _merged(along: Taps) -> Taps:
    """Adds up the weights that the border gathered on one pixel: they are rounded as one."""
    n_out, width = along.index.shape
    place = along.index - along.index[:, :1]
    weight = np.zeros((n_out, int(place.max()) + 1))
    for tap in range(width):
        weight[np.arange(n_out), place[:, tap]] += along.weight[:, tap]
    reach = np.minimum(along.index[:, :1] + np.arange(weight.shape[1]), along.index.max())
    return Taps(reach, weight)


def _precision(largest: float) -> int:
    bits = 0
    while bits < 22 and int(0.5 + largest * (1 << (bits + 1))) < (1 << 15):
        bits += 1
    return bits


def _nearest(n_in: int, n_out: int, shift: np.float32) -> Int[np.ndarray, {n_out}]:
    """floor((i + shift) n_in / n_out) in float32, which is what torch computes in."""
    scale = np.float32(n_in) / np.float32(n_out)
    return np.minimum(np.floor((np.arange(n_out, dtype=np.float32) + shift) * scale).astype(np.int64), n_in - 1)
