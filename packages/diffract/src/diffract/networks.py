"""A stack of passive phase layers that turns the light behind a diffuser into an image of the object."""

from __future__ import annotations

import functools
import warnings
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Complex, Float, Inexact

from diffract.displacements import displaced_transfers, through_tilted, turned
from diffract.errors import ConfigError, SamplingError, SamplingWarning, ShapeError
from diffract.geometries import Displacement, Geometry
from diffract.grids import Grid
from diffract.propagation import Fieldlike, propagate, sample_by_sample
from diffract.sampling import TOLERABLE, VISIBLE, propagation_report
from diffract.transfer import Method, transfer_function

Phases: TypeAlias = Float[Array, "M H W"]


class Transfers(nnx.Variable):
    """Transfer functions, [4, P, Q]: object to diffuser, to the first layer, layer to layer, to the output."""


class DiffractiveNetwork(nnx.Module):
    """Phase layers in free space behind a diffuser.

    Args:
        grid: of every plane.
        geometry: where the planes stand.
        init: "zeros" starts from free space, which suits short trainings; "uniform" draws from [0, 2 pi). The paper does
            not say.
        method: of propagation.
        pad: width of the propagations' windows, in grids.
        rngs: for `init="uniform"`; its stream `params`.

    Attributes:
        phases: rad, float32 [M, H, W]; not wrapped.
        transfers: complex64 [4, P, Q].

    Raises:
        ConfigError: an unknown initialisation, or no random stream for it.
        SamplingError: the grid cannot carry one of the distances to 20 %. From 5 % on there is a warning.

    Reference: Luo et al. 2022, methods.
    """

    def __init__(
        self,
        grid: Grid,
        geometry: Geometry,
        *,
        init: Literal["zeros", "uniform"] = "zeros",
        method: Method = "auto",
        pad: float | int = 2,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        self.grid, self.geometry, self.method, self.pad = grid, geometry, method, pad
        shape = (geometry.n_layers, *grid.shape)
        if init == "uniform" and rngs is not None:
            phases = jax.random.uniform(rngs.params(), shape, jnp.float32, 0.0, 2 * np.pi)
        elif init == "zeros":
            phases = jnp.zeros(shape, jnp.float32)
        else:
            raise ConfigError(f"init must be zeros, or uniform with rngs, got {init!r} and {rngs}")
        self.phases = nnx.Param(phases)
        distances = (geometry.object_to_diffuser, geometry.diffuser_to_layer, geometry.layer_spacing)
        self.transfers = Transfers(stacked_transfers(grid, (*distances, geometry.layer_to_output), method, pad))

    def resampled(self, *, method: Method = "auto", pad: float | int = 2) -> DiffractiveNetwork:
        """The same layers with propagations of another kind."""
        other = DiffractiveNetwork(self.grid, self.geometry, method=method, pad=pad)
        other.phases = nnx.Param(self.phases[...])
        return other

    def __call__(self, field: Fieldlike, displacement: Displacement | None = None) -> Float[Array, "... H W"]:
        """The intensity on the output plane.

        Args:
            field: behind the diffuser, from `illuminated` and `diffused`; any leading axes.
            displacement: of the layers.

        Raises:
            ShapeError: a field of another shape than the grid's.
        """
        self._check(field)
        return intensity(self.phases[...], self.transfers[...], field, displacement, self.grid, self.pad)

    def fields(self, field: Fieldlike, displacement: Displacement | None = None) -> list[Complex[Array, "... H W"]]:
        """The field behind every layer, and last that on the output plane; arguments as for the call."""
        self._check(field)
        path = paths(self.transfers[...], len(self.phases), displacement, self.grid.padded(self.pad))
        return fields_behind(
            jnp.exp(1j * self.phases[...]), path, jnp.asarray(field), displacement, self.grid, self.pad
        )

    def illuminated(self, objects: Float[Array, "B H W"] | Float[np.ndarray, "B H W"]) -> Complex[Array, "B H W"]:
        """What amplitude objects in a plane wave send to the diffuser."""
        self._check(objects)
        return propagate(objects, self.transfers[...][0])

    def _check(self, field: Fieldlike) -> None:
        if field.shape[-2:] != self.grid.shape:
            raise ShapeError(f"a field of shape {field.shape} does not belong to a grid of shape {self.grid.shape}")


def stacked_transfers(
    grid: Grid, distances: tuple[float, ...], method: Method, pad: float | int
) -> Complex[Array, "K P Q"]:
    """Transfer functions of several distances, after a look at their sampling."""
    for z in dict.fromkeys(distances):
        report = propagation_report(grid, z, pad)
        error = report.errors.get(report.method if method == "auto" else method, 0.0)
        message = f"propagation by {method} over {z * 1e3:.4g} mm on {grid.shape} pixels with pad {pad:g} errs by about {error:.1%}"
        if error > TOLERABLE:
            raise SamplingError(message, 'raise pad, or use method="auto"; see diffract check')
        if error > VISIBLE:
            warnings.warn(message, SamplingWarning, stacklevel=3)
    known = {z: transfer_function(grid, z, method, pad) for z in dict.fromkeys(distances)}
    return jnp.asarray(np.stack([known[z] for z in distances]))


def diffused(
    field: Complex[Array, "B H W"], diffusers: Inexact[Array, "n h w"] | Inexact[np.ndarray, "n h w"]
) -> Complex[Array, "B n H W"]:
    """Every field behind every diffuser.

    Args:
        field: before the diffuser.
        diffusers: phase, rad.

    Raises:
        ShapeError: diffusers of another shape, or complex ones where a phase is meant.
    """
    if diffusers.shape[-2:] != field.shape[-2:] or diffusers.ndim != 3 or jnp.iscomplexobj(diffusers):
        raise ShapeError(
            f"diffusers must be real phases [n, {field.shape[-2]}, {field.shape[-1]}], got {diffusers.dtype} of shape "
            f"{diffusers.shape}"
        )
    return _behind(field, diffusers)


@jax.jit
def _behind(field: Array, diffusers: Array) -> Array:
    return field[:, None] * jnp.exp(1j * diffusers)


@functools.partial(jax.jit, static_argnums=(4, 5))
def intensity(
    phases: Phases,
    transfers: Complex[Array, "4 P Q"],
    field: Inexact[Array, "... H W"],
    displacement: Displacement | None,
    grid: Grid,
    pad: float | int,
) -> Float[Array, "... H W"]:
    """What `DiffractiveNetwork` computes, as a function of its arrays."""
    layers, path = jnp.exp(1j * phases), paths(transfers, len(phases), displacement, grid.padded(pad))

    def image(samples: Array) -> Array:
        last = fields_behind(layers, path, samples, displacement, grid, pad)[-1]
        return last.real**2 + last.imag**2

    return sample_by_sample(image, jnp.asarray(field))


def paths(
    transfers: Complex[Array, "4 P Q"], n_layers: int, displacement: Displacement | None, window: Grid
) -> list[Complex[Array, "P Q"]]:
    """Transfer functions from the diffuser to the first layer, ..., to the output."""
    first, between, last = transfers[1:]
    path = [first, *[between] * (n_layers - 1), last]
    return path if displacement is None else displaced_transfers(path, displacement, window)


def fields_behind(
    layers: Complex[Array, "M H W"],
    path: list[Complex[Array, "P Q"]],
    field: Inexact[Array, "... H W"],
    displacement: Displacement | None,
    grid: Grid,
    pad: float | int,
) -> list[Complex[Array, "... H W"]]:
    """The field behind every layer, then that on the output plane.

    Args:
        layers: transmittances.
        path: from `paths`.
        field: behind the diffuser.
        displacement: of the layers; shifts are in the path already.
        grid: of the planes.
        pad: of the propagations.
    """
    behind = []
    for m, layer in enumerate(layers):
        field = propagate(field, path[m])
        if displacement is not None and displacement.rotation is not None:
            layer = turned(layer, displacement.rotation[m])
        if displacement is not None and displacement.tilt is not None:
            field = through_tilted(field, layer, displacement.tilt[m], grid, grid.padded(pad))
        else:
            field = field * layer
        behind.append(field)
    return [*behind, propagate(field, path[-1])]
