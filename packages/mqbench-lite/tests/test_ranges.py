"""From a range to a grid."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mqbench_lite.ranges import LEAST_SCALE, grid_of_range, nearest_power_of_two


def grid(low, high, qmin, qmax, **rule):
    scale, zero_point = grid_of_range(torch.tensor(low), torch.tensor(high), qmin, qmax, **rule)
    return scale.item(), zero_point.item()


def test_an_asymmetric_range():
    """Spec 10: [-1, 3] on 8 bit without a sign: s = 4/255, z = 64."""
    assert grid(-1.0, 3.0, 0, 255, symmetric=False) == (pytest.approx(4 / 255, rel=1e-7), 64)
    assert grid(-1.0, 3.0, -128, 127, symmetric=False) == (pytest.approx(4 / 255, rel=1e-7), -64)


def test_a_symmetric_range_with_and_without_a_sign():
    assert grid(-1.0, 3.0, -128, 127, symmetric=True) == (pytest.approx(3 / 127.5), 0)
    assert grid(-1.0, 3.0, -127, 127, symmetric=True) == (pytest.approx(3 / 127), 0)
    assert grid(0.0, 3.0, 0, 255, symmetric=True) == (pytest.approx(3 / 255), 0)


@pytest.mark.parametrize(("low", "high", "z"), [(1.0, 3.0, 0), (-3.0, -1.0, 255)])
def test_a_range_is_widened_to_hold_0(low, high, z):
    assert grid(low, high, 0, 255, symmetric=False) == (pytest.approx(3 / 255), z)


def test_a_range_of_nothing_has_the_least_step_size_and_no_nan():
    assert grid(0.0, 0.0, 0, 255, symmetric=False) == (LEAST_SCALE, 0)
    assert grid(0.0, 0.0, -8, 7, symmetric=True) == (LEAST_SCALE, 0)


@pytest.mark.parametrize(("scale", "power"), [(0.3, 0.25), (0.36, 0.5), (1.0, 1.0), (LEAST_SCALE, 2**-23)])
def test_the_nearest_power_of_two_in_the_exponent(scale, power):
    """Spec 10: log2 .3 = -1.737 -> -2; log2 .36 = -1.474 -> -1."""
    assert nearest_power_of_two(torch.tensor(scale)).item() == power


@given(st.floats(1e-7, 1e7))
def test_powers_of_two_are_exact_and_within_half_an_exponent(scale):
    power = nearest_power_of_two(torch.tensor(scale)).item()
    assert math.frexp(power)[0] == 0.5
    assert abs(math.log2(power) - math.log2(scale)) <= 0.5 + 1e-6


def test_a_range_of_power_of_two_step_has_its_zero_point_from_that_step():
    scale, z = grid(-1.0, 3.0, 0, 255, symmetric=False, power_of_two=True)
    assert (scale, z) == (2**-6, 64)  # 4/255 = 2^-5.99


def test_the_slope_of_the_power_is_that_of_the_logarithm_straight_through():
    scale = torch.tensor([0.3, 0.36], requires_grad=True)
    (of_scale,) = torch.autograd.grad(nearest_power_of_two(scale).sum(), scale)
    torch.testing.assert_close(of_scale, torch.tensor([0.25 / 0.3, 0.5 / 0.36]))
