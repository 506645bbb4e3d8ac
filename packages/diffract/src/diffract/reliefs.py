"""Phase as thickness of a printed or etched material, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Array, Complex, Float

from diffract.errors import ConfigError
from diffract.grids import Grid

Map: TypeAlias = Float[np.ndarray, "H W"]
Printed: TypeAlias = Float[np.ndarray, "rows columns"]


@dataclass(frozen=True)
class Material:
    """What layers are made of.

    Attributes:
        n: refractive index at the wavelength.
        kappa: extinction coefficient.

    Raises:
        ConfigError: an index or coefficient that is no such thing.

    Reference: resins at 0.4 THz have about 1.7 and 0.03; measure yours.
    """

    n: float | int = 1.72
    kappa: float | int = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.n) and self.n > 0 and math.isfinite(self.kappa) and self.kappa >= 0):
            raise ConfigError(f"material must have n > 0 and k >= 0, got n={self.n}, k={self.kappa}")

    def full_wave(self, grid: Grid) -> float:
        """The height of a phase of 2 pi, m.

        Raises:
            ConfigError: an index that is not above the medium's.
        """
        if not self.n > grid.index:
            raise ConfigError(f"n of the material must be above the medium's {grid.index}, got {self.n}")
        return grid.wavelength / (self.n - grid.index)


@dataclass(frozen=True)
class Relief:
    """How a phase becomes a piece.

    Attributes:
        base: thickness below the relief, m.
        levels: heights, evenly over 2 pi; None for a continuous relief.
        step: height of a printer's layer, m, to whose multiples heights are rounded; None for a continuous relief.
        upsample: printed pixels a side of a design's pixel.
        mirror: mirror left and right, as the print face asks.
        turns: quarter turns anticlockwise.
        frame: width of a flat rim around the layer, m, as high as the relief can be.
        holes: diameter of alignment holes in the rim's corners, m.

    Raises:
        ConfigError: a number out of range.
    """

    base: float | int = 0.5e-3
    levels: int | None = None
    step: float | int | None = None
    upsample: int = 1
    mirror: bool = False
    turns: int = 0
    frame: float | int = 0.0
    holes: float | int = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.base) and self.base >= 0):
            raise ConfigError(f"base must not be negative, got {self.base}")
        if self.levels is not None and self.levels < 2:
            raise ConfigError(f"levels must be at least 2, got {self.levels}")
        if self.step is not None and not (math.isfinite(self.step) and self.step > 0):
            raise ConfigError(f"step must be positive, got {self.step}")
        if self.upsample < 1:
            raise ConfigError(f"upsample must be at least 1, got {self.upsample}")
        if not 0 <= self.holes <= max(self.frame, 0):
            raise ConfigError(f"holes of {self.holes} m need a frame at least as wide, got {self.frame} m")


def heights(
    phase: Float[np.ndarray, "H W"] | Float[Array, "H W"], grid: Grid, material: Material, relief: Relief | None = None
) -> Map:
    """Height of the relief above its base on the design's grid, m: phase wrapped to 0..2 pi, then rounded.

    Raises:
        ConfigError: a printer's step that is higher than a full wave.
    """
    relief = relief or Relief()
    full = material.full_wave(grid)
    turns = np.mod(np.asarray(phase, np.float64) / (2 * np.pi), 1.0)
    if relief.levels is not None:
        turns = np.mod(np.rint(turns * relief.levels), relief.levels) / relief.levels
    height = turns * full
    if relief.step is not None:
        if relief.step > full:
            raise ConfigError(f"step {relief.step:.4g} m is higher than a full wave, {full:.4g} m")
        height = np.rint(height / relief.step) * relief.step
    return height


def phase_of(height: Map, grid: Grid, material: Material) -> Map:
    """Phase of a height, rad, float64."""
    return height * (2 * np.pi / material.full_wave(grid))


def transmittance(height: Map, grid: Grid, material: Material, base: float | int = 0.0) -> Complex[np.ndarray, "H W"]:
    """What a piece does to the light, with its absorption; the phase of the base is left out."""
    absorbed = np.exp(-2 * np.pi * material.kappa * (height + base) / grid.wavelength)
    return absorbed * np.exp(1j * phase_of(height, grid, material))


def piece(height: Map, grid: Grid, material: Material, relief: Relief) -> Printed:
    """Thickness of the whole piece as it is printed, m: with base, rim and holes, mirrored, turned, upsampled."""
    body = np.kron(height + relief.base, np.ones((relief.upsample, relief.upsample)))
    body = np.rot90(body[:, ::-1] if relief.mirror else body, relief.turns)
    pixel = grid.pitch / relief.upsample
    rim = round(relief.frame / pixel)
    framed = np.pad(body, rim, constant_values=relief.base + material.full_wave(grid))
    if relief.holes:
        y, x = (np.arange(side) + 0.5 for side in framed.shape)
        for row in (rim / 2, framed.shape[0] - rim / 2):
            for column in (rim / 2, framed.shape[1] - rim / 2):
                framed[np.hypot(y[:, None] - row, x - column) * pixel <= relief.holes / 2] = 0.0
    return np.ascontiguousarray(framed)


def body_of(thickness: Printed, grid_pitch: float | int, relief: Relief) -> Map:
    """Undoes `piece`: the height above the base on the design's grid, m."""
    rim = round(relief.frame * relief.upsample / grid_pitch)
    body = thickness[rim : thickness.shape[0] - rim, rim : thickness.shape[1] - rim]
    body = np.rot90(body, -relief.turns)
    body = body[:, ::-1] if relief.mirror else body
    return np.ascontiguousarray(body[:: relief.upsample, :: relief.upsample] - relief.base)
