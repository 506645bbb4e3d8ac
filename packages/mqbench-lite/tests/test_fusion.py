from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from drawn_networks import Builder, grid

from mqbench_lite.fusion import code_limits, grid_owners, is_narrow, same_grid, stored_range, tensor_grids, units
from mqbench_lite.graph import Graph, Node, QuantizedGraph


def net() -> Builder:
    return Builder(np.random.default_rng(0))


def ends(model: QuantizedGraph, **named: object) -> dict[str, tuple[str, list[str]]]:
    """By the tensor made: the operation and what is between it and the quantiser."""
    return {name: (unit.node.name, [clip.name for clip in unit.clips]) for name, unit in units(model, **named).items()}


def test_a_layer_its_relu_and_its_quantiser_are_one_unit() -> None:
    made = net()
    x = made.quantize(made.input(), 3.0)
    y = made.add("relu", (made.conv(x, 4, 3, 1, 1, 1),), (4, 8, 8))
    model = made.finished(made.quantize(y, 5.0, rectified=True))
    assert ends(model) == {"Q:relu.3": ("conv.2", ["relu.3"])}
    assert ends(model, clips="values") == {"Q:relu.3": ("conv.2", ["relu.3"])}
    assert ends(model, floats={"conv.2"}) == {}


def test_a_relu_that_the_quantiser_does_not_repeat_leaves_the_layer_in_float_unless_codes_are_clipped() -> None:
    made = net()
    x = made.quantize(made.input(), 3.0)
    y = made.add("relu", (made.conv(x, 4, 3, 1, 1, 1),), (4, 8, 8))
    model = made.finished(made.quantize(y, 5.0))  # an odd zero point: negative codes remain
    assert ends(model) == {"Q:relu.3": ("conv.2", ["relu.3"])}
    assert ends(model, clips="values") == {}


def test_a_tensor_with_two_readers_or_an_output_is_not_fused() -> None:
    made = net()
    x = made.quantize(made.input(), 3.0)
    y = made.conv(x, 3, 3, 1, 1, 1)
    quantized = made.quantize(y, 5.0)
    both = made.add("add", (y, x), (3, 8, 8))
    assert ends(made.finished(quantized, both)) == {}
    assert ends(replace(made.finished(quantized), graph=Graph(tuple(made.nodes[:-1]), (quantized, y)))) == {}


def test_an_operation_needs_all_its_inputs_on_grids() -> None:
    made = net()
    x = made.quantize(made.input(), 3.0)
    total = made.quantize(made.add("add", (x, "input.0"), (3, 8, 8)), 6.0)
    assert ends(made.finished(total)) == {}


def test_grids_pass_through_movements_and_concatenations_of_equal_grids() -> None:
    made = net()
    x = made.quantize(made.input(), 3.0)
    pooled = made.add(
        "max_pool", (x,), (3, 4, 4), kernel=(2, 2), stride=(2, 2), padding=(0, 0), dilation=(1, 1), ceil=False
    )
    joined = made.add("concat", (pooled, pooled), (6, 4, 4), axis=1)
    y = made.conv(joined, 2, 1, 1, 0, 1)
    model = made.finished(made.quantize(y, 5.0))
    assert tensor_grids(model).keys() == {x, pooled, joined, f"Q:{y}"}
    assert grid_owners(model) == {x: x, pooled: x, joined: x, f"Q:{y}": f"Q:{y}"}
    assert ends(model) == {f"Q:{y}": (y, [])}


def test_a_last_layer_gives_its_accumulator_as_float() -> None:
    made = net()
    made.shape = (5,)
    x = made.quantize(made.input(), 3.0)
    y = made.linear(x, 4)
    assert ends(made.finished(y)) == {y: (y, [])}


@pytest.mark.parametrize(
    ("own", "storage", "expected"),
    [
        (grid(1, 3), "u8", (0, 0, 255)),
        (grid(1, 0, -128, 127), "u8", (128, -128, 127)),
        (grid(1, 0, -8, 7), "u8", (128, -128, 127)),
        (grid(1, 3), "s8", (-128, 0, 255)),
        (grid(1, 0, -128, 127), "s8", (0, -128, 127)),
    ],
)
def test_codes_are_shifted_into_the_stored_type(own, storage: str, expected: tuple[int, int, int]) -> None:
    assert stored_range(own, storage) == expected
    assert is_narrow(own, storage) == ((own.qmin, own.qmax) != expected[1:])


def test_clips_of_values_are_limits_of_codes() -> None:
    own = grid(0.5, 10)
    assert code_limits(own, ()) == (0, 255)
    assert code_limits(own, (Node("r", "relu"),)) == (10, 255)
    assert code_limits(own, (Node("c", "clip", (), {"low": -1.0, "high": 6.0}),)) == (8, 22)
    assert code_limits(own, (Node("c", "clip", (), {"low": None, "high": 0.25}),)) == (
        0,
        10,
    )  # 0.5 steps go to the even
    assert code_limits(own, (Node("c", "clip", (), {"low": -100.0, "high": 1e6}),)) == (0, 255)
    assert not same_grid(own, grid(0.5, 11))
    assert not same_grid(own, None)
    assert same_grid(own, grid(0.5, 10))
