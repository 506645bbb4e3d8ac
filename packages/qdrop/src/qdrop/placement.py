"""Which tensors are quantised, and where: after the activation or the addition, once for all that read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from qdrop.layers import Layer, layer_inputs
from qdrop.passes import OPAQUE, Function, Trace
from qdrop.sites import Site

OPERANDS = {"matmul": (0, 1), "bmm": (0, 1), "mm": (0, 1), "baddbmm": (1, 2), "scaled_dot_product_attention": (0, 1, 2)}
"""Functions that multiply two activations, and which of their tensors those are."""

_REARRANGES = (
    "__get__ __getitem__ alpha_dropout amax chunk clone contiguous detach dropout dropout1d dropout2d dropout3d "
    "dropout_ expand expand_as feature_alpha_dropout flatten flip float gather index_select moveaxis movedim narrow "
    "pad permute pixel_shuffle pixel_unshuffle repeat repeat_interleave reshape reshape_as roll select split squeeze "
    "swapaxes swapdims t tensor_split tile to transpose type type_as unbind unflatten unfold unsqueeze view view_as"
)
_KEEPS_VALUES = frozenset(_REARRANGES.split())
_POOLS = ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool")


@dataclass(frozen=True)
class Place:
    """A site and what is known about it.

    Args:
        value: the tensor that is quantised; None for the probabilities within fused attention.
        function: index of the function that makes it or, for an operand, reads it.
        consumers: paths of the layers that read it, names of the functions that read it as an operand.
        unsigned: it never is negative, by construction.
    """

    site: Site
    value: int | None
    shape: tuple[int, ...]
    function: int
    consumers: tuple[str, ...]
    unsigned: bool = False


def place(traced: Trace, layers: tuple[Layer, ...], skipped: frozenset[int], skips: Iterable[str]) -> tuple[Place, ...]:
    """The sites of all activations, in order of execution.

    Args:
        traced: the pass of the prepared model.
        layers: all layers that ran.
        skipped: layers (by index) that stay in floating point.
        skips: paths of modules in which no operand is quantised.
    """
    readers: dict[int, list[int]] = {}
    for index, layer in enumerate(layers):
        if layer.embedding or index in skipped:
            continue
        for value in layer_inputs(traced, layer):
            source = walk_back(traced, value)
            if is_activation(traced, source):
                readers.setdefault(source, []).append(index)
    found: dict[Site, Place] = {}
    for value, indices in readers.items():
        paths = tuple(dict.fromkeys(layers[index].path for index in indices))
        producer = traced.values[value].producer
        site = locate(traced, value)
        if site is not None and producer is not None:
            shape = traced.values[value].shape
            found[site] = Place(site, value, shape, producer, paths, _is_softmax(traced, value))
        else:
            found |= {p.site: p for index in dict.fromkeys(indices) for p in _at_layer(traced, layers, index, value)}
    known = {p.value: p.site for p in found.values()}
    for p in _operands(traced, known, tuple(skips)):
        if p.site in found:
            before = found[p.site]
            p = replace(before, consumers=tuple(dict.fromkeys((*before.consumers, *p.consumers))))
        found[p.site] = p
    return tuple(sorted(found.values(), key=lambda p: (p.function, p.site.kind != "operand", p.site.index)))


def is_activation(traced: Trace, value: int) -> bool:
    """Whether a value is worth quantising: real numbers that come from the inputs and the parameters both.

    What comes from the inputs alone is the input, perhaps normalised, or a mask.
    """
    return traced.values[value].floating and traced.active[value] and traced.learnt[value]


def walk_back(traced: Trace, value: int) -> int:
    """The value that this one is a selection, a rearrangement or a pooling of."""
    while (producer := traced.values[value].producer) is not None:
        function = traced.functions[producer]
        if not _keeps_values(traced, function):
            break
        value = next((v for v in function.inputs if traced.values[v].floating), function.inputs[0])
    return value


def locate(traced: Trace, value: int) -> Site | None:
    """The site of a value: the innermost module that returns it, unless it is read before, or else its function."""
    producer = traced.values[value].producer
    if producer is None:
        return None
    function = traced.functions[producer]
    returning = [call for call in traced.around(function.call) if value in call.outputs and value not in call.inputs]
    for call in returning[:1]:
        if not any(reader in call.span for reader in traced.consumers[value]):
            return Site("module", call.path, call.call, index=call.outputs.index(value))
    if function.call is None or function.name == OPAQUE or value not in function.returned:
        return None
    call = traced.calls[function.call]
    return Site("function", call.path, call.call, function.name, function.ordinal, function.returned.index(value))


def _keeps_values(traced: Trace, function: Function) -> bool:
    if not function.inputs:
        return False
    if function.name in _KEEPS_VALUES or function.name.startswith(_POOLS):
        return True
    return function.name == "mean" and _is_spatial_mean(traced, function)


def _is_spatial_mean(traced: Trace, function: Function) -> bool:
    """Whether a mean leaves the samples and the channels apart."""
    dims = function.args[1] if len(function.args) > 1 else function.kwargs.get("dim")
    ndim = len(traced.values[function.inputs[0]].shape)
    if dims is None:
        return False
    axes = {dim % ndim for dim in ([dims] if isinstance(dims, int) else dims)}
    return axes <= set(range(2, ndim)) or axes == set(range(1, ndim - 1))


def _is_softmax(traced: Trace, value: int) -> bool:
    producer = traced.values[walk_back(traced, value)].producer
    return producer is not None and traced.functions[producer].name == "softmax"


def _at_layer(traced: Trace, layers: tuple[Layer, ...], index: int, value: int) -> Iterable[Place]:
    """Sites at the layer itself, for a tensor that nothing seen has made."""
    layer = layers[index]
    for reader, given in zip(layer.functions, layer_inputs(traced, layer), strict=False):
        function = traced.functions[reader]
        if walk_back(traced, given) == value and function.call is not None:
            call, position = traced.calls[function.call], function.inputs.index(given)
            site = Site("operand", call.path, call.call, function.name, function.ordinal, position)
            yield Place(site, given, traced.values[given].shape, reader, (layer.path,))


def _operands(traced: Trace, known: dict[int | None, Site], skips: tuple[str, ...]) -> Iterable[Place]:
    for function in traced.functions:
        positions: Iterable[int] = OPERANDS.get(function.name, ())
        if function.name == "einsum":
            positions = range(function.positional)
        path = traced.calls[function.call].path if function.call is not None else None
        if path is None or any(path == skip or path.startswith(f"{skip}.") for skip in skips):
            continue
        where = traced.calls[function.call]  # type: ignore[index]  # path is not None
        for position in positions:
            if position >= len(function.inputs):
                continue
            value = function.inputs[position]
            if not is_activation(traced, value):
                continue
            source = walk_back(traced, value)
            if source in known:
                before = known[source]
                yield Place(before, source, traced.values[source].shape, function.index, (function.name,))
                continue
            site = Site("operand", path, where.call, function.name, function.ordinal, position)
            shape, unsigned = traced.values[value].shape, _is_softmax(traced, value)
            yield Place(site, value, shape, function.index, (function.name,), unsigned)
        if function.name == "scaled_dot_product_attention" and is_activation(traced, function.inputs[0]):
            query, key = (traced.values[value].shape for value in function.inputs[:2])
            site = Site("operand", path, where.call, function.name, function.ordinal, 3)
            yield Place(site, None, (*query[:-1], key[-2]), function.index, (function.name,), unsigned=True)
