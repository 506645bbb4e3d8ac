"""The score of a network that was never trained, from one batch."""

from __future__ import annotations

import hashlib
import math
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from core_utils.errors import UserError
from core_utils.spiking.networks import LIF
from snasnet.cells import Cell
from snasnet.kernels import KernelAccumulator, Metric, Part
from snasnet.networks import SNASNet
from snasnet.specs import DatasetSpec

FOREIGN = ("BaseNode", "SpikingNeuron", "StatefulLayer")
"""Base classes of the spiking layers of spikingjelly, snntorch and sinabs, found by name."""


@dataclass(frozen=True)
class ScoreResult:
    """What a network's spikes say of it before it is trained.

    Attributes:
        score: mean over the repeats of log |det K|; -inf if one is degenerate. Hundreds below zero are usual.
        sign: of det K in the first repeat; K need not be positive definite.
        rates: spikes a neuron and step by layer, averaged over the repeats.
        seconds: wall time.
        degenerate: K is singular or not finite: two samples cannot be told apart. Ranks below every other.
        dead_fraction: share of pairs of samples, over layers and steps, in which neither has a spike, or both have all.
        scores: of every repeat.
    """

    score: float
    sign: float
    rates: Mapping[str, float]
    seconds: float
    degenerate: bool
    dead_fraction: float = 0.0
    scores: tuple[float, ...] = ()

    @property
    def rate(self) -> float:
        """Mean over the layers."""
        return sum(self.rates.values()) / max(1, len(self.rates))


def score_cell(
    cell: Cell,
    spec: DatasetSpec,
    batch: Float[Tensor, "B C H W"] | Float[Tensor, "T B C H W"],
    *,
    metric: str | Metric = "sahd",
    alpha: float | int | str = "code",
    repeats: int = 1,
    seed: int = 0,
    **options: Any,
) -> ScoreResult:
    """The score of a cell in the paper's network; the same whenever and wherever it is computed.

    Args:
        cell: the architecture.
        spec: of the data.
        batch: images or frames.
        metric: as of `score_model`.
        alpha: as of `sahd_kernel`.
        repeats: initial weights to average over, each drawn from (seed, cell, repeat).
        seed: decides the initial weights.
        options: of `SNASNet`.
    """
    return cell_scores(cell, spec, batch, (metric,), alpha=alpha, repeats=repeats, seed=seed, **options)[0]


