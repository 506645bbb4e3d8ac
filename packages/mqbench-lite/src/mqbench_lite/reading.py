"""ONNX files with QuantizeLinear and DequantizeLinear nodes, ours and other writers', as frozen quantised models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, shape_inference

from mqbench_lite.errors import ExportError
from mqbench_lite.fusion import code_limits, grid_owners, tensor_grids, units
from mqbench_lite.graph import Graph, Layer, Node, QParams, QuantizedGraph
from mqbench_lite.onnx_attributes import READERS, Operation, attributes_of

METADATA = "mqbench_lite"
LARGEST = 2**31
"""Bytes beyond which a file is refused before it is parsed."""
BIAS_TOLERANCE = 0.01
"""By how much a bias's step size may differ from the product of the others: the engine's own rule."""


def read(path: Path | str) -> QuantizedGraph:
    """The quantised model that a file holds.

    Raises:
        ExportError: the file is not ONNX, or has a node that has no place in a `Graph`.
    """
    return parse(Path(path)).model


@dataclass(frozen=True)
class Parsed:
    """A model, and what ONNX Runtime makes of the file.

    Attributes:
        model: the model.
        floats: names of operations that are left in float though quantisers surround them.
        held: the type of each quantiser's codes.
    """

    model: QuantizedGraph
    floats: frozenset[str]
    held: Mapping[str, Literal["u8", "s8"]]


def parse(path: Path) -> Parsed:
    """The model with what an engine does to it."""
    reader = Reader(_loaded(path))
    for node in reader.proto.graph.node:
        reader.take(node)
    model = reader.finished()
    held = _held_types(reader, model)
    return Parsed(model, frozenset(reader.floats) | _unfused(reader, model, held), held)


def _loaded(path: Path) -> onnx.ModelProto:
    try:
        if path.stat().st_size > LARGEST:
            raise ExportError(f"{path} is larger than an ONNX file can be", "give a file without external data")
        proto = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(proto)
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:
        if isinstance(error, ExportError):
            raise
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(f"{path} is not a valid ONNX file: {line}") from error
    return shape_inference.infer_shapes(proto)


@dataclass
class Reader:
    """What is known of the file so far.

    Attributes:
        constants: arrays by tensor.
        weights: quantised constants by the float tensor that a DequantizeLinear makes of them.
        values: the node whose float values a tensor holds, by tensor.
        codes: the node whose codes a tensor holds, by tensor.
    """

    proto: onnx.ModelProto
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    weights: dict[str, tuple[np.ndarray, QParams]] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    grids: dict[str, QParams] = field(default_factory=dict)
    types: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    named: dict[str, np.ndarray] = field(default_factory=dict)
    floats: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        graph = self.proto.graph
        self.constants |= {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        for each in graph.input:
            if each.name not in self.constants:
                self.append(Node(each.name, "input"), each.name)
        infos = (*graph.input, *graph.value_info, *graph.output)
        self.shapes = {each.name: _shape(each) for each in infos if each.type.tensor_type.HasField("shape")}
        facts = {each.key: each.value for each in self.proto.metadata_props}
        self.facts: Mapping[str, Any] = json.loads(facts[METADATA]) if METADATA in facts else {}

    def append(self, node: Node, tensor: str) -> None:
        """Adds a node that makes a float tensor."""
        self.nodes.append(node)
        self.values[tensor] = node.name

    def take(self, proto: onnx.NodeProto) -> None:
        """Reads one node of the file."""
        kind = proto.op_type
        if kind == "Constant":
            value = attributes_of(proto).get("value")
            if not isinstance(value, TensorProto):
                raise ExportError(f"{proto.name}: a constant of another kind than a tensor")
            self.constants[proto.output[0]] = numpy_helper.to_array(value)
        elif kind in ("Identity", "Dropout"):
            self._alias(proto.input[0], proto.output[0])
        elif kind == "QuantizeLinear":
            self._quantize(proto)
        elif kind == "DequantizeLinear":
            self._dequantize(proto)
        elif kind == "Clip" and proto.input[0] in self.codes:
            self._clip_codes(proto)
        elif kind in ("Conv", "ConvTranspose", "Gemm") or (kind == "MatMul" and self._is_constant(proto.input[1])):
            self._layer(proto)
        else:
            self._operation(proto)

    def _alias(self, tensor: str, other: str) -> None:
        known: Iterable[dict[str, Any]] = (self.constants, self.weights, self.values, self.codes)
        for names in known:
            if tensor in names:
                names[other] = names[tensor]

    def finished(self) -> QuantizedGraph:
        """The model read."""
        names = [each.name for each in self.proto.graph.output]
        missing = [name for name in names if name not in self.values]
        if missing:
            raise ExportError(f"the output {missing[0]} is not a float tensor", "end the file in DequantizeLinear")
        stored = {np.dtype(each) for each in self.types.values()}
        return QuantizedGraph(
            graph=Graph(tuple(self.nodes), tuple(self.values[name] for name in names)),
            grids=self.grids,
            layers=self.layers,
            constants=self.named,
            shapes={node.name: self.shapes[node.name] for node in self.nodes if node.op == "input"},
            storage="s8" if stored == {np.dtype(np.int8)} else "u8",
            profile=str(self.facts.get("profile", "")),
        )

    def _is_constant(self, tensor: str) -> bool:
        return tensor in self.constants or tensor in self.weights

    def _array(self, tensor: str) -> np.ndarray:
        if tensor in self.constants:
            return self.constants[tensor]
        if tensor in self.weights:
            codes, grid = self.weights[tensor]
            along = [-1 if at == grid.axis and grid.scale.ndim else 1 for at in range(codes.ndim)]
            centred = codes.astype(np.int32) - grid.zero_point.reshape(along if grid.scale.ndim else ())
            return np.asarray(centred.astype(np.float32) * grid.scale.reshape(along if grid.scale.ndim else ()))
        raise ExportError(f"the tensor {tensor} must be constant")

    def _parameters(self, proto: onnx.NodeProto, dtype: Any) -> QParams:
        scale = np.asarray(self._array(proto.input[1]), np.float32)
        given = len(proto.input) > 2 and proto.input[2]
        zero_point = self._array(proto.input[2]) if given else np.zeros(scale.shape, dtype)
        kind = np.dtype(zero_point.dtype)
        if kind not in (np.dtype(np.uint8), np.dtype(np.int8), np.dtype(np.int32)):
            raise ExportError(f"{proto.name}: codes of type {kind} are not 8-bit integers")
        scale, zero_point = (each.reshape(()) if each.size == 1 and each.ndim else each for each in (scale, zero_point))
        limits = np.iinfo(kind)
        axis = int(attributes_of(proto).get("axis", 1)) if scale.ndim else 0
        return QParams(
            scale=np.asarray(scale),
            zero_point=np.asarray(zero_point, np.int32),
            qmin=int(limits.min),
            qmax=int(limits.max),
            axis=axis,
        )

    def _quantize(self, proto: onnx.NodeProto) -> None:
        grid = self._parameters(proto, np.uint8)
        if grid.scale.ndim:
            raise ExportError(f"{proto.name}: activations are quantised per tensor", "quantise weights in advance")
        name = proto.output[0].removesuffix("/q")
        read = self._node(proto.input[0])
        self.types[name] = np.uint8 if grid.qmin == 0 else np.int8
        self.grids[name] = self._as_written(name, grid)
        self.nodes.append(Node(name, "quantize", (read,), {"bits": (grid.qmax - grid.qmin).bit_length()}))
        self.codes[proto.output[0]] = name

    def _as_written(self, name: str, grid: QParams) -> QParams:
        """The grid before its codes were put into an 8-bit type, if the file says so."""
        if name not in self.facts.get("grids", {}):
            return grid
        qmin, qmax = self.facts["grids"][name]
        zero_point = np.asarray(grid.zero_point - _shift(qmin, grid.qmin), np.int32)
        return QParams(scale=grid.scale, zero_point=zero_point, qmin=qmin, qmax=qmax)

    def _dequantize(self, proto: onnx.NodeProto) -> None:
        source = proto.input[0]
        if source in self.constants:
            codes = self.constants[source]
            self.weights[proto.output[0]] = (codes, self._parameters(proto, codes.dtype))
            return
        if source not in self.codes:
            raise ExportError(f"{proto.name}: {source} holds no codes of a QuantizeLinear")
        grid = self._parameters(proto, np.uint8)
        name = self.codes[source]
        owner = tensor_grids(self._so_far())[name]
        zero_point = int(owner.zero_point) + _shift(owner.qmin, grid.qmin)
        same = np.array_equal(owner.scale, grid.scale) and zero_point == int(grid.zero_point)
        if not same:
            raise ExportError(f"{proto.name}: another grid than the QuantizeLinear before it has")
        self.values[proto.output[0]] = name

    def _so_far(self) -> QuantizedGraph:
        return QuantizedGraph(graph=Graph(tuple(self.nodes), ()), grids=self.grids, layers={})

    def _clip_codes(self, proto: onnx.NodeProto) -> None:
        """Limits of codes: a narrower grid or, where the file says what the grid is, a clip of values before it."""
        name = self.codes[proto.input[0]]
        grid = self.grids[name]
        shift = _shift(grid.qmin, int(np.iinfo(self.types[name]).min))
        bounds = [self._array(tensor) if tensor else None for tensor in (*proto.input[1:], "", "")[:2]]
        low = grid.qmin if bounds[0] is None else max(grid.qmin, int(bounds[0]) - shift)
        high = grid.qmax if bounds[1] is None else min(grid.qmax, int(bounds[1]) - shift)
        self.codes[proto.output[0]] = name
        if name not in self.facts.get("grids", {}):
            self.grids[name] = QParams(scale=grid.scale, zero_point=grid.zero_point, qmin=low, qmax=high)
        elif (low, high) != (grid.qmin, grid.qmax):
            at = next(at for at, node in enumerate(self.nodes) if node.name == name)
            old = self.nodes[at]
            values = [float(np.float32((code - int(grid.zero_point)) * grid.scale)) for code in (low, high)]
            clip = Node(f"{name}/clip", "clip", old.inputs, {"low": values[0], "high": values[1]})
            self.nodes[at : at + 1] = [clip, Node(name, "quantize", (clip.name,), old.attributes)]

    def _node(self, tensor: str) -> str:
        """The node that makes a float tensor; constants become nodes when they are read."""
        if tensor in self.values:
            return self.values[tensor]
        if not self._is_constant(tensor):
            raise ExportError(f"the tensor {tensor} is not made by a node that can be read")
        self.named[tensor] = np.asarray(self._array(tensor), np.float32)
        self.append(Node(tensor, "constant"), tensor)
        if tensor in self.weights:
            grid = self.weights[tensor][1]
            if not grid.scale.ndim:
                name = f"Q:{tensor}"
                self.grids[name] = grid
                self.types[name] = np.uint8 if grid.qmin == 0 else np.int8
                self.append(Node(name, "quantize", (tensor,), {"bits": 8}), tensor)
        return self.values[tensor]

    def _layer(self, proto: onnx.NodeProto) -> None:
        kind, given = proto.op_type, attributes_of(proto)
        name, read, transposed = proto.output[0], self._node(proto.input[0]), False
        if kind == "Gemm":
            if (given.get("alpha", 1.0), given.get("transA", 0)) != (1.0, 0) or given.get("beta", 1.0) != 1.0:
                raise ExportError(f"{proto.name}: a Gemm with factors or a transposed input cannot be read")
            transposed = not given.get("transB", 0)
        elif kind == "MatMul":
            transposed = True
        bias = proto.input[2] if len(proto.input) > 2 else ""
        weight, grid = self._weight(proto.input[1], transposed)
        self.layers[name] = Layer(weight=weight, grid=grid, bias=self._bias(bias, read, grid, name))
        op = {"Conv": "conv", "ConvTranspose": "conv_transpose"}.get(kind, "linear")
        attributes = {} if op == "linear" else READERS[kind](self._described(proto))[1]
        self.append(Node(name, op, (read,), attributes), proto.output[0])

    def _weight(self, tensor: str, transposed: bool) -> tuple[np.ndarray, QParams | None]:
        if tensor not in self.weights:
            weight = np.asarray(self._array(tensor), np.float32)
            return np.ascontiguousarray(weight.T) if transposed else weight, None
        codes, grid = self.weights[tensor]
        if not transposed:
            return codes, grid
        flipped = QParams(
            scale=grid.scale, zero_point=grid.zero_point, qmin=grid.qmin, qmax=grid.qmax, axis=1 - grid.axis
        )
        return np.ascontiguousarray(codes.T), flipped if grid.scale.ndim else grid

    def _bias(self, tensor: str, read: str, grid: QParams | None, name: str) -> np.ndarray | None:
        """The bias's codes; float values where their step size is not the product of the others."""
        if not tensor:
            return None
        read_grid = tensor_grids(self._so_far()).get(read)
        if tensor in self.weights and self.weights[tensor][0].dtype == np.int32 and grid and read_grid:
            codes, own = self.weights[tensor]
            repeats = len(codes) // grid.scale.size if grid.scale.ndim else 1  # groups of a transposed convolution
            expected = np.tile(read_grid.scale * grid.scale, repeats) if repeats > 1 else read_grid.scale * grid.scale
            if np.allclose(own.scale, expected, rtol=BIAS_TOLERANCE, atol=0) and not own.zero_point.any():
                return codes
            self.floats.add(name)
        return np.asarray(self._array(tensor), np.float32)

    def _described(self, proto: onnx.NodeProto) -> Operation:
        constants = {name: self._array(name) for name in proto.input[1:] if self._is_constant(name)}
        inputs = [constants.get(name) for name in proto.input]
        shapes = [self.shapes.get(name) for name in (*proto.input[:1], *proto.output[:1])]
        return Operation(proto.name, proto.op_type, attributes_of(proto), inputs, shapes[0], shapes[-1])

    def _operation(self, proto: onnx.NodeProto) -> None:
        kind = proto.op_type
        if kind not in READERS:
            raise ExportError(f"{proto.name or kind}: {kind} nodes cannot be read", "export the model by this package")
        op, attributes = READERS[kind](self._described(proto))
        source, output = proto.input[0], proto.output[0]
        if source in self.codes:
            read: Callable[[str], str] = self.codes.__getitem__
            name, known = output.removesuffix("/q"), self.codes
        else:
            read, name, known = self._node, output, self.values
        count = len(proto.input) if op in ("add", "sub", "mul", "div", "matmul", "concat") else 1
        self.nodes.append(Node(name, op, tuple(read(tensor) for tensor in proto.input[:count]), attributes))
        known[output] = name
        if kind == "ReduceMean":
            self.floats.add(name)
        for part, tensor in zip(("weight", "bias", "mean", "var"), proto.input[1:], strict=False):
            if op in ("batch_norm", "layer_norm"):
                self.named[f"{name}.{part}"] = np.asarray(self._array(tensor), np.float32)


