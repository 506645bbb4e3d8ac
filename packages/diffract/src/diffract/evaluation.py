"""How alike images are to their objects, over known, new and no diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact

from diffract.errors import ConfigError, ShapeError
from diffract.geometries import Displacement
from diffract.losses import pcc

Real: TypeAlias = Float[Array, "B H W"] | Float[np.ndarray, "B H W"]


@runtime_checkable
class Imager(Protocol):
    """A network or a baseline: what turns objects into fields before the diffuser, and fields behind it into images."""

    def illuminated(self, objects: Real) -> Complex[Array, "B H W"]:
        """Fields before the diffuser."""

    def __call__(self, field: Complex[Array, "... H W"]) -> Float[Array, "... H W"]:
        """Intensities on the output plane."""


@dataclass(frozen=True, eq=False)
class EvalTable:
    """Correlation of every object's image behind every diffuser with the object.

    Attributes:
        pcc: [objects, diffusers]; NaN for a constant object.
        efficiency: light on the output plane over light that left the object, [objects, diffusers].
    """

    pcc: Float[np.ndarray, "B n"]
    efficiency: Float[np.ndarray, "B n"]

    @property
    def per_diffuser(self) -> Float[np.ndarray, " n"]:
        """Mean over the objects; those without a correlation are left out."""
        return np.nanmean(self.pcc, 0)

    @property
    def mean(self) -> float:
        """Mean over objects and diffusers."""
        return float(self.per_diffuser.mean())

    @property
    def std(self) -> float:
        """Deviation over diffusers of the mean over objects; NaN for a single diffuser."""
        values = self.per_diffuser
        return float(values.std(ddof=1)) if len(values) > 1 else math.nan

    @property
    def undefined(self) -> int:
        """Objects that are constant, whose correlation is undefined."""
        return int(np.isnan(self.pcc).all(1).sum())


def evaluate(
    imager: Imager,
    objects: Real,
    diffusers: Inexact[Array, "n h w"] | Inexact[np.ndarray, "n h w"] | None,
    *,
    displacement: Displacement | None = None,
    chunk: int = 32,
) -> EvalTable:
    """Sends every object through every diffuser.

    Args:
        imager: a network or a baseline.
        objects: amplitudes, [B, H, W].
        diffusers: phases, rad; None for none.
        displacement: of the network's layers.
        chunk: pairs at a time; decides memory, nothing else.

    Raises:
        ConfigError: no objects, or no pairs at a time.
        ShapeError: objects or diffusers of another shape than the grid's.
    """
    if len(objects) == 0 or chunk < 1:
        raise ConfigError(f"evaluation needs objects and chunk >= 1, got {len(objects)} objects, chunk={chunk}")
    image: Callable[[Array], Array] = imager
    if displacement is not None:
        image = lambda field: imager(field, displacement)  # type: ignore[call-arg]  # noqa: E731
    given = np.asarray(objects, np.float32)
    screens = np.zeros((1, *given.shape[1:]), np.float32) if diffusers is None else np.asarray(diffusers)
    if screens.shape[-2:] != given.shape[-2:] or np.iscomplexobj(screens):
        raise ShapeError(f"diffusers of shape {screens.shape} ({screens.dtype}) do not belong to objects {given.shape}")
    fields = np.concatenate([np.asarray(imager.illuminated(part)) for part in _parts(given, chunk)])[: len(given)]
    pairs = np.stack(np.meshgrid(np.arange(len(given)), np.arange(len(screens)), indexing="ij"), -1).reshape(-1, 2)
    found = []
    for part in _parts(pairs, chunk):
        target = given[part[:, 0]]
        output = image(_behind_each(fields[part[:, 0]], screens[part[:, 1]]))
        found.append(np.stack(_figures(output, target)))
    values = np.concatenate(found, 1)[:, : len(pairs)].reshape(2, len(given), len(screens))
    return EvalTable(values[0], values[1])


def _parts(values: np.ndarray, size: int) -> list[np.ndarray]:
    """Parts of one size, the last filled up, so that compiled functions see one shape."""
    filled = np.resize(np.arange(len(values)), -(-len(values) // size) * size)
    return np.split(values[filled], len(filled) // size)


@jax.jit
def _behind_each(fields: Complex[Array, "K H W"], screens: Float[Array, "K H W"]) -> Complex[Array, "K H W"]:
    return fields * jnp.exp(1j * screens)


@jax.jit
def _figures(output: Float[Array, "K H W"], target: Float[Array, "K H W"]) -> tuple[Array, Array]:
    return pcc(output, target), output.sum((-2, -1)) / (target**2).sum((-2, -1))