def cell_scores(
    cell: Cell,
    spec: DatasetSpec,
    batch: Float[Tensor, "B C H W"] | Float[Tensor, "T B C H W"],
    metrics: Sequence[str | Metric],
    *,
    alpha: float | int | str = "code",
    repeats: int = 1,
    seed: int = 0,
    **options: Any,
) -> tuple[ScoreResult, ...]:
    """What `score_cell` gives for each of several metrics, from the same passes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, cell.id, 0))
        model = SNASNet(cell, spec, **options)
    model = model.to(batch.device).to(memory_format=torch.channels_last)
    return _scores(model, batch, metrics, None, repeats, seed, alpha)


def score_model(
    model: nn.Module,
    batch: Float[Tensor, B * shape],
    metric: str | Metric = "sahd",
    layers: Sequence[str] | None = None,
    repeats: int = 1,
    seed: int = 0,
    *,
    alpha: float | int | str = "code",
) -> ScoreResult:
    """Scores any spiking network by how differently it spikes for different samples of a batch.

    The network runs in training mode, so that normalisation takes the batch's statistics, without dropout (but for a
    `SNASNet` with `compat`), and is afterwards as it was.

    Args:
        model: with layers of this package, of spikingjelly, snntorch or sinabs.
        batch: what the model takes, B samples.
        metric: "sahd", "hd", or a function of codes [B, N] that gives its part of the kernel.
        layers: names of the spiking layers to look at; None is all.
        repeats: the first is of the model's own weights; for others all weights are drawn anew.
        seed: decides these, with the cell and the number of the repeat, and what else is drawn.
        alpha: as of `sahd_kernel`.

    Raises:
        UserError: no spiking layer, an unknown name, fewer than 2 samples, values that are not finite, samples that are
            all the same, or spikes that are not binary.
    """
    return _scores(model, batch, (metric,), layers, repeats, seed, alpha)[0]


def _scores(
    model: nn.Module,
    batch: Tensor,
    metrics: Sequence[str | Metric],
    layers: Sequence[str] | None,
    repeats: int,
    seed: int,
    alpha: float | int | str,
) -> tuple[ScoreResult, ...]:
    """One result a metric."""
    if repeats < 1:
        raise UserError(f"repeats must be at least 1, got {repeats}")
    batched = 1 if isinstance(model, SNASNet) and batch.ndim == 5 else 0
    _check_batch(batch, batched)
    watched = _spiking_layers(model, layers)
    started = time.perf_counter()
    name = model.cell.id if isinstance(model, SNASNet) else ""
    with _scoring_mode(model), torch.inference_mode(), torch.random.fork_rng(devices=[]):
        passes = []
        for repeat in range(repeats):
            torch.manual_seed(derived_seed(seed, name, repeat))
            if repeat:
                _initialise(model)
            passes.append(_one_pass(model, watched, batch, batch.shape[batched], metrics, alpha))
    seconds = time.perf_counter() - started
    return tuple(_averaged(of_metric, seconds) for of_metric in zip(*passes, strict=True))


def _averaged(passes: Sequence[_Pass], seconds: float) -> ScoreResult:
    """The result of a metric from its repeats."""
    scores = tuple(each.accumulator.score() for each in passes)
    values = tuple(value for value, _ in scores)
    repeats = len(passes)
    return ScoreResult(
        score=sum(values) / repeats,
        sign=scores[0][1],
        rates={key: sum(each.rates[key] for each in passes) / repeats for key in passes[0].rates},
        seconds=seconds,
        degenerate=not all(map(math.isfinite, values)),
        dead_fraction=sum(each.accumulator.dead_fraction for each in passes) / repeats,
        scores=values,
    )


def derived_seed(seed: int, name: str, repeat: int) -> int:
    """A seed for torch from a run's seed, a cell's id and the number of a repeat."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name} {repeat}".encode()).digest()[:7], "big")


@dataclass(eq=False)
class _Pass:
    """One forward pass under watch.

    Layers with the same neurons and the same input hand on one tensor; its part of the kernel is computed once. No spikes
    are kept: a tensor that the network has let go of cannot come again.
    """

    accumulator: KernelAccumulator
    spikes: dict[str, float] = field(default_factory=dict)
    chances: dict[str, int] = field(default_factory=dict)
    step: dict[str, tuple[weakref.ref[Tensor], list[Part]]] = field(default_factory=dict)

    def look(self, name: str, layer: nn.Module, output: Any, samples: int) -> None:
        """At what a spiking layer gave."""
        spikes = output[0] if isinstance(output, tuple) else output
        if name in self.step:  # comes again: the next time step
            self.step.clear()
        parts = next((parts for seen, parts in self.step.values() if seen() is spikes), None)
        if parts is None:
            checked = isinstance(layer, LIF)
            parts = [self.accumulator.part(codes, checked=checked) for codes in _codes(name, layer, spikes, samples)]
        self.step[name] = weakref.ref(spikes), parts
        for part in parts:
            self.accumulator.add(part)
            self.spikes[name] = self.spikes.get(name, 0.0) + float(part.spikes.sum())
            self.chances[name] = self.chances.get(name, 0) + samples * part.neurons

    @property
    def rates(self) -> dict[str, float]:
        return {name: spikes / self.chances[name] for name, spikes in self.spikes.items()}