def _held_types(reader: Reader, model: QuantizedGraph) -> dict[str, Literal["u8", "s8"]]:
    """Which type ONNX Runtime gives each quantiser's codes: signed ones with a single reader become unsigned."""
    held: dict[str, Literal["u8", "s8"]] = {}
    for name, dtype in reader.types.items():
        edges = sum(node.inputs.count(name) for node in model.graph) + model.graph.outputs.count(name)
        held[name] = "u8" if dtype == np.uint8 or edges == 1 else "s8"
    return held


def _unfused(reader: Reader, model: QuantizedGraph, held: Mapping[str, str]) -> frozenset[str]:
    """Operations that ONNX Runtime on x86-64 does not fuse with their quantisers.

    A ReLU or clip that the 8-bit type does not make redundant stands between, or codes are signed where the kernels
    want unsigned ones.
    """
    found = set()
    owners = grid_owners(model)
    for unit in units(model).values():
        if unit.end is None:
            continue
        between = [clip for clip in unit.clips if not clip.name.endswith("/clip")]
        limits = _container(model.grids[unit.end.name], reader.types[unit.end.name])
        if any(code_limits(limits, (clip,)) != (limits.qmin, limits.qmax) for clip in between):
            found.add(unit.node.name)
        types = {held[owners[name]] for name in (unit.end.name, *unit.node.inputs)}
        if len(types) > 1 or (types == {"s8"} and unit.node.op in ("conv", "matmul")):
            found.add(unit.node.name)
    return frozenset(found)


def _container(grid: QParams, dtype: Any) -> QParams:
    """The grid of all codes of the 8-bit type in which a file holds a grid's."""
    limits = np.iinfo(dtype)
    zero_point = np.asarray(grid.zero_point + _shift(grid.qmin, int(limits.min)), np.int32)
    return QParams(scale=grid.scale, zero_point=zero_point, qmin=int(limits.min), qmax=int(limits.max))


def _shift(qmin: int, least: int) -> int:
    """How far codes of a grid from `qmin` are shifted in a type from `least`: 128 up, 128 down, or not at all."""
    return 128 * ((qmin < 0) - (least < 0))


def _shape(info: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(each.dim_value if each.HasField("dim_value") else -1 for each in info.type.tensor_type.shape.dim)
