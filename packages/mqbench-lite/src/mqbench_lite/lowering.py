"""Calls of torch's functions as operations of a graph, whoever recorded them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mqbench_lite.errors import TraceError
from mqbench_lite.graph import Graph, Node
from mqbench_lite.operators import Ref

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
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    owner: str
    own_name: str
    shape: tuple[int, ...] | None
    source: str = ""

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

    def lower(self, call: Call) -> Any:
        """Adds the nodes of a call and returns what stands for its result."""
        if _is_known(call):
            return _computed(self, call)
        made = _LOWERINGS[call.name](self, call) if call.name in _LOWERINGS else None
        return self.opaque(call) if made is None else made

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
        return self.emit(call, "call", inputs, target=call.target, args=args, kwargs=kwargs)

    def emit(
        self, call: Call, op: str, inputs: Sequence[Any], size: tuple[int, ...] | None = None, **attributes: Any
    ) -> Made:
        """One more node.

        Args:
            call: it is named after this one.
            op: its operation.
            inputs: `Made`, or `Held` that becomes a constant.
            size: shape of its tensor, if not the call's.
            **attributes: as `OPS` has them.
        """
        return self.add(self.unique(self.name_of(call)), op, inputs, attributes, call, size)

    def name_of(self, call: Call) -> str:
        """A module of torch.nn without parts gives its name to what it calls."""
        owner = self.model.get_submodule(call.owner)
        if call.owner and type(owner).__module__.startswith("torch.nn.") and not any(owner.children()):
            return call.owner
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


def _is_known(call: Call) -> bool:
    """Whether a call has tensors among its arguments, all of them known at capture, and is not random."""
    leaves = pytree.tree_leaves((call.args, dict(call.kwargs)))
    if any(isinstance(leaf, Made | nn.Module) for leaf in leaves) or isinstance(call.target, nn.Module):
        return False
    return torch.Tag.nondeterministic_seeded not in getattr(call.target, "tags", ())


@torch.no_grad()
def _computed(lowering: Lowering, call: Call) -> Any:
    """The result of a call at capture."""
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.tensor if isinstance(leaf, Held) else leaf, (call.args, dict(call.kwargs))
    )
    path = lowering.name_of(call)
    result = call.target(*args, **kwargs)
    return pytree.tree_map(lambda leaf: Held(path, leaf.detach()) if isinstance(leaf, Tensor) else leaf, result)


def _convolution(lowering: Lowering, call: Call) -> Made | None:
    """F.conv1d to F.conv3d."""
    x, weight, bias = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    if not isinstance(weight, Held) or not isinstance(bias, Held | None) or not isinstance(x, Made):
        return None
    axes = weight.tensor.dim() - 2
    stride, padding, dilation = (
        _tuple(call.argument(at, name, default), axes)
        for at, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    if padding in ("same", "valid"):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, weight.tensor.shape[2:], strict=True)]
        if any(each % 2 for each in total):  # torch pads one more at the end
            pads = tuple(half for each in reversed(total) for half in (each // 2, each - each // 2))
            shape = (*x.shape[:2], *(size + each for size, each in zip(x.shape[2:], total, strict=True)))
            x, total = lowering.emit(call, "pad", [x], shape, pads=pads, value=0.0), [0] * axes
        padding = tuple(each // 2 for each in total)
    groups = call.argument(6, "groups", 1)
    return _layer(lowering, call, "conv", x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def _transposed_convolution(lowering: Lowering, call: Call) -> Made | None:
    """F.conv_transpose1d to F.conv_transpose3d."""
    x, weight, bias = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    if not isinstance(weight, Held) or not isinstance(bias, Held | None) or not isinstance(x, Made):
        return None
    axes = weight.tensor.dim() - 2
    attributes = {
        name: _tuple(call.argument(at, name, default), axes)
        for at, name, default in (
            (3, "stride", 1),
            (4, "padding", 0),
            (5, "output_padding", 0),
            (7, "dilation", 1),
        )
    }
    return _layer(
        lowering, call, "conv_transpose", x, weight, bias, **attributes, groups=call.argument(6, "groups", 1)
    )


def _linear(lowering: Lowering, call: Call) -> Made | None:
    x, weight, bias = call.argument(0, "input"), call.argument(1, "weight"), call.argument(2, "bias")
    if not isinstance(weight, Held) or not isinstance(bias, Held | None) or not isinstance(x, Made):
        return None
    return _layer(lowering, call, "linear", x, weight, bias)


def _layer(
    lowering: Lowering, call: Call, op: str, x: Made, weight: Held, bias: Held | None, **attributes: Any
) -> Made:
    tensors = {"weight": weight.tensor, "bias": None if bias is None else bias.tensor}
    name = lowering.layer_name(_home(lowering, call, weight), tensors, attributes)
    return lowering.add(name, op, [x], attributes, call)


def _home(lowering: Lowering, call: Call, held: Held) -> str:
    """The module whose `weight` or `running_mean` a tensor is, or the tensor's own name."""
    for name in ("weight", "running_mean"):
        if call.owner and getattr(lowering.model.get_submodule(call.owner), name, None) is held.tensor:
            return call.owner
    owner, _, name = held.path.rpartition(".")
    return owner if owner and name in ("weight", "running_mean") else held.path


