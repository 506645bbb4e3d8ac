"""How good a quantised model is, how close to the float one, and how flat the minimum is that it lies in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from qdrop.errors import QDropError

Metric = Callable[[Any, Tensor], Any]
"""From a batch's outputs and labels to the batch's mean, a number."""


@dataclass(frozen=True)
class FlatnessRow:
    """The model with its weights displaced once.

    Attributes:
        magnitude: length of the displacement of each output channel, in the channel's own norm.
        direction: number of the random direction, from 0.
        loss: in nats: with labels the cross-entropy, without the Kullback-Leibler divergence from the float model.
        agreement: share of samples whose top class is the label, or without labels the float model's.
    """

    magnitude: float
    direction: int
    loss: float
    agreement: float


@torch.no_grad()
def evaluate(model: nn.Module, loader: Iterable[Any], metric: str | Metric = "top1") -> float:
    """A figure of merit over labelled samples.

    Args:
        model: a float or a quantised model; its mode is what it was afterwards, its device stays.
        loader: batches (inputs, labels), or dictionaries with `labels` among the keywords.
        metric: "top1" is the accuracy, a fraction; else `metric(outputs, labels)` gives a batch's mean.

    Returns:
        Mean over all samples, whatever the sizes of the batches.

    Raises:
        QDropError: no batch, a batch without labels, or outputs for which there is no top class.
    """
    if isinstance(metric, str):
        if metric != "top1":
            raise QDropError(f'metric must be "top1" or a function of outputs and labels, got {metric!r}')
        metric = _top1
    mean = _Mean()
    with _evaluating(model):
        for inputs, labels in _batches(loader, model):
            if labels is None:
                raise QDropError("the samples to evaluate on have no labels", "yield (inputs, labels)")
            mean.add(float(metric(_run(model, inputs), labels)), len(labels))
    return mean.value


@dataclass(frozen=True)
class Closeness:
    """How close a model is to another one.

    Attributes:
        agreement: share of samples that get the same top class; None where outputs are no class scores.
        sqnr_db: power of the reference's outputs over that of the difference, in decibels.
    """

    agreement: float | None
    sqnr_db: float


@torch.no_grad()
def closeness(model: nn.Module, reference: nn.Module, loader: Iterable[Any]) -> Closeness:
    """Runs two models on the same samples, labelled or not, and compares all that they return.

    Args:
        model: for example the quantised model.
        reference: for example the float model, on the same device.
        loader: batches: inputs, or (inputs, labels).

    Raises:
        QDropError: no batch, or the models return no tensors.
    """
    signal = noise = 0.0
    agreed: _Mean | None = _Mean()
    with _evaluating(model), _evaluating(reference):
        for inputs, _ in _batches(loader, model):
            wanted, found = _run(reference, inputs), _run(model, inputs)
            for pair in zip(_floats(wanted), _floats(found), strict=True):
                powers = _powers(*pair)
                signal, noise = signal + powers[0], noise + powers[1]
            if agreed is not None and _has_classes(wanted):
                classes = _scores(wanted).argmax(-1)
                agreed.add(float(_share_right(_scores(found), classes)), len(classes))
            else:
                agreed = None
    return Closeness(None if agreed is None else agreed.value, _decibels(signal, noise))


def agreement(model: nn.Module, reference: nn.Module, loader: Iterable[Any]) -> float:
    """Share of samples to which two models give the same top class; see `closeness`.

    Raises:
        QDropError: no batch, or outputs for which there is no top class.
    """
    found = closeness(model, reference, loader).agreement
    if found is None:
        raise QDropError("the models' outputs have no top class", "measure their closeness by its sqnr_db")
    return found


def sqnr_db(reference: Float[Tensor, " ..."], output: Float[Tensor, " ..."]) -> float:
    """Power of the reference over that of the difference, in decibels; infinite where there is none.

    Args:
        reference: outputs of the float model.
        output: those of the quantised one, of the same shape.
    """
    return _decibels(*_powers(reference, output))


@torch.no_grad()
def flatness(
    model: nn.Module,
    qm: nn.Module,
    loader: Iterable[Any],
    magnitudes: Sequence[float] = (0.0, 0.05, 0.1, 0.15, 0.2),
    directions: int = 10,
    seed: int = 0,
) -> list[FlatnessRow]:
    """How fast a model gets worse when its weights leave their place in random directions; slowly is flat.

    Each direction is Gaussian and as long in every output channel as that channel's weight; the same directions are
    walked for all magnitudes. Biases and normalisation stay.

    Args:
        model: the float model; what `qm` is compared with where there are no labels.
        qm: the quantised model, or any other; its weights are what they were afterwards, to the bit.
        loader: batches (inputs, labels), or inputs alone; run through once for each point.
        magnitudes: how far to go, in norms of each channel.
        directions: how many.
        seed: decides them.

    Returns:
        A row a magnitude and direction, in this order.

    Raises:
        QDropError: no batch, no direction, or a magnitude below zero.

    Reference: arXiv 2203.05740, figure on flatness; Li et al. 2018 (filter normalisation).
    """
    if directions < 1 or any(not magnitude >= 0 for magnitude in magnitudes):
        raise QDropError(f"directions must be at least 1 and magnitudes at least 0, got {directions}, {magnitudes}")
    with _evaluating(model), _evaluating(qm):
        batches = [(inputs, labels, _scores(_run(model, inputs))) for inputs, labels in _batches(loader, qm)]
        weights = _weights(qm)
        found: dict[tuple[float, int], tuple[float, float]] = {}
        for direction in range(directions):
            steps = _directions(weights, seed, direction)
            for magnitude in magnitudes:
                with _displaced(weights, steps, magnitude):
                    found[magnitude, direction] = _loss(qm, batches)
    return [
        FlatnessRow(float(size), number, *found[size, number]) for size in magnitudes for number in range(directions)
    ]


class _Mean:
    """A mean over samples of means over batches."""

    def __init__(self) -> None:
        self._total, self._samples = 0.0, 0

    def add(self, mean: float, samples: int) -> None:
        self._total += mean * samples
        self._samples += samples

    @property
    def value(self) -> float:
        if self._samples == 0:
            raise QDropError("there is nothing to evaluate on: the loader is empty")
        return self._total / self._samples


def _loss(model: nn.Module, batches: Iterable[tuple[Any, Tensor | None, Tensor]]) -> tuple[float, float]:
    loss, right = _Mean(), _Mean()
    for inputs, labels, reference in batches:
        scores = _scores(_run(model, inputs)).float()
        if labels is None:
            wanted, target = reference.argmax(-1), reference.float().log_softmax(-1)
            value = functional.kl_div(scores.log_softmax(-1), target, reduction="batchmean", log_target=True)
        else:
            wanted, value = labels, functional.cross_entropy(scores, labels)
        loss.add(float(value), len(scores))
        right.add(float(_share_right(scores, wanted)), len(scores))
    return loss.value, right.value


def _weights(model: nn.Module) -> list[tuple[Tensor, int]]:
    """Every module's `weight` of two dimensions or more, parameter or buffer, with its axis of output channels."""
    found: dict[int, tuple[Tensor, int]] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() > 1 and weight.is_floating_point():
            inputs_first = isinstance(module, nn.modules.conv._ConvTransposeNd) or type(module).__name__ == "Conv1D"
            found.setdefault(weight.data_ptr(), (weight, int(inputs_first)))
    return list(found.values())


