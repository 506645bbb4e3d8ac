"""A network as a flat list of operations, and the same with its numbers on integer grids.

`Graph` is what capture gives and placement adds `quantize` nodes to. `QuantizedGraph` is a frozen model in plain NumPy
arrays: all that execution in integers, export and encodings need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int32, Num

OPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "input": (),
        "constant": (),  # its value is in `constants`
        "quantize": ("bits",),  # onto a grid and back: one QuantizeLinear, DequantizeLinear pair
        "conv": ("stride", "padding", "dilation", "groups"),  # tuples over 1, 2 or 3 spatial axes
        "conv_transpose": ("stride", "padding", "dilation", "groups", "output_padding"),
        "linear": (),
        "batch_norm": ("eps",),
        "layer_norm": ("shape", "eps"),
        "relu": (),
        "clip": ("low", "high"),
        "sigmoid": (),
        "tanh": (),
        "silu": (),
        "hardsigmoid": (),
        "hardswish": (),
        "gelu": ("approximate",),
        "softmax": ("axis",),
        "add": (),  # two tensors
        "sub": (),
        "mul": (),
        "div": (),
        "matmul": (),
        "concat": ("axis",),
        "max_pool": ("kernel", "stride", "padding", "dilation", "ceil"),
        "avg_pool": ("kernel", "stride", "padding", "ceil", "count_padding"),
        "mean": ("axes", "keep"),  # a global average pool has axes (2, 3)
        "flatten": ("start", "stop"),
        "reshape": ("shape",),  # -1 for the batch
        "permute": ("axes",),
        "squeeze": ("axes",),
        "unsqueeze": ("axes",),
        "slice": ("axis", "start", "stop", "step"),
        "pad": ("pads", "value"),  # pads as torch.nn.functional.pad has them, constant mode
        "resize": ("size", "factors", "mode", "align_corners"),
        "call": ("target", "args", "kwargs"),  # any other torch function; runs in float here, exported nowhere
    }
)
"""Every operation with the names of its attributes."""

LAYERS = ("conv", "conv_transpose", "linear")
"""Operations with a weight that is quantised and a bias."""
KEEPS_GRID = ("max_pool", "flatten", "reshape", "permute", "squeeze", "unsqueeze", "slice")
"""Operations whose results lie on the grid of their input."""


@dataclass(frozen=True)
class Node:
    """One operation, which makes one tensor of the node's name.

    Attributes:
        name: unique; a layer's is its module's qualified name, with `#2` at a second call.
        op: a key of `OPS`.
        inputs: names of the nodes whose tensors it reads, in order.
        attributes: by the names in `OPS`.
        source: where in the user's code it was called, or empty.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Graph:
    """Nodes in an order of execution.

    Attributes:
        nodes: every node after those that it reads.
        outputs: names of the nodes whose tensors are the result, in order.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the input nodes."""
        return tuple(node.name for node in self.nodes if node.op == "input")

    def readers(self, name: str) -> tuple[Node, ...]:
        """The nodes that read a node's tensor."""
        return tuple(node for node in self.nodes if name in node.inputs)


@dataclass(frozen=True, kw_only=True)
class QParams:
    """A grid: x = (q - zero_point) * scale for qmin <= q <= qmax.

    Attributes:
        scale: step size, of one number or of one for each channel.
        zero_point: code of 0, shaped like the step size.
        qmin: least code.
        qmax: greatest code.
        axis: the channels' axis where there is one step size a channel.
    """

    scale: Float32[np.ndarray, "*channels"]
    zero_point: Int32[np.ndarray, "*channels"]
    qmin: int
    qmax: int
    axis: int = 0


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The numbers of a convolution or a linear layer.

    Attributes:
        weight: codes (int8 on a signed grid, uint8 on an unsigned one) or, without `grid`, float32 values.
        grid: the weight's grid, or None for a layer that stays in float.
        bias: int32 codes, whose step size is the product of the input's and the weight's and whose zero point is 0;
            float32 values; or None.
    """

    weight: Num[np.ndarray, " ..."]
    grid: QParams | None = None
    bias: Int32[np.ndarray, " c"] | Float32[np.ndarray, " c"] | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizedGraph:
    """A frozen quantised model.

    Attributes:
        graph: the operations, batch normalisation folded.
        grids: of every `quantize` node, by name; one step size each.
        layers: by name of the node of `LAYERS`.
        constants: of `constant` nodes, and `NAME.weight`, `NAME.bias`, `NAME.mean`, `NAME.var` of normalisations that
            stay in float.
        shapes: of the inputs, by name, batch first; -1 for the batch.
        storage: how files store activations' codes.
        profile: name of the profile it was made for.
    """

    graph: Graph
    grids: Mapping[str, QParams]
    layers: Mapping[str, Layer]
    constants: Mapping[str, Num[np.ndarray, " ..."]] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    storage: Literal["u8", "s8"] = "u8"
    profile: str = ""
