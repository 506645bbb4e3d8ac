"""How the operations of ONNX files read as operations of a `Graph`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from mqbench_lite.errors import ExportError

Meaning = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Operation:
    """One node of a file.

    Attributes:
        name: the node's.
        kind: its operator.
        attributes: by ONNX's names.
        inputs: the constant ones' arrays, None for the others.
        shape: of the first input where it is known, -1 for open sizes.
        result: of the first output, likewise.
    """

    name: str
    kind: str
    attributes: Mapping[str, Any]
    inputs: Sequence[np.ndarray | None]
    shape: tuple[int, ...] | None
    result: tuple[int, ...] | None

    def constant(self, at: int) -> np.ndarray | None:
        """A constant input, or None where it is absent."""
        return self.inputs[at] if at < len(self.inputs) else None

    def rank(self) -> int:
        """Of the first input."""
        if self.shape is None:
            raise ExportError(f"{self.name}: the rank of its input is not known", "infer the file's shapes first")
        return len(self.shape)


def attributes_of(proto: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values."""
    found = {each.name: helper.get_attribute_value(each) for each in proto.attribute}
    return {key: value.decode() if isinstance(value, bytes) else value for key, value in found.items()}


def _plain(op: str) -> Callable[[Operation], Meaning]:
    return lambda _: (op, {})


def _padding(operation: Operation, spatial: int) -> tuple[int, ...]:
    if operation.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise ExportError(f"{operation.name}: padding by rule cannot be read", "write it as numbers")
    pads = tuple(operation.attributes.get("pads", (0,) * 2 * spatial))
    return pads[:spatial] if pads[:spatial] == pads[spatial:] else pads


def _conv(operation: Operation) -> Meaning:
    a, spatial = operation.attributes, operation.rank() - 2
    meaning = {
        "stride": tuple(a.get("strides", (1,) * spatial)),
        "padding": _padding(operation, spatial),
        "dilation": tuple(a.get("dilations", (1,) * spatial)),
        "groups": a.get("group", 1),
    }
    if operation.kind == "ConvTranspose":
        return "conv_transpose", meaning | {"output_padding": tuple(a.get("output_padding", (0,) * spatial))}
    return "conv", meaning


def _pool(operation: Operation) -> Meaning:
    a, spatial = operation.attributes, operation.rank() - 2
    meaning: dict[str, Any] = {
        "kernel": tuple(a["kernel_shape"]),
        "stride": tuple(a.get("strides", (1,) * spatial)),
        "padding": _padding(operation, spatial),
        "ceil": bool(a.get("ceil_mode", 0)),
    }
    if len(meaning["padding"]) != spatial:
        raise ExportError(f"{operation.name}: a pool with another padding before than after cannot be read")
    if operation.kind == "MaxPool":
        return "max_pool", meaning | {"dilation": tuple(a.get("dilations", (1,) * spatial))}
    return "avg_pool", meaning | {"count_padding": bool(a.get("count_include_pad", 0))}


def _mean(operation: Operation) -> Meaning:
    rank = operation.rank()
    given = operation.constant(1)
    axes = operation.attributes.get("axes") if given is None else given.reshape(-1).tolist()
    chosen = range(rank) if axes is None else (int(axis) % rank for axis in axes)
    return "mean", {"axes": tuple(sorted(chosen)), "keep": bool(operation.attributes.get("keepdims", 1))}


def _global_average(operation: Operation) -> Meaning:
    return "mean", {"axes": tuple(range(2, operation.rank())), "keep": True}


def _clip(operation: Operation) -> Meaning:
    bounds = [operation.constant(at) for at in (1, 2)]
    low, high = (None if bound is None else float(bound) for bound in bounds)
    return "clip", {"low": low, "high": high}


def _flatten(operation: Operation) -> Meaning:
    if operation.attributes.get("axis", 1) != 1:
        raise ExportError(f"{operation.name}: only a Flatten from axis 1 can be read")
    return "flatten", {"start": 1, "stop": -1}


def _reshape(operation: Operation) -> Meaning:
    given = operation.constant(1)
    if given is None:
        raise ExportError(f"{operation.name}: a Reshape to a computed shape cannot be read", "fold constants first")
    shape = [int(size) for size in given]
    for at, size in enumerate(shape):
        if size == 0:
            known = -1 if operation.shape is None else operation.shape[at]
            if known < 0 and -1 in shape:
                known = -1 if operation.result is None else operation.result[shape.index(-1)]
                shape[shape.index(-1)], known = known, -1
            shape[at] = known
    if shape.count(-1) > 1:
        raise ExportError(f"{operation.name}: the shape {shape} leaves two sizes open")
    return "reshape", {"shape": tuple(shape)}


