"""What will be quantised, where, to how many bits, and at what cost: to be read before any time is spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from qdrop.bits import Bits, overridden
from qdrop.config import QDropConfig
from qdrop.costs import batch_size, bytes_per_sample, cache_bytes, seconds
from qdrop.errors import PlanError
from qdrop.folding import in_float32, prepare
from qdrop.layers import Layer, find_layers, layer_inputs, nearest_layers
from qdrop.passes import Trace
from qdrop.placement import Place, place
from qdrop.sites import Site
from qdrop.table import table
from qdrop.tracing import Forward, trace
from qdrop.units import Unit, find_units

HEADS = frozenset(
    [
        "RegionProposalNetwork",
        "RoIHeads",
        "RetinaNetHead",
        "FCOSHead",
        "SSDHead",
        "SSDLiteHead",
        "DefaultBoxGenerator",
        "AnchorGenerator",
    ]
)
"""Detection heads of torchvision: the paper quantises backbone and neck and keeps these in floating point."""


@dataclass(frozen=True)
class PlannedWeight:
    """The weight of one layer.

    Args:
        path: the layer's name in `named_modules()`.
        kind: its class.
        axis: axis of the weight along which the output channels lie, each with its own range.
        role: position in the network, which decides the bits.
        unit: the unit that learns its rounding; None: rounded to nearest.
    """

    path: str
    kind: str
    bits: int
    symmetric: bool
    axis: int
    role: Literal["first", "middle", "last", "embedding"]
    shape: tuple[int, ...]
    unit: str | None


@dataclass(frozen=True)
class PlannedTensor:
    """One activation that is quantised.

    Args:
        shape: as in the example pass.
        unit: the unit that makes it, or None.
        consumers: paths of the layers, and names of the functions, that read it.
    """

    site: Site
    bits: int
    symmetric: bool
    shape: tuple[int, ...]
    unit: str | None
    consumers: tuple[str, ...]


@dataclass(frozen=True)
class PlannedUnit:
    """What is reconstructed together.

    Args:
        steps: (module path, call) that run one after the other; a block starts with itself.
        tail: functions of one tensor that follow, up to the quantised tensor.
        tail_site: where the tail's result is quantised; the unit's runner does it.
        layers: paths of the layers whose rounding it learns, in order of execution.
        sites: activations that it makes, in order of execution.
        frontier: earlier units (by index) whose output reaches its inputs without passing through another unit.
        reg_weight: lambda of its rounding regulariser.
        channel_axis: axis of the channels of its output.
        input_bytes: per sample, of all its inputs that hold one part per sample.
        output_bytes: per sample.
        macs: multiplications per sample.
    """

    name: str
    kind: Literal["block", "layer"]
    steps: tuple[tuple[str, int], ...]
    tail: tuple[Callable[[Tensor], Any], ...]
    tail_site: Site | None
    layers: tuple[str, ...]
    sites: tuple[Site, ...]
    frontier: tuple[int, ...]
    reg_weight: float
    channel_axis: int
    input_bytes: int
    output_bytes: int
    macs: int


@dataclass(frozen=True)
class Plan:
    """How a model will be quantised; print it.

    Args:
        notes: what the user should know before starting.
        samples: calibration samples that `cache_bytes` assumes.
        cache_bytes: of the inputs and outputs of the unit that needs most.
        seconds: rough time of the reconstruction on this machine's processor.
    """

    units: tuple[PlannedUnit, ...]
    weights: tuple[PlannedWeight, ...]
    tensors: tuple[PlannedTensor, ...]
    notes: tuple[str, ...]
    samples: int
    cache_bytes: int
    seconds: float

    def __str__(self) -> str:
        return table(self)


def plan(
    model: nn.Module,
    example_inputs: Any,
    config: QDropConfig = QDropConfig(),  # noqa: B008  # frozen
    units: Sequence[str] | None = None,
    *,
    samples: int = 1024,
    forward: Forward | None = None,
) -> Plan:
    """Says what quantisation would do, without doing it; the model is not touched.

    Args:
        model: any eager model.
        example_inputs: one batch; a tensor or a list is the model's argument, a tuple or a dict its arguments.
        config: bits, method and overrides.
        units: modules to reconstruct as one each; the rules decide about the rest.
        samples: calibration samples that the memory is estimated for.
        forward: runs the model instead, `forward(model, inputs)`.

    Raises:
        PlanError: the model cannot be quantised as asked; the message names the module.
    """
    prepared, notes = prepare(model, example_inputs, forward)
    made = plan_prepared(prepared, example_inputs, config, units, samples=samples, forward=forward)
    return Plan(**{**vars(made), "notes": (*notes, *made.notes)})


def plan_prepared(
    model: nn.Module,
    example_inputs: Any,
    config: QDropConfig,
    units: Sequence[str] | None = None,
    *,
    samples: int = 1024,
    forward: Forward | None = None,
) -> Plan:
    """The plan of a model that `folding.prepare` has made."""
    inputs = in_float32(example_inputs)
    traced = trace(model, inputs, forward)
    layers, notes = find_layers(model, traced)
    if all(layer.embedding for layer in layers):
        raise PlanError(f"{type(model).__name__} runs no convolution and no linear layer: there is nothing to quantise")
    heads = tuple(path for path, module in model.named_modules() if type(module).__name__ in HEADS)
    skipped = _skipped(layers, config, heads)
    if len(skipped) == len(layers):
        raise PlanError("the overrides skip every layer: there is nothing to quantise")
    alone = _alone(layers, skipped)
    places = place(traced, layers, frozenset(skipped), (*heads, *_skips(model, config)))
    sites = {p.value: p.site for p in places if p.value is not None and p.site.kind != "operand"}
    tuned = [layer for index, layer in enumerate(layers) if index not in skipped and index not in alone]
    fixed = [layer for layer in layers if layer not in tuned]
    found = find_units(model, traced, tuned, fixed, sites, units, blocks=config.by_block)
    bits = Bits(traced, layers, nearest_layers(traced, layers), config)
    _check_batched(traced, layers, bits.firsts)
    planned = _planned_units(traced, found, tuned, places, sites, bits, config, batch_size(inputs))
    owner = {path: unit.name for unit in planned for path in unit.layers}
    weights = tuple(
        PlannedWeight(
            layer.path,
            layer.kind,
            bits.of_weight(index),
            config.w_symmetric,
            layer.axis,
            bits.role(index),
            layer.shape,
            owner.get(layer.path),
        )
        for index, layer in enumerate(layers)
        if index not in skipped
    )
    tensors = tuple(_planned_tensor(p, found, bits, config) for p in places)
    homeless = (
        f"{layer.path}: multiplied by another module and in no block, rounded to nearest"
        for layer in tuned
        if layer.path not in owner
    )
    notes = (*notes, *skipped.values(), *alone.values(), *homeless, *_unrecognised(found, config), *_coarse(weights))
    return Plan(
        planned,
        weights,
        tensors,
        tuple(dict.fromkeys(notes)),
        samples,
        cache_bytes(planned, samples),
        seconds(planned, config),
    )


def _skipped(layers: tuple[Layer, ...], config: QDropConfig, heads: tuple[str, ...]) -> dict[int, str]:
    """Layers (by index) that stay in floating point, and the note that says so."""
    found = {}
    for index, layer in enumerate(layers):
        head = next((head for head in heads if layer.path.startswith(f"{head}.")), None)
        if head is not None:
            found[index] = f"{head}: detection head, stays in floating point"
        elif overridden(config, layer.path).skip:
            found[index] = f"{layer.path}: skipped by an override, stays in floating point"
    return found


def _skips(model: nn.Module, config: QDropConfig) -> tuple[str, ...]:
    return tuple(path for path, _ in model.named_modules() if path and overridden(config, path).skip)


def _alone(layers: tuple[Layer, ...], skipped: dict[int, str]) -> dict[int, str]:
    """Layers (by index) whose weight is rounded to nearest, since no unit can learn it, and the note that says so."""
    found = {}
    for index, layer in enumerate(layers):
        if index in skipped:
            continue
        tied = [other.path for other in layers if other.weight == layer.weight and other is not layer]
        if tied:
            found[index] = f"{layer.path}: shares its weight with {', '.join(tied)}, rounded to nearest"
        elif layer.embedding:
            found[index] = f"{layer.path}: embedding, 8-bit weights rounded to nearest"
        elif len(layer.functions) > 1:
            found[index] = f"{layer.path}: used {len(layer.functions)} times in a pass, rounded to nearest"
    return found


def _planned_units(
    traced: Trace,
    units: tuple[Unit, ...],
    tuned: Sequence[Layer],
    places: tuple[Place, ...],
    sites: dict[int, Site],
    bits: Bits,
    config: QDropConfig,
    batch: int,
) -> tuple[PlannedUnit, ...]:
    planned = []
    for index, unit in enumerate(units):
        inside = [layer for layer in tuned if layer.functions[0] in unit.functions]
        output = unit.output(traced)
        override = overridden(config, unit.name).reg_weight
        planned.append(
            PlannedUnit(
                name=unit.name,
                kind=unit.kind,
                steps=tuple((step.path, step.call) for step in unit.steps),
                tail=tuple(function.replay() for function in unit.tail),
                tail_site=sites[output] if unit.tail else None,
                layers=tuple(layer.path for layer in inside),
                sites=tuple(p.site for p in places if p.function in unit.functions),
                frontier=_frontier(traced, units[:index], unit),
                reg_weight=config.reg_weight if override is None else override,
                channel_axis=bits.channel_axis(output),
                input_bytes=bytes_per_sample(traced, unit.steps[0].inputs, batch),
                output_bytes=bytes_per_sample(traced, [output], batch),
                macs=sum(layer.macs for layer in inside) // batch,
            )
        )
    return tuple(planned)


def _frontier(traced: Trace, earlier: tuple[Unit, ...], unit: Unit) -> tuple[int, ...]:
    found, open_, seen = set(), list(unit.steps[0].inputs), set()
    while open_:
        value = open_.pop()
        producer = traced.values[value].producer
        if value in seen or producer is None:
            continue
        seen.add(value)
        owner = next((index for index, other in enumerate(earlier) if producer in other.functions), None)
        if owner is None:
            open_ += traced.functions[producer].inputs
        else:
            found.add(owner)
    return tuple(sorted(found))


def _planned_tensor(p: Place, units: tuple[Unit, ...], bits: Bits, config: QDropConfig) -> PlannedTensor:
    unit = next((unit.name for unit in units if p.function in unit.functions), None)
    return PlannedTensor(p.site, bits.of_tensor(p), config.a_symmetric and not p.unsigned, p.shape, unit, p.consumers)


def _check_batched(traced: Trace, layers: tuple[Layer, ...], firsts: frozenset[int]) -> None:
    """A first convolution takes [C, H, W], too, and would count its channels as samples."""
    for index in firsts:
        layer = layers[index]
        axes = len(traced.values[layer_inputs(traced, layer)[0]].shape)
        if layer.kind.startswith("Conv") and len(layer.shape) > 2 and axes == len(layer.shape) - 1:
            raise PlanError(
                f"{layer.path} is given {axes} axes: the batch dimension of the inputs is missing",
                "hand over [N, C, ...], for example x[None]",
            )


def _coarse(weights: tuple[PlannedWeight, ...]) -> tuple[str, ...]:
    if not any(weight.symmetric and weight.bits == 2 for weight in weights):
        return ()
    return ("symmetric 2-bit weights have the levels -2, -1, 0 and 1 steps, a large bias: prefer w_symmetric=False",)


def _unrecognised(units: tuple[Unit, ...], config: QDropConfig) -> tuple[str, ...]:
    if not config.by_block or len(units) < 3 or any(unit.kind == "block" for unit in units):
        return ()
    return ("no block was recognised: every layer is a unit of its own; name blocks with `units`",)
