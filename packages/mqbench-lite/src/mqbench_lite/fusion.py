"""Which operations run on integers: those that read grids and whose result goes to one quantiser and nowhere else.

A ReLU or a clip between them costs nothing where quantisation clips as well. Where it does not, the file can clip codes
after QuantizeLinear (`codes`: the same numbers, since rounding keeps order, and every layer stays an integer one) or
values before it (`values`: what other writers and engines expect; such a layer runs in float).
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mqbench_lite.graph import KEEPS_GRID, LAYERS, Node, QParams, QuantizedGraph

Clips = Literal["codes", "values"]

FUSED = ("conv", "linear", "matmul", "add", "mul", "avg_pool", "mean", "concat")
"""Operations that engines have on 8-bit integers."""
LEAVES = ("linear", "matmul")
"""Those of them that may give their accumulator as float."""
POOLED = (2, 3)
"""Axes of the mean that is a global average pool."""


@dataclass(frozen=True)
class Unit:
    """What runs at once.

    Attributes:
        node: the operation.
        clips: each `relu` and `clip` after it.
        end: the `quantize` node whose codes it makes, or None where it leaves its accumulator as float.
    """

    node: Node
    clips: tuple[Node, ...] = ()
    end: Node | None = None


def units(model: QuantizedGraph, clips: Clips = "codes", floats: Set[str] = frozenset()) -> dict[str, Unit]:
    """The integer units, by the name of the tensor that each makes.

    Args:
        model: a frozen quantised model.
        clips: how ReLUs and narrow grids are written.
        floats: operations known to run in float.
    """
    grids = tensor_grids(model)
    found = (_unit(model, grids, node, clips) for node in model.graph if node.name not in floats)
    return {(unit.end or unit.node).name: unit for unit in found if unit is not None}


def tensor_grids(model: QuantizedGraph) -> dict[str, QParams]:
    """The grid of every tensor that lies on one."""
    grids: dict[str, QParams] = {}
    for node in model.graph:
        if node.op == "quantize":
            grids[node.name] = model.grids[node.name]
        elif node.op in KEEPS_GRID and node.inputs[0] in grids:
            grids[node.name] = grids[node.inputs[0]]
        elif node.op == "concat" and not _ends_in_quantizer(model, node):
            read = [grids.get(name) for name in node.inputs]
            if read[0] is not None and all(same_grid(read[0], other) for other in read):
                grids[node.name] = read[0]
    return grids


def grid_owners(model: QuantizedGraph) -> dict[str, str]:
    """The quantiser that made the codes, for every tensor that lies on a grid."""
    owners: dict[str, str] = {}
    for name in tensor_grids(model):
        node = model.graph[name]
        owners[name] = name if node.op == "quantize" else owners[node.inputs[0]]
    return owners


def same_grid(one: QParams | None, other: QParams | None) -> bool:
    """Whether two tensors' codes mean the same."""
    if one is None or other is None:
        return False
    numbers = (np.array_equal(one.scale, other.scale), np.array_equal(one.zero_point, other.zero_point))
    return all(numbers) and (one.qmin, one.qmax) == (other.qmin, other.qmax)


def stored_range(grid: QParams, storage: Literal["u8", "s8"]) -> tuple[int, int, int]:
    """How far codes are shifted in files, and the least and greatest code of their 8-bit type before the shift."""
    signed = grid.qmin < 0
    if storage == "u8":
        return (128, -128, 127) if signed else (0, 0, 255)
    return (0, -128, 127) if signed else (-128, 0, 255)


def is_narrow(grid: QParams, storage: Literal["u8", "s8"]) -> bool:
    """Whether the 8-bit type has codes that the grid has not."""
    _, low, high = stored_range(grid, storage)
    return (grid.qmin, grid.qmax) != (low, high)


def code_limits(grid: QParams, clips: tuple[Node, ...]) -> tuple[int, int]:
    """The least and the greatest code that are left when the values were clipped before."""
    low, high = grid.qmin, grid.qmax
    for node in clips:
        bounds = (0.0, None) if node.op == "relu" else (node.attributes.get("low"), node.attributes.get("high"))
        lowest, highest = (None if bound is None else _code(grid, bound) for bound in bounds)
        low = low if lowest is None else min(max(low, lowest), high)
        high = high if highest is None else max(min(high, highest), low)
    return low, high


def _code(grid: QParams, value: float) -> int:
    code = np.rint(np.float32(value) / grid.scale) + grid.zero_point
    return int(np.clip(code, grid.qmin, grid.qmax))


def _unit(model: QuantizedGraph, grids: dict[str, QParams], node: Node, clips: Clips) -> Unit | None:
    if node.op not in FUSED or not _reads_integers(model, grids, node):
        return None
    between, end = _followers(model, node)
    if end is None:
        leaf = node.op in LEAVES and not _ends_in_quantizer(model, node) and not _has_float_bias(model, node)
        return Unit(node) if leaf else None
    grid = model.grids[end.name]
    if clips == "values" and (is_narrow(grid, model.storage) or not _redundant(grid, between)):
        return None
    return Unit(node, between, end)


def _reads_integers(model: QuantizedGraph, grids: dict[str, QParams], node: Node) -> bool:
    if node.op in LAYERS:
        layer = model.layers[node.name]
        return layer.grid is not None and node.inputs[0] in grids
    if node.op == "mean" and tuple(node.attributes["axes"]) != POOLED:
        return False
    return all(name in grids for name in node.inputs)


def _has_float_bias(model: QuantizedGraph, node: Node) -> bool:
    """Engines round a float bias to codes where the result is quantised, and only there."""
    bias = model.layers[node.name].bias if node.op in LAYERS else None
    return bias is not None and bias.dtype != np.int32


def _followers(model: QuantizedGraph, node: Node) -> tuple[tuple[Node, ...], Node | None]:
    """Each clip between an operation and the one quantiser that reads it."""
    between: list[Node] = []
    while node.name not in model.graph.outputs:
        readers = model.graph.readers(node.name)
        if len(readers) != 1:
            break
        node = readers[0]
        if node.op == "quantize":
            return tuple(between), node
        if node.op not in ("relu", "clip"):
            break
        between.append(node)
    return (), None


def _ends_in_quantizer(model: QuantizedGraph, node: Node) -> bool:
    return any(reader.op == "quantize" for reader in model.graph.readers(node.name))


def _redundant(grid: QParams, clips: tuple[Node, ...]) -> bool:
    """Whether quantisation alone clips as much; the engine's rule, which looks at each clip by itself."""
    return all(code_limits(grid, (node,)) == (grid.qmin, grid.qmax) for node in clips)
