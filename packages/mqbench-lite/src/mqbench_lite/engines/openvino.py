"""OpenVINO on the CPU."""

from __future__ import annotations

import functools
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float32, Int32

from mqbench_lite.engines import API_VERSION, Coverage
from mqbench_lite.errors import EngineMissingError
from mqbench_lite.exporting import Artifact
from mqbench_lite.reading import parse

LAYERS = frozenset({"Convolution", "FullyConnected", "MatMul", "Deconvolution"})
BYTES = frozenset({"u8", "i8"})


class OpenVino:
    """Runs files on one thread, what is not quantised in float32."""

    name = "openvino"
    api_version = API_VERSION
    exact = False

    def available(self) -> bool:
        """Whether it is installed."""
        return find_spec("openvino") is not None

    def versions(self) -> dict[str, str]:
        """Its version."""
        return {"openvino": version("openvino")} if self.available() else {}

    def run(self, artifact: Artifact, x: Float32[np.ndarray, " ..."]) -> Float32[np.ndarray, " ..."]:
        """The first output."""
        return _compiled(str(artifact.path), artifact.sha256)(x)[0].copy()  # type: ignore[no-any-return]

    def integer_coverage(self, artifact: Artifact) -> Coverage:
        """Layers by the precision in which the compiled model runs them."""
        integer: dict[str, str] = {}
        floating: dict[str, str] = {}
        for operation in _compiled(str(artifact.path), artifact.sha256).get_runtime_model().get_ops():
            facts = operation.get_rt_info()
            kind, precision = facts["layerType"].astype(str), facts["runtimePrecision"].astype(str)
            if kind in LAYERS:
                (integer if precision in BYTES else floating)[operation.get_friendly_name()] = f"{kind} {precision}"
        return Coverage(integer=integer, floating=floating)

    def layer_codes(self, artifact: Artifact, x: Float32[np.ndarray, " ..."]) -> dict[str, Int32[np.ndarray, " ..."]]:
        """Codes of the quantisers, from their dequantised values; watched tensors may be fused less than others."""
        model = parse(artifact.path).model
        proto = onnx.load(artifact.path)
        made = {output for node in proto.graph.node for output in node.output}
        watched = [name for name in model.grids if f"{name}/0" in made]
        known = {each.name for each in proto.graph.output}
        for name in watched:
            if f"{name}/0" not in known:
                proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(f"{name}/0"))
        found = _compile(proto.SerializeToString())(x)
        codes = {}
        for name in watched:
            grid = model.grids[name]
            values = found[f"{name}/0"]
            codes[name] = np.rint(values / grid.scale).astype(np.int32) + grid.zero_point
        return codes


@functools.lru_cache(maxsize=8)
def _compiled(path: str, sha256: str) -> Any:  # noqa: ARG001 -- the hash tells a rewritten file from the one before
    return _compile(Path(path).read_bytes())


def _compile(content: bytes) -> Any:
    try:
        import openvino
    except ImportError:
        raise EngineMissingError("openvino", "openvino") from None
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1"}
    return core.compile_model(core.read_model(content), "CPU", settings)


ENGINE = OpenVino()
