"""A resize as two small sets of taps, one for each side: the exact value before any library rounds it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8


@dataclass(frozen=True)
class Taps:
    """For each output, the inputs it reads and how much of each.

    Attributes:
        index: of the inputs, within the image; shape (n_out, taps).
        weight: of the inputs, each row of sum 1; shape (n_out, taps).
    """

    index: Int[np.ndarray, "n_out taps"]
    weight: Float[np.ndarray, "n_out taps"]


def interpolate(image: UInt8[np.ndarray, "h w c"], rows: Taps, columns: Taps) -> Float[np.ndarray, "p q c"]:
    """Applies both sets of taps in float64, neither rounded nor clipped."""
    wide = np.einsum("hqtc,qt->hqc", image[:, columns.index].astype(np.float64), columns.weight)
    return np.einsum("ptqc,pt->pqc", wide[rows.index], rows.weight)


def to_uint8(values: Float[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
    """Rounds half up and clips."""
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)
