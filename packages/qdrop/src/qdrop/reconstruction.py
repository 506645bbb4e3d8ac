"""One unit's reconstruction: rounding and step sizes are learned so that its output stays what it was (Sec. 3, Alg. 1)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdrop.adaround import AdaRound, beta_schedule
from qdrop.drops import Drops
from qdrop.errors import ReconstructionError
from qdrop.fake_quant import mix
from qdrop.ranks import Ranks, sum_gradients, sum_over_ranks

if TYPE_CHECKING:
    from qdrop.config import QDropConfig
    from qdrop.planning import PlannedUnit
    from qdrop.student import ActivationQuantizer, QuantizedModel, QuantizedWeight

UNCONVERGED = 0.01
"""Share of the rounding variables between two codes above which the report says so."""

CHECK_EVERY = 100
"""Iterations between two looks at whether the loss is finite; a look waits for the device."""


@dataclass
class UnitCache:
    """What a unit is reconstructed from; each a sequence by sample.

    Args:
        fp_inputs: inputs of the unit in the float network: a tensor [N, ...], or `Samples`.
        quantised_inputs: the same behind the quantised units before it.
        fp_outputs: the float unit's output, [N, ...].
        token_mask: [N, T], True where a token counts; only for outputs [N, T, C].
    """

    fp_inputs: Any
    quantised_inputs: Any
    fp_outputs: Any
    token_mask: Any = None


@dataclass
class UnitResult:
    """What became of one unit.

    Args:
        name: of the unit.
        losses: squared error plus regulariser, at every iteration.
        sqnr_db: signal over quantisation noise at the unit's output on all calibration samples, behind quantised inputs.
        unconverged: share of the rounding variables in (0.05, 0.95), which were between two codes at the end.
        seconds: how long it took.
        loss_start: squared error with all weights rounded to nearest.
        loss_end: squared error with the learned rounding.
        note: what the user should know, or "".
    """

    name: str
    losses: list[float] = field(default_factory=list)
    sqnr_db: float = math.nan
    unconverged: float = 0.0
    seconds: float = 0.0
    loss_start: float = math.nan
    loss_end: float = math.nan
    note: str = ""


class Unit:
    """Modules of one network that are run one after the other, then functions.

    Args:
        planned: the unit.
        model: the network that holds it.
        student: the quantised model, if `model` is its inner network.
        entry: calls of the student's modules before this unit is entered, in one forward pass.
    """

    def __init__(
        self,
        planned: PlannedUnit,
        model: nn.Module,
        student: QuantizedModel | None = None,
        entry: Mapping[str, int] | None = None,
    ) -> None:
        self.planned, self.name, self.student, self.entry = planned, planned.name, student, entry or {}
        self.network = model
        self.modules = [model.get_submodule(path) for path, _ in planned.steps]
        self.layers = {path: model.get_submodule(path) for path in planned.layers}

    def __call__(self, inputs: Any) -> Tensor:
        """The unit's output, its first floating-point tensor, for inputs (args, kwargs) or one tensor."""
        output = main_tensor(self.call(inputs), self.name)
        for function in self.planned.tail:
            output = function(output)
        if self.student is not None and self.planned.tail_site is not None:
            output = self.student.activations[self.planned.tail_site.name](output)
        return output

    def call(self, inputs: Any) -> Any:
        """What the last module returns, before the functions behind it."""
        self.restore_counts()
        args, kwargs = ((inputs,), {}) if isinstance(inputs, Tensor) else inputs
        output = self.modules[0](*args, **kwargs)
        for module in self.modules[1:]:
            output = module(output)
        return output

    def restore_counts(self) -> None:
        """Counts calls as if the network had been run up to here."""
        if self.student is not None:
            self.student.counts.clear()
            self.student.counts.update(self.entry)

    @property
    def quantizers(self) -> list[ActivationQuantizer]:
        """The activation quantisers within, in the order of their calls."""
        if self.student is None:
            return []
        activations = self.student.activations
        return [activations[site.name] for site in self.planned.sites]

    @property
    def weights(self) -> dict[str, QuantizedWeight]:
        """The quantised weights within, by layer."""
        if self.student is None:
            return {}
        weights = self.student.weights
        return {path: weights[path] for path in self.layers}


