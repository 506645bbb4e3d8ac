"""How two renderings of the same pictures differ in place: turned, zoomed, stretched, shifted, or aliased.

Everything maps the first stack onto the second, and every measure is blind to the pictures' scale and offset, so that
defects of normalisation do not disturb it. Stacks are grey, float, [images, S, S].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Shaped

_SMALL = 64
_ZOOMS = tuple(1.02**step for step in range(-20, 21))  # 0.67 to 1.49: between any two usual crops
_LOW, _HIGH = 0.15, 0.25  # cycles a pixel: below, every filter keeps the phase; above, only aliasing breaks it
_FARTHEST = 8  # pixels


def turn(image: Shaped[np.ndarray, "h w ..."], orientation: int) -> Shaped[np.ndarray, "h2 w2 ..."]:
    """The image as EXIF orientation 1 to 8 shows it; a view."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image[::-1] if orientation in (3, 4, 7, 8) else image


def turns(
    a: Float64[np.ndarray, "n S S"], b: Float64[np.ndarray, "n S S"], *, least: float = 0.8
) -> list[tuple[int, float]]:
    """For each image, which of the eight turns of `a` looks most like `b`, and its correlation.

    Args:
        a: grey pictures.
        b: the same otherwise rendered.
        least: correlation that a turn must reach, and halve what is missing to 1, to be believed.
    """
    found = []
    for one, other in zip(_shrunk(a, _SMALL), _shrunk(b, _SMALL), strict=True):
        scores = [_nearby_correlation(turn(one, k), other) for k in range(1, 9)]
        best = int(np.argmax(scores))
        believed = scores[best] > least and 1 - scores[best] < 0.5 * (1 - scores[0])
        found.append((best + 1, scores[best]) if believed else (1, scores[0]))
    return found


@dataclass(frozen=True)
class Zoom:
    """How much larger `b` shows its content about the middle.

    Attributes:
        short: factor along the source's shorter side.
        long: factor along its longer side, for a source of aspect `aspect`.
        kind: "none", "zoom" (both alike) or "stretch" (the aspect ratio changes).
        aspect: longer over shorter side, mean over the images.
        before: correlation without any zoom.
        after: with it.
    """

    short: float
    long: float
    kind: str
    aspect: float
    before: float
    after: float


def zoom(a: Float64[np.ndarray, "n S S"], b: Float64[np.ndarray, "n S S"], shapes: Sequence[tuple[int, int]]) -> Zoom:
    """The zoom and change of aspect that explain most.

    Args:
        a: grey pictures.
        b: the same otherwise rendered.
        shapes: (height, width) of the source of each.
    """
    small_a, small_b = _shrunk(a, _SMALL), _shrunk(b, _SMALL)
    ratios = [max(shape) / min(shape) for shape in shapes]
    mean_ratio = float(np.mean(ratios))
    # how the longer and the shorter side change when the aspect ratio is given up or restored
    powers = ((0, 0),) if mean_ratio < 1.03 else ((0, 0), (1, 0), (-1, 0), (0, -1), (0, 1))
    scores = {
        (power, z): _zoomed_correlation(
            small_a, small_b, shapes, [(z * r ** power[0], z * r ** power[1]) for r in ratios]
        )
        for power in powers
        for z in _ZOOMS
    }
    before = scores[(0, 0), 1.0]
    even, z_even = max((score, z) for (power, z), score in scores.items() if power == (0, 0))
    best, power, z = max((score, power, z) for (power, z), score in scores.items())
    if power != (0, 0) and best > 0.9 and 1 - best < 0.5 * (1 - even):
        return Zoom(z * mean_ratio ** power[1], z * mean_ratio ** power[0], "stretch", mean_ratio, before, best)
    if z_even != 1 and even > 0.9 and 1 - even < 0.5 * (1 - before):
        return Zoom(z_even, z_even, "zoom", mean_ratio, before, even)
    return Zoom(1.0, 1.0, "none", mean_ratio, before, before)


@dataclass(frozen=True)
class Shift:
    """Where `b` shows what `a` shows.

    Attributes:
        down: pixels.
        right: pixels.
        agreement: how well one shift explains the phases of all low frequencies, 0 to 1.
    """

    down: float
    right: float
    agreement: float

    @property
    def length(self) -> float:
        """Pixels."""
        return math.hypot(self.down, self.right)


