"""How each operation of a graph runs in torch: for the simulation, and for what an integer model leaves in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 -- its name everywhere
from torch.utils import _pytree as pytree

from mqbench_lite.graph import Graph, Node

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class Ref:
    """Stands in the arguments of a function for the tensor at this position."""

    index: int


@dataclass(frozen=True, eq=False)
class Bound:
    """A function whose tensors are still to come: the target of a `call` node.

    Attributes:
        function: of torch, or a module of the user's.
        args: with a `Ref` in the place of each tensor.
        kwargs: likewise.
        number: whether it gives a number, such as that of the samples, and no tensor.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    number: bool = False

    def __call__(self, *inputs: Any) -> Any:
        """The function's result for these tensors."""
        args, kwargs = pytree.tree_map(
            lambda leaf: inputs[leaf.index] if isinstance(leaf, Ref) else leaf, (self.args, dict(self.kwargs))
        )
        return self.function(*args, **kwargs)

    @property
    def name(self) -> str:
        """What to call the function in messages."""
        return str(getattr(self.function, "__name__", None) or type(self.function).__name__)


def without_format(graph: Graph) -> Node | None:
    """The first function that no file format has; one that gives a tensor, since numbers are made for such functions."""
    calls = [node for node in graph if node.op == "call"]
    tensors = (node for node in calls if not getattr(node.attributes["target"], "number", False))
    return next(tensors, next(iter(calls), None))


def run(node: Node, inputs: Sequence[Any]) -> Any:
    """The tensor of a node that has no numbers of its own: no layer, normalisation, quantiser, constant or input.

    Args:
        node: the operation.
        inputs: tensors of its inputs, in order.
    """
    return _OPERATORS[node.op](node.attributes, *inputs)


def run_layer(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The tensor of a convolution or a linear layer.

    Args:
        node: the layer.
        x: its input.
        weight: [out, in / groups, ...]; [in, out / groups, ...] of a transposed convolution.
        bias: [out].
    """
    if node.op == "linear":
        return F.linear(x, weight, bias)
    of = node.attributes
    axes = len(of["stride"])
    if node.op == "conv_transpose":
        return _CONV_TRANSPOSE[axes](
            x, weight, bias, of["stride"], of["padding"], of["output_padding"], of["groups"], of["dilation"]
        )
    return _CONV[axes](x, weight, bias, of["stride"], of["padding"], of["dilation"], of["groups"])


def run_norm(
    node: Node,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
) -> Tensor:
    """The tensor of a normalisation; a batch normalisation uses its running statistics.

    Args:
        node: `batch_norm` or `layer_norm`.
        x: its input, channels on axis 1 for a batch normalisation.
        weight: factor, or None.
        bias: summand, or None.
        mean: running mean of a batch normalisation.
        var: running variance of a batch normalisation.
    """
    if node.op == "layer_norm":
        return F.layer_norm(x, node.attributes["shape"], weight, bias, node.attributes["eps"])
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, node.attributes["eps"])


def _max_pool(of: Mapping[str, Any], x: Tensor) -> Tensor:
    pool = _MAX_POOL[len(of["kernel"])]
    return pool(x, of["kernel"], of["stride"], of["padding"], of["dilation"], of["ceil"])


def _avg_pool(of: Mapping[str, Any], x: Tensor) -> Tensor:
    pool = _AVG_POOL[len(of["kernel"])]
    return pool(x, of["kernel"], of["stride"], of["padding"], of["ceil"], of["count_padding"])


def _slice(of: Mapping[str, Any], x: Tensor) -> Tensor:
    index = [slice(None)] * x.dim()
    index[of["axis"]] = slice(of["start"], of["stop"], of["step"])
    return x[tuple(index)]


def _resize(of: Mapping[str, Any], x: Tensor) -> Tensor:
    factors = None if of["size"] is not None else of["factors"]
    return F.interpolate(x, of["size"], factors, of["mode"], of["align_corners"])


def _unsqueeze(of: Mapping[str, Any], x: Tensor) -> Tensor:
    for axis in of["axes"]:  # in rising order, counted in the result
        x = x.unsqueeze(axis)
    return x


_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "relu": lambda _, x: torch.relu(x),
    "clip": lambda of, x: torch.clamp(x, of["low"], of["high"]),
    "sigmoid": lambda _, x: torch.sigmoid(x),
    "tanh": lambda _, x: torch.tanh(x),
    "silu": lambda _, x: F.silu(x),
    "hardsigmoid": lambda _, x: F.hardsigmoid(x),
    "hardswish": lambda _, x: F.hardswish(x),
    "gelu": lambda of, x: F.gelu(x, approximate=of["approximate"]),
    "softmax": lambda of, x: torch.softmax(x, of["axis"]),
    "add": lambda _, a, b: a + b,
    "sub": lambda _, a, b: a - b,
    "mul": lambda _, a, b: a * b,
    "div": lambda _, a, b: a / b,
    "matmul": lambda _, a, b: a @ b,
    "concat": lambda of, *parts: torch.cat(parts, of["axis"]),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "mean": lambda of, x: x.mean(of["axes"], of["keep"]),
    "flatten": lambda of, x: x.flatten(of["start"], of["stop"]),
    "reshape": lambda of, x: x.reshape(of["shape"]),
    "permute": lambda of, x: x.permute(of["axes"]),
    "squeeze": lambda of, x: x.squeeze(of["axes"]),
    "unsqueeze": _unsqueeze,
    "slice": _slice,
    "pad": lambda of, x: F.pad(x, of["pads"], value=of["value"]),
    "resize": _resize,
    "call": lambda of, *inputs: of["target"](*inputs, *of["args"], **of["kwargs"]),
}
