"""Colour as camera and video pipelines hand it on: at half resolution, in another space (SysNoise, arXiv 2307.00280)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from imagenet_s.errors import PipelineError

_LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}  # shares of red and blue


@dataclass(frozen=True)
class Nv12:
    """A round trip from RGB to NV12 (8-bit luma, chroma as the mean of 2x2 pixels) and back.

    An emulation: SysNoise measured a hardware decoder. An odd last row or column is repeated for its chroma.

    Attributes:
        matrix: of standard or high definition.
        range: limited (luma 16 to 235) or full.
        chroma_upsample: "nearest" repeats each chroma value; "linear" weighs neighbours 3 to 1 about the centre of the
            2x2 pixels.
    """

    matrix: Literal["bt601", "bt709"] = "bt601"
    range: Literal["limited", "full"] = "limited"
    chroma_upsample: Literal["nearest", "linear"] = "nearest"

    def __post_init__(self) -> None:
        choices = {"matrix": tuple(_LUMA), "range": ("limited", "full"), "chroma_upsample": ("nearest", "linear")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise PipelineError(f"Nv12 {name}={getattr(self, name)!r}; expected one of {', '.join(allowed)}")

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Goes there and back; the size stays."""
        height, width = image.shape[:2]
        luma, chroma = self.encode(image)
        upsample = _nearest if self.chroma_upsample == "nearest" else _linear
        blue, red = (upsample(chroma[:, :, plane].astype(np.float64))[:height, :width] for plane in range(2))
        ycc = np.stack([luma.astype(np.float64), blue, red], axis=-1) - self._offset
        return _rounded(_times(ycc, np.linalg.inv(self._matrix)))

    def encode(self, image: UInt8[np.ndarray, "h w 3"]) -> tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "p q 2"]]:
        """The luma plane and the interleaved chroma plane (Cb, Cr) of half the size, rounded up."""
        ycc = _times(image.astype(np.float64), self._matrix) + self._offset
        height, width = image.shape[:2]
        padded = np.pad(ycc[:, :, 1:], ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        blocks = padded.reshape((height + 1) // 2, 2, (width + 1) // 2, 2, 2)
        return _rounded(ycc[:, :, 0]), _rounded(blocks.mean(axis=(1, 3)))

    @property
    def _matrix(self) -> Float[np.ndarray, "3 3"]:
        """From RGB in 0..255 to Y, Cb, Cr; the three differ in scale alone between the ranges."""
        red, blue = _LUMA[self.matrix]
        luma = np.array([red, 1 - red - blue, blue])
        cb = (np.array([0.0, 0.0, 1.0]) - luma) / (2 * (1 - blue))
        cr = (np.array([1.0, 0.0, 0.0]) - luma) / (2 * (1 - red))
        scales = (219.0, 224.0, 224.0) if self.range == "limited" else (255.0, 255.0, 255.0)
        return np.stack([luma, cb, cr]) * (np.array(scales)[:, None] / 255.0)

    @property
    def _offset(self) -> Float[np.ndarray, 3]:
        return np.array([16.0 if self.range == "limited" else 0.0, 128.0, 128.0])


def _times(pixels: Float[np.ndarray, "h w 3"], matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "h w 3"]:
    return (pixels.reshape(-1, 3) @ matrix.T).reshape(pixels.shape)


def _nearest(plane: Float[np.ndarray, "p q"]) -> Float[np.ndarray, "r s"]:
    return plane.repeat(2, axis=0).repeat(2, axis=1)


def _linear(plane: Float[np.ndarray, "p q"]) -> Float[np.ndarray, "r s"]:
    for axis in range(2):
        before, after = (np.roll(plane, shift, axis) for shift in (1, -1))
        edge: list[slice | int] = [slice(None), slice(None)]
        for end, neighbour in ((0, before), (-1, after)):
            edge[axis] = end
            neighbour[tuple(edge)] = plane[tuple(edge)]
        doubled = np.stack([0.75 * plane + 0.25 * before, 0.75 * plane + 0.25 * after], axis=axis + 1)
        plane = doubled.reshape(*(2 * n if at == axis else n for at, n in enumerate(plane.shape)))
    return plane


def _rounded(values: np.ndarray) -> np.ndarray:
    """Half to even, clipped."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
