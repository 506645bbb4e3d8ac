"""Modules for the nodes of a graph, under the names that they had in the user's model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from mqbench_lite.bn_folding import BatchNorm, QuantLayer, layer_of, quantises
from mqbench_lite.capture import Captured
from mqbench_lite.graph import LAYERS, Graph, Node
from mqbench_lite.operators import run
from mqbench_lite.placement import PREFIX, home_of


class Part(nn.Module):
    """A place for modules, named as in the user's model; it is not called."""


class Segment(nn.Module):
    """Nodes that run one after the other: a module of the user's model, called as one.

    Its own attributes begin with an underscore, so that the user's modules can have any name.

    Attributes:
        _steps: nodes and inner segments, in order.
        _reads: names of the tensors it is given.
        _gives: names of the tensors it returns, a single one as such.
        _modules_of: for all nodes of the model, by name, the module that computes it; operations without one are absent.
        _sources: for all tensors of the model the `quantize` node on whose grid it lies.
        _last: after which step each tensor is no longer needed.
    """

    _steps: tuple[Node | Segment, ...]
    _reads: tuple[str, ...]
    _gives: tuple[str, ...]
    _modules_of: dict[str, nn.Module]
    _sources: dict[str, str | None]
    _last: dict[str, int]

    def forward(self, *tensors: Any) -> Any:
        """The tensors that it gives, from those that it reads."""
        values = dict(zip(self._reads, tensors, strict=True))
        for at, step in enumerate(self._steps):
            if isinstance(step, Segment):
                results = step(*(values[name] for name in step._reads))
                values.update(zip(step._gives, results if len(step._gives) > 1 else (results,), strict=True))
                read: Sequence[str] = step._reads
            else:
                values[step.name] = self._result(step, [values[name] for name in step.inputs])
                read = step.inputs
            for name in read:
                if self._last[name] == at:
                    values.pop(name, None)
        results = tuple(values[name] for name in self._gives)
        return results if len(results) > 1 else results[0]

    def _result(self, node: Node, inputs: list[Any]) -> Any:
        module = self._modules_of.get(node.name)
        if module is None:
            return run(node, inputs)
        if isinstance(module, QuantLayer):
            return module(inputs[0], self._input_scale(node)) if module.rounds_bias else module(inputs[0])
        return module(*inputs)

    def _input_scale(self, node: Node) -> Tensor | None:
        source = self._sources[node.inputs[0]]
        quantizer: Any = None if source is None else self._modules_of[source]
        return quantizer.scale if quantises(quantizer) else None


Maker = Callable[[str, int], nn.Module | None]
"""Makes a quantiser for a role and a width."""


def build(
    root: Segment,
    captured: Captured,
    graph: Graph,
    norms: Mapping[str, str],
    *,
    strategy: int,
    rounds_bias: bool,
) -> None:
    """Gives a model its layers, normalisations, constants and segments; quantisers are put in before.

    Args:
        root: the model; its `_modules_of` holds the quantisers, which are placed already.
        captured: whose tensors and class names are used.
        graph: with quantisers.
        norms: by the name of a layer's module, that of the normalisation folded into it.
        strategy: of the folding.
        rounds_bias: as the profile's `bias` says.
    """
    for node in graph:
        home = home_of(node.name)
        if node.op in LAYERS:
            layer = partial(_layer, node, home, captured, norms, strategy, rounds_bias)
            root._modules_of[node.name] = _once(root, home, layer)
        elif node.op == "batch_norm":
            root._modules_of[node.name] = _once(root, home, partial(norm_of, captured, home, node.attributes["eps"]))
        elif node.op == "layer_norm":
            root._modules_of[node.name] = _once(root, home, partial(_layer_norm, captured, home, node))
        elif node.op == "call" and isinstance(node.attributes["target"].function, nn.Module):
            put(root, home, node.attributes["target"].function)
    divide(root, captured, graph)


