from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from drawn_networks import Builder, network, recipes
from hypothesis import HealthCheck, given, settings
from onnx_sessions import kinds, run

from mqbench_lite.graph import Graph, Node, QParams, QuantizedGraph
from mqbench_lite.integers import IntegerModel
from mqbench_lite.onnx_files import to_onnx

Recipe = tuple[int, list[str]]
drawn = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
fewer = settings(drawn, max_examples=15)


def pixels(model: QuantizedGraph, batch: int = 3) -> np.ndarray:
    shape = model.shapes["input.0"][1:]
    return np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)


def both(model: QuantizedGraph) -> tuple[np.ndarray, np.ndarray]:
    """ONNX Runtime's logits and the integer model's."""
    x = pixels(model)
    return run(to_onnx(model).SerializeToString(), x), IntegerModel(model)(torch.tensor(x)).numpy()


@drawn
@given(recipes)
def test_every_logit_is_onnxruntimes_to_the_bit(recipe: Recipe) -> None:
    np.testing.assert_array_equal(*both(network(*recipe)))


@fewer
@given(recipes)
def test_signed_grids_stored_as_unsigned_codes_agree_as_well(recipe: Recipe) -> None:
    np.testing.assert_array_equal(*both(network(*recipe, signed_share=0.5)))


@fewer
@given(recipes)
def test_grids_of_4_bits_agree_in_8_bit_containers(recipe: Recipe) -> None:
    np.testing.assert_array_equal(*both(network(*recipe, signed_share=0.3, bits=4)))


@pytest.mark.slow
@settings(drawn, max_examples=600)
@given(recipes)
def test_every_logit_of_many_networks_is_onnxruntimes_to_the_bit(recipe: Recipe) -> None:
    np.testing.assert_array_equal(*both(network(*recipe, signed_share=0.2)))


def test_all_layers_run_on_integers_in_onnxruntime(tmp_path) -> None:
    model = network(3, ["conv", "depthwise", "residual", "scale", "max_pool", "avg_pool", "concat"])
    found = kinds(to_onnx(model).SerializeToString(), tmp_path)
    ops = [node.op for node in model.graph]
    assert found.count("QLinearConv") == ops.count("conv")
    assert found.count("QGemm") == 1
    for op, kind in (("add", "QLinearAdd"), ("mul", "QLinearMul"), ("avg_pool", "QLinearAveragePool")):
        assert found.count(kind) == ops.count(op)
    assert found.count("QLinearConcat") == 1
    assert found.count("QLinearGlobalAveragePool") == 1
    assert IntegerModel(model).coverage.share == 1
    assert IntegerModel(model).coverage.integer.keys() == {
        node.name for node in model.graph if node.op not in ("input", "quantize", "relu", "clip", "max_pool")
    }


