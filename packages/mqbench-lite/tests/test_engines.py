from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_networks import network
from hosts import OPENVINO
from test_integers import pixels

from mqbench_lite import engines
from mqbench_lite.engines import BUILT_IN, Coverage, Engine, discover, get
from mqbench_lite.engines.executorch import ENGINE as EXECUTORCH
from mqbench_lite.errors import EngineMissingError, ExportError, MQBenchError
from mqbench_lite.exporting import Artifact, export
from mqbench_lite.integers import IntegerModel


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return export(network(1, ["conv", "depthwise", "residual"]), tmp_path / "net.onnx")


KERNELS = [
    f"torch-{kind}"
    for kind in ("x86", "onednn", "fbgemm", "qnnpack")
    if kind in torch.backends.quantized.supported_engines
]


@pytest.mark.parametrize("name", ["onnxruntime", *KERNELS])
def test_exact_engines_give_the_integer_models_codes_and_logits(name: str, artifact: Artifact) -> None:
    model = network(1, ["conv", "depthwise", "residual"])
    engine = get(name)
    x = pixels(model)
    assert engine.exact
    assert engine.available()
    np.testing.assert_array_equal(engine.run(artifact, x), IntegerModel(model)(torch.tensor(x)).numpy())
    ours = IntegerModel(model).codes(torch.tensor(x))
    theirs = engine.layer_codes(artifact, x)
    assert theirs.keys() == ours.keys()
    for quantizer, codes in ours.items():
        np.testing.assert_array_equal(theirs[quantizer].ravel(), codes.ravel())  # files may move data later
    coverage = engine.integer_coverage(artifact)
    assert coverage.share == 1
    convolutions = [kind for kind in coverage.integer.values() if "conv" in kind.lower()]
    assert len(convolutions) == sum(node.op == "conv" for node in model.graph)
    assert engine.versions()


def test_openvino_is_within_a_step_in_every_layer(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    for seed in range(3):
        model = replace(network(seed, ["conv", "depthwise", "residual"]), profile=OPENVINO)
        made = export(model, tmp_path / "net.onnx")
        x = pixels(model, 8)
        theirs = get("openvino").layer_codes(made, x)
        ours = IntegerModel(model).codes(torch.tensor(x))
        assert len(theirs) > 3
        steps = {name: np.abs(codes.ravel() - ours[name].ravel()) for name, codes in theirs.items()}
        assert max(each.max() for each in steps.values()) <= 1
        assert sum(each.sum() for each in steps.values()) <= 1e-2 * sum(each.size for each in steps.values())
        coverage = get("openvino").integer_coverage(made)
        assert any(kind.startswith("Convolution u8") or "i8" in kind for kind in coverage.integer.values())


@pytest.mark.skipif(not EXECUTORCH.available(), reason="executorch is not installed")
def test_executorch_agrees_to_the_last_bits_of_the_float_layer(tmp_path: Path) -> None:
    model = replace(network(0, ["conv", "depthwise"]), profile="xnnpack", storage="s8")
    made = export(model, tmp_path / "net.onnx")
    x = pixels(model)
    np.testing.assert_allclose(EXECUTORCH.run(made, x), IntegerModel(model)(torch.tensor(x)).numpy(), rtol=0, atol=1e-6)
    assert EXECUTORCH.integer_coverage(made).share == 1


@pytest.mark.skipif(EXECUTORCH.available(), reason="executorch is installed")
def test_an_engine_that_is_not_installed_says_which_extra_has_it(artifact: Artifact) -> None:
    assert EXECUTORCH.versions() == {}
    with pytest.raises(EngineMissingError, match=r"executorch is not installed \(install mqbench-lite\[executorch\]\)"):
        EXECUTORCH.run(artifact, np.zeros((1, 1, 5, 5), np.float32))


def test_a_layer_in_float_is_counted_as_such(tmp_path: Path) -> None:
    model = network(3, ["conv", "conv"], bits=4)
    made = export(model, tmp_path / "net.onnx", clips="values")  # narrow grids are clipped before QuantizeLinear
    coverage = get("onnxruntime").integer_coverage(made)
    expected = IntegerModel(model, clips="values").coverage
    assert sum("Conv" in kind for kind in coverage.floating.values()) == 2
    assert sum(kind == "conv" for kind in expected.floating.values()) == 2
    assert get("torch-qnnpack").integer_coverage(made).share == 0


def test_a_wrong_input_shape_is_refused_with_the_expected_one(artifact: Artifact) -> None:
    with pytest.raises(ExportError, match=r"takes inputs of shape \['batch', .*got \[1, 99, 2, 2\]"):
        get("onnxruntime").run(artifact, np.zeros((1, 99, 2, 2), np.float32))


def test_engines_are_found_and_none_is_imported_before_it_runs() -> None:
    script = (
        "import sys; from mqbench_lite.engines import discover; found = discover();"
        "assert not found.problems, found.problems; print(sorted(found.engines));"
        "assert not {'onnxruntime', 'openvino', 'executorch', 'torchao'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sorted(BUILT_IN))


def test_broken_and_duplicate_plug_ins_are_listed_and_hide_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("absent", "no_such_module:ENGINE", engines.GROUP),
        EntryPoint("onnxruntime", "mqbench_lite.engines.openvino:ENGINE", engines.GROUP),
        EntryPoint("onnxruntime", "test_engines:FOREIGN", engines.GROUP),
        EntryPoint("odd", "mqbench_lite.engines:GROUP", engines.GROUP),
        EntryPoint("foreign", "test_engines:FOREIGN", engines.GROUP),
    ]
    monkeypatch.setattr(engines, "entry_points", lambda group: points)
    found = discover()
    assert found.engines.keys() == {*BUILT_IN, "foreign"}
    assert [problem.split(")")[0] for problem in found.problems] == [
        "engine absent (no_such_module:ENGINE",
        "engine onnxruntime (test_engines:FOREIGN",
        "engine odd (mqbench_lite.engines:GROUP",
    ]
    assert isinstance(get("foreign"), Engine)
    with pytest.raises(MQBenchError, match=r"engine 'tpu' is unknown \(known are executorch, foreign, onnxruntime"):
        get("tpu")


class Foreign:
    name = "foreign"
    api_version = 1
    exact = False

    def available(self) -> bool:
        return True

    def versions(self) -> dict[str, str]:
        return {"foreign": "1"}

    def run(self, artifact, x):
        return np.zeros((len(x), 3), np.float32)

    def integer_coverage(self, artifact) -> Coverage:
        return Coverage()

    def layer_codes(self, artifact, x):
        return {}


FOREIGN = Foreign()


def test_the_share_of_integer_operations() -> None:
    assert Coverage(integer={"a": "conv"}, floating={"b": "conv", "c": "add", "d": "add"}).share == 0.25
    assert Coverage().share == 1
