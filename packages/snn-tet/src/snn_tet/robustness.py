"""Accuracy when the input, the events or the weights are disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core_utils.errors import UserError
from snn_tet.encoding import Encoding
from snn_tet.evaluation import accuracy_vs_steps

Kind = Literal["input-noise", "event-drop", "weight-noise"]


def accuracy_under(
    model: nn.Module,
    loader: Iterable[Any],
    kind: Kind,
    levels: Sequence[float],
    *,
    seed: int = 0,
    max_steps: int | None = None,
    encoding: Encoding = "frames",
) -> list[dict[str, Any]]:
    """Accuracy over time steps at every level of a disturbance.

    Args:
        model: its weights are what they were afterwards, to the bit.
        loader: batches (frames [B, T, ...], labels [B]); run through once for each level.
        kind: "input-noise" adds Gaussian noise of standard deviation `level` to every value; "event-drop" sets values
            to 0 with probability `level`; "weight-noise" adds Gaussian noise of `level` times the standard deviation of
            each weight tensor.
        levels: of the disturbance.
        seed: decides the noise, the same for every level but for its size.
        max_steps: run so many steps; None runs all frames.
        encoding: "frames" or "direct".

    Returns:
        For each level `level`, and `prefix` and `single` as `accuracy_vs_steps` gives them.

    Raises:
        UserError: an unknown kind, or a level outside its range.

    Reference: arXiv 2202.11946 reports robustness to noise; the levels are the caller's.
    """
    if kind not in ("input-noise", "event-drop", "weight-noise"):
        raise UserError(f"kind must be input-noise, event-drop or weight-noise, got {kind!r}")
    for level in levels:
        if not 0 <= level <= (1 if kind == "event-drop" else float("inf")):
            raise UserError(f"a level of {kind} cannot be {level}")
    results = []
    for level in levels:
        generator = torch.Generator().manual_seed(seed)
        if kind == "weight-noise":
            with _noisy_weights(model, level, generator):
                accuracy = accuracy_vs_steps(model, loader, max_steps, encoding=encoding)
        else:
            disturb = add_noise if kind == "input-noise" else drop_events
            accuracy = accuracy_vs_steps(
                model, _disturbed(loader, disturb, level, generator), max_steps, encoding=encoding
            )
        results.append({"level": level, **accuracy})
    return results


def add_noise(frames: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """The frames with Gaussian noise of a standard deviation."""
    return frames + deviation * torch.randn(frames.shape, generator=generator).to(frames)


def drop_events(frames: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """The frames with each value set to 0 with a probability."""
    return frames * (torch.rand(frames.shape, generator=generator) >= probability).to(frames)


def _disturbed(
    loader: Iterable[Any], disturb: Callable[..., Tensor], level: float, generator: torch.Generator
) -> Iterator[Any]:
    for frames, labels in loader:
        yield disturb(frames, level, generator), labels


@contextmanager
def _noisy_weights(model: nn.Module, level: float, generator: torch.Generator) -> Iterator[None]:
    """The model with noise on its weight tensors; back as it was afterwards, whatever happens."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    kept = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.add_(
                    torch.randn(weight.shape, generator=generator).to(weight), alpha=level * weight.std().item()
                )
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