def _batch_norm(lowering: Lowering, call: Call) -> Made | None:
    x = call.argument(0, "input")
    if call.name == "batch_norm" and getattr(call.target, "namespace", "") != "aten":  # torch.nn.functional.batch_norm
        at = {"mean": (1, "running_mean"), "var": (2, "running_var"), "weight": (3, "weight"), "bias": (4, "bias")}
        training, eps = call.argument(5, "training", False), call.argument(7, "eps", 1e-5)
    else:
        at = {"weight": (1, "weight"), "bias": (2, "bias"), "mean": (3, "running_mean"), "var": (4, "running_var")}
        frozen = call.name.startswith("_native")
        training = False if frozen else call.argument(5, "training", False)
        eps = call.argument(6 if frozen else 7, "eps", 1e-5)
    held = {key: call.argument(*where) for key, where in at.items()}
    if training or not isinstance(x, Made) or any(not isinstance(each, Held | None) for each in held.values()):
        return None
    tensors = {key: None if each is None else each.tensor for key, each in held.items()}
    if tensors["mean"] is None or tensors["var"] is None:
        return None
    name = lowering.layer_name(_home(lowering, call, held["mean"]), tensors, {"eps": eps})
    return _first(call, lowering.add(name, "batch_norm", [x], {"eps": eps}, call, x.shape))


def _layer_norm(lowering: Lowering, call: Call) -> Made | None:
    x, shape = call.argument(0, "input"), call.argument(1, "normalized_shape")
    weight, bias, eps = call.argument(2, "weight"), call.argument(3, "bias"), call.argument(4, "eps", 1e-5)
    if not isinstance(x, Made) or not isinstance(weight, Held | None) or not isinstance(bias, Held | None):
        return None
    tensors = {"weight": None if weight is None else weight.tensor, "bias": None if bias is None else bias.tensor}
    attributes = {"shape": tuple(shape), "eps": eps}
    path = lowering.name_of(call) if weight is None else _home(lowering, call, weight)
    name = lowering.layer_name(path, tensors, attributes)
    return _first(call, lowering.add(name, "layer_norm", [x], attributes, call, x.shape))


def _first(call: Call, made: Made) -> Any:
    """The result in the structure that the function returns: some return statistics with it."""
    return (made, None, None) if call.name.startswith(("_native", "native")) else made


def _unary(op: str) -> Callable[[Lowering, Call], Made | None]:
    return lambda lowering, call: lowering.emit(call, op, [call.argument(0, "input")])


def _gelu(lowering: Lowering, call: Call) -> Made:
    return lowering.emit(
        call, "gelu", [call.argument(0, "input")], approximate=call.kwargs.get("approximate", "none")
    )


def _clamp(lowering: Lowering, call: Call) -> Made | None:
    names = ("min_val", "max_val") if call.name == "hardtanh" else ("min", "max")
    default = (-1.0, 1.0) if call.name == "hardtanh" else (None, None)
    if call.name == "clamp_min":
        low, high = call.argument(1, "min"), None
    elif call.name == "clamp_max":
        low, high = None, call.argument(1, "max")
    else:
        low, high = call.argument(1, names[0], default[0]), call.argument(2, names[1], default[1])
    if isinstance(low, Made | Held) or isinstance(high, Made | Held):
        return None
    return _clip(lowering, call, low, high)


