"""The gradient of a training step: pair after pair of object and diffuser, divided among devices."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Complex, Float, Int

from diffract.geometries import Displacement
from diffract.grids import Grid
from diffract.losses import energy_penalty, pcc
from diffract.networks import fields_behind, paths


class Weights(NamedTuple):
    """Of the loss; see `energy_penalty`."""

    alpha: Any = 1.0
    beta: Any = 0.5
    threshold: Any = 0.0


class Batch(NamedTuple):
    """What a step looks at.

    Attributes:
        fields: of the objects before the diffuser.
        targets: the objects.
        screens: the diffusers, rad.
        pairs: which object meets which diffuser.
    """

    fields: Complex[Array, "B H W"]
    targets: Float[Array, "B H W"]
    screens: Float[Array, "n H W"]
    pairs: Int[Array, "K 2"]


Figures: TypeAlias = tuple[Float[Array, ""], Float[Array, ""]]
"""Mean loss and mean correlation over the pairs."""


def gradient(
    phases: Float[Array, "M H W"],
    transfers: Complex[Array, "4 P Q"],
    batch: Batch,
    displacement: Displacement | None = None,
    weights: Weights = Weights(),  # noqa: B008 -- immutable
    *,
    grid: Grid,
    pad: float | int = 2,
    chunk: int = 1,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "M H W"], Figures]:
    """Gradient of the mean loss over a step's pairs with respect to the phases.

    Args:
        phases: of the layers, rad.
        transfers: of the network.
        batch: objects, diffusers and pairs.
        displacement: of the layers.
        weights: of the loss.
        grid: of the planes.
        pad: of the propagations.
        chunk: pairs at a time, a divisor of their number. Memory grows with it and not with the number of pairs; on a
            CPU 1 is also the fastest.
        mesh: of one axis, `pairs`, among whose devices the pairs are divided.

    Returns:
        The gradient, rad^-1, and the loss and correlation.
    """
    layers, pull = jax.vjp(lambda phases: jnp.exp(1j * phases), phases)
    path = paths(transfers, len(phases), displacement, grid.padded(pad))
    alone = functools.partial(_accumulated, weights=weights, grid=grid, pad=pad, chunk=chunk)
    over: Any = alone
    if mesh is not None and mesh.size > 1:

        def on_one_device(layers: Any, path: Any, batch: Batch, displacement: Any) -> Any:
            return jax.lax.pmean(alone(layers, path, batch, displacement), "pairs")

        whole: Any = PartitionSpec()
        divided: Any = PartitionSpec("pairs")
        parted = Batch(whole, whole, whole, divided)
        over = jax.shard_map(
            on_one_device, mesh=mesh, in_specs=(whole, whole, parted, whole), out_specs=whole, check_vma=False
        )
    total, figures = over(layers, path, batch, displacement)
    (found,) = pull(total)
    return found, figures


def _accumulated(
    layers: Array, path: list[Array], batch: Batch, displacement: Any, *, weights: Weights, grid: Grid, pad: float | int,
    chunk: int,
) -> tuple[Array, Figures]:  # fmt: skip
    """Mean over chunks of pairs, one after the other, of the gradient with respect to the transmittances."""
    diffusers = jnp.exp(1j * batch.screens)

    def loss(layers: Array, pairs: Array) -> tuple[Array, Array]:
        targets = batch.targets[pairs[:, 0]]
        field = batch.fields[pairs[:, 0]] * diffusers[pairs[:, 1]]
        last = fields_behind(layers, path, field, displacement, grid, pad)[-1]
        output = last.real**2 + last.imag**2
        alike = pcc(output, targets).mean()
        return energy_penalty(output, targets, *weights).mean() - alike, alike

    def add(total: Any, pairs: Array) -> tuple[Any, None]:
        (value, alike), found = jax.value_and_grad(loss, has_aux=True)(layers, pairs)
        return jax.tree.map(jnp.add, total, (found, (value, alike))), None

    chunks = batch.pairs.reshape(-1, chunk, 2)
    nothing = (jnp.zeros_like(layers), (jnp.zeros((), layers.real.dtype), jnp.zeros((), layers.real.dtype)))
    total, _ = jax.lax.scan(add, nothing, chunks)
    return jax.tree.map(lambda each: each / len(chunks), total)
