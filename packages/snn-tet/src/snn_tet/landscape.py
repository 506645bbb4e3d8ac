"""The loss around a trained network, along directions that are as long as its filters (`core_utils.spiking.landscape`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from core_utils.spiking import landscape
from snn_tet.encoding import Encoding, sequence
from snn_tet.losses import sdt_loss

Loss = Callable[[Tensor, Tensor], Tensor]
"""From outputs [T, B, K] and targets to the batch's mean loss."""


def loss_landscape(
    model: nn.Module,
    loader: Iterable[Any],
    span: float = 1.0,
    n: int = 21,
    seed: int = 0,
    *,
    loss: Loss = sdt_loss,
    encoding: Encoding = "frames",
    time_steps: int | None = None,
) -> Float[np.ndarray, "n n"]:
    """The loss on a plane through the weights, spanned by two random directions.

    Args:
        model: evaluated with its running averages; its weights are what they were afterwards, to the bit.
        loader: batches (frames [B, T, ...], labels [B]), run through once for each point.
        span: the plane reaches from -span to span in both directions; 1 displaces each filter by its own norm.
        n: points along each direction; an odd number puts the network itself in the middle.
        seed: decides the directions.
        loss: what is evaluated.
        encoding: "frames", or "direct" for still images [B, ...], which need `time_steps`.
        time_steps: run so many steps; None runs all frames.

    Returns:
        Losses, float64 [n, n]; the first axis is the first direction.

    Raises:
        UserError: n below 1, or nothing to evaluate on.

    Reference: Li et al. 2018 (filter normalisation); arXiv 2202.11946, loss landscape figure.
    """
    return landscape.loss_landscape(model, loader, batch_loss(loss, encoding, time_steps), span, n, seed)


def loss_rise(
    model: nn.Module,
    loader: Iterable[Any],
    radius: float = 0.5,
    *,
    directions: int = 10,
    seed: int = 0,
    loss: Loss = sdt_loss,
    encoding: Encoding = "frames",
    time_steps: int | None = None,
) -> float:
    """How much the loss rises, on average, when the weights are displaced in random directions; small is flat.

    Args:
        model: as for `loss_landscape`.
        loader: batches (frames [B, T, ...], labels [B]).
        radius: length of the displacement of each filter, in its own norm.
        directions: how many, each taken both ways.
        seed: decides them.
        loss: what is evaluated.
        encoding: as for `loss_landscape`.
        time_steps: as for `loss_landscape`.
    """
    evaluated = batch_loss(loss, encoding, time_steps)
    return landscape.loss_rise(model, loader, evaluated, radius, directions=directions, seed=seed)


def batch_loss(loss: Loss, encoding: Encoding = "frames", time_steps: int | None = None) -> landscape.BatchLoss:
    """The loss of a batch as `core_utils.spiking.landscape` takes it."""

    def evaluated(model: nn.Module, frames: Tensor, labels: Tensor) -> Tensor:
        return loss(model(sequence(frames, encoding, time_steps)), labels)

    return evaluated
