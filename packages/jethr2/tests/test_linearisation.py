"""The linear model of hovering predicts the simulator."""

import mujoco
import numpy as np
import pytest

from jethr2 import ModelError, RobotParams, build_spec, linearize, load_model, takeoff_trim
from jethr2.layout import fan_ctrl_ids
from jethr2.linearisation import hover_state


@pytest.fixture(scope="module")
def model():
    return load_model(RobotParams())


def test_the_robot_hovers_without_accelerating(model):
    trim = takeoff_trim(model)
    data = hover_state(model, trim)
    np.testing.assert_allclose(data.qacc, 0, atol=1e-9)
    for _ in range(50):
        mujoco.mj_step(model, data)
    np.testing.assert_allclose(data.qpos[:3], trim.qpos[:3] + np.array([0, 0, 1]), atol=1e-9)


def test_matrices_have_the_states_of_mujoco(model):
    A, B = linearize(model, takeoff_trim(model))
    assert (A.shape, B.shape) == ((36, 36), (36, 14))
    # Fans are lags of their own: exp(-dt / tau), whatever the body does.
    np.testing.assert_allclose(A[32:, 32:], np.exp(-0.002 / 0.1) * np.eye(4), atol=1e-9)
    np.testing.assert_allclose(B[32:, 10:], (1 - np.exp(-0.002 / 0.1)) * np.eye(4), atol=1e-9)
    np.testing.assert_allclose(A[:3, 16:19], 0.002 * np.eye(3), atol=1e-9)


def test_left_and_right_feet_turn_the_robot_opposite_ways(model):
    _, B = linearize(model, takeoff_trim(model))
    yaw, pitch = B[16 + 5], B[16 + 4]
    left, right = 4, 9
    assert yaw[left] == pytest.approx(-yaw[right], rel=1e-6)
    assert pitch[left] == pytest.approx(pitch[right], rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_small_deviations_move_as_predicted(seed):
    model = build_spec(RobotParams(), contact=False).compile()
    trim = takeoff_trim(model)
    A, B = linearize(model, trim)
    rng = np.random.default_rng(seed)
    start, control = rng.normal(size=36), rng.normal(size=14)

    def error(size):
        data = hover_state(model, trim)
        rest = data.qpos.copy()
        mujoco.mj_integratePos(model, data.qpos, size * start[:16], 1.0)
        data.qvel[:] = size * start[16:32]
        data.act[:] += size * start[32:]
        data.ctrl[:] += size * control
        data.ctrl[fan_ctrl_ids(model)] = np.clip(data.ctrl[fan_ctrl_ids(model)], 0, 1)
        mujoco.mj_step(model, data)
        moved = np.zeros(16)
        mujoco.mj_differentiatePos(model, moved, 1.0, rest, data.qpos)
        found = np.r_[moved, data.qvel, data.act - trim.ctrl[fan_ctrl_ids(model)]]
        return np.abs(found - size * (A @ start + B @ control)).max()

    assert error(1e-4) < 1e-6
    assert error(1e-4) / error(5e-5) == pytest.approx(4, rel=0.2)  # what is left is of second order


def test_a_servo_too_weak_to_hover_is_named():
    model = load_model(RobotParams(joint_force_limit=0.2))
    with pytest.raises(ModelError, match=r"joint left_knee needs .* N m to hover, and its servo gives 0\.2"):
        linearize(model, takeoff_trim(model))
