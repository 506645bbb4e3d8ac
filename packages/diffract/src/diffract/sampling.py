"""What sampling will do to a propagation, said before anything is computed.

The estimate is the same propagation in one dimension, where a reference with 32 times the window costs nothing: bars as
wide as the strokes of a letter go through each method, and the difference to the reference is the error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Complex, Float
from scipy.special import hankel1

from diffract.grids import Grid

SHORTEST_RS = 1.5
"""Wavelengths below which the impulse response is too sharp to be sampled."""
TOLERABLE, VISIBLE = 0.20, 0.05
"""Estimated errors above which a network is refused, or warned of."""
REFERENCE_PAD = 32


@dataclass(frozen=True)
class PropagationReport:
    """How well a grid can carry a field over a distance.

    Attributes:
        z: distance, m.
        method: what `auto` takes.
        error: its estimated relative L2 error over the window.
        errors: the same of every method; NaN for `rs` where the padding is too small for it.
        window: rows and columns of the computation.
        rs_margin: largest pitch that samples the impulse response, over the pitch; below 1, `rs` aliases.
        band: share of the propagating frequencies along an axis that `blas` keeps; what it drops, `asm` aliases.
        warnings: sentences for people.
    """

    z: float | int
    method: str
    error: float | int
    errors: dict[str, float]
    window: tuple[int, int]
    rs_margin: float | int
    band: float | int
    warnings: tuple[str, ...]


def propagation_report(grid: Grid, z: float | int, pad: float | int = 2) -> PropagationReport:
    """Sampling margins, the best method and its estimated error for one distance.

    Args:
        grid: of the field.
        z: distance, m, not 0.
        pad: the window's width for the computation, in grids.
    """
    errors = estimated_errors(grid, z, pad)
    method = _best(grid, z, pad, errors)
    warnings = []
    if grid.nyquist_angle < math.pi / 2:
        degrees = math.degrees(grid.nyquist_angle)
        warnings.append(f"the pitch is above half a wavelength: waves steeper than {degrees:.0f} degrees are lost")
    if errors[method] > VISIBLE:
        warnings.append(f"the error over {z * 1e3:.4g} mm is about {errors[method]:.1%}; raise pad, or the shape")
    return PropagationReport(
        z=z,
        method=method,
        error=errors[method],
        errors=errors,
        window=grid.padded(pad).shape,
        rs_margin=_largest_pitch(grid, z) / grid.pitch,
        band=largest_frequency(grid, min(grid.padded(pad).shape), z) * max(grid.medium_wavelength, 2 * grid.pitch),
        warnings=tuple(warnings),
    )


def best_method(grid: Grid, z: float | int, pad: float | int = 2) -> str:
    """`rs` where it is sampled well and z is not too short, else the better of `asm` and `blas`."""
    if _rs_holds(grid, z, pad):
        return "rs"
    return _best(grid, z, pad, estimated_errors(grid, z, pad))


def estimated_errors(grid: Grid, z: float | int, pad: float | int = 2) -> dict[str, float]:
    """Relative L2 errors of the same propagation in one dimension, by method."""
    longest, wide = (max(each.shape) for each in (grid, grid.padded(pad)))
    field = _bars(longest)
    reference = _through(field, _asm_1d(grid, longest * REFERENCE_PAD, z))
    asm = _asm_1d(grid, wide, z)
    f = np.fft.fftfreq(wide, grid.pitch)
    band = np.abs(f) <= largest_frequency(grid, wide, z)
    tried = {"asm": asm, "blas": asm * band}
    if wide >= 2 * longest - 1:
        tried["rs"] = _rs_1d(grid, wide, z)
    size = np.linalg.norm(reference)
    errors = {name: float(np.linalg.norm(_through(field, h) - reference) / size) for name, h in tried.items()}
    return {"rs": math.nan, **errors}


def _best(grid: Grid, z: float | int, pad: float | int, errors: dict[str, float]) -> str:
    if _rs_holds(grid, z, pad):
        return "rs"
    return min(("asm", "blas"), key=errors.__getitem__)


def _rs_holds(grid: Grid, z: float | int, pad: float | int) -> bool:
    linear = all(wide >= 2 * side - 1 for side, wide in zip(grid.shape, grid.padded(pad).shape, strict=True))
    sampled = _largest_pitch(grid, z) >= grid.pitch * (1 - 1e-12)
    return linear and sampled and abs(z) >= SHORTEST_RS * grid.medium_wavelength


def _largest_pitch(grid: Grid, z: float | int) -> float:
    """Half the period of the impulse response at its rim, m, where its phase runs fastest."""
    reach = (max(grid.shape) - 1) * grid.pitch
    steepest = reach / math.hypot(reach, z) if reach else 0.0
    return grid.medium_wavelength / (2 * steepest) if steepest else math.inf


def largest_frequency(grid: Grid, wide: int, z: float | int) -> float:
    """Largest frequency along an axis whose transfer function a window samples, 1/m (Matsushima and Shimobaba 2009)."""
    return 1 / (grid.medium_wavelength * math.hypot(2 * z / (wide * grid.pitch), 1))


def _bars(size: int) -> Float[np.ndarray, " N"]:
    """Two strokes within the middle two thirds."""
    position = (np.arange(size) - size // 2) / size
    return (np.abs(np.abs(position) - 0.2) < 0.05).astype(float)


def _asm_1d(grid: Grid, wide: int, z: float | int) -> Complex[np.ndarray, " P"]:
    squared = grid.medium_wavelength**-2 - np.fft.fftfreq(wide, grid.pitch) ** 2
    wave = np.exp(2j * np.pi * z * np.sqrt(np.maximum(squared, 0)))
    return wave * np.exp(-2 * np.pi * abs(z) * np.sqrt(np.maximum(-squared, 0)))


def _rs_1d(grid: Grid, wide: int, z: float | int) -> Complex[np.ndarray, " P"]:
    """The impulse response of a line source: Hankel's function takes the spherical wave's place."""
    wavenumber = 2 * np.pi / grid.medium_wavelength
    x = np.fft.ifftshift((np.arange(wide) - wide // 2) * grid.pitch)
    r = np.hypot(x, z)
    transfer = np.fft.fft(0.5j * wavenumber * abs(z) / r * hankel1(1, wavenumber * r)) * grid.pitch
    return np.conj(transfer) if z < 0 else transfer


def _through(field: np.ndarray, transfer: np.ndarray) -> Complex[np.ndarray, " N"]:
    return np.fft.ifft(np.fft.fft(field, len(transfer)) * transfer)[: len(field)]
