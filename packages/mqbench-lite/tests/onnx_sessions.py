"""ONNX Runtime as the tests use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def session(content: bytes, optimised: Path | None = None, level: Any = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    if level is not None:
        options.graph_optimization_level = level
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(content: bytes, *inputs: np.ndarray, level: Any = None) -> np.ndarray:
    made = session(content, level=level)
    names = [each.name for each in made.get_inputs()]
    return made.run(None, dict(zip(names, inputs, strict=True)))[0]


def kinds(content: bytes, folder: Path) -> list[str]:
    """Operators of the optimised graph."""
    session(content, folder / "optimised.onnx")
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


def operation(
    kind: str, grids: list[tuple[float, int]], shape: list[Any], output: tuple[float, int], **named: Any
) -> bytes:
    """One operator between DequantizeLinear nodes and a QuantizeLinear; inputs and outputs are unsigned codes."""
    nodes, constants, names = [], [], []
    for at, (scale, zero_point) in enumerate([*grids, output]):
        constants.append(numpy_helper.from_array(np.float32(scale), f"s{at}"))
        constants.append(numpy_helper.from_array(np.uint8(zero_point), f"z{at}"))
    for at in range(len(grids)):
        nodes.append(helper.make_node("DequantizeLinear", [f"x{at}", f"s{at}", f"z{at}"], [f"v{at}"]))
        names.append(f"v{at}")
    nodes.append(helper.make_node(kind, names, ["y"], **named))
    nodes.append(helper.make_node("QuantizeLinear", ["y", f"s{len(grids)}", f"z{len(grids)}"], ["q"]))
    shapes = shape if isinstance(shape[0], list) else [shape] * len(grids)
    inputs = [helper.make_tensor_value_info(f"x{at}", TensorProto.UINT8, each) for at, each in enumerate(shapes)]
    output_info = helper.make_tensor_value_info("q", TensorProto.UINT8, None)
    graph = helper.make_graph(nodes, "one", inputs, [output_info], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