def _one_pass(
    model: nn.Module,
    watched: Mapping[str, nn.Module],
    batch: Tensor,
    samples: int,
    metrics: Sequence[str | Metric],
    alpha: float | int | str,
) -> list[_Pass]:
    """The network runs once for all metrics."""
    found = [_Pass(KernelAccumulator(alpha, metric)) for metric in metrics]
    handles = [
        layer.register_forward_hook(
            lambda layer, _, output, name=name, each=each: each.look(name, layer, output, samples)
        )
        for name, layer in watched.items()
        for each in found
    ]
    try:
        _forget(model)
        if isinstance(model, SNASNet):
            if batch.ndim == 4:
                batch = batch.contiguous(memory_format=torch.channels_last)
            model.forward_sequence(batch, step_by_step=True)
        else:
            model(batch)
        _forget(model)
    finally:
        for handle in handles:
            handle.remove()
    if not all(each.spikes for each in found):
        raise UserError("no spiking layer of the model ran", f"looked at {', '.join(watched)}")
    return found


def _codes(name: str, layer: nn.Module, spikes: Tensor, samples: int) -> Iterator[Tensor]:
    """One [B, N] a step of what a spiking layer gave."""
    bases = {base.__name__ for base in type(layer).__mro__}
    if isinstance(layer, LIF) or ("BaseNode" in bases and getattr(layer, "step_mode", "s") == "m"):
        steps = list(spikes)
    elif "StatefulLayer" in bases and spikes.ndim > 1:  # sinabs, batch first
        steps = list((spikes if spikes.shape[0] == samples else spikes.unflatten(0, (samples, -1))).transpose(0, 1))
    else:
        steps = [spikes]
    for step in steps:
        if len(step) != samples:
            raise UserError(f"layer {name} gives {list(step.shape)} for {samples} samples")
        # The order of neurons changes nothing; that of memory needs no copy.
        memory = step.permute(0, 2, 3, 1) if step.ndim == 4 and not step.is_contiguous() else step
        yield memory.reshape(samples, -1)


def _spiking_layers(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Module]:
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LIF) or {base.__name__ for base in type(module).__mro__} & set(FOREIGN)
    }
    if not found:
        seen = sorted({type(module).__name__ for module in model.modules()})
        raise UserError(f"the model has no spiking layer, only {', '.join(seen)}")
    if layers is None:
        return found
    unknown = [name for name in layers if name not in found]
    if unknown:
        raise UserError(f"the model has no spiking layer {unknown[0]!r}", f"it has {', '.join(found)}")
    return {name: found[name] for name in layers}


def _check_batch(batch: Tensor, axis: int) -> None:
    samples = batch.transpose(0, axis)
    if len(samples) < 2:
        raise UserError(f"a score needs a batch of at least 2 samples, got {len(samples)}")
    if not torch.isfinite(batch).all():
        raise UserError("the batch holds values that are not finite")
    if (samples == samples[:1]).all():
        raise UserError("all samples of the batch are the same", "a score tells samples apart")


@contextmanager
def _scoring_mode(model: nn.Module) -> Iterator[None]:
    """Training mode without dropout; modes, weights and running averages come back."""
    modes = {module: module.training for module in model.modules()}
    values = {name: value.detach().clone() for name, value in model.state_dict().items()}
    keep_dropout = isinstance(model, SNASNet) and model.compat
    try:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd) and not keep_dropout:
                module.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            current = model.state_dict()
            for name, value in values.items():
                current[name].copy_(value)


def _initialise(model: nn.Module) -> None:
    if isinstance(model, SNASNet):
        model.initialise()
        return
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()


def _forget(model: nn.Module) -> None:
    """Sets back the membranes of frameworks that keep them in their layers."""
    for module in model.modules():
        bases = {base.__name__ for base in type(module).__mro__}
        name = "reset" if "BaseNode" in bases else "reset_states" if "StatefulLayer" in bases else "reset_mem"
        reset = getattr(module, name, None) if bases & set(FOREIGN) else None
        if callable(reset):
            reset()