def test_with_power_of_two_scales_optimised_unoptimised_and_integer_runs_are_the_same() -> None:
    for seed in range(4):
        net = Builder(np.random.default_rng(seed), shape=(3, 8, 8))
        x = net.quantize(net.input(), 3.0)
        branch = net.quantize(y := net.conv(x, 3, 3, 1, 1, 1), net.spread(y))
        total = net.add("relu", (net.add("add", (branch, x), (3, 8, 8)),), (3, 8, 8))
        total = net.quantize(total, net.spread(y) + 3, rectified=True)
        pooled = net.quantize(net.add("mean", (total,), (3,), axes=(2, 3), keep=False), net.spread(y))  # of 64 pixels
        model = net.finished(net.linear(pooled, 5))

        def rounded(grid: QParams) -> QParams:
            return replace(grid, scale=np.asarray(2.0 ** np.round(np.log2(grid.scale)), np.float32))

        layers = {name: replace(layer, grid=rounded(layer.grid)) for name, layer in model.layers.items()}
        grids = {name: rounded(grid) for name, grid in model.grids.items()}
        powers = replace(model, layers=layers, grids=grids)
        x = pixels(powers)
        content = to_onnx(powers).SerializeToString()
        plain = run(content, x, level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
        np.testing.assert_array_equal(run(content, x), plain)
        np.testing.assert_array_equal(IntegerModel(powers)(torch.tensor(x)).numpy(), plain)


def test_clipping_values_instead_of_codes_gives_the_same_numbers_where_the_engine_fuses() -> None:
    for seed in range(6):
        model = network(seed, ["conv", "residual", "conv"])
        x = torch.tensor(pixels(model))
        codes, values = IntegerModel(model), IntegerModel(model, clips="values")
        np.testing.assert_allclose(codes(x).numpy(), values(x).numpy(), rtol=0, atol=float(model_step(model)))
        content = to_onnx(model, "values").SerializeToString()
        np.testing.assert_array_equal(values(x).numpy(), run(content, x.numpy()))


def model_step(model: QuantizedGraph) -> np.ndarray:
    last = model.layers[next(node.name for node in model.graph if node.op == "linear")]
    return np.max(last.grid.scale) * 255 * model.grids["Q:" + mean_of(model)].scale


def mean_of(model: QuantizedGraph) -> str:
    return next(node.name for node in model.graph if node.op == "mean")


def test_float_biases_are_rounded_as_the_engine_rounds_them() -> None:
    for seed in range(4):
        model = network(seed, ["conv", "depthwise"])
        rng = np.random.default_rng(seed)
        layers = {
            name: replace(layer, bias=rng.normal(size=len(layer.weight)).astype(np.float32) * 0.01)
            if model.graph[name].op == "conv"
            else layer
            for name, layer in model.layers.items()
        }
        np.testing.assert_array_equal(*both(replace(model, layers=layers)))


def test_a_last_layer_with_a_float_bias_is_reported_as_float() -> None:
    model = network(1, ["conv"])
    head = next(node.name for node in model.graph if node.op == "linear")
    if model.graph.outputs[0] != head:
        model = replace(model, graph=Graph(model.graph.nodes[:-1], (head,)))
        model = replace(model, grids={name: grid for name, grid in model.grids.items() if name != f"Q:{head}"})
    bias = np.full(len(model.layers[head].weight), 0.5, np.float32)
    floating = replace(model, layers=model.layers | {head: replace(model.layers[head], bias=bias)})
    assert head in IntegerModel(floating).coverage.floating
    expected, found = both(floating)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_residuals_that_stay_in_the_accumulator_are_added_as_floats() -> None:
    """Graph rule 2: the branch from a convolution is not quantised, so the engine runs that layer in float."""
    net = Builder(np.random.default_rng(0))
    x = net.quantize(net.input(), 3.0)
    branch = net.conv(x, 3, 3, 1, 1, 1)
    total = net.add("add", (branch, x), net.shapes[x])
    y = net.quantize(total, net.spread(branch) + 3)
    model = net.finished(net.conv(y, 2, 1, 1, 0, 1))
    integer = IntegerModel(model)
    assert set(integer.coverage.floating.values()) == {"add", "conv"}
    expected, found = both(model)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    difference = np.abs(integer.codes(torch.tensor(pixels(model)))[y].astype(int))
    assert difference.max() > 0


def test_storage_in_unsigned_or_signed_bytes_changes_at_most_ties_of_sums() -> None:
    model = network(5, ["conv", "depthwise", "conv", "avg_pool"], signed_share=0.5)
    x = torch.tensor(pixels(model))
    unsigned, signed = (IntegerModel(replace(model, storage=storage))(x) for storage in ("u8", "s8"))
    np.testing.assert_array_equal(unsigned.numpy(), signed.numpy())


def test_codes_of_all_quantisers_lie_on_their_grids() -> None:
    model = network(2, ["conv", "residual", "concat"])
    found = IntegerModel(model).codes(torch.tensor(pixels(model)))
    assert found.keys() == model.grids.keys()
    for name, codes in found.items():
        assert codes.dtype == np.int32
        assert model.grids[name].qmin <= codes.min() <= codes.max() <= model.grids[name].qmax


def test_one_layer_follows_the_formula() -> None:
    net = Builder(np.random.default_rng(4), shape=(2, 4, 4))
    x = net.quantize(net.input(), 2.0)
    y = net.conv(x, 3, 3, 1, 1, 1)
    model = net.finished(net.quantize(y, net.spread(y)))
    pixel = pixels(model, 1)
    read, layer, grid = model.grids[x], model.layers[y], model.grids[f"Q:{y}"]
    codes = np.clip(np.rint(pixel / read.scale) + read.zero_point, 0, 255).astype(int)
    padded = np.pad(codes - int(read.zero_point), ((0, 0), (0, 0), (1, 1), (1, 1)))
    sums = np.zeros((1, 3, 4, 4), np.int64)
    for row in range(4):
        for column in range(4):
            window = padded[0, :, row : row + 3, column : column + 3]
            sums[0, :, row, column] = (layer.weight.astype(int) * window).sum((1, 2, 3))
    sums += 0 if layer.bias is None else layer.bias[:, None, None]
    multiplier = (read.scale * layer.grid.scale / grid.scale).astype(np.float32)[:, None, None]
    expected = np.clip(np.rint(sums.astype(np.float32) * multiplier) + int(grid.zero_point), 0, 255)
    np.testing.assert_array_equal(IntegerModel(model).codes(torch.tensor(pixel))[f"Q:{y}"], expected)


def test_products_of_two_tensors_of_codes_are_exact() -> None:
    net = Builder(np.random.default_rng(0), shape=(4, 8))
    x = net.quantize(net.input(), 3.0)
    turned = net.add("permute", (x,), (8, 4), axes=(0, 2, 1))
    scores = net.add("matmul", (x, turned), (4, 4))
    model = net.finished(net.quantize(scores, 40.0))
    np.testing.assert_array_equal(*both(model))
    np.testing.assert_array_equal(
        *both(replace(model, graph=Graph(model.graph.nodes[:-1], (scores,)), grids={x: model.grids[x]}))
    )


def test_linear_layers_on_sequences_agree() -> None:
    net = Builder(np.random.default_rng(0), shape=(5, 8))
    x = net.quantize(net.input(), 3.0)
    hidden = net.linear(x, 6)
    y = net.quantize(net.add("relu", (hidden,), (5, 6)), net.spread(hidden), rectified=True)
    model = net.finished(net.linear(y, 3))
    assert IntegerModel(model).coverage.share == 1
    np.testing.assert_array_equal(*both(model))


def test_a_wrong_number_of_inputs_is_refused() -> None:
    with pytest.raises(TypeError, match=r"takes 1 inputs \(input\.0\), got 2"):
        IntegerModel(network(0, ["conv"]))(torch.zeros(1), torch.zeros(1))


def test_unfused_operations_are_float32_ones() -> None:
    nodes = (
        Node("x", "input"),
        Node("Q:x", "quantize", ("x",), {"bits": 8}),
        Node("half", "constant"),
        Node("less", "sub", ("Q:x", "half")),
        Node("soft", "softmax", ("less",), {"axis": -1}),
    )
    grid = QParams(scale=np.array(0.5, np.float32), zero_point=np.array(1, np.int32), qmin=0, qmax=255)
    constants = {"half": np.array([0.5], np.float32)}
    model = QuantizedGraph(graph=Graph(nodes, ("less", "soft")), grids={"Q:x": grid}, layers={}, constants=constants)
    less, soft = IntegerModel(model)(torch.tensor([[0.7, 3.1]]))
    assert less.tolist() == [[0.0, 2.5]]
    np.testing.assert_allclose(soft.numpy(), [[1 / (1 + np.exp(2.5)), 1 / (1 + np.exp(-2.5))]], rtol=1e-6)