def _axes(op: str) -> Callable[[Operation], Meaning]:
    def read(operation: Operation) -> Meaning:
        given = operation.constant(1)
        axes = operation.attributes.get("axes") if given is None else given.reshape(-1).tolist()
        if axes is None:
            raise ExportError(f"{operation.name}: the axes of a {operation.kind} must be given")
        return op, {"axes": tuple(int(axis) for axis in axes)}

    return read


def _slice(operation: Operation) -> Meaning:
    starts, ends, axes, steps = (operation.constant(at) for at in (1, 2, 3, 4))
    if starts is None or ends is None or len(starts) != 1:
        raise ExportError(f"{operation.name}: only slices of one axis can be read")
    stop = int(ends[0])
    step = 1 if steps is None else int(steps[0])
    named = {"start": int(starts[0]), "stop": None if stop >= np.iinfo(np.int32).max else stop, "step": step}
    return "slice", {"axis": 0 if axes is None else int(axes[0]), **named}


def _pad(operation: Operation) -> Meaning:
    sizes, value = operation.constant(1), operation.constant(2)
    if sizes is None or operation.attributes.get("mode", "constant") != "constant":
        raise ExportError(f"{operation.name}: only constant padding can be read")
    half = len(sizes) // 2
    pads = [int(side) for at in reversed(range(half)) for side in (sizes[at], sizes[at + half])]
    return "pad", {"pads": tuple(pads), "value": 0.0 if value is None else float(value)}


def _softmax(operation: Operation) -> Meaning:
    return "softmax", {"axis": operation.attributes.get("axis", -1)}


def _concat(operation: Operation) -> Meaning:
    return "concat", {"axis": operation.attributes["axis"]}


def _permute(operation: Operation) -> Meaning:
    return "permute", {"axes": tuple(operation.attributes["perm"])}


def _hardsigmoid(operation: Operation) -> Meaning:
    numbers = (operation.attributes.get("alpha", 0.2), operation.attributes.get("beta", 0.5))
    if not np.allclose(numbers, (1 / 6, 0.5)):
        raise ExportError(f"{operation.name}: a HardSigmoid with another slope than 1/6 cannot be read")
    return "hardsigmoid", {}


def _gelu(operation: Operation) -> Meaning:
    return "gelu", {"approximate": operation.attributes.get("approximate", "none")}


def _batch_norm(operation: Operation) -> Meaning:
    return "batch_norm", {"eps": operation.attributes.get("epsilon", 1e-5)}


def _layer_norm(operation: Operation) -> Meaning:
    weight = operation.constant(1)
    shape = () if weight is None else weight.shape
    return "layer_norm", {"shape": shape, "eps": operation.attributes.get("epsilon", 1e-5)}


def _resize(operation: Operation) -> Meaning:
    a, scales = operation.attributes, operation.constant(2)
    if scales is None or not len(scales):
        raise ExportError(f"{operation.name}: only a Resize by factors can be read")
    mode, place = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest" and (place, a.get("nearest_mode")) != ("asymmetric", "floor"):
        raise ExportError(f"{operation.name}: a nearest Resize that torch does not have")
    names = {1: "linear", 2: "bilinear", 3: "trilinear"}
    torch_mode = {"nearest": "nearest", "cubic": "bicubic"}.get(mode, names[len(scales) - 2])
    factors = tuple(float(factor) for factor in scales[2:])
    corners = place == "align_corners"
    return "resize", {"size": None, "factors": factors, "mode": torch_mode, "align_corners": corners}


READERS: dict[str, Callable[[Operation], Meaning]] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Relu": _plain("relu"),
    "Clip": _clip,
    "Sigmoid": _plain("sigmoid"),
    "Tanh": _plain("tanh"),
    "HardSigmoid": _hardsigmoid,
    "HardSwish": _plain("hardswish"),
    "Gelu": _gelu,
    "Softmax": _softmax,
    "Add": _plain("add"),
    "Sub": _plain("sub"),
    "Mul": _plain("mul"),
    "Div": _plain("div"),
    "MatMul": _plain("matmul"),
    "Concat": _concat,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_average,
    "ReduceMean": _mean,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": _permute,
    "Squeeze": _axes("squeeze"),
    "Unsqueeze": _axes("unsqueeze"),
    "Slice": _slice,
    "Pad": _pad,
    "Resize": _resize,
}
