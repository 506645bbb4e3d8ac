"""Two engines agree, to first order in the time step."""

import importlib.util
import sys

import mujoco
import numpy as np
import pytest

from jethr2 import JetHR2Error, ParameterError, RobotParams, build_spec, crosscheck, engines, takeoff_trim

needs_bullet = pytest.mark.skipif(
    importlib.util.find_spec("pybullet") is None, reason="pybullet has wheels for Python 3.11 only"
)


@needs_bullet
def test_the_engines_converge_to_one_flight():
    check = crosscheck(dt=(5e-4, 2.5e-4))
    assert 0.9 < check.order < 1.1
    assert check.max_position_error == check.position_error[0] < 0.5e-3
    np.testing.assert_allclose(np.degrees(check.attitude_error), [0.114, 0.057], rtol=0.05)  # section 2.9's table
    np.testing.assert_allclose(np.degrees(check.attitude), [9.3, -16.5, -29.5], atol=0.06)
    assert np.degrees(max(check.joint_error)) < 0.05


@needs_bullet
def test_another_robot_converges_too():
    params = RobotParams(mass=19.0, thrust_to_weight=1.3, fan_time_constant=0.05, thigh=0.15)
    check = crosscheck(params, dt=(5e-4, 2.5e-4), duration=0.4)
    assert 0.9 < check.order < 1.1
    assert 1e-6 < check.max_position_error < 0.5e-3


@needs_bullet
def test_forces_act_at_the_fans_where_centres_of_mass_lie_beside_them():
    """PyBullet takes places from a link's centre of mass: 1 cm would turn this robot by degrees."""
    params = RobotParams(joint_armature=0.0, joint_damping=0.0)
    model = build_spec(params, contact=False).compile()
    trim = takeoff_trim(model)
    for body in ("base", "left_foot"):
        model.body_ipos[model.body(body).id, :2] += [0.01, -0.004]
    mujoco.mj_setConst(model, mujoco.MjData(model))
    one = engines._fly_mujoco(model, trim, params, 2.5e-4, 1600)
    other = engines.fly_in_bullet(model, trim, params, 2.5e-4, 1600)
    assert np.linalg.norm(one.position - other.position) < 0.2e-3
    assert engines._angle(one.quaternion, other.quaternion) < np.radians(0.05)
    assert engines._angle(one.quaternion, np.array([1.0, 0, 0, 0])) > np.radians(1)


@needs_bullet
def test_steps_that_diverge_are_refused_with_the_longest_that_does_not():
    with pytest.raises(ParameterError, match=r"dt must be less than 0\.00072 s: explicit servos .* diverge"):
        crosscheck(dt=(1e-3,))


@needs_bullet
@pytest.mark.parametrize(("dt", "duration"), [((), 0.8), ((0.0,), 0.8), ((5e-4,), -1.0), ((float("nan"),), 0.8)])
def test_times_must_be_positive(dt, duration):
    with pytest.raises(ParameterError, match="must be positive, s"):
        crosscheck(dt=dt, duration=duration)


def test_a_missing_engine_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pybullet", None)
    with pytest.raises(JetHR2Error, match=r"needs pybullet \(pip install 'jethr2\[bullet\]'"):
        crosscheck()
