import sys

import numpy as np
import pytest
from flying import robot

from jethr2 import Controller, EstimatorParams, ParameterError, RobotParams, build_spec, simulate
from jethr2.errors import JetHR2Error
from jethr2.mjx import carry_out
from jethr2.perturbations import canned_errors, no_errors


def compared(model, trim, errors):
    """States of MJX and MuJoCo, under the commands that MuJoCo's flights had."""
    pytest.importorskip("mujoco.mjx")
    pilot = Controller(model, trim, estimator=EstimatorParams(mode="truth"))
    flights = [simulate(model, pilot, 1.0, errors[k : k + 1], trim=trim) for k in range(len(errors))]
    commands = np.array([flight["ctrl"][:-1] for flight in flights])
    paths = carry_out(model, trim.qpos, commands, errors)
    return paths, [np.array([flight[name] for flight in flights]) for name in ("qpos", "qvel", "fan")]


@pytest.mark.slow  # 15 s of compilation
def test_mjx_agrees_with_mujoco_to_1e_4_over_one_second_of_take_off():
    model, trim = robot()
    (qpos, qvel, act), expected = compared(model, trim, no_errors(1))
    assert qpos[0, -1, 2] - trim.qpos[2] > 0.05  # it has left the ground
    for values, wanted, bound in zip((qpos, qvel, act), expected, (1e-5, 1e-4, 1e-5), strict=True):
        np.testing.assert_allclose(values, wanted, atol=bound, rtol=0)


@pytest.mark.slow  # 15 s of compilation
def test_mjx_agrees_with_mujoco_to_1e_4_over_one_second_in_the_air_with_every_kind_of_error():
    _, trim = robot()
    model = build_spec(RobotParams(), contact=False).compile()
    (qpos, _, act), (wanted, _, fans) = compared(model, trim, canned_errors())
    np.testing.assert_allclose(qpos, wanted, atol=1e-4, rtol=0)
    np.testing.assert_allclose(act, fans, atol=1e-5, rtol=0)
    assert np.ptp(qpos[:, -1], axis=0).max() > 0.05  # the errors do something


def test_without_mjx_one_line_says_what_to_install(monkeypatch):
    model, trim = robot()
    monkeypatch.setitem(sys.modules, "mujoco.mjx", None)
    monkeypatch.delattr("mujoco.mjx", raising=False)
    with pytest.raises(JetHR2Error, match=r"MJX is not installed .pip install 'jethr2\[mjx\]'"):
        carry_out(model, trim.qpos, np.zeros((1, 1, 14)), canned_errors()[:1])


def test_every_robot_needs_its_errors():
    pytest.importorskip("mujoco.mjx")
    model, trim = robot()
    with pytest.raises(ParameterError, match="errors must be 2, one per row"):
        carry_out(model, trim.qpos, np.zeros((2, 1, 14)), canned_errors()[:1])