def _clip(lowering: Lowering, call: Call, low: float | None, high: float | None) -> Made:
    x = call.argument(0, "input")
    if low == 0 and high is None:
        return lowering.emit(call, "relu", [x])
    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    return lowering.emit(call, "clip", [x], low=low, high=high)


def _softmax(lowering: Lowering, call: Call) -> Made | None:
    axis = call.argument(1, "dim")
    if axis is None or call.kwargs.get("dtype") is not None:
        return None
    return lowering.emit(call, "softmax", [call.argument(0, "input")], axis=axis)


def _binary(op: str) -> Callable[[Lowering, Call], Made | None]:
    def lower(lowering: Lowering, call: Call) -> Made | None:
        a, b = call.argument(0, "input"), call.argument(1, "other")
        if call.kwargs.get("alpha", 1) != 1 or call.kwargs.get("rounding_mode") is not None:
            return None
        if call.shape is None:  # numbers, such as sizes
            return None
        if call.name == "rsub":
            a, b = b, a
        return lowering.emit(call, op, [_operand(lowering, call, a), _operand(lowering, call, b)])

    return lower


def _operand(lowering: Lowering, call: Call, value: Any) -> Made | Held:
    """A tensor; a number becomes a constant."""
    if isinstance(value, Made | Held):
        return value
    return Held(f"{lowering.name_of(call)}.number", torch.tensor(value, dtype=torch.float32))


def _matmul(lowering: Lowering, call: Call) -> Made:
    return lowering.emit(call, "matmul", [call.args[0], call.argument(1, "other", call.kwargs.get("mat2"))])


def _attention(lowering: Lowering, call: Call) -> Made | None:
    """softmax(q k^T scale + mask) v, in operations that can be quantised."""
    query, key, value = (call.argument(at, name) for at, name in enumerate(("query", "key", "value")))
    mask, scale = call.argument(3, "attn_mask"), call.kwargs.get("scale")
    if not all(isinstance(each, Made) for each in (query, key, value)) or call.kwargs.get("enable_gqa", False):
        return None
    if call.argument(5, "is_causal", False):
        length, total = query.shape[-2], key.shape[-2]
        mask = Held(call.own_name + ".causal", torch.full((length, total), -math.inf).triu(1))
    if isinstance(mask, Held) and mask.tensor.dtype is torch.bool:
        mask = Held(mask.path, torch.zeros(mask.tensor.shape).masked_fill(~mask.tensor, -math.inf))
    elif isinstance(mask, Made):
        return None  # its type is not known here
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    axes = tuple(range(len(key.shape)))
    turned = lowering.emit(
        call,
        "permute",
        [key],
        (*key.shape[:-2], key.shape[-1], key.shape[-2]),
        axes=(*axes[:-2], axes[-1], axes[-2]),
    )
    shape = (*query.shape[:-1], key.shape[-2])
    scaled = lowering.emit(call, "mul", [query, _operand(lowering, call, scale)], query.shape)
    scores = lowering.emit(call, "matmul", [scaled, turned], shape)
    if mask is not None:
        scores = lowering.emit(call, "add", [scores, mask], shape)
    weights = lowering.emit(call, "softmax", [scores], shape, axis=-1)
    return lowering.emit(call, "matmul", [weights, value])


def _concat(lowering: Lowering, call: Call) -> Made | None:
    parts, axis = call.argument(0, "tensors"), call.argument(1, "dim", 0)
    if not isinstance(parts, list | tuple) or not all(isinstance(each, Made | Held) for each in parts):
        return None
    return parts[0] if len(parts) == 1 else lowering.emit(call, "concat", parts, axis=axis)


def _stack(lowering: Lowering, call: Call) -> Made:
    parts, axis = call.argument(0, "tensors"), call.argument(1, "dim", 0)
    axis = axis % len(call.shape or ())
    wide = [
        lowering.emit(call, "unsqueeze", [each], (*each.shape[:axis], 1, *each.shape[axis:]), axes=(axis,))
        for each in map(lowering.as_made, parts)
    ]
    return lowering.emit(call, "concat", wide, axis=axis)


