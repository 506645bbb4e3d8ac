import math

import pytest
import torch

from core_utils.errors import UserError
from core_utils.spiking.surrogates import atan, rectangle, sigmoid, triangle

ALL = [triangle(), triangle(2.0), rectangle(), rectangle(0.5), atan(), atan(1.0), sigmoid(), sigmoid(1.0)]


@pytest.mark.parametrize("surrogate", ALL, ids=str)
def test_area_is_one(surrogate):
    edges = torch.linspace(-2000, 2000, 8_000_001, dtype=torch.float64)
    area = torch.trapezoid(surrogate(edges), edges)
    assert area.item() == pytest.approx(1.0, abs=2e-3)  # the tail of atan beyond 2000 holds 2 / (pi^2 alpha 1000)


def test_triangle_is_its_formula_and_zero_from_gamma_on():
    distances = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 2.0, 3.0])
    assert triangle(2.0)(distances).tolist() == [0.0, 0.25, 0.375, 0.5, 0.375, 0.0, 0.0]


def test_rectangle_excludes_its_edges():
    distances = torch.tensor([-0.25, -0.2499, 0.0, 0.2499, 0.25])
    assert rectangle(0.5)(distances).tolist() == [0.0, 2.0, 2.0, 2.0, 0.0]


def test_atan_and_sigmoid_follow_spikingjelly():
    d = 0.3
    at = torch.tensor([d], dtype=torch.float64)
    assert atan(2.0)(at).item() == pytest.approx(1 / (1 + (math.pi * d) ** 2), rel=1e-12)
    p = 1 / (1 + math.exp(-4.0 * d))
    assert sigmoid(4.0)(at).item() == pytest.approx(4.0 * p * (1 - p), rel=1e-12)


@pytest.mark.parametrize("surrogate", ALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_the_distance_untouched(surrogate, dtype):
    distance = torch.tensor([-0.1, 0.0, 0.2], dtype=dtype)
    before = distance.clone()
    assert surrogate(distance).dtype == dtype
    assert torch.equal(distance, before)


@pytest.mark.parametrize("surrogate", [triangle, rectangle, atan, sigmoid])
@pytest.mark.parametrize("parameter", [0.0, -1.0, math.nan])
def test_parameters_must_be_positive(surrogate, parameter):
    with pytest.raises(UserError, match="must be positive"):
        surrogate(parameter)
