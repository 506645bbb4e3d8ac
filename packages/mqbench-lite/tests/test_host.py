from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from drawn_networks import network

from mqbench_lite.host import SAFE_WEIGHT, host, saturating_layers

SCRIPT = """
import json, sys, tempfile
import numpy as np, torch
from pathlib import Path
from mqbench_lite.engines import get
from mqbench_lite.exporting import export
from mqbench_lite.graph import Graph, Layer, Node, QParams, QuantizedGraph
from mqbench_lite.host import host, saturating_layers
from mqbench_lite.verification import verify

torch.set_num_threads(1)
rng = np.random.default_rng(0)
def grid(scale, zero, low=0, high=255):
    return QParams(scale=np.array(scale, np.float32), zero_point=np.array(zero, np.int32), qmin=low, qmax=high)
found = {"saturating": list(host().saturating), "forced": dict(host().forced)}
for largest in (127, 64):
    weight = rng.integers(largest - 20, largest + 1, (8, 16, 3, 3)).astype(np.int8)
    layer = Layer(weight=weight, grid=grid(0.01, 0, -128, 127))
    conv = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    nodes = (Node("x", "input"), Node("Q:x", "quantize", ("x",), {"bits": 8}), Node("conv", "conv", ("Q:x",), conv),
             Node("Q:conv", "quantize", ("conv",), {"bits": 8}))
    model = QuantizedGraph(graph=Graph(nodes, ("Q:conv",)), grids={"Q:x": grid(1 / 255, 0), "Q:conv": grid(0.01 * largest, 0)},
                           layers={"conv": layer}, shapes={"x": (-1, 16, 8, 8)}, profile="onnxruntime")
    x = rng.uniform(0.8, 1.0, (4, 16, 8, 8)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        artifact = export(model, Path(folder) / "m.onnx")
        names = [name for name in sys.argv[1:] if get(name).available()]
        report = verify(model, artifact, names, [x])
    found[str(largest)] = {e.engine: [e.differing / e.logits, e.max_lsb] for e in report.engines}
    found[f"flagged {largest}"] = saturating_layers(model)
print(json.dumps(found))
"""


def in_process(variables: dict[str, str], engines: list[str]) -> dict:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, *engines]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}
needs_vnni = pytest.mark.skipif(
    bool(host().saturating) or "x86" not in torch.backends.quantized.supported_engines,
    reason="the processor has no VNNI, or torch no x86 kernels",
)


@needs_vnni
def test_without_vnni_8_bit_weights_saturate_and_7_bit_ones_agree_exactly() -> None:
    engines = ["torch-onednn", "torch-x86", "torch-fbgemm", "torch-qnnpack", "onnxruntime"]
    found = in_process(AVX2, engines)
    assert found["forced"] == AVX2
    assert {"torch-onednn", "torch-x86", "torch-fbgemm"} <= set(found["saturating"])
    assert "onnxruntime" not in found["saturating"]  # it heeds neither variable, and the processor has the instructions
    for name in ("torch-onednn", "torch-x86", "torch-fbgemm"):
        share, steps = found["127"][name]
        assert share > 0.5
        assert steps > 1
        assert found["64"][name] == [0.0, 0]
    assert found["127"]["torch-qnnpack"] == found["127"]["onnxruntime"] == [0.0, 0]
    assert found["flagged 127"] == {"conv": 127}
    assert found["flagged 64"] == {}


def test_the_largest_safe_weight_is_64() -> None:
    assert SAFE_WEIGHT == 64
    assert 2 * 255 * 64 <= 32767 < 2 * 255 * 65


def test_a_processor_without_vnni_is_flagged_for_every_engine_that_saturates() -> None:
    old = host({"sse4_2", "avx", "avx2", "fma"}, {})
    assert set(old.saturating) == {"onnxruntime", "openvino", "torch-onednn", "torch-x86", "torch-fbgemm"}
    assert "reduce_range" in old.advice
    assert host({"avx2", "avx512_vnni"}, {}).saturating == ()
    assert host({"avx2", "avx_vnni"}, {}).advice == "8-bit weights are safe in all engines"


@pytest.mark.parametrize(
    ("variables", "engines"),
    [
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, {"openvino", "torch-onednn", "torch-x86"}),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, {"openvino", "torch-onednn", "torch-x86"}),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, set()),
        ({"ONEDNN_MAX_CPU_ISA": "DEFAULT"}, set()),
        ({"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}, {"torch-x86", "torch-fbgemm"}),
    ],
)
def test_a_variable_that_holds_an_engine_back_is_flagged(variables: dict[str, str], engines: set[str]) -> None:
    assert set(host({"avx2", "avx512_vnni"}, variables).saturating) == engines


def test_layers_are_flagged_by_their_largest_weight() -> None:
    model = network(0, ["conv"])
    largest = {name: int(np.abs(layer.weight.astype(int)).max()) for name, layer in model.layers.items()}
    assert saturating_layers(model) == {name: size for name, size in largest.items() if size > 64}
    assert saturating_layers(network(0, ["conv"], 0.0, 4)) == {}