def main_tensor(output: Any, name: str) -> Tensor:
    """The first floating-point tensor of what a module returns."""
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    raise ReconstructionError(f"unit {name} returns no floating-point tensor")


def learn(
    unit: Unit,
    teacher: Unit,
    cache: UnitCache,
    config: QDropConfig,
    generator: torch.Generator,
    index_stream: Iterator[Any] | None,
    mask_stream: Iterator[Bool[Tensor, " ..."]] | None,
) -> UnitResult:
    """Learns one unit and leaves it with the codes and step sizes that were found; see `reconstruct_unit`."""
    started = time.perf_counter()
    samples = len(cache.fp_outputs)
    tuned, held = _shares(samples, config)
    ranks = Ranks.gather(len(tuned))
    if ranks.size > 1 and (cache.quantised_inputs.ragged or cache.fp_outputs.ragged):
        raise ReconstructionError(f"unit {unit.name}: samples of different shapes cannot be shared among ranks")
    roundings = _roundings(unit, teacher)
    nearest = {path: weight.codes.clone() for path, weight in unit.weights.items()}
    quantizers = unit.quantizers if config.feels_activations else []
    scales = [quantizer.scale.clone() for quantizer in quantizers]
    before, _ = error(unit, cache, config, held or tuned)

    drops = Drops(config.keep_p if quantizers else 1.0, generator, mask_stream)
    try:
        for quantizer in quantizers:
            quantizer.drops, quantizer.scale = drops, quantizer.scale.detach().clone().requires_grad_()
        losses = _iterate(unit, roundings, cache, config, ranks, drops, index_stream)
    finally:
        for quantizer in quantizers:
            quantizer.drops, quantizer.scale = None, quantizer.scale.detach()
        _set_codes(unit, nearest)

    _set_codes(unit, {path: rounding.codes() for path, rounding in roundings.items()})
    unconverged = _unconverged(roundings)
    after, _ = error(unit, cache, config, held or tuned)
    note = _objection(losses, before, after, bool(held))
    if note:
        _set_codes(unit, nearest)
        for quantizer, scale in zip(quantizers, scales, strict=True):
            quantizer.scale = scale
        after = before
    elif unconverged > UNCONVERGED:
        note = f"{unconverged:.1%} of its weights ended between two codes: raise iters or reg_weight"
    _, sqnr_db = error(unit, cache, config, range(samples))
    seconds = time.perf_counter() - started
    return UnitResult(unit.name, losses, sqnr_db, unconverged, seconds, before, after, note)


def _objection(losses: list[float], before: float, after: float, held: bool) -> str:
    """Why what was learned is not kept, or ""."""
    if not all(map(math.isfinite, losses)) or not math.isfinite(after):
        return "its loss became infinite or NaN; it keeps its nearest rounding"
    if held and after > before:
        return "its error on held-out samples did not fall; it keeps its nearest rounding"
    return ""


def error(unit: Unit, cache: UnitCache, config: QDropConfig, samples: range) -> tuple[float, float]:
    """Squared error of the unit as it is on these samples of all ranks, and its signal-to-noise ratio in dB."""
    totals = torch.zeros(3, dtype=torch.float64)  # signal, noise, positions
    with torch.no_grad():
        for index in _batches(cache, samples, config.batch_size):
            target = cache.fp_outputs.take(index)
            weight = _token_weight(cache, index, target)
            difference = unit(cache.quantised_inputs.take(index)) - target
            signal, noise = ((x.double().square() * weight).sum() for x in (target, difference))
            totals += torch.stack([signal, noise, _positions(unit, config, target, weight)]).cpu()
    signal, noise, positions = sum_over_ranks(totals).tolist()
    ratio = math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 else -math.inf
    return noise / max(positions, 1.0), ratio


