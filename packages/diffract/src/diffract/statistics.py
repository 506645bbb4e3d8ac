"""What can be measured on phase screens: correlation length, mutual distance, and banks of distinct ones."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float, Inexact
from scipy.integrate import quad

from diffract.diffusers import RandomDiffuser
from diffract.errors import ConfigError, ShapeError
from diffract.geometries import Key
from diffract.grids import Grid

Distance = Literal["physical", "paper_wrapped", "unwrapped"]
Screens: TypeAlias = Float[Array, "... H W"] | Float[np.ndarray, "... H W"]
FEWEST_POINTS = 3


def correlation_length(
    phase: Screens,
    grid: Grid,
    of: Literal["transmittance", "phase"] = "transmittance",
    fit: tuple[float | int, float | int] = (0.05, 1.0),
) -> float:
    """The L of exp(-pi r^2 / L^2) that fits the autocovariance, m.

    Args:
        phase: one screen or several, whose covariances are averaged, rad.
        grid: of the screens.
        of: the covariance of exp(j phase) or of the phase itself; the mean is removed.
        fit: values of the normalised covariance between which it is fitted.

    Returns:
        L, or NaN where fewer than three distances fall into the fit.
    """
    screens = np.asarray(phase, np.float64).reshape(-1, *grid.shape)
    values = np.exp(1j * screens) if of == "transmittance" else screens
    values = values - values.mean((1, 2), keepdims=True)
    H, W = grid.shape
    power = (np.abs(np.fft.fft2(values, s=(2 * H, 2 * W))) ** 2).mean(0)
    y, x = np.arange(H // 2), np.arange(W // 2)
    overlap = (H - y)[:, None] * (W - x)
    covariance = np.fft.ifft2(power).real[: H // 2, : W // 2] / overlap
    r = np.hypot(y[:, None], x)
    ring = np.rint(r).astype(int)
    count = np.bincount(ring.ravel())
    radius = np.bincount(ring.ravel(), r.ravel()) / count * grid.pitch
    mean = np.bincount(ring.ravel(), covariance.ravel()) / count
    return fitted_length(radius[1:], mean[1:] / mean[0], fit)


def fitted_length(
    r: Float[np.ndarray, " n"], covariance: Float[np.ndarray, " n"], fit: tuple[float | int, float | int] = (0.05, 1.0)
) -> float:
    """L of exp(-pi r^2 / L^2) by least squares on the logarithm, over the first run of values within `fit`, m."""
    outside = np.flatnonzero(covariance < fit[0])
    end = outside[0] if len(outside) else len(r)
    used = np.flatnonzero(covariance[:end] <= fit[1])
    if len(used) < FEWEST_POINTS:
        return math.nan
    squared, logarithm = r[used] ** 2, np.log(covariance[used])
    slope = -(squared @ logarithm) / (squared @ squared)
    return math.sqrt(math.pi / slope) if slope > 0 else math.nan


def diffuser_distance(
    a: Inexact[Any, "... H W"], b: Inexact[Any, "... h w"], kind: Distance = "physical"
) -> Float[np.ndarray, ...]:
    """Mean absolute phase difference over the pixels of two screens, rad; leading axes broadcast.

    Args:
        a: phase, rad.
        b: phase, rad.
        kind: "physical" compares transmittances up to a common phase, so no wrapping can enter, and lies below pi / 2
            for unrelated screens; "paper_wrapped" wraps each screen to (-pi, pi] and removes its mean, as the published
            criterion must have done; "unwrapped" removes the mean alone.

    Raises:
        ShapeError: screens of different shape.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape[-2:] != b.shape[-2:] or np.iscomplexobj(a) or np.iscomplexobj(b):
        raise ShapeError(f"diffusers must be phases of one shape, got {a.shape} {a.dtype} and {b.shape} {b.dtype}")
    if kind == "physical":
        difference = np.exp(1j * (a - b))
        common = difference.mean((-2, -1), keepdims=True)
        apart = np.angle(difference * np.conj(common))
    else:
        if kind == "paper_wrapped":
            a, b = (np.pi - np.mod(np.pi - each, 2 * np.pi) for each in (a, b))
        elif kind != "unwrapped":
            raise ConfigError(f"kind must be physical, paper_wrapped or unwrapped, got {kind!r}")
        a, b = (each - each.mean((-2, -1), keepdims=True) for each in (a, b))
        apart = a - b
    return np.asarray(np.abs(apart).mean((-2, -1)))


def expected_distance(diffuser: RandomDiffuser, kind: Distance = "physical") -> float:
    """What two independent screens are apart on average, rad; at most pi / 2 for "physical" ones.

    The phase difference is Gaussian with deviation sqrt(2) rms; wrapped it is a theta function, whose harmonics fall off.
    """
    deviation = math.sqrt(2) * diffuser.rms_phase
    if kind == "unwrapped":
        return deviation * math.sqrt(2 / math.pi)
    if kind == "paper_wrapped":
        first, second = jax.random.split(jax.random.key(0))
        return float(diffuser_distance(diffuser.sample(first, 8), diffuser.sample(second, 8), kind).mean())

    def density(phase: float | int) -> float:
        turns = phase + 2 * np.pi * np.arange(-20, 21)
        return float(np.exp(-(turns**2) / (2 * deviation**2)).sum() / (deviation * math.sqrt(2 * math.pi)))

    return 2 * quad(lambda phase: phase * density(phase), 0, math.pi)[0]


def unique_bank(
    diffuser: RandomDiffuser,
    key: Key,
    n: int,
    threshold: float | int = 1.0,
    kind: Distance = "physical",
    max_attempts: int = 1000,
) -> Float[np.ndarray, "n H W"]:
    """Screens of which each is further than a threshold from every earlier one.

    Args:
        diffuser: where they come from.
        key: decides them.
        n: how many.
        threshold: rad; the paper's pi / 2 belongs to `kind="paper_wrapped"`. 0 accepts every screen.
        kind: of distance.
        max_attempts: screens that are drawn before giving up, beside the n.

    Raises:
        ConfigError: the threshold cannot be reached; says what is.
    """
    drawn = np.asarray(diffuser.sample(key, n))
    if threshold <= 0:
        return drawn
    bank: list[np.ndarray] = []
    for attempt in range(n + max_attempts):
        one = drawn[attempt] if attempt < n else np.asarray(diffuser.sample(jax.random.fold_in(key, attempt), 1)[0])
        if all(float(diffuser_distance(other, one, kind)) > threshold for other in bank):
            bank.append(one)
        if len(bank) == n:
            return np.stack(bank)
    expected = expected_distance(diffuser, kind)
    most = "pi / 2 is the most that unrelated screens reach" if kind == "physical" else "lower the threshold"
    raise ConfigError(
        f"{len(bank)} of {n} diffusers are {threshold:.3g} rad apart after {n + max_attempts} draws; independent ones are "
        f"{expected:.3g} rad apart on average",
        most,
    )