def put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Registers a module under a qualified name, with parts for what is missing on the way."""
    owner, _, name = path.rpartition(".")
    holder = _holder(root, owner)
    old = holder._modules.get(name)
    if old is not None:  # a part that came first: what lies in it moves
        for child_name, child in old.named_children():
            module.add_module(child_name, child)
    holder.add_module(name, module)


def _holder(root: nn.Module, path: str) -> nn.Module:
    holder = root
    for name in path.split(".") if path else ():
        if name not in holder._modules:
            holder.add_module(name, Part())
        holder = holder._modules[name]  # type: ignore[assignment]
    return holder


def _once(root: nn.Module, path: str, make: Callable[[], nn.Module]) -> nn.Module:
    """The module of that name, made at the first call."""
    owner, _, name = path.rpartition(".")
    known = _holder(root, owner)._modules.get(name)
    if known is None or isinstance(known, Part):
        known = make()
        put(root, path, known)
    return known


def _layer(
    node: Node, home: str, captured: Captured, norms: Mapping[str, str], strategy: int, rounds_bias: bool
) -> QuantLayer:
    tensors = captured.tensors
    bn = None
    if home in norms:
        eps = next(each.attributes["eps"] for each in captured.graph if home_of(each.name) == norms[home])
        bn = norm_of(captured, norms[home], eps)
    weight, bias = tensors[f"{home}.weight"], tensors.get(f"{home}.bias")
    return layer_of(node, weight, bias, bn=bn, strategy=strategy, rounds_bias=rounds_bias)


def norm_of(captured: Captured, home: str, eps: float) -> BatchNorm:
    """A batch normalisation with the numbers and the momentum of the model's."""
    tensors = captured.tensors
    mean, weight = tensors[f"{home}.mean"], tensors.get(f"{home}.weight")
    original = dict(captured.model.named_modules()).get(home)
    norm = BatchNorm(len(mean), eps, getattr(original, "momentum", 0.1), affine=weight is not None)
    norm.running_mean, norm.running_var = mean.detach().clone(), tensors[f"{home}.var"].detach().clone()
    if weight is not None:
        norm.weight = _parameter(weight)
        norm.bias = _parameter(tensors[f"{home}.bias"]) if f"{home}.bias" in tensors else None  # type: ignore[assignment]
    return norm


def _layer_norm(captured: Captured, home: str, node: Node) -> nn.LayerNorm:
    weight, bias = captured.tensors.get(f"{home}.weight"), captured.tensors.get(f"{home}.bias")
    norm = nn.LayerNorm(node.attributes["shape"], node.attributes["eps"], elementwise_affine=weight is not None)
    norm.weight = None if weight is None else _parameter(weight)  # type: ignore[assignment]
    norm.bias = None if bias is None else _parameter(bias)  # type: ignore[assignment]
    return norm


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach().clone())


def container_of(node: Node) -> str:
    """Qualified name of the module in which a node runs; a quantiser's is that of its tensor."""
    if node.op in ("input", "constant"):
        return ""
    return home_of(node.name.removeprefix(PREFIX).partition("@")[0]).rpartition(".")[0]


def divide(root: Segment, captured: Captured, graph: Graph) -> None:
    """Makes a segment of each of the user's modules whose nodes lie beside one another in the graph."""
    nodes = [node for node in graph if node.op not in ("input", "constant")]
    places = [container_of(node) for node in nodes]
    layers = {home_of(node.name) for node in graph if node.op in LAYERS}
    read_by: dict[str, list[int]] = {}
    for at, node in enumerate(nodes):
        for name in node.inputs:
            read_by.setdefault(name, []).append(at)

    def segment(path: str, first: int, stop: int, into: Segment) -> None:
        steps: list[Node | Segment] = []
        at = first
        while at < stop:
            inner = _inner(path, at, stop)
            if inner is None:
                steps.append(nodes[at])
                at += 1
                continue
            name, end = inner
            made = _segment_class(captured, name)()
            put(root, name, made)
            segment(name, at, end, made)
            steps.append(made)
            at = end
        inside = {node.name for node in nodes[first:stop]}
        into._modules_of, into._sources = root._modules_of, root._sources
        into._steps = tuple(steps)
        if path:
            into._reads = tuple(
                dict.fromkeys(name for node in nodes[first:stop] for name in node.inputs if name not in inside)
            )
            into._gives = tuple(
                node.name
                for node in nodes[first:stop]
                if node.name in graph.outputs or any(not first <= at < stop for at in read_by.get(node.name, ()))
            )
        into._last = _last_reads(into)

    def _inner(path: str, at: int, stop: int) -> tuple[str, int] | None:
        """The outermost module below `path` that begins at a node, with the end of its nodes, if they are all there."""
        below = places[at].removeprefix(f"{path}." if path else "") if places[at] != path else ""
        name = path
        for part in below.split(".") if below else ():
            name = f"{name}.{part}" if name else part
            within = [each for each, place in enumerate(places) if place == name or place.startswith(f"{name}.")]
            contiguous = within[0] == at and within[-1] - at + 1 == len(within) and within[-1] < stop
            if contiguous and name not in layers:
                return name, within[-1] + 1
        return None

    segment("", 0, len(nodes), root)


def _last_reads(segment: Segment) -> dict[str, int]:
    """After which step each tensor is no longer needed; never for one that is given."""
    found: dict[str, int] = {}
    for at, step in enumerate(segment._steps):
        for name in step._reads if isinstance(step, Segment) else step.inputs:
            found[name] = at
    return {name: at if name not in segment._gives else len(segment._steps) for name, at in found.items()}


def _segment_class(captured: Captured, path: str) -> type[Segment]:
    """A segment that carries the class name of the user's module, which tells what is a block of the net."""
    original = dict(captured.model.named_modules()).get(path)
    return type(type(original).__name__ if original is not None else "Segment", (Segment,), {})
