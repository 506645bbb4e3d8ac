"""The layers whose weights are quantised, and how they follow one another in a forward pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from qdrop.folding import TRANSPOSED
from qdrop.passes import Function, ModuleCall, Trace

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
CONVOLUTION_NAMES = tuple(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))


@dataclass(frozen=True)
class Layer:
    """A module with a `weight` that multiplies its input, and its calls in the traced pass.

    Args:
        functions: for each call, the index of the function that reads the weight.
        axis: axis of the weight along which the output channels lie.
        macs: multiplications of all calls together.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    axis: int
    embedding: bool
    calls: tuple[ModuleCall, ...]
    functions: tuple[int, ...]
    weight: int
    macs: int


def find_layers(model: nn.Module, traced: Trace) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """The layers that ran, in the order in which they first did, and notes about those that stay as they are."""
    found: list[Layer] = []
    unused: list[str] = []
    notes: list[str] = []
    for path, module in model.named_modules():
        if not _has_weight(module):
            if isinstance(module, nn.RNNBase | nn.Bilinear) and path in traced.calls_of:
                notes.append(
                    f"{path} ({type(module).__name__}) stays in floating point: its weights cannot be quantised"
                )
            continue
        calls = traced.calls_of.get(path, ())
        weight = traced.parameters[f"{path}.weight" if path else "weight"]
        readers = [_reader(traced, call, weight) for call in calls]
        if not calls:
            unused.append(path)
        elif None in readers:
            notes.append(f"{path} ({type(module).__name__}) stays in floating point: it computes its weight as it runs")
        else:
            found.append(_layer(path, module, traced, calls, [reader for reader in readers if reader is not None]))
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        notes.append(f"{unused[0]}{more}: not called on the example inputs, stay in floating point")
    notes += _elsewhere(traced, found)
    return tuple(sorted(found, key=lambda layer: layer.functions[0])), tuple(notes)


def nearest_layers(traced: Trace, layers: tuple[Layer, ...]) -> tuple[frozenset[int], ...]:
    """For each value, the layers (by index) that it comes from without passing through another layer."""
    owner = {function: index for index, layer in enumerate(layers) for function in layer.functions}
    nearest: list[frozenset[int]] = [frozenset()] * len(traced.values)
    for function in traced.functions:
        if function.index in owner:
            sources = frozenset([owner[function.index]])
        else:
            sources = frozenset().union(*(nearest[value] for value in function.inputs))
        for value in function.made:
            nearest[value] = sources
    return tuple(nearest)


def layer_input(traced: Trace, layer: Layer, call: int) -> int | None:
    """The value that a layer's call reads: the first tensor in floating point that comes from the model's inputs."""
    function = traced.functions[layer.functions[call]]
    for value in (*layer.calls[call].inputs, *function.inputs):
        if traced.values[value].floating and traced.active[value]:
            return value
    return None


def _has_weight(module: nn.Module) -> bool:
    if isinstance(module, (*CONVOLUTIONS, nn.Linear, *EMBEDDINGS)):
        return True
    return _is_transposed_linear(module)


def _is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is transformers' `Conv1D`: a linear layer whose weight is [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and getattr(module.weight, "ndim", 0) == 2


def _reader(traced: Trace, call: ModuleCall, weight: int) -> Function | None:
    within = traced.functions[call.first : call.last]
    return next((function for function in within if weight in function.inputs and function.made), None)


def _layer(path: str, module: Any, traced: Trace, calls: tuple[ModuleCall, ...], readers: list[Function]) -> Layer:
    axis = 1 if isinstance(module, TRANSPOSED) or _is_transposed_linear(module) else 0
    shape = tuple(module.weight.shape)
    embedding = isinstance(module, EMBEDDINGS)
    macs = 0
    if not embedding:
        for reader in readers:
            out = math.prod(traced.values[reader.made[0]].shape)
            if isinstance(module, TRANSPOSED):  # each input element meets each weight of its group
                out = math.prod(traced.values[reader.inputs[0]].shape)
                macs += out * math.prod(shape[1:])
            else:
                macs += out * math.prod(shape) // shape[axis]
    weight = traced.parameters[f"{path}.weight" if path else "weight"]
    functions = tuple(reader.index for reader in readers)
    return Layer(path, type(module).__name__, shape, axis, embedding, calls, functions, weight, macs)


_MULTIPLIES = ("linear", "bilinear", *CONVOLUTION_NAMES)


def _elsewhere(traced: Trace, layers: list[Layer]) -> list[str]:
    """Notes about weights that multiply outside the layers that hold them."""
    known = {function for layer in layers for function in layer.functions}
    owners = {layer.weight: layer.path for layer in layers}
    names = {value: name for name, value in traced.parameters.items()}
    notes = {}
    for function in traced.functions:
        if function.index in known or function.name not in _MULTIPLIES or len(function.inputs) < 2:
            continue
        weight = function.inputs[1]
        place = traced.calls[function.call].path if function.call is not None else ""
        place = place or "the model"
        if weight in owners:
            notes[weight] = (
                f"{owners[weight]}: its weight is also used by `{function.name}` in {place}, quantised there too"
            )
        elif weight in names:
            notes[weight] = (
                f"{names[weight]} stays in floating point: `{function.name}` in {place} uses it without a layer"
            )
    return list(notes.values())
