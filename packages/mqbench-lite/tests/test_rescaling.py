from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_sessions import operation, run

from mqbench_lite.rescaling import add, multiply, quantize, requantize, rescale

PAIRS = np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij"))
seeds = st.integers(0, 2**32 - 1)
drawn = settings(max_examples=8, deadline=None, derandomize=True)


def drawn_grids(seed: int) -> tuple[list[float], list[int]]:
    rng = np.random.default_rng(seed)
    steps = [float(np.float32(step)) for step in np.exp(rng.uniform(-5, 0, 3))]
    if seed % 2:  # where the result's step is the operands' sum, ties abound
        steps[2] = float(np.float32(steps[0] + steps[1]))
    return steps, [int(zero) for zero in rng.integers(0, 256, 3)]


def centred(zeros: list[int]) -> list[torch.Tensor]:
    return [torch.tensor(codes - zero, dtype=torch.float32) for codes, zero in zip(PAIRS, zeros, strict=False)]


@drawn
@given(seeds)
def test_every_sum_of_two_codes_is_onnxruntimes(seed: int) -> None:
    steps, zeros = drawn_grids(seed)
    model = operation("Add", [(steps[0], zeros[0]), (steps[1], zeros[1])], [256, 256], (steps[2], zeros[2]))
    expected = run(model, *PAIRS.astype(np.uint8))
    a, b = centred(zeros)
    codes = add(a, b, steps, zeros, -zeros[2], 255 - zeros[2]) + zeros[2]
    np.testing.assert_array_equal(codes.numpy(), expected)


@drawn
@given(seeds)
def test_every_product_of_two_codes_is_onnxruntimes(seed: int) -> None:
    steps, zeros = drawn_grids(seed)
    model = operation("Mul", [(steps[0], zeros[0]), (steps[1], zeros[1])], [256, 256], (steps[2], zeros[2]))
    expected = run(model, *PAIRS.astype(np.uint8))
    a, b = centred(zeros)
    codes = multiply(a, b, steps, zeros[2], -zeros[2], 255 - zeros[2]) + zeros[2]
    np.testing.assert_array_equal(codes.numpy(), expected)


@pytest.mark.parametrize(
    "shapes",
    [([3, 4, 5, 5], [1, 4, 1, 1]), ([1, 4, 1, 1], [3, 4, 5, 5]), ([3, 7], [7]), ([3, 7], [1, 1]), ([1, 1], [1, 1])],
)
@pytest.mark.parametrize("kind", ["Add", "Mul"])
def test_broadcast_operands_are_rounded_as_onnxruntime_rounds_them(
    shapes: tuple[list[int], list[int]], kind: str
) -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        steps, zeros = drawn_grids(seed)
        model = operation(kind, [(steps[0], zeros[0]), (steps[1], zeros[1])], list(shapes), (steps[2], zeros[2]))
        stored = [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes]
        a, b = (torch.tensor(x.astype(np.float32) - zero) for x, zero in zip(stored, zeros, strict=False))
        limits = -zeros[2], 255 - zeros[2]
        codes = add(a, b, steps, zeros, *limits) if kind == "Add" else multiply(a, b, steps, zeros[2], *limits)
        np.testing.assert_array_equal(codes.numpy() + zeros[2], run(model, *stored))


def test_compiled_and_torch_sums_are_the_same() -> None:
    steps, zeros = drawn_grids(3)
    a, b = centred(zeros)
    compiled = add(a, b, steps, zeros, -zeros[2], 255 - zeros[2])
    by_torch = add(a.T, b.T, steps, zeros, -zeros[2], 255 - zeros[2]).T  # transposed tensors are not contiguous
    np.testing.assert_array_equal(compiled.numpy(), by_torch.numpy())


@settings(max_examples=50, deadline=None)
@given(st.integers(-(2**31) + 1, 2**31 - 1), st.floats(2**-20, 1, width=32))
def test_a_sum_is_rounded_to_float32_before_it_is_multiplied(total: int, multiplier: float) -> None:
    product = np.float32(total) * np.float32(multiplier)
    expected = min(max(round(Fraction(float(product))), -128), 127)
    accumulator = torch.tensor([[float(total)]], dtype=torch.float64)
    assert requantize(accumulator, torch.tensor([multiplier]), 1, -128, 127).item() == expected


def test_each_channel_has_its_multiplier() -> None:
    sums = torch.tensor([[[10.0, 11.0], [10.0, 11.0]]])
    codes = requantize(sums.clone(), torch.tensor([0.5, 0.25]), 1, -100, 100)
    assert codes.tolist() == [[[5.0, 6.0], [2.0, 3.0]]]  # 5.5 and 2.5 go to the even code
    rows = torch.tensor([[10.0, 10.0], [30.0, 30.0]])
    assert requantize(rows.clone(), torch.tensor([0.5, 0.25]), -1, -100, 6).tolist() == [[5.0, 2.0], [6.0, 6.0]]
    assert rescale(rows, torch.tensor([0.5, 0.25]), -1).tolist() == [[5.0, 2.5], [15.0, 7.5]]


def test_requantising_is_the_same_in_any_layout() -> None:
    sums = torch.randint(-(10**6), 10**6, (3, 5, 4, 4)).float()
    multipliers = torch.rand(5) * 1e-4
    strided = sums.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    compiled, by_torch = (requantize(x.clone(), multipliers, 1, -90, 91) for x in (sums, strided))
    np.testing.assert_array_equal(compiled.numpy(), by_torch.contiguous().numpy())


def test_values_are_divided_by_the_step_and_ties_go_to_the_even_code() -> None:
    x = torch.tensor([-9.0, -0.25, 0.25, 0.75, 1.25, 9.0])
    assert quantize(x, 0.5, -8, 7).tolist() == [-8.0, -0.0, 0.0, 2.0, 2.0, 7.0]
    assert quantize(x.double().float()[::1].expand(2, 6), 0.5, -8, 7)[1].tolist() == [-8.0, -0.0, 0.0, 2.0, 2.0, 7.0]
