"""The loss around a trained network, along directions that are as long as its filters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from core_utils.errors import UserError
from snn_tet.encoding import Encoding, sequence
from snn_tet.losses import sdt_loss

Loss = Callable[[Tensor, Tensor], Tensor]
"""From outputs [T, B, K] and targets to the batch's mean loss."""
Direction = dict[str, Tensor]
"""A displacement of each filter, by the parameter's name; parameters that are left out stay where they are."""


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
    if n < 1:
        raise UserError(f"n must be at least 1, got {n}")
    first, second = random_directions(model, 2, seed)
    places = np.linspace(-span, span, n) if n > 1 else np.zeros(1)
    at = partial(loss_at, model, list(loader), loss=loss, encoding=encoding, time_steps=time_steps)
    return np.array([[at(displacement=((first, a), (second, b))) for b in places] for a in places])


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
    at = partial(loss_at, model, list(loader), loss=loss, encoding=encoding, time_steps=time_steps)
    there = [
        at(displacement=((direction, sign * radius),))
        for direction in random_directions(model, directions, seed)
        for sign in (-1, 1)
    ]
    return float(np.mean(there)) - at(displacement=())


def random_directions(model: nn.Module, count: int, seed: int) -> list[Direction]:
    """Gaussian directions, each filter rescaled to the norm of the network's; biases and normalisation stay."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: value.detach() for name, value in model.named_parameters() if value.ndim > 1}
    return [{name: _like(value, generator) for name, value in weights.items()} for _ in range(count)]


@torch.no_grad()
def loss_at(
    model: nn.Module,
    batches: Iterable[Any],
    displacement: Sequence[tuple[Direction, float]],
    loss: Loss = sdt_loss,
    *,
    encoding: Encoding = "frames",
    time_steps: int | None = None,
) -> float:
    """The mean loss over all samples with the weights displaced by so much along each direction."""
    device, total, samples = next(model.parameters()).device, 0.0, 0
    with _displaced(model, displacement):
        for frames, labels in batches:
            total += loss(model(sequence(frames.to(device), encoding, time_steps)), labels.to(device)).item() * len(
                labels
            )
            samples += len(labels)
    if samples == 0:
        raise UserError("there is nothing to evaluate on: the loader is empty")
    return total / samples


def _like(weight: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction of each filter, as long as the filter."""
    direction = torch.randn(weight.shape, generator=generator).to(weight)
    norms = (weight.flatten(1).norm(dim=1), direction.flatten(1).norm(dim=1))
    return direction * (norms[0] / norms[1]).view(-1, *[1] * (weight.ndim - 1))


@contextmanager
def _displaced(model: nn.Module, displacement: Sequence[tuple[Direction, float]]) -> Iterator[None]:
    """The model in evaluation mode at the displaced weights; back as it was afterwards, whatever happens."""
    training, parameters = model.training, dict(model.named_parameters())
    kept = {name: parameters[name].detach().clone() for direction, _ in displacement for name in direction}
    model.eval()
    try:
        for direction, length in displacement:
            for name, step in direction.items():
                parameters[name].add_(step, alpha=length)
        yield
    finally:
        for name, value in kept.items():
            parameters[name].copy_(value)
        model.train(training)
