from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from drawn_networks import network, recipes
from hosts import REDUCED
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper
from onnx_sessions import kinds, run
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from test_integers import pixels

from mqbench_lite.errors import ExportError
from mqbench_lite.integers import IntegerModel
from mqbench_lite.onnx_files import to_onnx
from mqbench_lite.reading import parse, read

drawn = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.mark.parametrize("clips", ["codes", "values"])
@pytest.mark.parametrize(("signed", "bits"), [(0.0, 8), (0.5, 8), (0.5, 4)])
def test_all_numbers_survive_a_file_to_the_bit(clips: str, signed: float, bits: int, folder: Path) -> None:
    for seed in range(4):
        model = network(seed, ["conv", "residual", "concat", "avg_pool", "max_pool"], signed, bits)
        path = folder / "net.onnx"
        path.write_bytes(to_onnx(model, clips).SerializeToString())
        found = read(path)
        assert found.profile == model.profile
        assert found.shapes == model.shapes
        for name, grid in model.grids.items():
            assert (found.grids[name].scale, found.grids[name].zero_point) == (grid.scale, grid.zero_point)
            assert (found.grids[name].qmin, found.grids[name].qmax) == (grid.qmin, grid.qmax)
        for name, layer in model.layers.items():
            np.testing.assert_array_equal(found.layers[name].weight, layer.weight)
            np.testing.assert_array_equal(found.layers[name].grid.scale, layer.grid.scale)
            assert found.layers[name].grid.axis == layer.grid.axis
            assert (found.layers[name].bias is None) == (layer.bias is None)
            if layer.bias is not None:
                np.testing.assert_array_equal(found.layers[name].bias, layer.bias)


@drawn
@given(recipes)
def test_a_model_read_from_its_file_gives_onnxruntimes_logits(recipe: tuple[int, list[str]]) -> None:
    import tempfile

    model = network(*recipe, signed_share=0.3)
    content = to_onnx(model).SerializeToString()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "net.onnx"
        path.write_bytes(content)
        again = IntegerModel.from_onnx(path)
    x = pixels(model)
    np.testing.assert_array_equal(again(torch.tensor(x)).numpy(), run(content, x))
    np.testing.assert_array_equal(again(torch.tensor(x)).numpy(), IntegerModel(model)(torch.tensor(x)).numpy())


