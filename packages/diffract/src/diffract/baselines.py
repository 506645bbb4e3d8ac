"""What a trained network is held against: free space, a lens, and refocusing what no diffuser has disturbed."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from diffract.errors import ConfigError
from diffract.geometries import Geometry
from diffract.grids import Grid
from diffract.networks import stacked_transfers
from diffract.propagation import propagate, sample_by_sample
from diffract.transfer import transfer_function


@dataclass(frozen=True, eq=False)
class Baseline:
    """Free space, one thin element, free space.

    Attributes:
        name: for tables.
        to_diffuser: from the object, [P, Q].
        to_element: from the diffuser, [P, Q].
        element: its transmittance, [H, W]; None for none.
        to_output: from the element, [P, Q]; None where the element is the output plane.
        inverted: the image stands on its head and is turned back.
    """

    name: str
    to_diffuser: Complex[Array, "P Q"]
    to_element: Complex[Array, "P Q"]
    element: Complex[Array, "H W"] | None = None
    to_output: Complex[Array, "P Q"] | None = None
    inverted: bool = False

    def illuminated(self, objects: Float[Array, "B H W"] | Float[np.ndarray, "B H W"]) -> Complex[Array, "B H W"]:
        """What amplitude objects in a plane wave send to the diffuser."""
        return propagate(objects, self.to_diffuser)

    def __call__(self, field: Complex[Array, "... H W"]) -> Float[Array, "... H W"]:
        """The intensity on the output plane."""
        return _image(field, self.to_element, self.element, self.to_output, self.inverted)


@functools.partial(jax.jit, static_argnums=4)
def _image(field: Array, to_element: Array, element: Array | None, to_output: Array | None, inverted: bool) -> Array:
    def image(samples: Array) -> Array:
        samples = propagate(samples, to_element)
        if element is not None:
            samples = samples * element
        if to_output is not None:
            samples = propagate(samples, to_output)
        seen = samples.real**2 + samples.imag**2
        return jnp.roll(seen[..., ::-1, ::-1], _axis_shift(seen.shape), (-2, -1)) if inverted else seen

    return sample_by_sample(image, field)


def free_space(grid: Grid, geometry: Geometry, *, pad: float | int = 2) -> Baseline:
    """The same distances without layers."""
    first, second = stacked_transfers(grid, (geometry.object_to_diffuser, geometry.depth), "auto", pad)
    return Baseline("free space", first, second)


def lens(
    grid: Grid,
    geometry: Geometry,
    *,
    kind: Literal["hyperbolic", "paraxial"] = "hyperbolic",
    focal_length: float | int | None = None,
    pupil: float | int | None = None,
    pad: float | int = 2,
) -> Baseline:
    """A thin lens two focal lengths behind the object, two before the output; its image is turned upright.

    Args:
        grid: of every plane.
        geometry: its whole length is four focal lengths, unless one is given.
        kind: "hyperbolic" images the axial point without aberration, "paraxial" has the parabolic phase.
        focal_length: m; the paper's is 145.6 wavelengths.
        pupil: diameter, m; that of the grid unless given. The paper's is 104 wavelengths.
        pad: width of the propagations' windows, in grids.

    Raises:
        ConfigError: a lens that would stand before the diffuser.
    """
    total = geometry.object_to_diffuser + geometry.depth
    f = total / 4 if focal_length is None else focal_length
    if not 2 * f > geometry.object_to_diffuser:
        raise ConfigError(
            f"focal_length {f:.4g} m puts the lens before the diffuser", "it stands 2 f behind the object"
        )
    diameter = min(grid.extent) if pupil is None else pupil
    squared = grid.y[:, None] ** 2 + grid.x**2
    exact = 2 * (np.sqrt(squared + 4 * f**2) - 2 * f)
    path = exact if kind == "hyperbolic" else squared / (2 * f)
    element = np.exp(-2j * np.pi * path / grid.medium_wavelength) * (squared <= diameter**2 / 4)
    distances = (geometry.object_to_diffuser, 2 * f - geometry.object_to_diffuser, 2 * f)
    first, second, third = stacked_transfers(grid, distances, "auto", pad)
    return Baseline(f"{kind} lens", first, second, jnp.asarray(element, jnp.complex64), third, inverted=True)


def refocus(grid: Grid, geometry: Geometry, *, pad: float | int = 2) -> Baseline:
    """The field at the diffuser propagated back to the object: a ceiling where there is no diffuser."""
    (there,) = stacked_transfers(grid, (geometry.object_to_diffuser,), "auto", pad)
    back = transfer_function(grid, -geometry.object_to_diffuser, "auto", pad)
    return Baseline("refocus", there, jnp.asarray(back))


def _axis_shift(shape: tuple[int, ...]) -> tuple[int, int]:
    """Turning an even number of pixels about the axis, which lies on pixel [n // 2], leaves the first one over."""
    return (1 - shape[-2] % 2, 1 - shape[-1] % 2)
