import sys

import numpy as np
import pytest
from flying import robot

from jethr2 import (
    Controller,
    ControllerParams,
    EstimatorParams,
    ParameterError,
    RobotParams,
    build_spec,
    monte_carlo,
    simulate,
)
from jethr2.errors import JetHR2Error
from jethr2.estimation import noise_keys
from jethr2.layout import sensor_columns
from jethr2.metrics import FIGURES
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


@pytest.mark.slow  # 12 s of compilation
def test_a_study_in_mjx_has_the_successes_of_mujoco_and_the_nominal_flights_figures():
    pytest.importorskip("mujoco.mjx")
    options = {"modes": ("full", "differential"), "duration": 2.5}
    nominal = {name: monte_carlo(1, errors=no_errors(1), backend=name, **options) for name in ("mjx", "mujoco")}
    for mode in options["modes"]:
        for figure in FIGURES:
            got, wanted = (getattr(nominal[name].metrics[mode], figure) for name in ("mjx", "mujoco"))
            np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=1e-4, err_msg=f"{mode}, {figure}")
    spread = {name: monte_carlo(16, backend=name, **options) for name in ("mjx", "mujoco")}
    for mode in options["modes"]:
        assert (spread["mjx"].success(mode) == spread["mujoco"].success(mode)).all()
        got, wanted = (spread[name].metrics[mode] for name in ("mjx", "mujoco"))
        np.testing.assert_allclose(got.peak_yaw, wanted.peak_yaw, atol=0.1)
        np.testing.assert_allclose(got.max_height, wanted.max_height, atol=0.05)


@pytest.mark.parametrize("mode", ["none", "differential", "pitch_only", "yaw_only", "full"])
def test_the_law_in_jax_gives_the_commands_of_the_compiled_one(mode):
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):  # so that any other formula shows
        same_commands(mode, jax.jit)


def same_commands(mode, jit):
    from jethr2.jax_law import constants_of, control, fresh_memory, noise_of

    model, trim = robot()
    pilot = Controller(model, trim, ControllerParams(mode=mode, foot_angle_sym=0.1, foot_angle_diff=0.05))
    keys = noise_keys(5, [2])
    pilot.reset(n=1, keys=keys)
    rng, ticks = np.random.default_rng(1), 400
    constants, noise = constants_of(pilot), noise_of(pilot, keys, ticks)
    memory, law = fresh_memory(constants["u0"]), jit(control)
    columns = sensor_columns(model)
    for tick in range(ticks):
        quat = np.array([1.0, *(0.002 * tick * rng.normal(size=3))])  # in the end beyond 60 deg
        quat /= np.linalg.norm(quat)
        gyro, height = rng.normal(size=3), 0.5 + 0.002 * tick
        sensors = np.zeros((1, model.nsensordata))
        sensors[0, columns["quat"]], sensors[0, columns["gyro"]] = quat, gyro
        sensors[0, columns["pos"].start + 2] = height
        wanted = pilot.step(tick * pilot.period, sensors)[0]
        memory, ctrl, lost = law(constants, memory, tick, quat, gyro, height, noise[0, tick])
        np.testing.assert_allclose(ctrl, wanted, atol=1e-11)
        np.testing.assert_allclose(lost, pilot.memory["lift_lost"][0], atol=1e-9)
        assert (np.asarray(memory["saturated"]) == (pilot.memory["saturated"][0] != 0)).all()


def test_what_the_law_in_jax_lacks_is_refused():
    pytest.importorskip("jax")
    from jethr2.jax_law import constants_of

    model, trim = robot()
    for params, words in (
        (ControllerParams(allocation="qp"), "allocation must be closed_form on MJX, got 'qp'"),
        (ControllerParams(height_hold=True), "height_hold must be False on MJX"),
        (ControllerParams(pitch_mpc=True), "pitch_mpc must be False on MJX"),
    ):
        with pytest.raises(ParameterError, match=words):
            constants_of(Controller(model, trim, params))
    with pytest.raises(ParameterError, match="mode must be truth or noisy_truth on MJX"):
        constants_of(Controller(model, trim, estimator=EstimatorParams(mode="mahony")))


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
