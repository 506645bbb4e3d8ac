"""How many bits each weight and activation gets: by its place in the graph, and by what the user overrides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from qdrop.config import LayerOverride, QDropConfig
from qdrop.layers import CONVOLUTION_NAMES, Layer, layer_inputs
from qdrop.passes import Function, Trace
from qdrop.placement import Place, walk_back

EMBEDDING_BITS = 8

Role = Literal["first", "middle", "last", "embedding"]


@dataclass(frozen=True)
class Bits:
    """Decides about bits, and about axes of channels, from the graph.

    Args:
        nearest: for each value, the layers that it comes from without passing through another.
    """

    traced: Trace
    layers: tuple[Layer, ...]
    nearest: tuple[frozenset[int], ...]
    config: QDropConfig

    def role(self, index: int) -> Role:
        """The layer's place: `first` has no layer before it, `last` has none after it; a lone layer is `first`."""
        if self.layers[index].embedding:
            return "embedding"
        if index in self.firsts:
            return "first"
        return "last" if index in self.lasts else "middle"

    def of_weight(self, index: int) -> int:
        """Bits of a layer's weight; layers that share one weight get the most that one of them would get."""
        layer = self.layers[index]
        sharing = [i for i, other in enumerate(self.layers) if other.weight == layer.weight]
        return max(self._of_weight(i) for i in sharing)

    def of_tensor(self, p: Place) -> int:
        """Bits of an activation."""
        override = overridden(self.config, p.site.path).a_bits or self.config.override(p.site.name).a_bits
        if override is not None:
            return override
        if p.value in self._last_inputs and self.config.first_last_bits is not None:
            return self.config.first_last_bits
        stem = p.value is not None and bool(self.nearest[p.value]) and self.nearest[p.value] <= self.firsts
        if stem and self.config.stem_output_bits is not None:
            return self.config.stem_output_bits
        return self.config.a_bits

    def channel_axis(self, value: int) -> int:
        """Axis of the channels: 1 behind a convolution and the last behind a linear layer, followed through permutes."""
        axis = self._axes[value]
        ndim = len(self.traced.values[value].shape)
        if axis is None:
            return 1 if ndim in (2, 4, 5) else max(ndim - 1, 0)
        return axis

    @cached_property
    def firsts(self) -> frozenset[int]:
        """Layers before which there is none."""
        return frozenset(i for i in range(len(self.layers)) if not self._before(i) and not self.layers[i].embedding)

    @cached_property
    def lasts(self) -> frozenset[int]:
        """Layers after which there is none."""
        followed = frozenset().union(*(self._before(index) for index in range(len(self.layers))))
        return frozenset(range(len(self.layers))) - followed

    def _of_weight(self, index: int) -> int:
        role = self.role(index)
        override = overridden(self.config, self.layers[index].path).w_bits
        if override is not None:
            return override
        if role == "embedding":
            return EMBEDDING_BITS
        if index in self.firsts | self.lasts and self.config.first_last_bits is not None:
            return self.config.first_last_bits
        return self.config.w_bits

    def _before(self, index: int) -> frozenset[int]:
        layer = self.layers[index]
        inputs = [value for function in layer.functions for value in self.traced.functions[function].inputs]
        return frozenset().union(*(self.nearest[value] for value in inputs)) - {index}

    @cached_property
    def _last_inputs(self) -> frozenset[int]:
        found: set[int] = set()
        for index in self.lasts - self.firsts:
            found |= {walk_back(self.traced, value) for value in layer_inputs(self.traced, self.layers[index])}
        return frozenset(found)

    @cached_property
    def _axes(self) -> tuple[int | None, ...]:
        """For each value, the axis of its channels where that is known."""
        axes: list[int | None] = [None] * len(self.traced.values)
        for function in self.traced.functions:
            for value in function.made:
                axes[value] = _axis(self.traced, function, value, axes)
        return tuple(axes)


def overridden(config: QDropConfig, path: str) -> LayerOverride:
    """The overrides of a module: its own, where they say nothing those of the modules around it."""
    names = path.split(".")
    found = LayerOverride()
    for depth in range(1, len(names) + 1):
        own = config.override(".".join(names[:depth]))
        said = {key: value for key, value in vars(own).items() if value not in (None, False)}
        found = LayerOverride(**{**vars(found), **said})
    return found


def _axis(traced: Trace, function: Function, value: int, axes: list[int | None]) -> int | None:
    shape = traced.values[value].shape
    if function.name in CONVOLUTION_NAMES:
        return 1
    if function.name in ("linear", "addmm"):
        return len(shape) - 1
    source = next((v for v in function.inputs if axes[v] is not None), None)
    if source is None:
        return None
    before, axis = traced.values[source].shape, axes[source] or 0
    args, ndim = function.args[1:], len(shape)
    if function.name == "permute" and args:
        dims = args[0] if isinstance(args[0], list | tuple) else args
        return [dim % ndim for dim in dims].index(axis)
    if function.name in ("transpose", "swapaxes", "swapdims") and len(args) == 2:
        one, two = (dim % ndim for dim in args)
        return {one: two, two: one}.get(axis, axis)
    if len(before) == ndim and (before[axis] == shape[axis] or function.name.startswith(("cat", "concat"))):
        return axis
    return _reshaped(before, axis, shape)


def _reshaped(before: tuple[int, ...], axis: int, shape: tuple[int, ...]) -> int | None:
    """Where an axis lies after a reshape: as many elements before it and as long; else None."""
    leading = math.prod(before[:axis])
    if math.prod(before) != math.prod(shape):
        return None
    return next((i for i, n in enumerate(shape) if n == before[axis] and math.prod(shape[:i]) == leading), None)
