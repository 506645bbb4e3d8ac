"""Which modules are reconstructed together: named by the user, known by their class, repeated, or single layers."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Literal

from torch import nn

from qdrop.errors import PlanError
from qdrop.layers import Layer, layer_inputs
from qdrop.passes import Function, ModuleCall, Trace
from qdrop.placement import walk_back
from qdrop.sites import Site

MAX_UNIT_PARAMS = 128 * 2**20
"""A unit's weights each need a rounding variable, its gradient and Adam's two moments: 16 bytes, 2 GiB at this size."""

_KNOWN = re.compile(
    r".*(Block|Bottleneck|InvertedResidual|DepthwiseSeparableConv|EdgeResidual|MBConv|Layer)(V?\d+[dD]?)?"
)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_JOINS = frozenset(
    ["add", "add_", "__iadd__", "sub", "rsub", "mul", "mul_", "cat", "concat", "concatenate", "stack", "matmul", "bmm"]
)


@dataclass(frozen=True)
class Unit:
    """Module calls, and functions after them, that are reconstructed together."""

    name: str
    kind: Literal["block", "layer"]
    steps: tuple[ModuleCall, ...]
    tail: tuple[Function, ...] = ()

    @cached_property
    def functions(self) -> frozenset[int]:
        """The functions (by index) that belong to the unit."""
        return frozenset(chain(*(step.span for step in self.steps), (step.index for step in self.tail)))

    def output(self, traced: Trace) -> int:
        """The unit's main output."""
        return self.tail[-1].made[0] if self.tail else _main(traced, self.steps[-1].outputs)[0]


def find_units(
    model: nn.Module,
    traced: Trace,
    layers: Sequence[Layer],
    fixed: Sequence[Layer],
    sites: Mapping[int, Site],
    names: Sequence[str] | None = None,
    *,
    blocks: bool = True,
) -> tuple[Unit, ...]:
    """The units in order of execution.

    Args:
        model: the prepared model.
        traced: its pass.
        layers: those that are to be reconstructed; each ends up in one unit.
        fixed: those that are not.
        sites: where values are quantised.
        names: modules that the user wants as units; the rules below decide about the rest of the model.
        blocks: whether modules of several layers are units; else each layer is one.

    Raises:
        PlanError: a name is not a module, was not called once, holds no such layer, or lies within another.
    """
    chosen = [_named(model, traced, layers, name) for name in names or ()]
    _check_apart(chosen)
    if blocks:
        candidates = tuple(_candidates(model, traced, layers))
        known = tuple(call for call in candidates if _KNOWN.fullmatch(_kind(model, call)))
        alike = tuple(call for call in candidates if _is_repeated(model, traced, call, candidates))
        for call in (*_blocks(model, known, layers), *_blocks(model, alike, layers)):
            if not any(_overlap(call, other) for other in chosen):
                chosen.append(call)
    own = {layer.path for layer in layers}
    units = [Unit(call.path, "layer" if call.path in own else "block", (call,)) for call in chosen]
    inside = {layer.path for layer in layers for unit in units if layer.functions[0] in unit.functions}
    every = (*layers, *fixed)
    units += [
        Unit(layer.path, "layer", (_around_input(traced, layer, layer.calls[0], every, sites),))
        for layer in layers
        if layer.path not in inside and layer.calls
    ]
    units.sort(key=lambda unit: unit.steps[0].first)
    taken = frozenset().union(*(unit.functions for unit in units))
    for index, unit in enumerate(units):
        units[index] = _extended(traced, unit, taken - unit.functions, every, sites)
        taken |= units[index].functions
    return tuple(units)


def _named(model: nn.Module, traced: Trace, layers: Sequence[Layer], name: str) -> ModuleCall:
    """The call of a unit that the user asked for."""
    paths = dict(model.named_modules())
    if name not in paths or not name:
        nearest = difflib.get_close_matches(name, list(paths), 1, 0.0)
        raise PlanError(f"there is no module {name!r}", hint=f"did you mean {nearest[0]!r}?" if nearest else None)
    calls = traced.calls_of.get(name, ())
    if not calls:
        raise PlanError(f"unit {name}: the module is not called on the example inputs")
    if len(calls) > 1:
        raise PlanError(f"unit {name}: the module is called {len(calls)} times in a pass, a unit is called once")
    if not _within(calls[0], layers):
        raise PlanError(f"unit {name}: no layer in it is to be quantised")
    size = _size(calls[0], layers)
    if size > MAX_UNIT_PARAMS:
        raise PlanError(f"unit {name}: {size} weights are more than a unit may have ({MAX_UNIT_PARAMS})")
    if not _main(traced, calls[0].outputs):
        raise PlanError(f"unit {name}: the module returns no tensor in floating point")
    return calls[0]


