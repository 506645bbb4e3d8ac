from __future__ import annotations

import numpy as np
import pytest
import torch
from drawn_networks import grid

from mqbench_lite.accumulation import EXACT, Accumulator, bound
from mqbench_lite.errors import ProfileError
from mqbench_lite.graph import Layer, Node, QParams


def layer(weight: np.ndarray, bias: np.ndarray | None = None, zero_point: int = 0) -> Layer:
    own = QParams(scale=np.array(0.01, np.float32), zero_point=np.array(zero_point, np.int32), qmin=-128, qmax=127)
    return Layer(weight=weight.astype(np.int8), grid=own, bias=bias)


def exact(weight: np.ndarray, x: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The sums in Python's integers."""
    rows = [[int(np.dot(w.astype(object), row.astype(object))) for w in weight] for row in x]
    return np.array(rows) + bias


def test_a_bound_is_the_largest_sum_that_an_input_makes() -> None:
    made = layer(np.array([[3, -2], [1, 1]]), np.array([10, -5], np.int32))
    # codes minus the zero point reach from -100 to 155: 3 * 155 + 2 * 100 + 10 in the first row
    assert bound(made, grid(1.0, 100)).largest == 3 * 155 + 2 * 100 + 10
    assert bound(made, grid(1.0, 100)).arithmetic == "float32"


def test_weights_codes_count_from_their_zero_point() -> None:
    assert bound(layer(np.array([[5]]), zero_point=-3), grid(1.0, 0)).largest == 8 * 255


@pytest.mark.parametrize(("inputs", "arithmetic"), [(500, "float32"), (600, "nibbles"), (9000, "float64")])
def test_sums_are_exact_however_many_products_they_have(inputs: int, arithmetic: str) -> None:
    rng = np.random.default_rng(0)
    weight = rng.choice([-127, 127], (4, inputs))
    weight[0] = 127
    x = np.where(weight[0] > 0, 255, 0)[None].astype(np.float32)  # the worst input for the first row
    x = np.concatenate([x, rng.integers(0, 256, (3, inputs)).astype(np.float32)])
    bias = np.array([7, -9, 2**20, 0], np.int32)
    made = layer(weight, bias)
    sums = Accumulator(Node("fc", "linear", ("x",)), made, grid(1.0, 0))
    assert sums.bound.arithmetic == arithmetic
    expected = exact(weight, x, bias)
    assert (np.abs(expected).max() > EXACT) == (arithmetic != "float32")
    np.testing.assert_array_equal(sums(torch.tensor(x)).double().numpy(), expected.astype(np.float64))


@pytest.mark.parametrize("channels", [16, 300])
def test_convolutions_are_exact_with_strides_groups_and_uneven_padding(channels: int) -> None:
    rng = np.random.default_rng(1)
    weight = rng.integers(-127, 128, (4, channels // 2, 3, 3))
    attributes = {"stride": (2, 1), "padding": (1, 0, 0, 2), "dilation": (1, 2), "groups": 2}
    sums = Accumulator(Node("conv", "conv", ("x",), attributes), layer(weight), grid(1.0, 3))
    x = torch.tensor(rng.integers(-3, 253, (2, channels, 7, 8)).astype(np.float32))
    padded = torch.nn.functional.pad(x, (0, 2, 1, 0)).double()
    expected = torch.nn.functional.conv2d(padded, torch.tensor(weight).double(), None, (2, 1), 0, (1, 2), 2)
    np.testing.assert_array_equal(sums(x).double().numpy(), expected.numpy())


def test_sums_that_leave_int32_are_refused_with_the_layers_name() -> None:
    made = layer(np.full((1, 1), 127), np.array([2**31 - 100], np.int32))
    with pytest.raises(ProfileError, match="head: sums reach 21475"):
        Accumulator(Node("head", "linear", ("x",)), made, grid(1.0, 0))


def test_lower_precision_chosen_for_training_does_not_reach_the_sums() -> None:
    from mqbench_lite.graph import Graph, QuantizedGraph
    from mqbench_lite.integers import IntegerModel

    rng = np.random.default_rng(0)
    made = layer(rng.integers(-127, 128, (8, 64)))
    nodes = (Node("x", "input"), Node("Q:x", "quantize", ("x",), {"bits": 8}), Node("fc", "linear", ("Q:x",)))
    model = QuantizedGraph(graph=Graph(nodes, ("fc",)), grids={"Q:x": grid(1.0, 0)}, layers={"fc": made})
    x = rng.integers(0, 256, (5, 64)).astype(np.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = IntegerModel(model)(torch.tensor(x))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    expected = (x.astype(np.int64) @ made.weight.T.astype(np.int64)).astype(np.float32) * np.float32(0.01)
    np.testing.assert_array_equal(found.numpy(), expected)
