"""The loss around a trained network, along directions that are as long as its filters."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from core_utils.errors import UserError

BatchLoss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From the network, a batch's frames [B, T, ...] and its labels to the batch's mean loss."""
Direction = dict[str, Tensor]
"""A displacement of each filter, by the parameter's name; parameters that are left out stay where they are."""


def loss_landscape(
    model: nn.Module, loader: Iterable[Any], loss: BatchLoss, span: float | int = 1.0, n: int = 21, seed: int = 0
) -> Float[np.ndarray, "n n"]:
    """The loss on a plane through the weights, spanned by two random directions.

    Args:
        model: evaluated with its running averages; its weights are what they were afterwards, to the bit.
        loader: batches (frames [B, T, ...], labels [B]), run through once for each point.
        loss: what is evaluated.
        span: the plane reaches from -span to span in both directions; 1 displaces each filter by its own norm.
        n: points along each direction; an odd number puts the network itself in the middle.
        seed: decides the directions.

    Returns:
        Losses, float64 [n, n]; the first axis is the first direction.

    Raises:
        UserError: n below 1, or nothing to evaluate on.

    Reference: Li et al. 2018 (filter normalisation).
    """
    if n < 1:
        raise UserError(f"n must be at least 1, got {n}")
    first, second = random_directions(model, 2, seed)
    places, batches = np.linspace(-span, span, n) if n > 1 else np.zeros(1), list(loader)
    return np.array([[loss_at(model, batches, loss, ((first, a), (second, b))) for b in places] for a in places])


def loss_rise(
    model: nn.Module,
    loader: Iterable[Any],
    loss: BatchLoss,
    radius: float | int = 0.5,
    *,
    directions: int = 10,
    seed: int = 0,
) -> float:
    """How much the loss rises, on average, when the weights are displaced in random directions; small is flat.

    Args:
        model: as for `loss_landscape`.
        loader: batches (frames [B, T, ...], labels [B]).
        loss: what is evaluated.
        radius: length of the displacement of each filter, in its own norm.
        directions: how many, each taken both ways.
        seed: decides them.

    Raises:
        UserError: nothing to evaluate on.
    """
    batches = list(loader)
    there = [
        loss_at(model, batches, loss, ((direction, sign * radius),))
        for direction in random_directions(model, directions, seed)
        for sign in (-1, 1)
    ]
    return float(np.mean(there)) - loss_at(model, batches, loss, ())


def random_directions(model: nn.Module, count: int, seed: int) -> list[Direction]:
    """Gaussian directions, each filter rescaled to the norm of the network's; biases and normalisation stay."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: value.detach() for name, value in model.named_parameters() if value.ndim > 1}
    return [{name: _like(value, generator) for name, value in weights.items()} for _ in range(count)]


@torch.no_grad()
def loss_at(
    model: nn.Module, batches: Iterable[Any], loss: BatchLoss, displacement: Sequence[tuple[Direction, float | int]]
) -> float:
    """The mean loss over all samples with the weights displaced by so much along each direction.

    Raises:
        UserError: there is no batch.
    """
    device, total, samples = next(model.parameters()).device, 0.0, 0
    with _displaced(model, displacement):
        for frames, labels in batches:
            total += loss(model, frames.to(device), labels.to(device)).item() * len(labels)
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
def _displaced(model: nn.Module, displacement: Sequence[tuple[Direction, float | int]]) -> Iterator[None]:
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
