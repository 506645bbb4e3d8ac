"""A frozen quantised model as an ONNX graph with QuantizeLinear and DequantizeLinear nodes.

Two styles (`fusion`): with `codes`, clips and movements of data work on the codes between QuantizeLinear and
DequantizeLinear; with `values`, all operations are on floats, as other writers have it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from mqbench_lite.accumulation import output_steps
from mqbench_lite.errors import ExportError, UnsupportedOpError
from mqbench_lite.fusion import Clips, code_limits, stored_range, tensor_grids, units
from mqbench_lite.graph import LAYERS, Node, QParams, QuantizedGraph
from mqbench_lite.integers import IntegerModel
from mqbench_lite.onnx_operators import FORMAT, OPERATORS
from mqbench_lite.operators import without_format

OPSETS = range(17, 24)
METADATA = "mqbench_lite"


def to_onnx(model: QuantizedGraph, clips: Clips = "codes", opset: int = 17) -> onnx.ModelProto:
    """The model as ONNX.

    Args:
        model: a frozen model, with the shapes of its inputs.
        clips: the style.
        opset: operator set, 17 to 23.

    Raises:
        ExportError: the operator set is not known, or a shape is missing.
        UnsupportedOpError: an operation has no counterpart.
    """
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} cannot be written", f"choose {OPSETS.start} to {OPSETS.stop - 1}")
    missing = [name for name in model.graph.inputs if name not in model.shapes]
    if missing:
        raise ExportError(f"the shape of the input {missing[0]} is not known", "give the shapes with the model")
    if (call := without_format(model.graph)) is not None:
        target = call.attributes["target"]
        what = f"{getattr(target, 'name', target)} at {call.name}"
        raise UnsupportedOpError(what, FORMAT, "export only operations of the graph")
    writer = Writer(model, clips, opset)
    for node in model.graph:
        writer.write(node)
    return writer.finished()


class Writer:
    """Nodes and constants of the file so far."""

    def __init__(self, model: QuantizedGraph, clips: Clips, opset: int) -> None:
        self.model, self.clips, self.opset = model, clips, opset
        self.grids = tensor_grids(model)
        self.shapes = _shapes(model)
        found = units(model, clips).values()
        self.skipped = {clip.name for unit in found for clip in unit.clips} if clips == "codes" else set()
        self.ends = {unit.end.name: unit for unit in found if unit.end is not None}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.codes: dict[str, str] = {}
        self.readings: dict[str, int] = {}
        self.moves: dict[str, tuple[str, str]] = {}

    def write(self, node: Node) -> None:
        """Appends what one node of the graph needs."""
        if node.op == "input" or node.name in self.skipped:
            return
        if node.op == "constant":
            self.constant(node.name, np.asarray(self.model.constants[node.name]))
        elif node.op == "quantize":
            self._quantize(node)
        elif node.name in self.grids:
            self._move(node)
        elif node.op in LAYERS:
            self._layer(node)
        else:
            OPERATORS[node.op](self, node, [self.value(name) for name in node.inputs], node.name)

    def value(self, name: str) -> str:
        """The float tensor of a node, for one reader: each has a DequantizeLinear of its own."""
        if name not in self.codes:
            return name
        at = self.readings[name] = self.readings.get(name, -1) + 1
        return self._dequantized(self.codes[name], self._stored(self.grids[name]), f"{name}/{at}")

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """One ONNX node; its output's name."""
        kept = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"{output}/{kind}", **kept))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        """A constant; its name."""
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        return name

    def move_last(self, node: Node, kind: str, argument: str) -> None:
        """Moves the data of a node's result, which is written already: at once, or when it is codes.

        Engines fuse an operation and the QuantizeLinear after it only if nothing stands between.
        """
        if self.clips == "codes" and any(unit.node is node for unit in self.ends.values()):
            self.moves[node.name] = (kind, argument)
            return
        made = self.nodes[-1]
        made.output[0] = f"{node.name}/unmoved"
        self.add(kind, [made.output[0], argument], node.name)

    def finished(self) -> onnx.ModelProto:
        """The whole file, checked."""
        graph, shapes = self.model.graph, self.model.shapes
        for name in dict.fromkeys(graph.outputs):
            if name in self.codes:
                self._dequantized(self.codes[name], self._stored(self.grids[name]), name)
        inputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, _dynamic(shapes[x])) for x in graph.inputs]
        ranks = {name: _dynamic((-1, *self.shapes[name][1:])) for name in graph.outputs}
        outputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ranks[x]) for x in dict.fromkeys(graph.outputs)]
        proto = helper.make_graph(self.nodes, "mqbench_lite", inputs, outputs, list(self.constants.values()))
        ir_version = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}[self.opset]
        opsets = [helper.make_opsetid("", self.opset)]
        made = helper.make_model(proto, opset_imports=opsets, ir_version=ir_version, producer_name=METADATA)
        helper.set_model_props(made, {METADATA: json.dumps(self._metadata())})
        onnx.checker.check_model(made, full_check=False)
        return made

    def _metadata(self) -> dict[str, Any]:
        """What the nodes alone do not say: which grid an 8-bit type holds."""
        grids = {name: [grid.qmin, grid.qmax] for name, grid in self.model.grids.items()}
        return {"profile": self.model.profile, "storage": self.model.storage, "clips": self.clips, "grids": grids}

    def _quantize(self, node: Node) -> None:
        grid, unit = self.model.grids[node.name], self.ends.get(node.name)
        source = self.value(unit.node.name if unit is not None and self.clips == "codes" else node.inputs[0])
        between = unit.clips if unit is not None and self.clips == "codes" else ()
        scale, zero_point, dtype = self._stored(grid)
        shift, least, most = stored_range(grid, self.model.storage)
        low, high = code_limits(grid, between)
        if self.clips == "values" and (low, high) != (least, most):
            limits = [np.float32((code - int(grid.zero_point)) * float(grid.scale)) for code in (low, high)]
            names = [
                self.constant(f"{node.name}/{end}", np.asarray(x))
                for end, x in zip(("low", "high"), limits, strict=True)
            ]
            source = self.add("Clip", [source, *names], f"{node.name}/clipped")
        codes = self.add("QuantizeLinear", [source, *self._grid_constants(scale, zero_point)], f"{node.name}/q")
        if self.clips == "codes":
            ends = [(low + shift, least + shift), (high + shift, most + shift)]
            if any(limit != bound for limit, bound in ends):
                held = {"least": ends[0][0], "most": ends[1][0]}
                names = [self.constant(f"{node.name}/{end}", np.asarray(x, dtype)) for end, x in held.items()]
                codes = self.add("Clip", [codes, *names], f"{node.name}/codes")
        if source in self.moves:
            kind, argument = self.moves[source]
            codes = self.add(kind, [codes, argument], f"{node.name}/moved")
        self.codes[node.name] = codes

    def _move(self, node: Node) -> None:
        """An operation that moves codes and changes none."""
        if self.clips == "codes":
            read = [self.codes[name] for name in node.inputs]
            self.codes[node.name] = OPERATORS[node.op](self, node, read, f"{node.name}/q")
            return
        OPERATORS[node.op](self, node, [self.value(name) for name in node.inputs], node.name)
        if any(reader.op != "quantize" for reader in self.model.graph.readers(node.name)):
            scale, zero_point, _ = self._stored(self.grids[node.name])
            parameters = self._grid_constants(scale, zero_point)
            self.codes[node.name] = self.add("QuantizeLinear", [node.name, *parameters], f"{node.name}/again/q")

    def _layer(self, node: Node) -> None:
        layer, read = self.model.layers[node.name], self.grids.get(node.inputs[0])
        weight = self.constant(f"{node.name}.weight", layer.weight)
        if layer.grid is not None:
            grid = layer.grid
            numbers = (grid.scale, grid.zero_point.astype(layer.weight.dtype), layer.weight.dtype.type)
            weight = self._dequantized(weight, numbers, f"{weight}/0", grid.axis if grid.scale.ndim else None)
        operands = [weight]
        if layer.bias is not None:
            bias = self.constant(f"{node.name}.bias", layer.bias)
            if layer.bias.dtype == np.int32:
                if read is None or layer.grid is None:
                    raise ExportError(f"{node.name}: an integer bias needs grids of the input and the weight")
                steps = output_steps(node, layer, read)
                numbers = (steps, np.zeros(steps.shape, np.int32), np.int32)
                bias = self._dequantized(bias, numbers, f"{bias}/0", 0 if steps.ndim else None)
            operands.append(bias)
        if node.op == "linear":
            self._linear(node, operands)
        else:
            OPERATORS[node.op](self, node, [self.value(node.inputs[0]), *operands], node.name)

    def _linear(self, node: Node, operands: list[str]) -> None:
        """Gemm on matrices; other ranks are reshaped to matrices and back."""
        shape, out = self.shapes[node.inputs[0]], len(self.model.layers[node.name].weight)
        if len(shape) == 2:
            self.add("Gemm", [self.value(node.inputs[0]), *operands], node.name, alpha=1.0, beta=1.0, transB=1)
            return
        rows = self.constant(f"{node.name}/rows", np.asarray([-1, shape[-1]]))
        matrix = self.add("Reshape", [self.value(node.inputs[0]), rows], f"{node.name}/matrix")
        if node.inputs[0] in self.grids:
            numbers = self._stored(self.grids[node.inputs[0]])
            codes = self.add("QuantizeLinear", [matrix, *self._grid_constants(*numbers[:2])], f"{matrix}/q")
            matrix = self._dequantized(codes, numbers, f"{matrix}/0")
        self.add("Gemm", [matrix, *operands], node.name, alpha=1.0, beta=1.0, transB=1)
        self.move_last(node, "Reshape", self.constant(f"{node.name}/back", np.asarray([-1, *shape[1:-1], out])))

    def _stored(self, grid: QParams) -> tuple[np.ndarray, np.ndarray, type[np.generic]]:
        """Step size, zero point and type of codes as the file has them."""
        shift, least, _ = stored_range(grid, self.model.storage)
        dtype = np.uint8 if least + shift == 0 else np.int8
        return grid.scale, np.asarray(grid.zero_point + shift, dtype), dtype

    def _dequantized(
        self, codes: str, numbers: tuple[np.ndarray, np.ndarray, Any], output: str, axis: int | None = None
    ) -> str:
        return self.add("DequantizeLinear", [codes, *self._grid_constants(*numbers[:2], codes)], output, axis=axis)

    def _grid_constants(self, scale: np.ndarray, zero_point: np.ndarray, owner: str = "") -> tuple[str, str]:
        """Names of a grid's constants, shared by all nodes that need the same numbers."""
        label = f"{len(self.constants)}" if scale.ndim else f"{scale.tobytes().hex()}"
        kind = f"{zero_point.dtype.name}/{zero_point.tobytes().hex()}" if not zero_point.ndim else f"{owner}/zero_point"
        names = (f"scale/{label}", f"zero_point/{kind}")
        self.constant(names[0], np.asarray(scale, np.float32))
        self.constant(names[1], zero_point)
        return names


def _dynamic(shape: Sequence[int]) -> list[int | str | None]:
    return ["batch" if size < 0 else size for size in shape]


def _shapes(model: QuantizedGraph) -> Mapping[str, tuple[int, ...]]:
    """Shapes of all tensors for a batch of two, found by running zeros through the model."""
    inputs = [torch.zeros([2 if size < 0 else size for size in model.shapes[x]]) for x in model.graph.inputs]
    return IntegerModel(model).shapes(*inputs)
