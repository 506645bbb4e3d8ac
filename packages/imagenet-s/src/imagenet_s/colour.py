"""Colours as a video decoder hands them over: the round trip RGB, NV12, RGB (an emulation of such hardware)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from imagenet_s.errors import PipelineError

WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
"""Of red and blue in the luma."""


@dataclass(frozen=True)
class Nv12:
    """The round trip through 8-bit luma and half-size chroma.

    Args:
        matrix: of the colours.
        range: `limited` is luma 16 to 235 and chroma 16 to 240, `full` 0 to 255.
        chroma_upsample: how chroma comes back to full size.

    Reference: arXiv 2307.00280, colour mode; ITU-R BT.601 and BT.709.
    """

    matrix: Literal["bt601", "bt709"] = "bt601"
    range: Literal["limited", "full"] = "limited"
    chroma_upsample: Literal["nearest", "linear"] = "nearest"

    def __post_init__(self) -> None:
        known = {"matrix": tuple(WEIGHTS), "range": ("limited", "full"), "chroma_upsample": ("nearest", "linear")}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise PipelineError(f"{name} must be one of {', '.join(values)}, got {getattr(self, name)!r}")

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The image after the round trip."""
        red, blue = WEIGHTS[self.matrix]
        luma_span, chroma_span, low = (219.0, 224.0, 16.0) if self.range == "limited" else (255.0, 255.0, 0.0)
        rgb = image.astype(np.float64) / 255
        y = red * rgb[..., 0] + (1 - red - blue) * rgb[..., 1] + blue * rgb[..., 2]
        chroma = np.stack([(rgb[..., 2] - y) / (2 * (1 - blue)), (rgb[..., 0] - y) / (2 * (1 - red))], -1)
        stored_y = _rounded(low + luma_span * y)
        stored_chroma = _rounded(128 + chroma_span * _halved(chroma))
        y = (stored_y - low) / luma_span
        cb, cr = np.moveaxis(
            (_doubled(stored_chroma, image.shape[:2], self.chroma_upsample) - 128) / chroma_span, -1, 0
        )
        r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
        g = (y - red * r - blue * b) / (1 - red - blue)
        return _rounded(255 * np.stack([r, g, b], -1)).astype(np.uint8)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255)


def _halved(chroma: np.ndarray) -> np.ndarray:
    """Means of 2 x 2; an odd edge is repeated."""
    height, width = chroma.shape[:2]
    even = np.pad(chroma, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, 2).mean((1, 3))


def _doubled(chroma: np.ndarray, shape: tuple[int, ...], how: str) -> np.ndarray:
    """Chroma at full size, [h, w, 2]; a sample lies in the middle of its 2 x 2 pixels."""
    if how == "nearest":
        return chroma.repeat(2, 0).repeat(2, 1)[: shape[0], : shape[1]]
    for axis in (0, 1):
        place = np.clip((np.arange(shape[axis]) + 0.5) / 2 - 0.5, 0, chroma.shape[axis] - 1)
        before = np.floor(place).astype(int)
        after = np.minimum(before + 1, chroma.shape[axis] - 1)
        share = (place - before).reshape([-1 if each == axis else 1 for each in range(3)])
        chroma = chroma.take(before, axis) * (1 - share) + chroma.take(after, axis) * share
    return chroma
