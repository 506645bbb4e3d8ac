from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from drawn_networks import Builder, grid, network
from onnx_sessions import run
from test_integers import pixels

from mqbench_lite.errors import ExportError, UnsupportedOpError
from mqbench_lite.exporting import export
from mqbench_lite.graph import Graph, Node, QuantizedGraph
from mqbench_lite.integers import IntegerModel
from mqbench_lite.onnx_files import to_onnx


def small(
    *operations: tuple[str, dict[str, object]], shape: tuple[int, ...] = (2, 6, 6), zero_point: int = 7
) -> QuantizedGraph:
    """A quantised input followed by operations, the last of which is quantised again."""
    net = Builder(np.random.default_rng(0), shape=shape)
    x = net.add("input", (), shape)
    net.nodes.append(Node("Q:x", "quantize", (x,), {"bits": 8}))
    net.grids["Q:x"] = grid(0.03, zero_point)
    name = "Q:x"
    for op, attributes in operations:
        net.nodes.append(Node(f"{op}.{len(net.nodes)}", op, (name,), attributes))
        name = net.nodes[-1].name
    net.nodes.append(Node("Q:y", "quantize", (name,), {"bits": 8}))
    net.grids["Q:y"] = grid(0.04, 40)
    return QuantizedGraph(
        graph=Graph(tuple(net.nodes), ("Q:y",)),
        grids=net.grids,
        layers={},
        shapes={"input.0": (-1, *shape)},
        profile="onnxruntime",
    )


pool = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}
resize = {"size": None, "factors": (2.0, 2.0), "align_corners": False}
MOVES = [
    ("flatten", {"start": 1, "stop": -1}),
    ("flatten", {"start": 2, "stop": 3}),
    ("reshape", {"shape": (-1, 6, 12)}),
    ("permute", {"axes": (0, 2, 3, 1)}),
    ("unsqueeze", {"axes": (1, -1)}),
    ("slice", {"axis": 2, "start": 1, "stop": None, "step": 2}),
    ("slice", {"axis": -1, "start": 0, "stop": -1, "step": 1}),
    ("pad", {"pads": (1, 2, 0, 1), "value": 0.0}),
    ("max_pool", pool | {"dilation": (1, 1), "ceil": False}),
    ("max_pool", {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "ceil": True}),
    ("resize", resize | {"mode": "nearest"}),
    ("relu", {}),
    ("clip", {"low": -0.1, "high": None}),
    ("clip", {"low": 0.0, "high": 2.5}),
    ("mean", {"axes": (2, 3), "keep": True}),
    ("mean", {"axes": (2, 3), "keep": False}),
    ("sigmoid", {}),
    ("tanh", {}),
    ("hardsigmoid", {}),
    ("hardswish", {}),
]


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("clips", ["codes", "values"])
@pytest.mark.parametrize("operation", MOVES, ids=lambda value: value[0])
def test_each_operation_is_written_so_that_onnxruntime_gives_our_numbers(operation, clips: str, opset: int) -> None:
    model = small(operation)
    x = pixels(model)
    ours = IntegerModel(model, clips=clips)(torch.tensor(x)).numpy()
    np.testing.assert_array_equal(run(to_onnx(model, clips, opset).SerializeToString(), x), ours)


FLOATS = [
    ("silu", {}),
    ("gelu", {"approximate": "none"}),
    ("gelu", {"approximate": "tanh"}),
    ("softmax", {"axis": -1}),
    ("mean", {"axes": (1,), "keep": False}),
    ("resize", resize | {"mode": "bilinear"}),
    ("resize", {"size": (9, 4), "factors": None, "mode": "bilinear", "align_corners": True}),
    ("avg_pool", pool | {"ceil": True, "count_padding": True}),
]


@pytest.mark.parametrize("operation", FLOATS, ids=lambda value: value[0])
def test_operations_that_engines_approximate_differ_by_one_step_at_most(operation) -> None:
    model = small(operation)
    x = pixels(model)
    ours = IntegerModel(model)(torch.tensor(x)).numpy()
    theirs = run(to_onnx(model).SerializeToString(), x)
    assert np.abs(ours - theirs).max() <= 0.0400001
    assert (ours != theirs).mean() < 0.05


def test_normalisations_that_stay_in_float_are_written() -> None:
    shape = (2, 6, 6)
    rng = np.random.default_rng(0)
    for op, attributes, size in (("batch_norm", {"eps": 1e-5}, 2), ("layer_norm", {"shape": (6,), "eps": 1e-6}, 6)):
        model = small((op, attributes), shape=shape)
        name = f"{op}.2"
        numbers = {part: rng.uniform(0.5, 1.5, size).astype(np.float32) for part in ("weight", "bias", "mean", "var")}
        model = replace(model, constants={f"{name}.{part}": value for part, value in numbers.items()})
        x = pixels(model)
        ours = IntegerModel(model)(torch.tensor(x)).numpy()
        theirs = run(to_onnx(model).SerializeToString(), x)
        assert np.abs(ours - theirs).max() <= 0.0400001
        assert (ours != theirs).mean() < 0.01


