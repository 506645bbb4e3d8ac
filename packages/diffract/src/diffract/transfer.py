"""Transfer functions of free space on a padded grid, by four methods.

`H` multiplies the Fourier transform of a field; the loop is always pad, transform, multiply, transform back, crop. All is
computed in double precision, because the phase 2 pi z / wavelength runs to many thousand radians, and cast once.
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Complex, Float

from diffract.errors import ConfigError, SamplingError
from diffract.grids import Grid
from diffract.sampling import best_method, largest_frequency

Method = Literal["auto", "rs", "asm", "blas", "fresnel"]
METHODS = ("rs", "asm", "blas", "fresnel")
Evanescent = Literal["auto", "decay", "drop"]


def transfer_function(
    grid: Grid,
    z: float | int,
    method: Method = "auto",
    pad: float | int = 2,
    evanescent: Evanescent = "auto",
    shift: tuple[float | int, float | int] = (0.0, 0.0),
    dtype: Any = np.complex64,
) -> Complex[np.ndarray, "P Q"]:
    """The transfer function over a distance.

    Args:
        grid: of the field.
        z: distance, m; negative propagates back.
        method: `rs` samples the Rayleigh-Sommerfeld impulse response, `asm` the angular spectrum, `blas` the latter
            within the band that the padded window can carry, `fresnel` the paraxial approximation; `auto` is `rs` where
            it is sampled well, else what `propagation_report` estimates to be better of `asm` and `blas`.
        pad: the window's width for the computation, in grids.
        evanescent: waves beyond the cut-off "decay" or are dropped ("drop"); "auto" lets them decay forwards.
        shift: how far the field is moved along y and x on the way, m.
        dtype: complex64 or complex128.

    Returns:
        Values in the order of `fftfreq`, on `grid.padded(pad)`.

    Raises:
        ConfigError: a distance that is not finite, unknown names.
        SamplingError: `rs` with too little padding for a linear convolution, or decay backwards, which would blow up.

    Reference: Luo et al. 2022, eq. 1 (rs); Matsushima and Shimobaba 2009 (blas).
    """
    if not math.isfinite(z):
        raise ConfigError(f"z must be finite, got {z}")
    if evanescent not in ("auto", "decay", "drop"):
        raise ConfigError(f"evanescent must be auto, decay or drop, got {evanescent!r}")
    if evanescent == "decay" and z < 0:
        raise SamplingError("evanescent waves that decay forwards grow backwards", 'use evanescent="drop" for z < 0')
    if method == "auto":
        method = cast("Method", best_method(grid, z, pad))
    if method not in METHODS:
        raise ConfigError(f"method must be one of auto, {', '.join(METHODS)}, got {method!r}")
    decay = evanescent == "decay" or (evanescent == "auto" and bool(z >= 0))
    window = grid.padded(pad)
    if method == "rs":
        values = _rs(grid, window, z)
    elif method == "fresnel":
        values = _fresnel(window, z)
    else:
        values = _asm(window, z, decay)
        if method == "blas":
            values = values * _band(window, z)
    if shift != (0.0, 0.0):
        values = values * shift_factor(window, shift)
    return values.astype(dtype)


def shift_factor(window: Grid, shift: tuple[float | int, float | int]) -> Complex[np.ndarray, "P Q"]:
    """What a lateral shift along y and x, m, does to a transform: no interpolation is needed."""
    along_y, along_x = (np.exp(-2j * np.pi * f * s) for f, s in zip((window.fy, window.fx), shift, strict=True))
    return along_y[:, None] * along_x


def longitudinal(window: Grid) -> tuple[Float[np.ndarray, "P Q"], Float[np.ndarray, "P Q"]]:
    """Longitudinal frequency of propagating waves, and decay rate of evanescent ones, 1/m; each 0 for the others."""
    squared = window.medium_wavelength**-2 - window.fy[:, None] ** 2 - window.fx**2
    return np.sqrt(np.maximum(squared, 0)), np.sqrt(np.maximum(-squared, 0))


def _asm(window: Grid, z: float | int, decay: bool) -> np.ndarray:
    frequency, rate = longitudinal(window)
    evanescent = np.exp(-2 * np.pi * z * rate) if decay else (rate == 0).astype(float)
    return np.exp(2j * np.pi * z * frequency) * evanescent


def _band(window: Grid, z: float | int) -> np.ndarray:
    """The frequencies that the window can carry over the distance."""
    within_y, within_x = (
        np.abs(f) <= largest_frequency(window, side, z)
        for f, side in zip((window.fy, window.fx), window.shape, strict=True)
    )
    return within_y[:, None] & within_x


def _rs(grid: Grid, window: Grid, z: float | int) -> np.ndarray:
    for side, wide in zip(grid.shape, window.shape, strict=True):
        if wide < 2 * side - 1:
            raise SamplingError(
                f"rs needs a window of {2 * side - 1} pixels or more for {side}, got {wide}", "use pad=2"
            )
    y, x = (np.fft.ifftshift(axis) for axis in (window.y, window.x))
    distance = np.sqrt(y[:, None] ** 2 + x**2 + z**2)
    response = impulse_response(distance, abs(z), window.medium_wavelength) * grid.pitch**2
    transfer = np.fft.fft2(response)
    return np.conj(transfer) if z < 0 else transfer  # the way back is the conjugate of the way there


def impulse_response(distance: np.ndarray, z: float | int, wavelength: float | int) -> np.ndarray:
    """Field of a point source in the plane z, 1/m^2 (Rayleigh and Sommerfeld's first kind)."""
    amplitude = 1 / (2 * np.pi * distance) + 1 / (1j * wavelength)
    return z / distance**2 * amplitude * np.exp(2j * np.pi * distance / wavelength)


def _fresnel(window: Grid, z: float | int) -> np.ndarray:
    wavelength = window.medium_wavelength
    squared = window.fy[:, None] ** 2 + window.fx**2
    return np.exp(2j * np.pi * z / wavelength - 1j * np.pi * wavelength * z * squared)
