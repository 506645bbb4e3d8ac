"""Calls of torch's functions as operations of a graph, whoever recorded them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mqbench_lite.errors import TraceError
from mqbench_lite.graph import Graph, Node
from mqbench_lite.operators import Bound, Ref

BATCH = -1
"""Stands in shapes for the number of samples."""


@dataclass(frozen=True)
class Made:
    """A tensor, or a number, that a node makes when the graph runs.

    Attributes:
        node: the node's name.
        shape: `BATCH` where it is not known before.
    """

    node: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor that is known at capture: a parameter, a buffer, or what was computed from them.

    Attributes:
        path: its qualified name.
        tensor: its value; parameters are the model's own objects.
    """

    path: str
    tensor: Tensor


@dataclass(frozen=True)
class Call:
    """One call of a function as a tracer recorded it.

    Attributes:
        name: the function's short name, such as `conv2d`.
        target: what to call.
        args: `Made` and `Held` in the place of tensors.
        kwargs: likewise.
        owner: qualified name of the module that called it.
        own_name: what its node is to be called, without the owner.
        shape: of its result, `BATCH` where it is not known; None if the result is no tensor.
        source: where in the user's code it was called.
        number: whether its result is a number.
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    owner: str
    own_name: str
    shape: tuple[int, ...] | None
    source: str = ""
    number: bool = False

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or by name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)


@dataclass
class Lowering:
    """Collects nodes, one call after the other.

    Attributes:
        model: whose functions are called.
        nodes: so far.
        tensors: parameters and buffers of layers and normalisations (`NAME.weight`, `NAME.bias`, `NAME.mean`,
            `NAME.var`, where NAME is a node's without `#2`), and constants by their nodes' names.
        owners: qualified name of the module that called each node.
        sizes: shape of each node's tensor.
    """

    model: nn.Module
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)
    _constants: dict[int, Made] = field(default_factory=dict)
    _kept: list[Tensor] = field(default_factory=list)
    _layers: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def opaque(self, call: Call) -> Any:
        """A call that runs in float as it stands; a structure for one whose result is a structure."""
        inputs: list[Made] = []

        def referred(leaf: Any) -> Any:
            if not isinstance(leaf, Made | Held):
                return leaf
            made = self.as_made(leaf)
            if made not in inputs:
                inputs.append(made)
            return Ref(inputs.index(made))

        args, kwargs = pytree.tree_map(referred, (call.args, dict(call.kwargs)))
        target = Bound(call.target, tuple(args), kwargs, call.number)
        return self.emit(call, "call", inputs, target=target, args=(), kwargs={})

    def emit(
        self, call: Call, op: str, inputs: Sequence[Any], made_shape: tuple[int, ...] | None = None, **attributes: Any
    ) -> Made:
        """One more node.

        Args:
            call: it is named after this one.
            op: its operation.
            inputs: `Made`, or `Held` that becomes a constant.
            made_shape: of its tensor, if not the call's.
            **attributes: as `OPS` has them.
        """
        return self.add(self.unique(self.name_of(call, op)), op, inputs, attributes, call, made_shape)

    def name_of(self, call: Call, op: str | None = None) -> str:
        """A module of torch.nn without parts and numbers gives its name to what it calls."""
        owner = self.model.get_submodule(call.owner)
        if call.owner and type(owner).__module__.startswith("torch.nn.") and not any(owner.children()):
            numbers = next(owner.parameters(), None) is not None
            return f"{call.owner}.{op or call.own_name}" if numbers else call.owner
        return f"{call.owner}.{call.own_name}" if call.owner else call.own_name

    def add(
        self,
        name: str,
        op: str,
        inputs: Sequence[Any],
        attributes: Mapping[str, Any],
        call: Call,
        shape: tuple[int, ...] | None = None,
    ) -> Made:
        """One more node of this very name."""
        sources = tuple(self.as_made(each).node for each in inputs)
        self.nodes.append(Node(name, op, sources, attributes, call.source))
        self.owners[name] = call.owner
        self.sizes[name] = shape if shape is not None else call.shape or ()
        return Made(name, self.sizes[name])

    def input(self, name: str, shape: tuple[int, ...]) -> Made:
        """A tensor that the model is given."""
        name = self.unique(name)
        self.nodes.append(Node(name, "input"))
        self.owners[name], self.sizes[name] = "", shape
        return Made(name, shape)

    def as_made(self, value: Made | Held) -> Made:
        """A tensor of a node; what is held becomes a constant."""
        if isinstance(value, Made):
            return value
        known = self._constants.get(id(value.tensor))
        if known is None:
            name = self.unique(value.path)
            self.nodes.append(Node(name, "constant"))
            self.tensors[name] = value.tensor
            self.owners[name], self.sizes[name] = "", tuple(value.tensor.shape)
            self._kept.append(value.tensor)
            known = self._constants[id(value.tensor)] = Made(name, tuple(value.tensor.shape))
        return known

    def layer_name(self, path: str, tensors: Mapping[str, Tensor | None], attributes: Mapping[str, Any]) -> str:
        """A name for a call of a module with numbers, which all its calls share up to `#`."""
        facts = (*((key, id(tensor)) for key, tensor in tensors.items()), *sorted(attributes.items()))
        known = self._layers.setdefault(path, facts)
        if known != facts:
            raise TraceError(path, "one weight is used with two biases or strides; give each use a module of its own")
        self.tensors.update({f"{path}.{key}": tensor for key, tensor in tensors.items() if tensor is not None})
        return self.unique(path)

    def unique(self, name: str) -> str:
        """The name, with `#2` and so on if it is taken."""
        name = name.replace("#", "_")
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"

    def graph(self, outputs: Sequence[Any], *, source: str = "") -> Graph:
        """The nodes that the outputs need, and all inputs."""
        last = Call("output", operator.pos, (), {}, "", "output", None, source)
        names = tuple(self.as_made(each).node for each in outputs if isinstance(each, Made | Held))
        if not names:
            raise TraceError(last.name, "it returns no tensor")
        needed, by_name = set(names), {node.name: node for node in self.nodes}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        nodes = [node for node in self.nodes if node.name in needed or node.op == "input"]
        early = [node for node in nodes if node.op == "constant"]  # a constant may have been asked for late
        assert needed <= set(by_name)  # noqa: S101 -- an invariant of this class
        return Graph((*early, *(node for node in nodes if node.op != "constant")), names)


def tuple_of(value: Any, axes: int) -> Any:
    """One number for each axis; words stay."""
    if isinstance(value, str):
        return value
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * axes if len(values) == 1 else values


def spatial_axes(call: Call) -> int:
    """How many spatial axes a function with a number in its name has, or its input."""
    named = next((int(letter) for letter in call.name if letter in "123"), None)
    return named or len(call.argument(0, "input").shape) - 2