class Foreign(torch.nn.Module):
    """A network as others write them, all of whose kinds of layers a writer quantises."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.pooled = bool(seed % 2)
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.BatchNorm2d(8))
        self.grouped = torch.nn.Conv2d(8, 8, 3, 1, 1, groups=4)
        self.gate = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Conv2d(8, 8, 1), torch.nn.Sigmoid())
        self.wide = torch.nn.Conv2d(8, 12, 1)
        self.head = torch.nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = torch.relu(x + self.grouped(x))
        x = torch.max_pool2d(x * self.gate(x), 2)
        x = torch.cat([x, torch.nn.functional.relu6(self.wide(x))], 1)
        x = torch.nn.functional.avg_pool2d(torch.nn.functional.hardswish(x), 2)
        x = torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1) if self.pooled else x.mean((2, 3))
        return self.head(x)


class Batches(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = iter(np.random.default_rng(0).normal(size=(3, 4, 3, 16, 16)).astype(np.float32))

    def get_next(self) -> dict[str, np.ndarray] | None:
        x = next(self.left, None)
        return None if x is None else {"x": x}


def by_another_writer(folder: Path, seed: int, activations: QuantType, per_channel: bool) -> Path:
    plain, quantized = folder / "float.onnx", folder / "quantized.onnx"
    named = {"input_names": ["x"], "opset_version": 17, "dynamo": False, "dynamic_axes": {"x": {0: "n"}}}
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(Foreign(seed).eval(), (torch.zeros(2, 3, 16, 16),), plain, **named)
        quantize_static(
            plain,
            quantized,
            Batches(),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=activations,
            weight_type=QuantType.QInt8,
            reduce_range=REDUCED,
        )
    return quantized


legacy_exporter = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning"
)  # torch's own, old ONNX exporter
unprocessed = pytest.mark.filterwarnings("ignore:.*:UserWarning")


@legacy_exporter
@unprocessed
@pytest.mark.parametrize("seed", range(4))
def test_files_of_quantize_static_give_onnxruntimes_logits_to_the_bit(seed: int, folder: Path) -> None:
    path = by_another_writer(folder, seed, QuantType.QUInt8, per_channel=seed < 2)
    integer = IntegerModel.from_onnx(path)
    x = np.random.default_rng(1).normal(size=(64, 3, 16, 16)).astype(np.float32)
    np.testing.assert_array_equal(integer(torch.tensor(x)).numpy(), run(path.read_bytes(), x))
    found = kinds(path.read_bytes(), folder)
    assert found.count("QLinearConv") == sum(op == "conv" for op in integer.coverage.integer.values())
    assert ("ReduceMean" in found) == ("mean" in integer.coverage.floating.values())


@legacy_exporter
@unprocessed
def test_signed_activations_are_reported_as_the_engine_runs_them(folder: Path) -> None:
    """On x86-64 only pairs with one reader become unsigned; layers between others stay float, so logits may differ."""
    path = by_another_writer(folder, 0, QuantType.QInt8, per_channel=True)
    integer = IntegerModel.from_onnx(path)
    found = kinds(path.read_bytes(), folder)
    assert found.count("QLinearConv") == sum(op == "conv" for op in integer.coverage.integer.values())
    assert found.count("Conv") == sum(op == "conv" for op in integer.coverage.floating.values()) > 0
    x = np.random.default_rng(1).normal(size=(64, 3, 16, 16)).astype(np.float32)
    expected, ours = run(path.read_bytes(), x), integer(torch.tensor(x)).numpy()
    step = np.diff(np.unique(expected)).min()
    assert np.abs(expected - ours).max() <= 2.001 * step


def test_a_bias_with_a_step_of_its_own_makes_its_layer_float(folder: Path) -> None:
    """ONNX Runtime 1.32 does not fuse it: https://github.com/microsoft/onnxruntime/pull/28229."""
    model = network(1, ["conv"])
    proto = to_onnx(model)
    name = next(
        name for name, layer in model.layers.items() if layer.bias is not None and model.graph[name].op == "conv"
    )
    (node,) = (node for node in proto.graph.node if node.output[0] == f"{name}.bias/0")
    (steps,) = (each for each in proto.graph.initializer if each.name == node.input[1])
    values = onnx.numpy_helper.to_array(steps) * np.float32(1.5)
    steps.CopyFrom(onnx.numpy_helper.from_array(values, steps.name))
    path = folder / "bias.onnx"
    path.write_bytes(proto.SerializeToString())
    parsed = parse(path)
    assert name in parsed.floats
    expected = model.layers[name].bias.astype(np.float32) * values
    np.testing.assert_array_equal(parsed.model.layers[name].bias, expected)
    found = kinds(path.read_bytes(), folder)
    assert "QLinearConv" not in found
    assert {"Conv", "FusedConv"} & set(found)


def written(folder: Path, node: onnx.NodeProto, shape: list[int] | None = None) -> Path:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape or [1, 2, 4, 4]) for name in ("x", "y")]
    graph = helper.make_graph([node], "one", infos[:1], infos[1:])
    path = folder / "one.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


def test_nodes_that_cannot_be_read_are_named(folder: Path) -> None:
    with pytest.raises(ExportError, match="sorter: Erf nodes cannot be read"):
        read(written(folder, helper.make_node("Erf", ["x"], ["y"], name="sorter")))
    pool = helper.make_node("MaxPool", ["x"], ["y"], name="pool", kernel_shape=[2, 2], auto_pad="SAME_UPPER")
    with pytest.raises(ExportError, match="pool: padding by rule cannot be read"):
        read(written(folder, pool))


def test_files_that_are_not_models_are_refused(folder: Path) -> None:
    (folder / "noise.onnx").write_bytes(b"\x00\x01noise")
    with pytest.raises(ExportError, match="is not a valid ONNX file"):
        read(folder / "noise.onnx")
    with pytest.raises(ExportError, match="cannot be read: No such file"):
        read(folder / "absent.onnx")
    whole = to_onnx(network(0, ["conv"])).SerializeToString()
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExportError, match="is not a valid ONNX file"):
        read(folder / "cut.onnx")
