"""Where a graph is quantised: the three rules, and what shares a grid.

Rule 1 quantises the inputs of layers. Rule 2 adds pools and additions, where the branch that comes straight from a layer
stays in that layer's accumulator. Rule 3 quantises every tensor that passes from one operation to another. Under each a
layer, its batch normalisation and its ReLU are one unit, a tensor has one quantiser for all that read it at one width, and
operations that keep their input's grid get none.

Reference: MQBench, arXiv:2111.03759, section 3.2.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mqbench_lite.errors import ProfileError, UnsupportedOpError
from mqbench_lite.graph import KEEPS_GRID, LAYERS, Graph, Node
from mqbench_lite.operators import without_format
from mqbench_lite.specs import MAX_BITS, MIN_BITS, HardwareProfile

PREFIX = "Q:"
"""How the names of `quantize` nodes begin."""
POOLS = ("max_pool", "avg_pool", "mean")
FUSABLE = (*LAYERS, "batch_norm", "add")
"""Operations that a ReLU or a clip after them is one unit with."""


@dataclass(frozen=True)
class Placed:
    """A graph with its quantisers.

    Attributes:
        graph: with `quantize` nodes, whose readers read them in the place of the tensor.
        weight_bits: width of each layer's weight, by the layer's name without `#2`; None stays in float.
        shared: for each `quantize` node the one whose grid it has; most have their own.
    """

    graph: Graph
    weight_bits: Mapping[str, int | None]
    shared: Mapping[str, str]


def place(
    graph: Graph,
    profile: HardwareProfile,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    fallback: Literal["error", "float"] = "error",
) -> Placed:
    """Puts quantisers into a graph.

    Args:
        graph: without any.
        profile: its rule, widths, and what shares a grid.
        overrides: by patterns of nodes' names, such as `head.*`: `weight_bits` and `act_bits` (of what the node reads); 2
            to 8, or None to stay in float. The last pattern that fits counts.
        fallback: `float` lets functions that have no place in any file format run in float.

    Raises:
        ProfileError: an override fits nothing, or says what is no width.
        UnsupportedOpError: such a function, without `fallback="float"`.
    """
    if fallback == "error" and (node := without_format(graph)) is not None:
        raise UnsupportedOpError(
            f"{node.attributes['target'].name} at {node.name}", profile.name, 'pass fallback="float"'
        )
    widths = find_widths(graph, profile, overrides or {})
    quantised = _inserted(graph, _wanted(graph, profile, widths))
    return Placed(quantised, widths.weights, _sharing(quantised, profile))


@dataclass(frozen=True)
class Widths:
    """Bits, before it is known where.

    Attributes:
        weights: of each layer's weight, by the layer's name without `#2`; None stays in float.
        reads: of what each node reads, by name; None stays in float.
    """

    weights: Mapping[str, int | None]
    reads: Mapping[str, int | None]


def find_widths(graph: Graph, profile: HardwareProfile, overrides: Mapping[str, Mapping[str, Any]]) -> Widths:
    """The profile's widths, its edge's, and the user's on top.

    The edge is what lies before the second layer of a path or after its last but one: first and last layers, and what
    else reads the model's inputs or the last layers' outputs.
    """
    edge = profile.edge_bits
    inner = _names_with_layers_around(graph) if edge is not None else {node.name for node in graph}
    weights: dict[str, int | None] = {}
    reads: dict[str, int | None] = {}
    for node in graph:
        home = home_of(node.name)
        reads[node.name] = profile.act.bits if node.name in inner else edge
        if node.op in LAYERS:
            weights[home] = max(weights.get(home) or 0, profile.weight.bits if node.name in inner else edge or 0)
    for pattern, wishes in overrides.items():
        fitting = [node for node in graph if _fits(node, pattern)]
        _check_override(graph, pattern, wishes, fitting)
        for node in fitting:
            if "act_bits" in wishes:
                reads[node.name] = wishes["act_bits"]
            if "weight_bits" in wishes and node.op in LAYERS:
                weights[home_of(node.name)] = wishes["weight_bits"]
    return Widths(weights, reads)


def home_of(name: str) -> str:
    """The name of the module that all calls of a layer share."""
    return name.partition("#")[0]


def grid_sources(graph: Graph, shared: Mapping[str, str]) -> dict[str, str | None]:
    """For each tensor the `quantize` node on whose grid it lies, or None.

    Args:
        graph: with quantisers.
        shared: as `Placed` has it.
    """
    found: dict[str, str | None] = {}
    for node in graph:
        found[node.name] = None
        if node.op == "quantize":
            found[node.name] = node.name
        elif node.op in KEEPS_GRID:
            found[node.name] = found[node.inputs[0]]
        elif node.op == "concat":
            sources = [found[name] for name in node.inputs]
            if len({shared.get(source or "") for source in sources}) == 1:
                found[node.name] = sources[0]
    return found


def fused(graph: Graph, *, relu: bool = True) -> frozenset[str]:
    """Names of the nodes that are one unit with the node before them.

    Args:
        graph: with or without quantisers.
        relu: whether ReLUs and clips are, or batch normalisations alone.
    """
    nodes = {node.name: node for node in graph}
    readers = _readers(graph)
    found = set()
    for node in graph:
        if node.op == "batch_norm":
            before: tuple[str, ...] = LAYERS
        elif node.op in ("relu", "clip") and relu:
            before = FUSABLE
        else:
            continue
        source = node.inputs[0]
        if nodes[source].op in before and len(readers[source]) == 1 and source not in graph.outputs:
            found.add(node.name)
    return frozenset(found)


Wishes = dict[str, dict[tuple[str, int], int]]
"""For each tensor the readers, by name and place among their inputs, that want it quantised, and the width."""


def _wanted(graph: Graph, profile: HardwareProfile, widths: Widths) -> Wishes:
    """Who wants which tensor quantised; from the last node to the first, so that readers have spoken before."""
    nodes = {node.name: node for node in graph}
    readers, units = _readers(graph), fused(graph, relu=profile.relu_fusion)
    wishes: Wishes = {node.name: {} for node in graph}
    for node in reversed(graph.nodes):
        asked = wishes[node.name]
        bits = widths.reads[node.name]
        agreed = None
        if asked and len(asked) == len(readers[node.name]) and node.name not in graph.outputs:
            agreed = next(iter(asked.values())) if len(set(asked.values())) == 1 else None
        passes = node.op in KEEPS_GRID or (node.op == "concat" and profile.graph == 3 and profile.concat == "shared")
        if passes and agreed is not None:
            wishes[node.name] = {}
            bits = agreed
            slots: tuple[int, ...] = tuple(range(len(node.inputs)))
        else:
            slots = () if node.name in units else _slots(node, nodes, readers, graph, profile)
            if node.op in _COPIES and asked:
                bits = max(asked.values())
        for slot in slots:
            if bits is not None and nodes[node.inputs[slot]].op != "constant":
                wishes[node.inputs[slot]][node.name, slot] = bits
    return wishes


_COPIES = ("pad", "resize")
"""Operations whose results are mostly values of their input: they read at the width at which they are read."""


def _slots(
    node: Node, nodes: Mapping[str, Node], readers: Mapping[str, list[Node]], graph: Graph, profile: HardwareProfile
) -> tuple[int, ...]:
    """Places among a node's inputs that the profile's rule wants quantised."""
    everything = tuple(range(len(node.inputs)))
    if node.op in LAYERS:
        return everything
    if profile.graph == 1 or node.op in _NEVER:
        return ()
    if node.op in POOLS:
        return everything
    if profile.graph == 2:
        if node.op != "add":
            return ()
        kept = next((at for at in everything if _straight(node.inputs[at], nodes, readers, graph)), None)
        return tuple(at for at in everything if at != kept)
    return everything


_NEVER = ("input", "constant", "call", *(op for op in KEEPS_GRID if op != "max_pool"))
"""Operations that want nothing of their own."""


def _straight(name: str, nodes: Mapping[str, Node], readers: Mapping[str, list[Node]], graph: Graph) -> bool:
    """Whether a tensor is a layer's own result, batch normalisation included, and read once."""
    if len(readers[name]) != 1 or name in graph.outputs:
        return False
    node = nodes[name]
    return node.op in LAYERS or (node.op == "batch_norm" and _straight(node.inputs[0], nodes, readers, graph))


