"""The loss around a trained network, along directions that are as long as its filters (`core_utils.spiking.landscape`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from core_utils.spiking import landscape
from core_utils.spiking.layout import time_first
from core_utils.spiking.networks import class_scores


def loss_landscape(
    model: nn.Module, loader: Iterable[Any], span: float | int = 1.0, n: int = 21, seed: int = 0
) -> Float[np.ndarray, "n n"]:
    """The cross-entropy on a plane through the weights, spanned by two random directions.

    Args:
        model: from frames [T, B, C, H, W] to outputs [T, B, K]; evaluated with its running averages, its weights are
            what they were afterwards, to the bit.
        loader: batches (frames [B, T, C, H, W], labels [B]), run through once for each point.
        span: the plane reaches from -span to span in both directions; 1 displaces each filter by its own norm.
        n: points along each direction; an odd number puts the network itself in the middle.
        seed: decides the directions.

    Returns:
        Losses, nats, float64 [n, n]; the first axis is the first direction.

    Raises:
        UserError: n below 1, or nothing to evaluate on.

    Reference: Li et al. 2018 (filter normalisation); arXiv 2203.06145, loss landscape figure.
    """
    return landscape.loss_landscape(model, loader, _cross_entropy, span, n, seed)


def loss_rise(
    model: nn.Module, loader: Iterable[Any], radius: float | int = 0.5, *, directions: int = 10, seed: int = 0
) -> float:
    """How much the cross-entropy rises, on average, when the weights are displaced at random; small is flat.

    Args:
        model: as for `loss_landscape`.
        loader: batches (frames [B, T, C, H, W], labels [B]).
        radius: length of the displacement of each filter, in its own norm.
        directions: how many, each taken both ways.
        seed: decides them.

    Returns:
        Nats.
    """
    return landscape.loss_rise(model, loader, _cross_entropy, radius, directions=directions, seed=seed)


def _cross_entropy(model: nn.Module, frames: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(class_scores(model(time_first(frames))), labels)