def _check_apart(calls: Sequence[ModuleCall]) -> None:
    for index, call in enumerate(calls):
        for other in calls[:index]:
            if call.path == other.path:
                raise PlanError(f"unit {call.path} is named twice")
            if _overlap(call, other):
                inner, outer = (call, other) if other.first <= call.first and call.last <= other.last else (other, call)
                raise PlanError(f"unit {inner.path} lies within unit {outer.path}")


def _candidates(model: nn.Module, traced: Trace, layers: Sequence[Layer]) -> Iterator[ModuleCall]:
    """Calls of modules that could be a block: called once, several layers or a join, one main tensor out."""
    for path, calls in traced.calls_of.items():
        call = calls[0]
        if not path or len(calls) > 1 or isinstance(model.get_submodule(path), _CONTAINERS):
            continue
        within = _within(call, layers)
        if not within or (len(within) == 1 and (within[0].path == path or not _joins(traced, call))):
            continue
        if len(_main(traced, call.outputs)) == 1 and _size(call, layers) <= MAX_UNIT_PARAMS:
            yield call


def _is_repeated(model: nn.Module, traced: Trace, call: ModuleCall, candidates: Sequence[ModuleCall]) -> bool:
    """Whether a module of unknown class is one of several, and has one input that depends on layers before it."""
    inputs = _main(traced, call.inputs)
    if sum(traced.learnt[value] for value in inputs) > 1 or not inputs:
        return False
    if sum(_kind(model, call) == _kind(model, other) for other in candidates) > 1:
        return True
    parent = model.get_submodule(call.path.rpartition(".")[0])
    return isinstance(parent, _CONTAINERS) and _joins(traced, call)


def _blocks(model: nn.Module, candidates: Sequence[ModuleCall], layers: Sequence[Layer]) -> list[ModuleCall]:
    """Candidates that are no stages, the outer ones first.

    A class of which some instance holds two candidates of one class with several layers is a stage.
    """
    stages = set()
    for outer in candidates:
        inner = [call for call in candidates if call is not outer and _inside(call, outer)]
        kinds = Counter(_kind(model, call) for call in inner if len(_within(call, layers)) > 1)
        if any(count > 1 for count in kinds.values()):
            stages.add(_kind(model, outer))
    return [call for call in candidates if _kind(model, call) not in stages]


def _around_input(
    traced: Trace, layer: Layer, call: ModuleCall, layers: Sequence[Layer], sites: Mapping[int, Site]
) -> ModuleCall:
    """The layer's call, or that of the module around it which makes its quantised input from an unquantised one."""
    source = walk_back(traced, layer_inputs(traced, layer)[0])
    maker = traced.values[source].producer
    if source not in sites or maker in call.span:
        return call
    for wrapper in _wrappers(traced, call, layers):
        if maker in wrapper.span:
            return wrapper
    return call


def _extended(
    traced: Trace, unit: Unit, taken: frozenset[int], layers: Sequence[Layer], sites: Mapping[int, Site]
) -> Unit:
    """The unit with what follows it, one after the other, up to the first tensor that is quantised.

    A layer that is alone in the module around it may be represented by that module, which may contain what follows.
    """
    fallback = unit
    single = unit.kind == "layer" and len(unit.steps) == 1
    wrappers = list(_wrappers(traced, unit.steps[0], layers)) if single else []
    for start in (unit.steps[-1], *wrappers):
        if not taken.isdisjoint(start.span):
            break
        widened = replace(unit, steps=(*unit.steps[:-1], start))
        longer = _followed(traced, widened, taken, layers, sites)
        if longer is None:
            continue
        if not longer.tail or sites[longer.output(traced)].kind == "function":
            return longer
        fallback = longer if fallback is unit else fallback
    return fallback


def _wrappers(traced: Trace, call: ModuleCall, layers: Sequence[Layer]) -> Iterator[ModuleCall]:
    """Modules around a layer's call that hold no other layer and take and return one tensor, from the inside."""
    for outer in traced.around(call.parent):
        alone = len(_layer_calls(outer, layers)) == 1 and len(traced.calls_of[outer.path]) == 1
        if (
            not outer.path
            or not alone
            or len(_main(traced, outer.outputs)) != 1
            or len(_main(traced, outer.inputs)) != 1
        ):
            return
        yield outer


