import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear
from scipy.spatial.transform import Rotation

from jethr2 import kernels

angles = st.floats(-3.1, 3.1)


def wxyz(rotation):
    return np.roll(rotation.as_quat(), 1)


@settings(deadline=None)  # the first call compiles
@given(roll=angles, pitch=st.floats(-1.5, 1.5), yaw=angles)
def test_euler_angles_come_back_from_their_own_quaternion(roll, pitch, yaw):
    quat = wxyz(Rotation.from_euler("ZYX", [yaw, pitch, roll]))
    np.testing.assert_allclose(kernels.euler(quat), (roll, pitch, yaw), atol=1e-7)


@settings(deadline=None)
@given(vector=st.tuples(angles, angles, angles), yaw=angles)
def test_the_error_vector_is_the_logarithm_of_the_rotation_from_the_reference(vector, yaw):
    rotation = Rotation.from_rotvec(vector)
    expected = (Rotation.from_euler("z", yaw).inv() * rotation).as_rotvec()
    if np.linalg.norm(expected) < math.pi - 1e-6:  # there both signs are right
        np.testing.assert_allclose(kernels.rotation_vector(wxyz(rotation), yaw), expected, atol=1e-9)


def test_a_constant_rate_turns_exactly_however_it_is_cut_into_steps():
    rate = np.array([0.3, -0.5, 1.1])
    quat = np.array([1.0, 0, 0, 0])
    for _ in range(1000):
        kernels.turn(quat, *rate, 0.002)
    np.testing.assert_allclose(quat, wxyz(Rotation.from_rotvec(2 * rate)), atol=1e-10)


def test_a_rate_of_zero_turns_nothing():
    quat = np.array([0.5, 0.5, 0.5, 0.5])
    kernels.turn(quat, 0.0, 0.0, 0.0, 0.002)
    np.testing.assert_array_equal(quat, 0.5)


def test_up_in_the_body_is_the_last_row_of_the_rotation_matrix():
    rotation = Rotation.from_rotvec([0.4, -0.9, 2.0])
    np.testing.assert_allclose(kernels.upright(wxyz(rotation)), rotation.as_matrix()[2], atol=1e-12)


@pytest.mark.parametrize(("angle", "wrapped"), [(3.5, 3.5 - 2 * math.pi), (-3.5, 2 * math.pi - 3.5), (0.1, 0.1)])
def test_angles_wrap_to_half_a_turn(angle, wrapped):
    assert kernels.wrap(angle) == pytest.approx(wrapped, abs=1e-12)


def test_noise_is_standard_normal_and_uncorrelated_between_neighbours():
    pairs = np.array([kernels.normal_pair(np.uint64(12345), k) for k in range(40_000)])
    values = pairs.ravel()
    assert abs(values.mean()) < 0.015  # four standard errors of 80,000
    assert abs(values.std() - 1) < 0.01
    assert abs(np.mean(values**4) - 3) < 0.15
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.015
    other = np.array([kernels.normal_pair(np.uint64(12347), k) for k in range(40_000)]).ravel()
    assert abs(np.corrcoef(values, other)[0, 1]) < 0.015


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 15))
def test_the_box_programme_agrees_with_an_active_set_method_of_scipy(seed, n):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(n + 2, n))
    target = 3 * rng.normal(size=n + 2)
    low, high = -rng.uniform(0.05, 1, n), rng.uniform(0.05, 1, n)
    x = np.zeros(n)
    steps = kernels.box_qp(matrix.T @ matrix, -matrix.T @ target, low, high, x)
    expected = lsq_linear(matrix, target, (low, high), method="bvls", tol=1e-15).x
    np.testing.assert_allclose(x, expected, atol=1e-6 * np.linalg.cond(matrix) ** 2)
    assert steps < kernels.QP_STEPS
    assert ((low <= x) & (x <= high)).all()
    gradient = matrix.T @ (matrix @ x - target)
    inside = (x > low) & (x < high)
    np.testing.assert_allclose(gradient[inside], 0, atol=1e-9)
    assert (gradient[x == low] > -1e-9).all()
    assert (gradient[x == high] < 1e-9).all()