def _roundings(unit: Unit, teacher: Unit) -> dict[str, AdaRound]:
    return {
        path: AdaRound(teacher.layers[path].weight.detach(), w.scale, w.zero_point, w.qmin, w.qmax, axis=w.axis)
        for path, w in unit.weights.items()
    }


def _set_codes(unit: Unit, codes: Mapping[str, Tensor]) -> None:
    for path, value in codes.items():
        unit.student.set_codes(path, value)  # type: ignore[union-attr]  # only a student's unit is learned


def _shares(samples: int, config: QDropConfig) -> tuple[range, range]:
    """Samples to tune on, and the last ones, which are held out."""
    held = math.ceil(samples * config.holdout)
    return range(samples - held), range(samples - held, samples)


def _unconverged(roundings: Mapping[str, AdaRound]) -> float:
    total = sum(rounding.alpha.numel() for rounding in roundings.values())
    return sum(r.share_unconverged() * r.alpha.numel() for r in roundings.values()) / max(total, 1)


def _iterate(
    unit: Unit,
    roundings: Mapping[str, AdaRound],
    cache: UnitCache,
    config: QDropConfig,
    ranks: Ranks,
    drops: Drops,
    index_stream: Iterator[Any] | None,
) -> list[float]:
    """The loop of Alg. 1; returns the loss of every iteration, fewer where it stopped being finite."""
    alphas = [rounding.alpha for rounding in roundings.values()]
    scales = [quantizer.scale for quantizer in unit.quantizers if quantizer.scale.requires_grad]
    groups = [{"params": alphas, "lr": config.rate_of_alpha}]
    groups += [{"params": scales, "lr": config.rate_of_scale}] if scales else []
    optimizer = torch.optim.Adam(groups, fused=True)
    losses = torch.zeros(config.iters)
    for t in range(1, config.iters + 1):
        if scales:
            optimizer.param_groups[1]["lr"] = _cosine(config.rate_of_scale, t, config.iters)
        index = _draw(cache, ranks.samples, config.batch_size, drops.generator, index_stream)
        with torch.enable_grad():
            penalty = _soften(unit, roundings, t, config) * (unit.planned.reg_weight / ranks.size)
            loss = _squared_error(unit, cache, config, index, ranks, drops) + penalty
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        sum_gradients([*alphas, *scales])
        optimizer.step()
        losses[t - 1] = sum_over_ranks(loss.detach())
        if (t % CHECK_EVERY == 0 or t == config.iters) and not torch.isfinite(losses[:t]).all():
            return losses[:t].tolist()
    return losses.tolist()


def _cosine(rate: float, t: int, total: int) -> float:
    """The rate of iteration t = 1, 2, ..., total, on a cosine from `rate` to 0."""
    return 0.5 * rate * (1 + math.cos(math.pi * (t - 1) / total))


def _draw(
    cache: UnitCache, samples: int, batch: int, generator: torch.Generator, stream: Iterator[Any] | None
) -> Int64[Tensor, " batch"]:
    """Numbers of the samples of one iteration among those of all ranks: uniform with replacement."""
    if stream is None:
        index = torch.randint(samples, (min(batch, samples),), generator=generator)
    else:
        given = next(stream, None)
        if given is None:
            raise ReconstructionError("the index stream ended before the iterations did")
        index = torch.as_tensor(given, dtype=torch.int64)
    return _whole_batch(cache, index)


def _whole_batch(cache: UnitCache, index: Int64[Tensor, " batch"]) -> Int64[Tensor, " rows"]:
    """The same samples; where some differ in shape, those of the calibration batch that holds the first."""
    ragged = next((each for each in (cache.quantised_inputs, cache.fp_outputs) if each.ragged), None)
    if ragged is None:
        return index
    number = ragged.batch_of(int(index[0]))
    start = sum(ragged.sizes[:number])
    return torch.arange(start, start + ragged.sizes[number])