def test_transposed_convolutions_keep_their_axis() -> None:
    net = Builder(np.random.default_rng(0), shape=(4, 5, 5))
    x = net.quantize(net.input(), 3.0)
    named = {"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "groups": 2, "output_padding": (1, 1)}
    name = net.add("conv_transpose", (x,), (6, 10, 10), **named)
    net._weigh(name, x, (4, 3, 3, 3), per_channel=False, channels=6)
    layer = net.layers[name]
    steps = np.linspace(0.01, 0.03, 3).astype(np.float32)  # of axis 1: output channels within a group
    own = replace(layer.grid, scale=steps, zero_point=np.zeros(3, np.int32), axis=1)
    net.layers[name] = replace(layer, grid=own, bias=layer.bias)
    model = net.finished(net.quantize(name, 60.0))
    content = to_onnx(model)
    (weight,) = (node for node in content.graph.node if node.output[0] == f"{name}.weight/0")
    assert onnx.helper.get_node_attr_value(weight, "axis") == 1
    x = pixels(model)
    ours, theirs = IntegerModel(model)(torch.tensor(x)).numpy(), run(content.SerializeToString(), x)
    step = float(model.grids[f"Q:{name}"].scale)
    assert np.abs(ours - theirs).max() <= 1.0001 * step
    assert (ours != theirs).mean() < 1e-3


def test_an_artifact_names_its_files_and_their_hash(tmp_path: Path) -> None:
    model = network(0, ["conv", "residual"])
    made = export(model, tmp_path / "net.onnx")
    assert made.path == tmp_path / "net.onnx"
    assert made.sha256 == hashlib.sha256(made.path.read_bytes()).hexdigest()
    assert made.profile == "onnxruntime"
    described = json.loads(made.qparams.read_text())
    assert described["clips"] == "codes"
    for name, each in model.grids.items():
        assert np.float32(described["activations"][name]["scale"]) == each.scale
        assert described["activations"][name]["zero_point"] == int(each.zero_point)
    for name, layer in model.layers.items():
        np.testing.assert_array_equal(np.float32(described["weights"][name]["scale"]), layer.grid.scale)


def test_a_model_that_is_not_frozen_is_frozen_first(tmp_path: Path) -> None:
    class Trained:
        def freeze(self) -> QuantizedGraph:
            return network(0, ["conv"])

    assert export(Trained(), tmp_path / "a.onnx").sha256 == export(network(0, ["conv"]), tmp_path / "b.onnx").sha256


def test_the_style_follows_the_profile(tmp_path: Path) -> None:
    for profile, style in (("onnxruntime", "codes"), ("onnxruntime-avx2", "codes"), ("openvino", "values")):
        made = export(replace(network(0, ["conv"]), profile=profile), tmp_path / "net.onnx")
        assert json.loads(made.qparams.read_text())["clips"] == style


def test_formats_with_tables_write_them_beside_the_file(tmp_path: Path) -> None:
    model = network(0, ["conv"])
    made = export(model, tmp_path / "net.onnx", "qnn")
    assert [path.name for path in made.others] == ["net.encodings"]
    assert json.loads(made.others[0].read_text()).keys() == {"version", "activation_encodings", "param_encodings"}
    symmetric = network(0, ["conv"], signed_share=1.0)
    made = export(symmetric, tmp_path / "trt.onnx", "tensorrt")
    assert [path.name for path in made.others] == ["trt.cache", "trt.ranges.json"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "tflite"}, "format 'tflite' is unknown"),
        ({"opset": 12}, "opset 12 cannot be written"),
    ],
)
def test_unknown_formats_and_operator_sets_are_refused(change: dict, match: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=match):
        export(network(0, ["conv"]), tmp_path / "net.onnx", **change)
    assert not list(tmp_path.iterdir())


def test_operations_without_a_counterpart_are_named() -> None:
    with pytest.raises(UnsupportedOpError, match=r"call\.2.*has no place in ONNX files"):
        to_onnx(small(("call", {"target": torch.erfinv, "args": (), "kwargs": {}})))
    counted = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil": True, "count_padding": True}
    with pytest.raises(UnsupportedOpError, match="ceil and counted padding"):
        to_onnx(small(("avg_pool", counted)))


def test_a_missing_input_shape_is_named() -> None:
    with pytest.raises(ExportError, match=r"shape of the input input\.0 is not known"):
        to_onnx(replace(network(0, ["conv"]), shapes={}))
