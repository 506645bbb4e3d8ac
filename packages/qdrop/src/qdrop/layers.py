"""The layers whose weights are quantised, and how they follow one another in a forward pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from qdrop.folding import TRANSPOSED
from qdrop.passes import Function, ModuleCall, Trace

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
CONVOLUTION_NAMES = tuple(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))

_MULTIPLIES = ("linear", "addmm", "bilinear", *CONVOLUTION_NAMES)


@dataclass(frozen=True)
class Layer:
    """A module whose `weight` multiplies something in the traced pass.

    Args:
        axis: axis of the weight along which the output channels lie.
        calls: the module's calls; none where another module takes its weight and multiplies itself.
        functions: the functions (by index) that multiply by the weight.
        weight: the weight's value.
        macs: multiplications of all functions together.
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
    """The layers that ran, in the order in which they first did, and notes about weights that stay as they are."""
    found: list[Layer] = []
    unused: list[str] = []
    notes: list[str] = []
    held = {call.path for call in traced.calls if _has_weight(model.get_submodule(call.path))}
    for path, module in model.named_modules():
        calls = traced.calls_of.get(path, ())
        if not _has_weight(module):
            if isinstance(module, nn.RNNBase | nn.Bilinear | nn.MultiheadAttention) and calls:
                notes.append(
                    f"{path} ({type(module).__name__}) stays in floating point: its weights cannot be quantised"
                )
            continue
        weight = traced.parameters.get(f"{path}.weight" if path else "weight")
        readers = [] if weight is None else _readers(traced, path, held, weight)
        if weight is not None and readers:
            found.append(_layer(path, module, traced, calls, weight, readers))
        elif calls:
            notes.append(f"{path} ({type(module).__name__}) stays in floating point: it computes its weight as it runs")
        else:
            unused.append(path)
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        notes.append(f"{unused[0]}{more}: not called on the example inputs, stay in floating point")
    return tuple(sorted(found, key=lambda layer: layer.functions[0])), (*notes, *_bare(traced, found))


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


def layer_inputs(traced: Trace, layer: Layer) -> tuple[int, ...]:
    """The values that a layer multiplies: of each of its functions the first real tensor that is no weight."""
    found = []
    for index in layer.functions:
        values = traced.functions[index].inputs
        found += [value for value in values if traced.values[value].floating and traced.active[value]][:1]
    return tuple(found)


def _has_weight(module: nn.Module) -> bool:
    return isinstance(module, (*CONVOLUTIONS, nn.Linear, *EMBEDDINGS)) or _is_transposed_linear(module)


def _is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is transformers' `Conv1D`: a linear layer whose weight is [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and getattr(module.weight, "ndim", 0) == 2


def _readers(traced: Trace, path: str, held: set[str], weight: int) -> list[Function]:
    """The functions that multiply by the weight: one in each of its module's calls, and those in no layer's call."""
    found: dict[int, Function] = {}
    for function in (traced.functions[index] for index in traced.consumers[weight]):
        call = next((call for call in traced.around(function.call) if call.path in held), None)
        multiplies = function.name == "embedding" or any(traced.active[value] for value in function.inputs)
        if call is not None and call.path == path and multiplies:
            found.setdefault(-1 - call.index, function)
        elif call is None and function.name in (*_MULTIPLIES, "embedding"):
            found[function.index] = function
    return list(found.values())


def _layer(
    path: str, module: nn.Module, traced: Trace, calls: tuple[ModuleCall, ...], weight: int, readers: list[Function]
) -> Layer:
    axis = 1 if isinstance(module, TRANSPOSED) or _is_transposed_linear(module) else 0
    shape, embedding = traced.values[weight].shape, isinstance(module, EMBEDDINGS)
    macs = 0 if embedding else sum(_macs(traced, module, shape, axis, reader) for reader in readers)
    functions = tuple(reader.index for reader in readers)
    return Layer(path, type(module).__name__, shape, axis, embedding, calls, functions, weight, macs)


def _macs(traced: Trace, module: nn.Module, shape: tuple[int, ...], axis: int, reader: Function) -> int:
    if isinstance(module, TRANSPOSED):  # each input element meets each weight of its channel
        return math.prod(traced.values[reader.inputs[0]].shape) * math.prod(shape[1:])
    return math.prod(traced.values[reader.made[0]].shape) * (math.prod(shape) // shape[axis])


def _bare(traced: Trace, layers: list[Layer]) -> list[str]:
    """Notes about parameters that functions multiply by although no layer holds them."""
    owned = {layer.weight for layer in layers}
    names = {value: name for name, value in traced.parameters.items()}
    notes = {}
    for function in traced.functions:
        weight = function.inputs[1] if function.name in _MULTIPLIES and len(function.inputs) > 1 else None
        if weight in names and weight not in owned:
            notes[names[weight]] = f"{names[weight]} stays in floating point: `{function.name}` uses it without a layer"
    return list(notes.values())
