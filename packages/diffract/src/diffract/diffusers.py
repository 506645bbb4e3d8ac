"""Thin random phase screens with a correlation length and a strength that can be set and measured."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.ndimage import gaussian_filter1d

from diffract.errors import ConfigError, SamplingWarning
from diffract.geometries import Key
from diffract.grids import Grid

Phase: TypeAlias = Float[Array, "... H W"] | Float[np.ndarray, "... H W"]
LUO_DELTA_N = 0.74
LUO_SIGMA, LUO_HEIGHT_STD, LUO_HEIGHT_MEAN = 4.0, 8.0, 25.0
"""Wavelengths: width of the smoothing kernel, deviation before smoothing, mean (Luo et al. 2022)."""


class RandomDiffuser:
    """A stationary Gaussian phase screen, or the paper's literal recipe.

    The screen is white noise seen through a Gaussian of deviation `sigma`, so its phase correlates as
    exp(-r^2 / (4 sigma^2)) = exp(-pi r^2 / L^2) with L = 2 sqrt(pi) sigma. It is made on a periodic window of twice the
    size and cropped, so that it is stationary to its edges; its strength does not depend on the pitch.

    Args:
        grid: of the screen.
        sigma: deviation of the smoothing Gaussian, m; or
        correlation_length: L of the phase, m.
        rms_phase: strength, rad; or
        height_std: deviation of white noise heights before smoothing, m, as the paper states strength. It depends on the
            pixel of the noise, `white_noise_pitch`, which is the grid's pitch unless given.
        delta_n: index difference between screen and medium, to turn phase into height.
        white_noise_pitch: m.
        preset: "luo2022" for the literal recipe: noise on the grid itself, edges reflected, kernel cut at 4 sigma, mean
            kept. Then `sigma` alone may be given.

    Raises:
        ConfigError: settings that are missing, contradict each other or are not positive.

    Reference: Luo et al. 2022, methods; strength 2 pi delta_n height_std pitch / (wavelength 2 sqrt(pi) sigma).
    """

    def __init__(
        self,
        grid: Grid,
        *,
        sigma: float | int | None = None,
        correlation_length: float | int | None = None,
        rms_phase: float | int | None = None,
        height_std: float | int | None = None,
        delta_n: float | int = LUO_DELTA_N,
        white_noise_pitch: float | int | None = None,
        preset: Literal["luo2022"] | None = None,
    ) -> None:
        if preset not in (None, "luo2022"):
            raise ConfigError(f"preset must be luo2022, got {preset!r}")
        if preset is not None:
            if rms_phase is not None or height_std is not None:
                raise ConfigError("preset luo2022 sets the strength itself", "leave out rms_phase and height_std")
            height_std = LUO_HEIGHT_STD * grid.wavelength
            sigma = LUO_SIGMA * grid.wavelength if sigma is None and correlation_length is None else sigma
        if (sigma is None) == (correlation_length is None):
            raise ConfigError("a diffuser takes either sigma or correlation_length")
        if (rms_phase is None) == (height_std is None):
            raise ConfigError("a diffuser takes either rms_phase or height_std")
        self.grid, self.delta_n, self.preset = grid, _positive("delta_n", delta_n), preset
        self.sigma = (
            _positive("sigma", sigma)
            if sigma is not None
            else _positive("correlation_length", correlation_length) / (2 * math.sqrt(math.pi))
        )
        if height_std is not None:
            pixel = _positive("white_noise_pitch", white_noise_pitch or grid.pitch)
            rms_phase = self.phase(_positive("height_std", height_std)) * pixel / (2 * math.sqrt(math.pi) * self.sigma)
        self.rms_phase = _positive("rms_phase", rms_phase)
        if self.sigma < grid.pitch:
            _warn(f"sigma is {self.sigma / grid.pitch:.2f} pixels: the screen is close to white noise")
        if self.sigma > min(grid.extent) / 4:
            _warn(f"sigma is {self.sigma / min(grid.extent):.2f} of the window: too few grains to estimate L")

    def sample(self, key: Key, n: int) -> Float[Array, "n H W"]:
        """Independent screens as phase, rad, float32; not wrapped."""
        if n < 1:
            raise ConfigError(f"n must be at least 1, got {n}")
        keys = [jax.random.fold_in(key, i) for i in range(n)]
        if self.preset == "luo2022":
            rows, columns = (_reflecting_filter(side, self.sigma / self.grid.pitch) for side in self.grid.shape)
            mean, std = (self.phase(each * self.grid.wavelength) for each in (LUO_HEIGHT_MEAN, LUO_HEIGHT_STD))
            return jnp.stack([_literal(each, rows, columns, mean, std) for each in keys])
        gain = _gain(self.grid.shape, self.sigma / self.grid.pitch) * np.float32(self.rms_phase)
        return jnp.stack([_stationary(each, gain) for each in keys])

    def height(self, phase: Phase) -> Phase:
        """Relief of a screen, m, above the point of phase 0."""
        return phase * (self.grid.wavelength / (2 * np.pi * self.delta_n))

    def phase(self, height: float | int) -> float:
        """Phase of a height in m, rad."""
        return 2 * math.pi * self.delta_n * height / self.grid.wavelength

    def expected_L(self, of: Literal["transmittance", "phase"] = "phase") -> float:  # noqa: N802 -- the paper's L
        """The correlation length that `correlation_length` finds on average, m.

        That of the transmittance is the same fit to the covariance of exp(j phi) of a Gaussian phase,
        (exp(-s (1 - rho)) - exp(-s)) / (1 - exp(-s)), with s = rms_phase^2 and rho = exp(-r^2 / (4 sigma^2)).
        """
        if of == "phase":
            return 2 * math.sqrt(math.pi) * self.sigma
        from diffract.statistics import fitted_length

        r = np.arange(1, int(8 * self.sigma / self.grid.pitch) + 2) * self.grid.pitch
        variance = self.rms_phase**2
        rho = np.exp(-(r**2) / (4 * self.sigma**2))
        covariance = (np.exp(-variance * (1 - rho)) - np.exp(-variance)) / -np.expm1(-variance)
        return fitted_length(r, covariance)


@functools.lru_cache(maxsize=8)
def _gain(shape: tuple[int, int], sigma: float | int) -> np.ndarray:
    """The Gaussian's gain on a window of twice the size, for an rms of exactly 1; half of the columns, as of `rfft2`."""
    fy, fx = (np.fft.fftfreq(2 * side) for side in shape)
    gain = np.exp(-2 * (np.pi * sigma) ** 2 * (fy[:, None] ** 2 + fx**2))
    return (gain / np.sqrt((gain**2).mean()))[:, : shape[1] + 1].astype(np.float32)


@jax.jit
def _stationary(key: Key, gain: Any) -> Array:
    """White noise through a gain on a doubled periodic window, cropped."""
    H, W = gain.shape[0], 2 * (gain.shape[1] - 1)
    noise = jax.random.normal(key, (H, W), jnp.float32)
    return jnp.fft.irfft2(jnp.fft.rfft2(noise) * gain, s=(H, W))[: H // 2, : W // 2]


@jax.jit
def _literal(key: Key, rows: Any, columns: Any, mean: Any, std: Any) -> Array:
    noise = mean + std * jax.random.normal(key, (len(rows), len(columns)), jnp.float32)
    return rows @ noise @ columns.T


@functools.lru_cache(maxsize=8)
def _reflecting_filter(side: int, sigma: float | int) -> np.ndarray:
    """The Gaussian filter with reflected edges as a matrix."""
    return gaussian_filter1d(np.eye(side), sigma, axis=0, mode="reflect", truncate=4.0).astype(np.float32)


def _positive(name: str, value: float | int | None) -> float:
    if value is None or not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} must be positive and finite, got {value}")
    return float(value)


def _warn(message: str) -> None:
    warnings.warn(message, SamplingWarning, stacklevel=3)