def _soften(unit: Unit, roundings: Mapping[str, AdaRound], t: int, config: QDropConfig) -> Tensor | float:
    """Puts the soft weights into the layers; returns the regulariser, which counts from the end of the warm-up on."""
    regularised = t >= config.warmup * config.iters
    beta = beta_schedule(t, config.iters, config.warmup, *config.beta) if regularised else None
    total: Tensor | float = 0.0
    for path, rounding in roundings.items():
        unit.layers[path].weight, penalty = rounding.soft_and_regulariser(beta)
        if penalty is not None:
            total = total + penalty
    return total


def _squared_error(
    unit: Unit, cache: UnitCache, config: QDropConfig, index: Int64[Tensor, " batch"], ranks: Ranks, drops: Drops
) -> Tensor:
    """Mean over samples and positions of the sum over channels of (output - target)^2; this rank's part of it."""
    mine, rows = ranks.local(index)
    idle = len(mine) == 0
    if idle:  # one sample, for nothing: all ranks have to draw the same masks
        mine = rows = torch.zeros(1, dtype=torch.int64)
    drops.take(rows, len(index))
    output = unit(_mixed_inputs(cache, mine, drops))
    target = cache.fp_outputs.take(mine)
    weight = _token_weight(cache, mine, target)
    positions = _positions(unit, config, target, weight)
    if ranks.size > 1:
        positions = sum_over_ranks(positions * (not idle))
    if isinstance(weight, Tensor):
        squares = ((output - target).square() * weight).sum()
    else:
        squares = nn.functional.mse_loss(output, target, reduction="sum")
    return squares * (not idle) / positions


def _mixed_inputs(cache: UnitCache, index: Int64[Tensor, " batch"], drops: Drops) -> Any:
    """The unit's inputs, each floating-point element quantised with probability `keep`, else in floating point."""
    quantised = cache.quantised_inputs.take(index)
    if drops.keep == 1.0 or (drops.stream is None and cache.fp_inputs is cache.quantised_inputs):
        return quantised
    leaves, structure = pytree.tree_flatten(quantised)
    floats = pytree.tree_leaves(cache.fp_inputs.take(index))
    for number, (leaf, other) in enumerate(zip(leaves, floats, strict=True)):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and cache.quantised_inputs.by_sample(number):
            mask = drops(leaf)
            leaves[number] = leaf if mask is None else mix(leaf, other, mask)
    return pytree.tree_unflatten(leaves, structure)


def _token_weight(cache: UnitCache, index: Int64[Tensor, " batch"], target: Tensor) -> Tensor | float:
    """[N, T, 1] of ones and zeros where tokens are masked and the output is [N, T, C], else 1."""
    if cache.token_mask is None:
        return 1.0
    mask = cache.token_mask.take(index)
    if target.dim() != 3 or mask.shape != target.shape[:2]:
        return 1.0
    return mask.to(target.dtype).unsqueeze(-1)


def _positions(unit: Unit, config: QDropConfig, target: Tensor, weight: Tensor | float) -> Tensor:
    """What the sum of squares is divided by: samples times positions that count."""
    if isinstance(weight, Tensor):
        return weight.sum().double()
    axis = unit.planned.channel_axis if config.reduction == "channel" else 1
    return torch.tensor(target.numel() / target.shape[axis], dtype=torch.float64)


def _batches(cache: UnitCache, samples: range, size: int) -> Iterator[Int64[Tensor, " batch"]]:
    """Samples in order, in batches; in calibration batches where they differ in shape."""
    start = samples.start
    while start < samples.stop:
        index = _whole_batch(cache, torch.arange(start, min(start + size, samples.stop)))
        yield index
        start = int(index[-1]) + 1