def _inserted(graph: Graph, wishes: Wishes) -> Graph:
    """The graph with a `quantize` node behind each tensor, for each width at which it is wanted."""
    made: list[Node] = []
    names: dict[tuple[str, int], str] = {}
    for node in graph:
        inputs = list(node.inputs)
        for slot, source in enumerate(inputs):
            bits = wishes[source].get((node.name, slot))
            if bits is not None:
                inputs[slot] = names[source, bits]
        made.append(replace(node, inputs=tuple(inputs)))
        widths = sorted(set(wishes[node.name].values()))
        for bits in widths:
            names[node.name, bits] = f"{PREFIX}{node.name}" + (f"@{bits}" if len(widths) > 1 else "")
            made.append(Node(names[node.name, bits], "quantize", (node.name,), {"bits": bits}))
    return Graph(tuple(made), graph.outputs)


def _sharing(graph: Graph, profile: HardwareProfile) -> dict[str, str]:
    """For each `quantize` node the first of those that must have its grid."""
    leader = {node.name: node.name for node in graph if node.op == "quantize"}
    order = list(leader)

    def join(names: Sequence[str]) -> None:
        heads = {leader[name] for name in names}
        first = min(heads, key=order.index)
        leader.update({name: first for name, head in leader.items() if head in heads})

    if profile.concat == "shared" and profile.graph == 3:
        for node in graph:
            if node.op == "concat":
                found = grid_sources(graph, leader)
                sources = [found[name] for name in node.inputs]
                if None not in sources and len({graph[each].attributes["bits"] for each in sources if each}) == 1:
                    join([each for each in sources if each is not None])
    bits = {node.name: node.attributes["bits"] for node in graph if node.op == "quantize"}
    nodes = {node.name: node for node in graph}
    for node in graph:
        if node.op == "quantize" and _keeps_values(nodes[node.inputs[0]], profile):
            source = grid_sources(graph, leader)[nodes[node.inputs[0]].inputs[0]]
            if source is not None and bits[source] == bits[node.name]:
                join([source, node.name])
    return leader


