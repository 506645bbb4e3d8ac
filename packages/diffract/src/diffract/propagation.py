"""Free space as an operator on fields, with a transpose of its own.

The operator is C F' H F Z (pad, transform, multiply, transform back, crop), so its transpose, which is what JAX asks for, is
C F H F' Z: the same steps with the two transforms exchanged. Nothing but the input and H is kept for it, and the input is
needed only where H itself is differentiated; compiled code drops it otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Inexact

from diffract.errors import ShapeError

PRUNED_FROM = 300**2
"""Pixels of a window from which leaving out empty rows saves more than the two transpositions that it takes."""

Fieldlike: TypeAlias = Inexact[Array, "... H W"] | Inexact[np.ndarray, "... H W"]
Transfer: TypeAlias = Complex[Array, "P Q"] | Complex[np.ndarray, "P Q"]


def propagate(field: Fieldlike, transfer: Transfer) -> Complex[Array, "... H W"]:
    """The field behind a stretch of free space.

    Args:
        field: real or complex; any leading axes.
        transfer: from `transfer_function`, on the padded grid.

    Returns:
        The field on the same window; complex64, or complex128 where the field is of double precision.

    Raises:
        ShapeError: a transfer function that is smaller than the field.
        ValueError: a field that is not finite (outside of compiled functions).
    """
    H, W = field.shape[-2:]
    P, Q = transfer.shape
    if H > P or W > Q:
        raise ShapeError(f"a field of shape {field.shape} does not fit into a transfer function of shape {(P, Q)}")
    if not isinstance(field, jax.core.Tracer) and not np.isfinite(np.asarray(field)).all():
        raise ValueError("the field holds numbers that are not finite")
    return _propagated(field, transfer)


def sample_by_sample(function: Callable[[Array], Any], field: Array) -> Any:
    """A function of [B, H, W] applied to all leading axes of a field; on a CPU one sample after the other.

    A sample and its transforms then stay within the processor's caches, and memory does not grow with their number.
    """

    def in_turn(samples: Array) -> Any:
        return lax.map(lambda each: jax.tree.map(lambda out: out[0], function(each[None])), samples)

    samples = field.reshape(-1, *field.shape[-2:])
    alone = len(samples) == 1
    found = function(samples) if alone else lax.platform_dependent(samples, cpu=in_turn, default=function)
    return jax.tree.map(lambda out: out.reshape(field.shape[:-2] + out.shape[1:]), found)


@jax.jit
def _propagated(field: Array, transfer: Array) -> Array:
    dtype = jnp.result_type(field, jnp.complex64)
    transfer = transfer.astype(dtype)
    return sample_by_sample(lambda samples: _through(samples, transfer), field.astype(dtype))


@jax.custom_vjp
def _through(field: Complex[Array, "B H W"], transfer: Complex[Array, "P Q"]) -> Complex[Array, "B H W"]:
    return _passed(field, transfer, ("FFT", "IFFT"))


def _forward(field: Array, transfer: Array) -> tuple[Array, tuple[Array, Array]]:
    return _through(field, transfer), (field, transfer)


def _backward(kept: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    field, transfer = kept
    widths = [(0, 0), *((0, wide - side) for wide, side in zip(transfer.shape, field.shape[1:], strict=True))]
    spectrum = jnp.fft.fft2(jnp.pad(field, widths))
    returned = jnp.fft.ifft2(jnp.pad(cotangent, widths))
    return _passed(cotangent, transfer, ("IFFT", "FFT")), (spectrum * returned).sum(0)


_through.defvjp(_forward, _backward)


def _passed(field: Array, transfer: Array, kinds: tuple[str, str]) -> Array:
    """The operator, or with exchanged kinds its transpose."""
    H, W = field.shape[-2:]
    P, Q = transfer.shape
    if transfer.size >= PRUNED_FROM:
        return _pruned(field, transfer, kinds)
    padded = jnp.pad(field, [(0, 0), (0, P - H), (0, Q - W)])
    spectrum = lax.fft(padded, kinds[0], (P, Q)) * transfer  # type: ignore[arg-type]
    return lax.fft(spectrum, kinds[1], (P, Q))[:, :H, :W]  # type: ignore[arg-type]


def _pruned(field: Array, transfer: Array, kinds: tuple[str, str]) -> Array:
    """The operator without the rows that padding fills and cropping throws away: three quarters of the transforms.

    Transforms run along the last axis, so the sides are exchanged in between; columns go first, because then the
    transfer function need not be turned over.
    """
    H, W = field.shape[-2:]
    P, Q = transfer.shape
    columns = _transformed(_turned(field), P, kinds[0])
    spectrum = _transformed(_turned(columns), Q, kinds[0]) * transfer
    rows = _transformed(spectrum, Q, kinds[1])[..., :W]
    return _turned(_transformed(_turned(rows), P, kinds[1])[..., :H])


def _transformed(values: Array, length: int, kind: Any) -> Array:
    """Along the last axis, filled up with zeros."""
    missing = length - values.shape[-1]
    if missing:
        values = jnp.concatenate([values, jnp.zeros((*values.shape[:-1], missing), values.dtype)], -1)
    return lax.fft(values, kind, (length,))


def _turned(values: Array) -> Array:
    """Sides exchanged, in memory too: compilers would join this with what follows and read across the rows."""
    return lax.optimization_barrier(jnp.swapaxes(values, -1, -2))
