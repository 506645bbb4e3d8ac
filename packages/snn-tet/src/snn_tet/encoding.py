"""How a loader's batch becomes the sequence that a network sees."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Shaped
from torch import Tensor

from core_utils.errors import UserError
from core_utils.spiking.layout import time_first

Encoding = Literal["frames", "direct"]
"""Batches hold frames [B, T, ...], or still images [B, ...] that are shown at every step."""


def sequence(
    batch: Shaped[Tensor, "*shape"], encoding: Encoding = "frames", time_steps: int | None = None
) -> Shaped[Tensor, "T B *item"]:
    """The batch as [T, B, ...]; nothing is copied.

    Args:
        batch: frames [B, T, ...] or, with direct encoding, still images [B, ...].
        encoding: which of the two.
        time_steps: run so many steps, the first ones of the frames; None runs all frames.

    Returns:
        A view. That of still images has stride 0 over time, by which a network knows that its first layer need be
        computed but once.

    Raises:
        UserError: more steps than frames, or none given for still images.
    """
    if time_steps is not None and time_steps < 1:
        raise UserError(f"the number of time steps must be at least 1, got {time_steps}")
    if encoding == "direct":
        if time_steps is None:
            raise UserError("still images need a number of time steps")
        return batch.expand(time_steps, *batch.shape)
    x_seq = time_first(batch)
    if time_steps is not None and time_steps > len(x_seq):
        raise UserError(f"{time_steps} time steps were asked for, the data has {len(x_seq)}")
    return x_seq[:time_steps]
