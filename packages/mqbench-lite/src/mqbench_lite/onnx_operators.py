"""How each operation is written in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mqbench_lite.errors import UnsupportedOpError
from mqbench_lite.fusion import POOLED
from mqbench_lite.graph import Node

if TYPE_CHECKING:
    from mqbench_lite.onnx_files import Writer

Operator = Callable[["Writer", Node, Sequence[str], str], str]
FORMAT = "ONNX files"
REDUCE_BY_INPUT = 18
"""The operator set from which ReduceMean reads its axes as an input."""


def _plain(kind: str) -> Operator:
    def operator(writer: Writer, _: Node, inputs: Sequence[str], output: str) -> str:
        return writer.add(kind, inputs, output)

    return operator


def _conv(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
    return writer.add("Conv", inputs, output, **_geometry(writer, node))


def _conv_transpose(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
    extra = list(node.attributes["output_padding"])
    return writer.add("ConvTranspose", inputs, output, output_padding=extra, **_geometry(writer, node))


def _geometry(writer: Writer, node: Node) -> dict[str, Any]:
    attributes = node.attributes
    return {
        "kernel_shape": list(writer.model.layers[node.name].weight.shape[2:]),
        "strides": list(attributes["stride"]),
        "pads": _both_sides(attributes["padding"], len(attributes["stride"])),
        "dilations": list(attributes["dilation"]),
        "group": attributes["groups"],
    }


def _both_sides(padding: Sequence[int], spatial: int) -> list[int]:
    return list(padding) * (1 if len(padding) == 2 * spatial else 2)


def _clip(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
    bounds = [node.attributes.get("low"), node.attributes.get("high")]
    names = [
        "" if bound is None else writer.constant(f"{node.name}/{end}", np.asarray(bound, np.float32))
        for end, bound in zip(("low", "high"), bounds, strict=True)
    ]
    return writer.add("Clip", [*inputs, *names], output)


def _silu(writer: Writer, _: Node, inputs: Sequence[str], output: str) -> str:
    gate = writer.add("Sigmoid", inputs, f"{output}/gate")
    return writer.add("Mul", [inputs[0], gate], output)


def _gelu(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
    x = inputs[0]

    def constant(label: str, value: float) -> str:
        return writer.constant(f"{output}/{label}", np.asarray(value, np.float32))

    if node.attributes["approximate"] == "tanh":
        cube = writer.add("Pow", [x, constant("three", 3.0)], f"{output}/cube")
        scaled = writer.add("Mul", [cube, constant("cubic", 0.044715)], f"{output}/scaled")
        inner = writer.add("Add", [x, scaled], f"{output}/inner")
        argument = writer.add("Mul", [inner, constant("root", float(np.sqrt(2 / np.pi)))], f"{output}/argument")
        shape = writer.add("Tanh", [argument], f"{output}/shape")
    else:
        argument = writer.add("Div", [x, constant("root", float(np.sqrt(2)))], f"{output}/argument")
        shape = writer.add("Erf", [argument], f"{output}/shape")
    gate = writer.add("Add", [shape, constant("one", 1.0)], f"{output}/gate")
    product = writer.add("Mul", [x, gate], f"{output}/product")
    return writer.add("Mul", [product, constant("half", 0.5)], output)


def _hardsigmoid(writer: Writer, _: Node, inputs: Sequence[str], output: str) -> str:
    return writer.add("HardSigmoid", inputs, output, alpha=1 / 6, beta=0.5)


def _softmax(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
    return writer.add("Softmax", inputs, output, axis=node.attributes["axis"])


def _concat(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
    return writer.add("Concat", inputs, output, axis=node.attributes["axis"])


def _max_pool(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
    attributes = node.attributes
    named = {"kernel_shape": "kernel", "strides": "stride", "dilations": "dilation"}
    lists = {key: list(attributes[name]) for key, name in named.items()}
    pads = _both_sides(attributes["padding"], len(attributes["kernel"]))
    return writer.add("MaxPool", inputs, output, pads=pads, ceil_mode=int(attributes["ceil"]), **lists)


def _avg_pool(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
    attributes = node.attributes
    padded = any(attributes["padding"])
    if attributes["ceil"] and padded and attributes["count_padding"]:
        # torch and ONNX divide a window that hangs over the padding by different numbers
        raise UnsupportedOpError(f"{node.name}: an average pool with ceil and counted padding", FORMAT)
    return writer.add(
        "AveragePool",
        inputs,
        output,
        kernel_shape=list(attributes["kernel"]),
        strides=list(attributes["stride"]),
        pads=_both_sides(attributes["padding"], len(attributes["kernel"])),
        ceil_mode=int(attributes["ceil"]),
        count_include_pad=int(attributes["count_padding"] and padded),
    )


def _mean(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
    axes, keep = list(node.attributes["axes"]), node.attributes["keep"]
    if tuple(axes) == POOLED and len(writer.shapes[node.inputs[0]]) == 4:
        writer.add("GlobalAveragePool", inputs, output)
        if not keep:
            writer.move_last(node, "Squeeze", writer.constant(f"{output}/axes", np.asarray(axes)))
        return output
    if writer.opset < REDUCE_BY_INPUT:
        return writer.add("ReduceMean", inputs, output, axes=axes, keepdims=int(keep))
    names = writer.constant(f"{output}/axes", np.asarray(axes))
    return writer.add("ReduceMean", [*inputs, names], output, keepdims=int(keep))


def _flatten(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
    start, stop, rank = node.attributes["start"], node.attributes["stop"], len(writer.shapes[node.inputs[0]])
    if start % rank == 1 and stop % rank == rank - 1:
        return writer.add("Flatten", inputs, output, axis=1)
    return _reshaped(writer, [-1, *writer.shapes[node.name][1:]], inputs, output)


def _reshape(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
    return _reshaped(writer, node.attributes["shape"], inputs, output)


def _reshaped(writer: Writer, shape: Sequence[int], inputs: Sequence[str], output: str) -> str:
    return writer.add("Reshape", [*inputs, writer.constant(f"{output}/shape", np.asarray(shape, np.int64))], output)


def _permute(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
    return writer.add("Transpose", inputs, output, perm=list(node.attributes["axes"]))


def _axes(kind: str) -> Operator:
    def operator(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
        axes = writer.constant(f"{output}/axes", np.asarray(node.attributes["axes"], np.int64))
        return writer.add(kind, [*inputs, axes], output)

    return operator


def _slice(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
    a = node.attributes
    stop = np.iinfo(np.int64).max if a["stop"] is None else a["stop"]
    numbers = {"starts": a["start"] or 0, "ends": stop, "axes": a["axis"], "steps": a["step"] or 1}
    names = [writer.constant(f"{output}/{key}", np.asarray([value], np.int64)) for key, value in numbers.items()]
    return writer.add("Slice", [*inputs, *names], output)


def _pad(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
    pads, rank = list(node.attributes["pads"]), len(writer.shapes[node.inputs[0]])
    begins, ends = [0] * rank, [0] * rank
    for back, at in enumerate(range(0, len(pads), 2)):
        begins[rank - 1 - back], ends[rank - 1 - back] = pads[at], pads[at + 1]
    sizes = writer.constant(f"{output}/pads", np.asarray(begins + ends, np.int64))
    value = writer.constant(f"{output}/value", np.asarray(node.attributes["value"] or 0.0, np.float32))
    return writer.add("Pad", [*inputs, sizes, value], output)


def _resize(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
    a = node.attributes
    modes = {"nearest": "nearest", "linear": "linear", "bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}
    if a["mode"] not in modes:
        raise UnsupportedOpError(f"{node.name}: resizing by {a['mode']}", FORMAT)
    before, after = writer.shapes[node.inputs[0]], writer.shapes[node.name]
    given = a["factors"] if a["size"] is None else None
    factors = given or [large / small for small, large in zip(before[2:], after[2:], strict=True)]
    scales = writer.constant(f"{output}/factors", np.asarray([1, 1, *factors], np.float32))
    nearest = a["mode"] == "nearest"
    place = "asymmetric" if nearest else "align_corners" if a["align_corners"] else "half_pixel"
    named: dict[str, Any] = {"nearest_mode": "floor"} if nearest else {}
    named |= {"cubic_coeff_a": -0.75} if modes[a["mode"]] == "cubic" else {}
    return writer.add(
        "Resize",
        [*inputs, "", scales],
        output,
        mode=modes[a["mode"]],
        coordinate_transformation_mode=place,
        **named,
    )


def _batch_norm(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
    names = [f"{node.name}.{part}" for part in ("weight", "bias", "mean", "var")]
    for name in names:
        writer.constant(name, np.asarray(writer.model.constants[name], np.float32))
    return writer.add("BatchNormalization", [*inputs, *names], output, epsilon=node.attributes["eps"])


def _layer_norm(writer: Writer, node: Node, inputs: Sequence[str], output: str) -> str:
    names = [f"{node.name}.{part}" for part in ("weight", "bias")]
    for name in names:
        writer.constant(name, np.asarray(writer.model.constants[name], np.float32))
    axis = -len(tuple(node.attributes["shape"]))
    return writer.add("LayerNormalization", [*inputs, *names], output, axis=axis, epsilon=node.attributes["eps"])


OPERATORS: dict[str, Operator] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "relu": _plain("Relu"),
    "clip": _clip,
    "sigmoid": _plain("Sigmoid"),
    "tanh": _plain("Tanh"),
    "silu": _silu,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _plain("HardSwish"),
    "gelu": _gelu,
    "softmax": _softmax,
    "add": _plain("Add"),
    "sub": _plain("Sub"),
    "mul": _plain("Mul"),
    "div": _plain("Div"),
    "matmul": _plain("MatMul"),
    "concat": _concat,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "mean": _mean,
    "flatten": _flatten,
    "reshape": _reshape,
    "permute": _permute,
    "squeeze": _axes("Squeeze"),
    "unsqueeze": _axes("Unsqueeze"),
    "slice": _slice,
    "pad": _pad,
    "resize": _resize,
}
