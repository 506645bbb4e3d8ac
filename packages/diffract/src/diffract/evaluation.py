"""How alike images are to their objects, over known, new and no diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from diffract.errors import ConfigError
from diffract.geometries import Displacement
from diffract.losses import pcc
from diffract.networks import diffused

Real = Float[Array, "B H W"] | Float[np.ndarray, "B H W"]


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
    diffusers: Float[Array, "n H W"] | Float[np.ndarray, "n H W"] | None,
    *,
    displacement: Displacement | None = None,
    chunk: int = 64,
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
    image: Callable[..., Array] = imager if displacement is None else lambda field: imager(field, displacement)  # type: ignore[call-arg]
    screens = jnp.zeros((1, *objects.shape[1:]), jnp.float32) if diffusers is None else jnp.asarray(diffusers)
    group = max(1, chunk // len(screens))
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, len(objects), group):
        given = jnp.asarray(objects[start : start + group])
        before = imager.illuminated(given)
        columns = []
        for first in range(0, len(screens), chunk):
            output = image(diffused(before, screens[first : first + chunk]))
            light = output.sum((-2, -1)) / (given**2).sum((-2, -1))[:, None]
            columns.append((np.asarray(pcc(output, given[:, None])), np.asarray(light)))
        rows.append(tuple(np.concatenate(parts, 1) for parts in zip(*columns, strict=True)))  # type: ignore[arg-type]
    found, efficiency = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return EvalTable(found, efficiency)
