"""Where fields are sampled: pixels, pitch and wavelength."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffract.errors import ConfigError

COARSEST, FINEST = 100.0, 1e-3
"""Pitch over wavelength beyond which a unit was most likely mistaken."""


@dataclass(frozen=True)
class Grid:
    """A rectangle of square pixels in a plane across the optical axis; pixel [n // 2] lies on the axis.

    Attributes:
        shape: rows (y) and columns (x).
        pitch: pixel to pixel, m.
        wavelength: in vacuum, m.
        index: refractive index of the medium between the planes.

    Raises:
        ConfigError: a number that is not positive and finite, or a pitch that seems to be in another unit.
    """

    shape: tuple[int, int]
    pitch: float | int
    wavelength: float | int
    index: float | int = 1.0

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ConfigError(f"shape must be two positive numbers of pixels, got {self.shape}")
        for name in ("pitch", "wavelength", "index"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be positive and finite, got {value}")
        ratio = self.pitch / self.wavelength
        if not FINEST < ratio < COARSEST:
            raise ConfigError(f"pitch is {ratio:.3g} wavelengths", "both are in metres; was one given in another unit?")

    @property
    def medium_wavelength(self) -> float:
        """Wavelength in the medium, m."""
        return self.wavelength / self.index

    @property
    def extent(self) -> tuple[float | int, float | int]:
        """Height and width, m."""
        return self.shape[0] * self.pitch, self.shape[1] * self.pitch

    @property
    def y(self) -> Float[np.ndarray, " H"]:
        """Centres of the rows, m."""
        return (np.arange(self.shape[0]) - self.shape[0] // 2) * self.pitch

    @property
    def x(self) -> Float[np.ndarray, " W"]:
        """Centres of the columns, m."""
        return (np.arange(self.shape[1]) - self.shape[1] // 2) * self.pitch

    @property
    def fy(self) -> Float[np.ndarray, " H"]:
        """Spatial frequencies along y in the order of `fftfreq`, 1/m."""
        return np.fft.fftfreq(self.shape[0], self.pitch)

    @property
    def fx(self) -> Float[np.ndarray, " W"]:
        """Spatial frequencies along x in the order of `fftfreq`, 1/m."""
        return np.fft.fftfreq(self.shape[1], self.pitch)

    @property
    def nyquist_angle(self) -> float:
        """Largest angle to the axis that the pitch can sample, rad; pi/2 at half a wavelength or finer."""
        return math.asin(min(1.0, self.medium_wavelength / (2 * self.pitch)))

    def padded(self, pad: float | int) -> Grid:
        """The grid on which propagations are computed.

        Args:
            pad: how many times as wide; 1 makes the window periodic. Else the sides are rounded up to products of 2, 3
                and 5, whose Fourier transforms are fast.
        """
        if not (math.isfinite(pad) and pad >= 1):
            raise ConfigError(f"pad must be at least 1, got {pad}")
        sides = self.shape if pad == 1 else tuple(smooth(math.ceil(pad * side - 1e-9)) for side in self.shape)
        return Grid((sides[0], sides[1]), self.pitch, self.wavelength, self.index)


def smooth(size: int) -> int:
    """The smallest product of 2, 3 and 5 that is not below `size`."""
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1
