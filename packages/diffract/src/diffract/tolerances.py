"""How much every error of making and mounting costs, as one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from diffract.errors import ConfigError
from diffract.evaluation import EvalTable, evaluate
from diffract.geometries import Misalignment
from diffract.grids import Grid
from diffract.networks import DiffractiveNetwork
from diffract.reliefs import Material, Relief, heights, phase_of
from diffract.streams import Stream, stream

KINDS = ("lateral", "axial", "rotation", "tilt", "thickness", "index", "wavelength", "levels")
UNITS = {"lateral": "m", "axial": "m", "rotation": "rad", "tilt": "rad", "thickness": "m"}


@dataclass(frozen=True)
class Tolerance:
    """One line of the table.

    Attributes:
        kind: of error.
        size: of it, in the unit of its kind.
        mean: correlation, mean over objects and diffusers.
        std: over the draws of the error, each behind a diffuser of its own; NaN for one draw.
        loss: of correlation against no error.
    """

    kind: str
    size: float | int
    mean: float | int
    std: float | int
    loss: float | int


def tolerance(
    network: DiffractiveNetwork,
    objects: Float[np.ndarray, "B H W"],
    diffusers: Float[Array, "n H W"] | Float[np.ndarray, "n H W"],
    sweep: Mapping[str, Sequence[float]],
    *,
    material: Material | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Tolerance]:
    """Correlation against size of error, for several kinds of error.

    Args:
        network: trained.
        objects: to image.
        diffusers: each meets a draw of its own of every random error.
        sweep: sizes by kind. Random and uniform to either side for every layer: `lateral` and `axial`, m; `rotation`
            about the axis and `tilt` across it, rad. Random and Gaussian for every pixel: `thickness`, m. The same for
            all layers: `index`, an error of the material's n; `wavelength`, a relative error of the light's; `levels`, of
            a quantised relief.
        material: of the layers.
        seed: decides the random errors.
        progress: is told what comes next.

    Raises:
        ConfigError: an unknown kind.
    """
    for kind in sweep:
        if kind not in KINDS:
            raise ConfigError(f"tolerance must be one of {', '.join(KINDS)}, got {kind!r}")
    material = material or Material()
    ideal = evaluate(network, objects, diffusers).mean
    lines = []
    for kind, sizes in sweep.items():
        for size in sizes:
            progress(f"{kind} {size:g}")
            table = _with_error(network, objects, np.asarray(diffusers), kind, size, material, seed)
            lines.append(Tolerance(kind, size, table.mean, table.std, ideal - table.mean))
    return lines


def _with_error(
    network: DiffractiveNetwork,
    objects: Any,
    diffusers: np.ndarray,
    kind: str,
    size: float | int,
    material: Material,
    seed: int,
) -> EvalTable:
    if kind in ("lateral", "axial", "rotation", "tilt"):
        return over_draws(network, objects, diffusers, Misalignment(**{kind: size}), seed)
    if kind == "wavelength":
        return evaluate(_at_wavelength(network, size, material), objects, diffusers * np.float32(1 / (1 + size)))
    phases = np.asarray(network.phases[...], np.float64)
    grid = network.grid
    height = np.stack([heights(phase, grid, material) for phase in phases])
    if kind == "levels":
        height = np.stack([heights(phase, grid, material, Relief(levels=int(size))) for phase in phases])
    elif kind == "index":
        material = dataclasses.replace(material, n=material.n + size)
    if kind != "thickness":
        return evaluate(_with_phases(network, _phases(height, grid, material)), objects, diffusers)
    rng = np.random.default_rng([seed, 11])
    tables = [
        evaluate(
            _with_phases(network, _phases(height + rng.normal(0, size, height.shape), grid, material)),
            objects,
            screen[None],
        )
        for screen in diffusers
    ]
    return _joined(tables)


def over_draws(
    network: DiffractiveNetwork,
    objects: Float[np.ndarray, "B H W"],
    diffusers: Float[Array, "n H W"] | Float[np.ndarray, "n H W"],
    misalignment: Misalignment,
    seed: int,
) -> EvalTable:
    """Every diffuser with a random displacement of its own of all layers."""
    key = stream(seed, Stream.DISPLACEMENT)
    draws = [misalignment.sample(jax.random.fold_in(key, i), network.geometry.n_layers) for i in range(len(diffusers))]
    return _joined(
        [
            evaluate(network, objects, screen[None], displacement=displacement)
            for screen, displacement in zip(diffusers, draws, strict=True)
        ]
    )


def _phases(height: np.ndarray, grid: Grid, material: Material) -> np.ndarray:
    return np.stack([phase_of(each, grid, material) for each in height])


def _at_wavelength(network: DiffractiveNetwork, error: float | int, material: Material) -> DiffractiveNetwork:
    """The same reliefs under light of another wavelength; dispersion is left out."""
    grid = dataclasses.replace(network.grid, wavelength=network.grid.wavelength * (1 + error))
    other = DiffractiveNetwork(grid, network.geometry, method=network.method, pad=network.pad)
    height = np.stack([heights(phase, network.grid, material) for phase in np.asarray(network.phases[...], np.float64)])
    return _with_phases(other, _phases(height, grid, material))


def _with_phases(network: DiffractiveNetwork, phases: np.ndarray) -> DiffractiveNetwork:
    other = nnx.clone(network)
    other.phases = nnx.Param(jnp.asarray(phases, jnp.float32))
    return other


def _joined(tables: list[EvalTable]) -> EvalTable:
    return EvalTable(*(np.concatenate([getattr(table, name) for table in tables], 1) for name in ("pcc", "efficiency")))