def shift(a: Float64[np.ndarray, "n S S"], b: Float64[np.ndarray, "n S S"]) -> Shift:
    """The shift by phase correlation: a whole number from its peak, the rest from the slope of the phases."""
    fy, fx = _frequencies(a.shape[1])
    first = np.conj(_spectra(a))
    cross = (first * _spectra(b)).mean(axis=0)
    peak = np.fft.ifft2(cross / np.maximum(np.abs(cross), 1e-12)).real
    reach = min(_FARTHEST, a.shape[1] // 4)
    near = np.r_[-reach : reach + 1]
    row, column = np.unravel_index(np.argmax(peak[np.ix_(near, near)]), (len(near), len(near)))
    whole = int(near[row]), int(near[column])
    use = (np.hypot(fy, fx) < _LOW) & (np.hypot(fy, fx) > 0)
    back = np.roll(b, (-whole[0], -whole[1]), axis=(1, 2))  # so that one window cuts the same content
    cross = (first * _spectra(back)).mean(axis=0)[use]
    weight, slopes = np.sqrt(np.abs(cross)), -2 * np.pi * np.stack([fy[use], fx[use]], axis=1)
    rest, *_ = np.linalg.lstsq(slopes * weight[:, None], np.angle(cross) * weight, rcond=None)
    agreement = float((cross * np.exp(-1j * (slopes @ rest))).real.sum() / np.abs(cross).sum())
    return Shift(float(whole[0] + rest[0]), float(whole[1] + rest[1]), agreement)


@dataclass(frozen=True)
class Detail:
    """Fine detail above 0.25 cycles a pixel.

    Attributes:
        ratio: energy in `b` over that in `a`, each relative to its coarse content.
        coherence: correlation of the two; near 1 when one is but sharper, lower when one is aliased.
    """

    ratio: float
    coherence: float


def detail(a: Float64[np.ndarray, "n S S"], b: Float64[np.ndarray, "n S S"]) -> Detail:
    """Compares the fine detail of two stacks."""
    radius = np.hypot(*_frequencies(a.shape[1]))
    first, second = _spectra(a), _spectra(b)
    fine, coarse = radius >= _HIGH, (radius > 0) & (radius < _LOW)
    energy = [(np.abs(each[:, fine]) ** 2).sum() / (np.abs(each[:, coarse]) ** 2).sum() for each in (first, second)]
    joint = (np.conj(first[:, fine]) * second[:, fine]).real.sum()
    norm = math.sqrt((np.abs(first[:, fine]) ** 2).sum() * (np.abs(second[:, fine]) ** 2).sum())
    return Detail(float(energy[1] / energy[0]), float(joint / norm))


def correlation(a: Float[np.ndarray, ...], b: Float[np.ndarray, ...]) -> float:
    """Pearson's; 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / norm if norm else 0.0


def resampled(
    image: Float64[np.ndarray, "h w *c"], across: float, down: float
) -> tuple[Float64[np.ndarray, "h w *c"], Shaped[np.ndarray, "h w"]]:
    """The image zoomed about its middle, and where that is known."""
    import cv2

    height, width = image.shape[:2]
    matrix = np.array(
        [[1 / across, 0, (width - 1) / 2 * (1 - 1 / across)], [0, 1 / down, (height - 1) / 2 * (1 - 1 / down)]]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(
        np.ascontiguousarray(image), matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    x = (np.arange(width) - (width - 1) / 2) / across + (width - 1) / 2
    y = (np.arange(height) - (height - 1) / 2) / down + (height - 1) / 2
    inside = ((y >= 0) & (y <= height - 1))[:, None] & ((x >= 0) & (x <= width - 1))
    return moved, inside


def along_axes(shape: tuple[int, int], long: float, short: float) -> tuple[float, float]:
    """Factors (across, down) of factors along the longer and the shorter side."""
    return (long, short) if shape[1] >= shape[0] else (short, long)


def _nearby_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """The best over shifts by a pixel: the crop of a turned picture may be rounded to the other side."""
    steps = (-1, 0, 1)
    inner = b[1:-1, 1:-1]
    return max(correlation(np.roll(a, (down, right), (0, 1))[1:-1, 1:-1], inner) for down in steps for right in steps)


def _zoomed_correlation(
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    shapes: Sequence[tuple[int, int]],
    factors: Sequence[tuple[float, float]],
) -> float:
    """Mean over images of the correlation where both are known; -1 where little is left."""
    scores = []
    for one, other, shape, (long, short) in zip(a, b, shapes, factors, strict=True):
        moved, inside = resampled(one, *along_axes(shape, long, short))
        scores.append(correlation(moved[inside], other[inside]) if inside.mean() > 0.3 else -1.0)
    return float(np.mean(scores))


def _shrunk(stack: Float64[np.ndarray, "n S S"], size: int) -> list[np.ndarray]:
    import cv2

    if stack.shape[1] <= size:
        return list(stack)
    return [cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in stack]


def _spectra(stack: Float64[np.ndarray, "n S S"]) -> Shaped[np.ndarray, "n S S"]:
    """Fourier transforms under a Hann window, each of unit energy."""
    window = np.hanning(stack.shape[1] + 2)[1:-1]
    window = window[:, None] * window
    centred = stack - (stack * window).sum(axis=(1, 2), keepdims=True) / window.sum()
    spectra = np.fft.fft2(centred * window)
    return spectra / np.maximum(np.sqrt((np.abs(spectra) ** 2).sum(axis=(1, 2), keepdims=True)), 1e-12)


def _frequencies(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cycles a pixel, down and across."""
    each = np.fft.fftfreq(size)
    return np.broadcast_to(each[:, None], (size, size)), np.broadcast_to(each, (size, size))