def _directions(weights: Sequence[tuple[Tensor, int]], seed: int, number: int) -> list[Tensor]:
    """One Gaussian direction of each weight; drawn on the CPU, so that all devices see the same."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    steps = []
    for weight, axis in weights:
        others = [each for each in range(weight.dim()) if each != axis]
        step = torch.randn(weight.shape, generator=generator).to(weight)
        norms = [torch.linalg.vector_norm(each, dim=others, keepdim=True) for each in (weight, step)]
        steps.append(step * (norms[0] / norms[1]))
    return steps


@contextmanager
def _displaced(weights: Sequence[tuple[Tensor, int]], steps: Sequence[Tensor], magnitude: float) -> Iterator[None]:
    """The weights displaced; put back from a copy, whatever happens: subtracting again would round."""
    kept = [weight.detach().clone() for weight, _ in weights]
    try:
        for (weight, _), step in zip(weights, steps, strict=True):
            weight.detach().add_(step, alpha=magnitude)
        yield
    finally:
        for (weight, _), value in zip(weights, kept, strict=True):
            weight.detach().copy_(value)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; every module back in its own mode afterwards, whatever happens."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _batches(loader: Iterable[Any], model: nn.Module) -> Iterator[tuple[Any, Tensor | None]]:
    """Inputs and labels, or None, on the model's device."""
    tensors = (*model.parameters(), *model.buffers())
    device = tensors[0].device if tensors else torch.device("cpu")

    def there(tree: Any) -> Any:
        return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, tree)

    for batch in loader:
        if isinstance(batch, Mapping):
            yield there({key: value for key, value in batch.items() if key != "labels"}), there(batch.get("labels"))
        elif isinstance(batch, (tuple, list)):
            inputs = batch[0] if len(batch) <= 2 else tuple(batch[:-1])
            yield there(inputs), there(batch[-1]) if len(batch) > 1 else None
        else:
            yield there(batch), None


def _run(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _powers(reference: Tensor, output: Tensor) -> tuple[float, float]:
    """Of the reference, and of the difference."""
    wanted = reference.double()
    return float(wanted.square().sum()), float((wanted - output.double()).square().sum())


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _floats(outputs: Any) -> list[Tensor]:
    """All tensors that a model returns, or the logits where it calls them so."""
    leaves = pytree.tree_leaves(getattr(outputs, "logits", outputs))
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not found:
        raise QDropError(f"the model returns no tensors of floating-point numbers, but a {type(outputs).__name__}")
    return found


def _has_classes(outputs: Any) -> bool:
    scores = getattr(outputs, "logits", outputs)
    return isinstance(scores, Tensor) and scores.dim() == 2


def _scores(outputs: Any) -> Tensor:
    """Class scores: the output itself, or what transformers' models call logits."""
    scores = getattr(outputs, "logits", outputs)
    if not _has_classes(outputs):
        what = f"shape {list(scores.shape)}" if isinstance(scores, Tensor) else type(outputs).__name__
        raise QDropError(f"the model's output ({what}) has no top class", "give a metric of your own")
    return scores


def _top1(outputs: Any, labels: Tensor) -> Tensor:
    return _share_right(_scores(outputs), labels)


def _share_right(scores: Tensor, labels: Tensor) -> Tensor:
    return (scores.argmax(-1) == labels).double().mean()
