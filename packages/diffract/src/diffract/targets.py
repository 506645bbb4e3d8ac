"""Resolution targets, drawn by code, and the period that can be read off their images."""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import OptimizeWarning, curve_fit

from diffract.errors import ConfigError
from diffract.grids import Grid

Orientation = Literal["vertical", "horizontal"]
LEAST_DIP = 0.1
"""Share of the peaks' height above the background by which a profile must fall between them to count as resolved."""
LEAST_FIT = 0.8
"""Share of the profile's variance that the three peaks must explain."""


class Period(NamedTuple):
    """What a fit found.

    Attributes:
        period: m; NaN where the bars are not resolved.
        resolved: whether they are.
    """

    period: float | int
    resolved: bool


def bars(
    grid: Grid,
    period: float | int,
    n: int = 3,
    orientation: Orientation = "vertical",
    length: float | int | None = None,
) -> Float[np.ndarray, "H W"]:
    """Bright bars half a period wide, in the middle of the grid.

    Args:
        grid: of the object.
        period: centre to centre, m.
        n: how many.
        orientation: along which the bars run.
        length: of the bars, m; that of the whole pattern unless given.

    Returns:
        Amplitudes; rim pixels hold the share that a bar covers of them.

    Raises:
        ConfigError: a pattern that is wider than the grid.

    Reference: Luo et al. 2022 have 3 bars of 7.2 to 12 mm.
    """
    across, along = (grid.x, grid.y) if orientation == "vertical" else (grid.y, grid.x)
    width = (n - 0.5) * period
    length = width if length is None else length
    extent = (len(across) * grid.pitch, len(along) * grid.pitch)
    if not (period > 0 and n >= 1 and width <= extent[0] and length <= extent[1]):
        raise ConfigError(f"{n} bars of period {period:.4g} m do not fit into a grid of {grid.extent} m")
    middle = grid.pitch / 2 * (1 - np.array([len(across), len(along)]) % 2)  # an even grid's middle lies between pixels
    places = (np.arange(n) - (n - 1) / 2) * period
    profile = sum(_covered(across + middle[0] - place, period / 2, grid.pitch) for place in places)
    pattern = np.outer(_covered(along + middle[1], length, grid.pitch), profile)
    return (pattern if orientation == "vertical" else pattern.T).astype(np.float32)


def siemens(grid: Grid, spokes: int = 16, radius: float | int | None = None) -> Float[np.ndarray, "H W"]:
    """A star of bright sectors.

    Args:
        grid: of the object.
        spokes: bright ones.
        radius: m; 0.4 of the shorter side unless given.
    """
    y, x = grid.y[:, None], grid.x
    inside = np.hypot(y, x) <= (0.4 * min(grid.extent) if radius is None else radius)
    return (inside & (np.cos(spokes * np.arctan2(y, x)) > 0)).astype(np.float32)


def estimate_period(
    intensity: Float[np.ndarray, "H W"] | Float[Array, "H W"], grid: Grid, orientation: Orientation
) -> Period:
    """The period of three bars in an image.

    The intensity is averaged along the bars, three Gaussians on a background are fitted, and the distance of the outer two
    is halved. Averaging across the bars would fit something, too: the orientation must be known.

    Args:
        intensity: of the image.
        grid: of the image.
        orientation: along which the bars run.

    Returns:
        NaN and False where the profile does not fall by a tenth between the peaks, or is something else.

    Reference: Luo et al. 2022, methods.
    """
    values = np.asarray(intensity, np.float64)
    profile = values.mean(0 if orientation == "vertical" else 1)
    x = grid.x if orientation == "vertical" else grid.y
    height = float(np.ptp(profile))
    if not height > 0:
        return Period(np.nan, False)
    profile = (profile - profile.min()) / height
    weight = profile / profile.sum()
    middle = float(weight @ x)
    # Three bars of half a period deviate by 0.83 periods from their middle; a background makes that more.
    first = float(np.sqrt(weight @ (x - middle) ** 2)) / 0.83
    fits = [
        fit for share in (0.5, 0.7, 0.85, 1.0, 1.2) if (fit := _fitted(x, profile, middle, share * first)) is not None
    ]
    if not fits:
        return Period(np.nan, False)
    found = min(fits, key=lambda fit: float(((_peaks(x, *fit) - profile) ** 2).sum()))
    centres = np.sort(found[:3])
    residual = ((_peaks(x, *found) - profile) ** 2).sum() / ((profile - profile.mean()) ** 2).sum()
    between = _peaks((centres[:-1] + centres[1:]) / 2, *found)
    at = _peaks(centres, *found)
    lower = np.minimum(at[:-1], at[1:])
    resolved = bool(
        residual < 1 - LEAST_FIT
        and (found[3:6] > 0).all()
        and (centres[0] > x[0] and centres[-1] < x[-1])
        and ((lower - between) > LEAST_DIP * (lower - found[7])).all()
    )
    return Period((centres[-1] - centres[0]) / 2 if resolved else np.nan, resolved)


def _covered(place: np.ndarray, width: float | int, pixel: float | int) -> np.ndarray:
    """Share of each pixel that a bar in the middle covers."""
    return np.clip((width / 2 + pixel / 2 - np.abs(place)) / pixel, 0, min(1.0, width / pixel))


def _peaks(x: np.ndarray, *values: Any) -> Any:
    """Three Gaussians of one width: centres, heights, width, background."""
    centres, heights, width, background = values[:3], values[3:6], values[6], values[7]
    return background + sum(
        height * np.exp(-((x - centre) ** 2) / (2 * width**2)) for centre, height in zip(centres, heights, strict=True)
    )


def _fitted(x: np.ndarray, profile: np.ndarray, middle: float | int, period: float | int) -> np.ndarray | None:
    start = [middle - period, middle, middle + period, 1.0, 1.0, 1.0, period / 5, 0.0]
    with warnings.catch_warnings(action="ignore", category=OptimizeWarning):
        try:
            return curve_fit(_peaks, x, profile, start, x_scale=[period] * 3 + [1.0] * 3 + [period, 1.0], method="trf")[
                0
            ]
        except RuntimeError:
            return None