def _keeps_values(node: Node, profile: HardwareProfile) -> bool:
    """Whether a result that is quantised anew is quantised on the grid of the input."""
    if node.op in ("avg_pool", "mean"):
        return profile.pool_keeps
    if node.op == "pad":
        return bool(node.attributes["value"] == 0)
    return node.op == "resize" and node.attributes["mode"] == "nearest"


def _names_with_layers_around(graph: Graph) -> set[str]:
    """Nodes with a layer among their ancestors and one among their descendants."""
    ops = {node.name: node.op for node in graph}
    below: set[str] = set()
    for node in graph:
        if any(name in below or ops[name] in LAYERS for name in node.inputs):
            below.add(node.name)
    above: set[str] = set()
    readers = _readers(graph)
    for node in reversed(graph.nodes):
        if any(reader.op in LAYERS or reader.name in above for reader in readers[node.name]):
            above.add(node.name)
    return below & above


def _readers(graph: Graph) -> dict[str, list[Node]]:
    """The readers of each node, once for each place at which they read it."""
    found: dict[str, list[Node]] = {node.name: [] for node in graph}
    for node in graph:
        for name in node.inputs:
            found[name].append(node)
    return found


def _fits(node: Node, pattern: str) -> bool:
    return fnmatch.fnmatchcase(node.name, pattern) or fnmatch.fnmatchcase(home_of(node.name), pattern)


def _check_override(graph: Graph, pattern: str, wishes: Mapping[str, Any], fitting: Sequence[Node]) -> None:
    if not fitting:
        names = [home_of(node.name) for node in graph if node.op in LAYERS]
        nearest = difflib.get_close_matches(pattern, names, 1, 0.0)
        raise ProfileError(
            f"the override {pattern!r} fits no layer", f"did you mean {nearest[0]!r}?" if nearest else None
        )
    for key, value in wishes.items():
        if key not in ("weight_bits", "act_bits"):
            raise ProfileError(f"the override {pattern!r} has an unknown key {key!r}", "use weight_bits or act_bits")
        if value is not None and not (isinstance(value, int) and MIN_BITS <= value <= MAX_BITS):
            raise ProfileError(
                f"the override {pattern!r} sets {key} to {value!r}", f"give {MIN_BITS} to {MAX_BITS}, or None for float"
            )
