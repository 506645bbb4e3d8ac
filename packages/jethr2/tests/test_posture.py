"""The take-off posture: constants of the specification, and the same by hand."""

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from jethr2 import ModelError, ParameterError, RobotParams, load_model, takeoff_trim


@pytest.fixture(scope="module")
def model():
    return load_model(RobotParams())


def by_hand(knee):
    """Hip pitch, centre of mass, inertia and left fan from the table of section 2.1 alone, base frame."""

    def box(mass, x, y, z):
        return mass / 3 * np.diag([y * y + z * z, x * x + z * z, x * x + y * y])

    def rod(mass, radius, length):
        across = mass * (3 * radius**2 + length**2) / 12
        return np.diag([across, across, mass * radius**2 / 2])

    def capsule(mass, radius, length):
        ball, tube = 4 / 3 * np.pi * radius**3, np.pi * radius**2 * length
        caps = mass * ball / (ball + tube)
        tensor = rod(mass - caps, radius, length)
        across = caps * (2 / 5 * radius**2 + length**2 / 4 + 3 / 8 * length * radius)
        return tensor + np.diag([across, across, caps * 2 / 5 * radius**2])

    def turn(angle):
        cos, sin = np.cos(angle), np.sin(angle)
        return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])

    def parts(hip):
        yield 8.8, np.array([0, 0, 0.08]), box(8.8, 0.1, 0.1, 0.1)
        for x in (0.15, -0.15):
            yield 0.6, np.array([x, 0, 0.02]), rod(0.6, 0.055, 0.1)
        for y in (0.1168, -0.1168):
            start = np.array([0, y, -0.082])
            yield 0.6, np.array([0, y, -0.041]), box(0.6, 0.035, 0.035, 0.041)
            yield 0.55, start, box(0.55, 0.035, 0.035, 0.03)
            thigh, shank = turn(hip), turn(hip + knee)
            yield 0.9, start - thigh[:, 2] * 0.0525, thigh @ capsule(0.9, 0.04, 0.105) @ thigh.T
            bent = start - thigh[:, 2] * 0.105
            yield 0.55, bent - shank[:, 2] * 0.136, shank @ capsule(0.55, 0.025, 0.272) @ shank.T
            yield 0.9, bent - shank[:, 2] * 0.272 - [0, 0, 0.04], rod(0.9, 0.055, 0.08)

    def imbalance(hip):
        bodies = list(parts(hip))
        com = sum(mass * place for mass, place, _ in bodies) / 17
        return bodies[-1][1][0] / 2 - com[0]  # the waist fans' x cancel in the mean of four

    hip = brentq(imbalance, -1.2, 0, xtol=1e-15)
    bodies = list(parts(hip))
    com = sum(mass * place for mass, place, _ in bodies) / 17
    inertia = np.zeros((3, 3))
    for mass, place, tensor in bodies:
        arm = place - com
        inertia += tensor + mass * (arm @ arm * np.eye(3) - np.outer(arm, arm))
    return hip, com, inertia, bodies[-1][1] * [1, -1, 1] - com


def test_the_postures_constants_are_the_specifications(model):
    trim = takeoff_trim(model)
    half_digit = 5e-6
    assert trim.hip_pitch == pytest.approx(-0.62622, abs=half_digit)
    assert trim.ankle_pitch == pytest.approx(-0.17378, abs=half_digit)
    assert trim.base_height == pytest.approx(0.53508, abs=half_digit)
    np.testing.assert_allclose(np.diag(trim.inertia), [0.73249, 0.66814, 0.19340], atol=half_digit)
    np.testing.assert_allclose(trim.fan_arms[2], [0.00725, 0.1168, -0.42665], atol=half_digit)
    np.testing.assert_allclose(trim.fan_arms[0], [0.14275, 0, 0.06833], atol=half_digit)
    np.testing.assert_allclose(trim.ctrl[10:], 0.85, atol=1e-12)


@pytest.mark.parametrize("knee", [0.5, 0.8, 1.3])
def test_the_posture_is_the_one_computed_by_hand(model, knee):
    trim = takeoff_trim(model, knee=knee)
    hip, com, inertia, left = by_hand(knee)
    assert trim.hip_pitch == pytest.approx(hip, abs=1e-9)
    np.testing.assert_allclose(trim.com, com, atol=1e-9)
    np.testing.assert_allclose(trim.inertia, inertia, atol=1e-9)
    np.testing.assert_allclose(trim.fan_arms[2], left, atol=1e-9)
    assert trim.mass == 17.0


@settings(deadline=None, max_examples=20)
@given(knee=st.floats(0.2, 1.6))
def test_equal_thrusts_have_no_moment_and_soles_are_level(model, knee):
    trim = takeoff_trim(model, knee=knee)
    np.testing.assert_allclose(np.cross(trim.fan_arms, [0, 0, 1.0]).sum(axis=0), 0, atol=1e-12)
    data = mujoco.MjData(model)
    data.qpos[:] = trim.qpos
    mujoco.mj_kinematics(model, data)
    for side in ("left", "right"):
        np.testing.assert_allclose(data.body(f"{side}_foot").xmat.reshape(3, 3), np.eye(3), atol=1e-12)
        assert data.geom(f"{side}_sole").xpos[2] - 0.01 == pytest.approx(1e-4, abs=1e-12)


def test_arrays_of_a_trim_cannot_be_changed(model):
    with pytest.raises(ValueError, match="read-only"):
        takeoff_trim(model).qpos[0] = 1.0


@pytest.mark.parametrize("knee", [-0.3, 2.5, float("nan")])
def test_a_knee_out_of_its_range_is_refused(model, knee):
    with pytest.raises(ParameterError, match=r"within the joint.s range of -0\.2 to 2\.4 rad"):
        takeoff_trim(model, knee=knee)


def test_a_knee_too_bent_for_balance_is_refused():
    model = load_model(RobotParams(ankle_pitch_range=(-0.3, 0.3)))
    with pytest.raises(ModelError, match="no hip pitch"):
        takeoff_trim(model, knee=2.4)
