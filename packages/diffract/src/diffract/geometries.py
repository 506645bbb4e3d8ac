"""Where the planes stand, and by how much they stand wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, UInt32

from diffract.errors import ConfigError

Key: TypeAlias = PRNGKeyArray | UInt32[Array, " 2"]


@dataclass(frozen=True)
class Geometry:
    """Distances along the axis, m, from the object through the diffuser and the layers to the output plane.

    Attributes:
        object_to_diffuser: m.
        diffuser_to_layer: to the first layer, m.
        layer_spacing: from layer to layer, m.
        layer_to_output: from the last layer, m.
        n_layers: at least 1.

    Raises:
        ConfigError: a distance or a number that is not positive.

    Reference: Luo et al. 2022 has 40, 2, 2 and 7 mm and 4 layers at a wavelength of 0.75 mm.
    """

    object_to_diffuser: float | int
    diffuser_to_layer: float | int
    layer_spacing: float | int
    layer_to_output: float | int
    n_layers: int

    def __post_init__(self) -> None:
        for field in fields(self)[:-1]:
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{field.name} must be positive and finite, got {value}")
        if self.n_layers < 1:
            raise ConfigError(f"n_layers must be at least 1, got {self.n_layers}", "see baselines for free space")

    @classmethod
    def luo2022(cls, n_layers: int = 4) -> Geometry:
        """The published geometry."""
        return cls(40e-3, 2e-3, 2e-3, 7e-3, n_layers)

    @property
    def distances(self) -> tuple[float, ...]:
        """From the diffuser to the first layer, ..., to the output, m; n_layers + 1 of them."""
        return (self.diffuser_to_layer, *(self.layer_spacing,) * (self.n_layers - 1), self.layer_to_output)

    @property
    def depth(self) -> float:
        """From diffuser to output, m."""
        return sum(self.distances)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Displacement:
    """How far every layer is off its place.

    Attributes:
        lateral: along y and x, m, [M, 2].
        axial: along the axis, m, [M].
        rotation: about the axis, rad, [M]; None where no layer is turned, which saves interpolating.
        tilt: about the x and the y axis, rad, [M, 2]; None where no layer is tilted.
    """

    lateral: Any
    axial: Any
    rotation: Any = None
    tilt: Any = None


@dataclass(frozen=True)
class Misalignment:
    """Ranges of uniform random displacements, each layer's on its own.

    Attributes:
        lateral: largest along y and along x, m.
        axial: largest along the axis, m.
        rotation: largest about the axis, rad.
        tilt: largest about x and about y, rad.

    Raises:
        ConfigError: a range that is negative or not finite.

    Reference: "vaccination" of Mengu et al. 2020, used in arXiv 2205.00428; ranges there could not be read.
    """

    lateral: float | int = 0.0
    axial: float | int = 0.0
    rotation: float | int = 0.0
    tilt: float | int = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{field.name} must not be negative, got {value}")

    @property
    def none(self) -> bool:
        """Whether every layer stands where it should."""
        return self == Misalignment()

    def sample(self, key: Key, n_layers: int) -> Displacement:
        """One random displacement of every layer."""
        sides, axis, turn, tilt = jax.random.split(key, 4)

        def uniform(key: Key, *shape: int) -> Array:
            return jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)

        return Displacement(
            lateral=self.lateral * uniform(sides, n_layers, 2),
            axial=self.axial * uniform(axis, n_layers),
            rotation=self.rotation * uniform(turn, n_layers) if self.rotation else None,
            tilt=self.tilt * uniform(tilt, n_layers, 2) if self.tilt else None,
        )