def _followed(
    traced: Trace, unit: Unit, taken: frozenset[int], layers: Sequence[Layer], sites: Mapping[int, Site]
) -> Unit | None:
    """The unit up to a quantised tensor, or None where the chain after it splits, joins, or ends."""
    while not _is_quantised(traced, unit, value := unit.output(traced), sites):
        readers = [traced.functions[index] for index in traced.consumers[value]]
        if not readers or value in traced.outputs or not (unit.tail or unit.steps[-1].bare):
            return None
        if any(reader.index in taken for reader in readers):
            return None
        step = None if unit.tail else _next_module(traced, unit, value, readers, layers)
        if step is not None:
            unit = replace(unit, steps=(*unit.steps, step))
        elif len(readers) == 1 and _is_chain(readers[0]):
            unit = replace(unit, tail=(*unit.tail, readers[0]))
        else:
            return None
    return unit


def _is_quantised(traced: Trace, unit: Unit, value: int, sites: Mapping[int, Site]) -> bool:
    """Whether the unit's output, or what it is a rearrangement of, is quantised within the unit."""
    source = walk_back(traced, value)
    return source in sites and traced.values[source].producer in unit.functions


def _next_module(
    traced: Trace, unit: Unit, value: int, readers: Sequence[Function], layers: Sequence[Layer]
) -> ModuleCall | None:
    """The outermost module after the unit that reads the value alone, returns one tensor, and holds no layer."""
    found, before = None, unit.steps[-1]
    for call in traced.around(readers[0].call):
        if call.index == before.index or _inside(before, call):
            break
        reads_all = all(reader.index in call.span for reader in readers)
        single = call.inputs == (value,) and call.bare and _is_next_call(traced, unit, call)
        if reads_all and single and not _layer_calls(call, layers) and _is_closed(traced, call):
            found = call
    return found


def _is_next_call(traced: Trace, unit: Unit, call: ModuleCall) -> bool:
    """Whether the module is not called between the unit's start and this call, but within the unit."""
    start = unit.steps[0].first
    between = (other for other in traced.calls_of[call.path] if start <= other.first < call.first)
    return all(any(other.first in step.span for step in unit.steps) for other in between)


def _is_closed(traced: Trace, call: ModuleCall) -> bool:
    """Whether a module's call reads nothing from the model's inputs but its own inputs."""
    made = set(call.inputs)
    for function in traced.functions[call.first : call.last]:
        if any(traced.active[value] and value not in made for value in function.inputs):
            return False
        made.update(function.outputs)
    return True


def _is_chain(function: Function) -> bool:
    """Whether a function can be called again with one tensor and gives one."""
    return len(function.inputs) == 1 and len(function.returned) == 1 and function.call is not None


def _within(call: ModuleCall, layers: Sequence[Layer]) -> list[Layer]:
    return [layer for layer in layers if all(function in call.span for function in layer.functions)]


def _layer_calls(call: ModuleCall, layers: Sequence[Layer]) -> list[int]:
    return [function for layer in layers for function in layer.functions if function in call.span]


def _size(call: ModuleCall, layers: Sequence[Layer]) -> int:
    return sum(math.prod(layer.shape) for layer in _within(call, layers))


def _main(traced: Trace, values: Sequence[int]) -> list[int]:
    """The tensors in floating point that come from the model's inputs."""
    return [v for v in dict.fromkeys(values) if traced.values[v].floating and traced.active[v]]


def _joins(traced: Trace, call: ModuleCall) -> bool:
    """Whether two activations meet in a function of this module."""
    return any(
        function.name in _JOINS and len(_main(traced, function.inputs)) > 1
        for function in traced.functions[call.first : call.last]
    )


def _kind(model: nn.Module, call: ModuleCall) -> str:
    return type(model.get_submodule(call.path)).__qualname__


def _inside(inner: ModuleCall, outer: ModuleCall) -> bool:
    return (
        inner.index != outer.index
        and inner.path != outer.path
        and inner.path.startswith(f"{outer.path}." if outer.path else "")
    )


def _overlap(one: ModuleCall, other: ModuleCall) -> bool:
    return max(one.first, other.first) < min(one.last, other.last)
