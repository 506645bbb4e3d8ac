"""ONNX Runtime on the CPU, with its default optimisations."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float32, Int32

from mqbench_lite.engines import API_VERSION, Coverage
from mqbench_lite.errors import EngineMissingError, ExportError
from mqbench_lite.exporting import Artifact
from mqbench_lite.reading import parse

INTEGER = frozenset(
    {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "QLinearAdd", "QLinearMul", "QLinearConcat"}
    | {"QLinearAveragePool", "QLinearGlobalAveragePool", "ConvInteger", "MatMulInteger", "QLinearSigmoid"}
)
FLOATING = frozenset(
    {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Add", "Mul", "Concat"}
    | {"AveragePool", "GlobalAveragePool", "ReduceMean", "MatMulNBits"}
)


class OnnxRuntime:
    """Runs files in a session with default options on one thread."""

    name = "onnxruntime"
    api_version = API_VERSION
    exact = True

    def available(self) -> bool:
        """Whether it is installed."""
        return find_spec("onnxruntime") is not None

    def versions(self) -> dict[str, str]:
        """Its version."""
        return {"onnxruntime": version("onnxruntime")} if self.available() else {}

    def run(self, artifact: Artifact, x: Float32[np.ndarray, " ..."]) -> Float32[np.ndarray, " ..."]:
        """The first output."""
        session = _session(str(artifact.path), artifact.sha256)
        return _run(session, x)[0]  # type: ignore[no-any-return]

    def integer_coverage(self, artifact: Artifact) -> Coverage:
        """Counts the operators of the optimised graph."""
        with TemporaryDirectory() as folder:
            target = Path(folder) / "optimised.onnx"
            _new_session(artifact.path.read_bytes(), target)
            nodes = onnx.load(target).graph.node
        named = [(node.name or node.output[0], node.op_type) for node in nodes]
        return Coverage(
            integer={name: kind for name, kind in named if kind in INTEGER},
            floating={name: kind for name, kind in named if kind in FLOATING},
        )

    def layer_codes(self, artifact: Artifact, x: Float32[np.ndarray, " ..."]) -> dict[str, Int32[np.ndarray, " ..."]]:
        """Codes of every quantiser, which are asked for as further outputs."""
        grids = parse(artifact.path).model.grids
        proto = onnx.load(artifact.path)
        tensors = _code_tensors(proto.graph.node, grids)
        for tensor in tensors.values():
            proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
        found = _run(_new_session(proto.SerializeToString()), x)[-len(tensors) :]
        codes = {}
        for name, array in zip(tensors, found, strict=True):
            signed = grids[name].qmin < 0
            shift = (128 if signed else 0) if array.dtype == np.uint8 else (0 if signed else -128)
            codes[name] = array.astype(np.int32) - shift
        return codes


def _code_tensors(nodes: Iterable[Any], grids: Iterable[str]) -> dict[str, str]:
    """The tensor with each quantiser's codes, after its clip if it has one."""
    made = {output for node in nodes for output in node.output}
    tensors = {}
    for name in grids:
        candidates = (f"{name}/codes", f"{name}/q", name)
        found = next((tensor for tensor in candidates if tensor in made), None)
        if found is not None:
            tensors[name] = found
    return tensors


@functools.lru_cache(maxsize=8)
def _session(path: str, sha256: str) -> Any:  # noqa: ARG001 -- the hash tells a rewritten file from the one before
    return _new_session(Path(path).read_bytes())


def _new_session(content: bytes, optimised: Path | None = None) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise EngineMissingError("onnxruntime", "ort") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _run(session: Any, x: np.ndarray) -> Any:
    (wanted,) = session.get_inputs()
    shape = [size if isinstance(size, int) else -1 for size in wanted.shape]
    if len(shape) != x.ndim or any(size not in (-1, given) for size, given in zip(shape, x.shape, strict=True)):
        raise ExportError(f"the file takes inputs of shape {wanted.shape}, got {list(x.shape)}")
    return session.run(None, {wanted.name: x})


ENGINE = OnnxRuntime()
