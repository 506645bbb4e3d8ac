"""How alike an image is to its object, and what light outside of it costs."""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Images: TypeAlias = Float[Array, "... H W"] | Float[np.ndarray, "... H W"]
Scalar: TypeAlias = float | int | Float[Array, ""]
PIXELS = (-2, -1)


def pcc(output: Images, target: Images) -> Float[Array, ...]:
    """Pearson's correlation of each image with its target over all pixels; leading axes broadcast.

    Each is divided by its largest value first, so that dim images (intensities of 1e-6) lose nothing; the correlation does
    not depend on scale, hence no gradient flows through that. NaN where either is constant.

    Reference: Luo et al. 2022, eq. 6.
    """
    centred = []
    for image in (output, target):
        image = jnp.asarray(image)
        largest = jnp.abs(image).max(PIXELS, keepdims=True)
        scaled = image / jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1))
        centred.append(scaled - scaled.mean(PIXELS, keepdims=True))
    o, g = centred
    return (o * g).sum(PIXELS) / jnp.sqrt((o * o).sum(PIXELS) * (g * g).sum(PIXELS))


def energy_penalty(
    output: Images, target: Images, alpha: Scalar = 1.0, beta: Scalar = 0.5, threshold: Scalar = 0.0
) -> Float[Array, ...]:
    """Light beside the object minus light on it, over the object's area.

    Args:
        output: intensity.
        target: amplitude of the object.
        alpha: weight of the light beside it.
        beta: weight of the light on it.
        threshold: amplitude above which a pixel belongs to the object.

    Reference: Luo et al. 2022, eq. 7. It depends on the input's power; `pcc` does not.
    """
    mask = (jnp.asarray(target) > threshold).astype(output.dtype)
    cost = (alpha * (1 - mask) - beta * mask) * output
    return cost.sum(PIXELS) / jnp.maximum(mask.sum(PIXELS), 1)


def imaging_loss(
    output: Images, target: Images, alpha: Scalar = 1.0, beta: Scalar = 0.5, threshold: Scalar = 0.0
) -> Float[Array, ""]:
    """Mean over all images of minus the correlation plus the penalty."""
    return (energy_penalty(output, target, alpha, beta, threshold) - pcc(output, target)).mean()