def _max_pool(lowering: Lowering, call: Call) -> Any:
    axes = _axes(call)
    kernel = _tuple(call.argument(1, "kernel_size"), axes)
    made = lowering.emit(
        call,
        "max_pool",
        [call.argument(0, "input")],
        kernel=kernel,
        stride=_tuple(call.argument(2, "stride") or kernel, axes),
        padding=_tuple(call.argument(3, "padding", 0), axes),
        dilation=_tuple(call.argument(4, "dilation", 1), axes),
        ceil=bool(call.argument(5, "ceil_mode", False)),
    )
    return (made, None) if call.name.endswith("_with_indices") else made


def _avg_pool(lowering: Lowering, call: Call) -> Made | None:
    axes = _axes(call)
    kernel = _tuple(call.argument(1, "kernel_size"), axes)
    if call.argument(6, "divisor_override") is not None:
        return None
    return lowering.emit(
        call,
        "avg_pool",
        [call.argument(0, "input")],
        kernel=kernel,
        stride=_tuple(call.argument(2, "stride") or kernel, axes),
        padding=_tuple(call.argument(3, "padding", 0), axes),
        ceil=bool(call.argument(4, "ceil_mode", False)),
        count_padding=bool(call.argument(5, "count_include_pad", True)),
    )


def _adaptive_pool(lowering: Lowering, call: Call) -> Made | None:
    """An average over the whole plane, or a pool whose windows are all alike; None if they are not."""
    x, axes = call.argument(0, "input"), _axes(call)
    wanted = _tuple(call.argument(1, "output_size"), axes)
    sizes = x.shape[-axes:]
    wanted = tuple(size if each is None else each for size, each in zip(sizes, wanted, strict=True))
    if any(size == BATCH or size % each for size, each in zip(sizes, wanted, strict=True)):
        return None
    if wanted == sizes:
        return x  # type: ignore[no-any-return]
    kernel = tuple(size // each for size, each in zip(sizes, wanted, strict=True))
    zero = (0,) * axes
    if "max" in call.name:
        return lowering.emit(
            call, "max_pool", [x], kernel=kernel, stride=kernel, padding=zero, dilation=(1,) * axes, ceil=False
        )
    if set(wanted) == {1}:
        first = len(x.shape) - axes
        return lowering.emit(call, "mean", [x], axes=tuple(range(first, first + axes)), keep=True)
    return lowering.emit(
        call, "avg_pool", [x], kernel=kernel, stride=kernel, padding=zero, ceil=False, count_padding=True
    )


def _mean(lowering: Lowering, call: Call) -> Made | None:
    x, axes = call.argument(0, "input"), call.argument(1, "dim")
    if axes is None or call.kwargs.get("dtype") is not None:
        return None
    rank = len(x.shape)
    axes = tuple(sorted(axis % rank for axis in ([axes] if isinstance(axes, int) else axes)))
    return lowering.emit(call, "mean", [x], axes=axes, keep=bool(call.argument(2, "keepdim", False)))


def _flatten(lowering: Lowering, call: Call) -> Made | None:
    x = call.argument(0, "input")
    rank = len(x.shape)
    start, stop = call.argument(1, "start_dim", 0) % rank, call.argument(2, "end_dim", -1) % rank
    return lowering.emit(call, "flatten", [x], start=start, stop=stop)


def _reshape(lowering: Lowering, call: Call) -> Made | None:
    """To the shape that the result had: at most one size depends on the batch."""
    if call.shape is None or call.shape.count(BATCH) > 1:
        return None
    return lowering.emit(call, "reshape", [call.argument(0, "input")], shape=call.shape)


def _permute(lowering: Lowering, call: Call) -> Made:
    x = call.argument(0, "input")
    rank = len(x.shape)
    if call.name == "permute":
        given = call.argument(1, "dims")
        axes = [axis % rank for axis in (given if isinstance(given, list | tuple) else call.args[1:])]
    else:
        axes = list(range(rank))
        one, other = (-2, -1) if call.name in ("t", "mT") else (call.argument(1, "dim0"), call.argument(2, "dim1"))
        axes[one], axes[other] = axes[other], axes[one]
    return lowering.emit(call, "permute", [x], axes=tuple(axes))


def _squeeze(lowering: Lowering, call: Call) -> Made | None:
    x, axes = call.argument(0, "input"), call.argument(1, "dim")
    if axes is None:
        axes = [at for at, size in enumerate(x.shape) if size == 1]
    rank = len(x.shape)
    axes = tuple(
        axis % rank for axis in ([axes] if isinstance(axes, int) else axes) if x.shape[axis] == 1
    )
    return lowering.emit(call, "squeeze", [x], axes=axes) if axes else x


def _unsqueeze(lowering: Lowering, call: Call) -> Made:
    axis = call.argument(1, "dim") % (len(call.argument(0, "input").shape) + 1)
    return lowering.emit(call, "unsqueeze", [call.argument(0, "input")], axes=(axis,))


def _slice(lowering: Lowering, call: Call) -> Made | None:
    x, axis = call.argument(0, "input"), call.argument(1, "dim", 0)
    start, stop, step = call.argument(2, "start"), call.argument(3, "end"), call.argument(4, "step", 1)
    return _cut(lowering, call, x, axis, start or 0, stop, step)


def _select(lowering: Lowering, call: Call) -> Made | None:
    x, axis, index = call.argument(0, "input"), call.argument(1, "dim"), call.argument(2, "index")
    axis = axis % len(x.shape)
    if isinstance(index, Made) or x.shape[axis] == BATCH:
        return None
    index %= x.shape[axis]
    shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    part = _cut(lowering, call, x, axis, index, index + 1, 1, shape)
    return None if part is None else lowering.emit(call, "squeeze", [part], axes=(axis,))


def _narrow(lowering: Lowering, call: Call) -> Made | None:
    x, axis, start, length = (call.argument(at, name) for at, name in enumerate(("input", "dim", "start", "length")))
    if isinstance(start, Made | Held) or isinstance(length, Made):
        return None
    return _cut(lowering, call, x, axis, start, start + length, 1)


def _pieces(lowering: Lowering, call: Call) -> Any:
    """chunk, split and unbind as slices."""
    x = call.argument(0, "input")
    axis = call.argument(1 if call.name == "unbind" else 2, "dim", 0) % len(x.shape)
    size = x.shape[axis]
    if size == BATCH:
        return None
    if call.name == "unbind":
        lengths = [1] * size
    elif call.name == "chunk":
        lengths = _lengths(size, -(-size // call.argument(1, "chunks")))
    else:
        wanted = call.argument(1, "split_size_or_sections", call.kwargs.get("split_size", call.kwargs.get("split_sizes")))
        lengths = _lengths(size, wanted) if isinstance(wanted, int) else list(wanted)
    parts, start = [], 0
    for length in lengths:
        shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
        part = _cut(lowering, call, x, axis, start, start + length, 1, shape)
        if call.name == "unbind":
            part = lowering.emit(call, "squeeze", [part], (*x.shape[:axis], *x.shape[axis + 1 :]), axes=(axis,))
        parts.append(part)
        start += length
    return tuple(parts)


def _lengths(size: int, length: int) -> list[int]:
    return [min(length, size - start) for start in range(0, size, length)]


def _cut(
    lowering: Lowering,
    call: Call,
    x: Made,
    axis: int,
    start: Any,
    stop: Any,
    step: int,
    shape: tuple[int, ...] | None = None,
) -> Made | None:
    """A slice, unless its ends depend on the batch."""
    if any(isinstance(each, Made) for each in (start, stop, step)):
        return None
    axis %= len(x.shape)
    if start == 0 and step == 1 and (stop is None or stop >= (x.shape[axis] if x.shape[axis] != BATCH else 2**62)):
        return x
    return lowering.emit(call, "slice", [x], shape, axis=axis, start=start, stop=stop, step=step)


def _pad(lowering: Lowering, call: Call) -> Made | None:
    x, pads = call.argument(0, "input"), call.argument(1, "pad")
    plain = call.name == "constant_pad_nd"
    mode = "constant" if plain else call.argument(2, "mode", "constant")
    value = call.argument(2 if plain else 3, "value", 0.0)
    if mode != "constant" or any(isinstance(each, Made) for each in pads):
        return None
    return lowering.emit(call, "pad", [x], pads=tuple(pads), value=float(value or 0.0))


def _resize(lowering: Lowering, call: Call) -> Made | None:
    """upsample_nearest2d and its like, and torch.nn.functional.interpolate."""
    size, align = call.argument(1, "size", call.kwargs.get("output_size")), None
    if call.name == "interpolate":
        factors, mode = call.argument(2, "scale_factor"), call.argument(3, "mode", "nearest")
        align = call.argument(4, "align_corners")
        plain = not call.argument(5, "recompute_scale_factor") and not call.argument(6, "antialias", False)
    else:
        mode = call.name.removeprefix("upsample_").rstrip("123d")
        mode = {"nearest": "nearest", "bilinear": "bilinear", "bicubic": "bicubic", "linear": "linear"}.get(mode, "")
        at = 2 if mode == "nearest" else 3
        align = None if mode == "nearest" else bool(call.argument(2, "align_corners", False))
        factors, plain = call.argument(at, "scale_factors"), "vec" in str(call.target)
    if not mode or not plain or isinstance(size, Made):
        return None
    axes = _axes(call)
    if size is not None:
        size = _tuple(size, axes)
        if any(isinstance(each, Made) for each in size):
            return None
    factors = None if factors is None else tuple(map(float, _tuple(factors, axes)))
    return lowering.emit(
        call, "resize", [call.argument(0, "input")], size=size, factors=factors, mode=mode, align_corners=align
    )


def _nothing(_: Lowering, call: Call) -> Any:
    """Functions that leave the values alone, as dropout does in evaluation."""
    made = call.argument(0, "input")
    return (made, None) if call.name == "native_dropout" else made


def _conversion(_: Lowering, call: Call) -> Any:
    """A change of type or device counts as none between floating types."""
    kinds = [each for each in (*call.args[1:], *call.kwargs.values()) if isinstance(each, torch.dtype)]
    return call.args[0] if all(kind.is_floating_point for kind in kinds) else None


def _item(_: Lowering, call: Call) -> Any:
    """One of several results."""
    whole, index = call.args
    return whole[index] if isinstance(whole, tuple | list | dict) else None


def _tuple(value: Any, axes: int) -> Any:
    """One number for each axis; words stay."""
    if isinstance(value, str):
        return value
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * axes if len(values) == 1 else values


def _axes(call: Call) -> int:
    """How many spatial axes a function with a number in its name has, or its input."""
    named = next((int(letter) for letter in call.name if letter in "123"), None)
    return named or len(call.argument(0, "input").shape) - 2


_LOWERINGS: dict[str, Callable[[Lowering, Call], Any]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    "linear": _linear,
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    **dict.fromkeys(("layer_norm", "native_layer_norm"), _layer_norm),
    **{name: _unary(name) for name in ("relu", "sigmoid", "tanh", "silu", "hardsigmoid", "hardswish")},
    "gelu": _gelu,
    **dict.fromkeys(("clamp", "clip", "hardtanh", "clamp_min", "clamp_max"), _clamp),
    "relu6": lambda lowering, call: _clip(lowering, call, 0.0, 6.0),
    **dict.fromkeys(("softmax", "_softmax"), _softmax),
    **{name: _binary(name) for name in ("add", "sub", "mul", "div")},
    **{name: _binary("sub") for name in ("rsub", "subtract")},
    **{"multiply": _binary("mul"), "truediv": _binary("div"), "divide": _binary("div"), "true_divide": _binary("div")},
    **{f"i{name}": _binary(name) for name in ("add", "sub", "mul")},
    "itruediv": _binary("div"),
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("cat", "concat", "concatenate"), _concat),
    "stack": _stack,
    **dict.fromkeys((f"max_pool{n}d{end}" for n in (1, 2, 3) for end in ("", "_with_indices")), _max_pool),
    **dict.fromkeys((f"avg_pool{n}d" for n in (1, 2, 3)), _avg_pool),
    **dict.fromkeys((f"adaptive_{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3)), _adaptive_pool),
    "mean": _mean,
    "flatten": _flatten,
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "unflatten", "view_as", "reshape_as"), _reshape),
    **dict.fromkeys(("permute", "transpose", "t", "mT", "swapaxes"), _permute),
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "slice": _slice,
    "select": _select,
    "narrow": _narrow,
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "unbind"), _pieces),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **dict.fromkeys(
        ("interpolate", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
        + ("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d"),
        _resize,
    ),
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "native_dropout")
        + ("contiguous", "clone", "detach", "alias", "lift_fresh_copy", "identity", "float", "stochastic_depth"),
        _nothing,
    ),
    **dict.fromkeys(("to", "_to_copy", "type_as"), _conversion),
    "getitem": _item,
}
