"""What layers that are off their places do to the light, without interpolating fields.

A layer that is moved sees the field moved the other way: both are factors on the transfer functions before and behind it.
A layer that is turned is interpolated, once. A tilted layer is met at a distance that depends on the place: the field is
taken at a few distances and joined by polynomials.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Complex, Float

from diffract.geometries import Displacement
from diffract.grids import Grid
from diffract.propagation import propagate

NODES = 7
"""Distances at which a tilted layer meets the field; 7 leave 1e-3 at a tilt of one wavelength from axis to rim."""


def displaced_transfers(
    transfers: list[Complex[Array, "P Q"]], displacement: Displacement, window: Grid
) -> list[Complex[Array, "P Q"]]:
    """The M + 1 transfer functions between the planes, with every layer off its place.

    Args:
        transfers: from the diffuser to the first layer, ..., to the output.
        displacement: of the M layers; diffuser and output stay.
        window: the padded grid.
    """
    lateral, axial = jnp.asarray(displacement.lateral), jnp.asarray(displacement.axial)
    still = jnp.zeros((1, 2), lateral.dtype)
    places = jnp.concatenate([still, lateral, still])
    heights = jnp.concatenate([still[0, :1], axial, still[0, :1]])
    shifts, further = places[:-1] - places[1:], heights[1:] - heights[:-1]
    return [
        transfer * (_shifted(window, shifts[i]) * longer(window, further[i])) for i, transfer in enumerate(transfers)
    ]


def longer(window: Grid, z: Float[Array, ""] | float) -> Complex[Array, "P Q"]:
    """The factor that a further distance of a few wavelengths puts on a transfer function, differentiable in it.

    Backwards, evanescent waves keep their size: to let them grow would amplify rounding errors, and over a distance of
    wavelengths there are none left.
    """
    squared = window.medium_wavelength**-2 - window.fy[:, None] ** 2 - window.fx**2
    real = jnp.result_type(z, jnp.float32)
    frequency, rate = (jnp.asarray(np.sqrt(np.maximum(part, 0)), real) for part in (squared, -squared))
    turn = 2 * jnp.pi * frequency * z
    return jnp.exp(-2 * jnp.pi * rate * jnp.maximum(z, 0)) * (jnp.cos(turn) + 1j * jnp.sin(turn))


def _shifted(window: Grid, shift: Float[Array, " 2"]) -> Complex[Array, "P Q"]:
    along_y, along_x = (
        jnp.exp(-2j * jnp.pi * jnp.asarray(f, shift.dtype) * s)
        for f, s in zip((window.fy, window.fx), shift, strict=True)
    )
    return along_y[:, None] * along_x


def turned(transmittance: Complex[Array, "H W"], angle: Float[Array, ""]) -> Complex[Array, "H W"]:
    """A layer turned about its middle, interpolated bilinearly; outside of it lies a layer of phase 0.

    Args:
        transmittance: of the layer.
        angle: rad, from x towards y.
    """
    H, W = transmittance.shape
    y, x = jnp.meshgrid(jnp.arange(H) - (H - 1) / 2, jnp.arange(W) - (W - 1) / 2, indexing="ij")
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    places = [cos * y - sin * x + (H - 1) / 2, sin * y + cos * x + (W - 1) / 2]
    real, imaginary = (
        map_coordinates(part, places, order=1, mode="constant", cval=fill)
        for part, fill in ((transmittance.real, 1.0), (transmittance.imag, 0.0))
    )
    return real + 1j * imaginary


def through_tilted(
    field: Complex[Array, "... H W"],
    transmittance: Complex[Array, "H W"],
    tilt: Float[Array, " 2"],
    grid: Grid,
    window: Grid,
) -> Complex[Array, "... H W"]:
    """The field behind a tilted layer, in the plane in which the layer should lie.

    Args:
        field: in that plane, before the layer.
        transmittance: of the layer.
        tilt: about the x and the y axis, rad; small.
        grid: of the field.
        window: the padded grid.
    """
    height = tilt[0] * grid.y[:, None] + tilt[1] * grid.x
    reach = jnp.maximum(jnp.abs(height).max(), 1e-12)
    nodes = np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES)
    wavenumber = 2 * np.pi / window.medium_wavelength
    tilted, place = jnp.zeros_like(field), height / reach
    # The fastest part of the phase is taken off before polynomials join the planes, and put back behind them.
    weights = [
        jnp.prod(jnp.stack([(place - other) / (node - other) for other in nodes if other != node]), 0)
        * jnp.exp(1j * wavenumber * (height - node * reach))
        for node in nodes
    ]
    for node, weight in zip(nodes, weights, strict=True):
        tilted += weight * propagate(field, longer(window, node * reach))
    modulated, behind = tilted * transmittance, jnp.zeros_like(field)
    for node, weight in zip(nodes, weights, strict=True):
        behind += propagate(weight.conj() * modulated, longer(window, -node * reach))
    return behind
