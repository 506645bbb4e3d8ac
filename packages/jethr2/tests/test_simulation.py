import dataclasses
import math

import mujoco
import numpy as np
import pytest
from flying import robot

from jethr2 import (
    Controller,
    ControllerParams,
    EstimatorParams,
    ParameterError,
    RobotParams,
    SimulationDiverged,
    build_spec,
    load_model,
)
from jethr2.errors import JetHR2Error
from jethr2.estimation import noise_keys
from jethr2.metrics import Criteria
from jethr2.perturbations import Errors, canned_errors, no_errors, perturbed_models, sample_errors
from jethr2.simulation import Flight, Trajectory, fly, simulate

TRUTH = EstimatorParams(mode="truth")


def flown(params=None, estimator=None, duration=2.0, errors=None, **options):
    model, trim = robot()
    return simulate(model, Controller(model, trim, params, estimator), duration, errors, trim=trim, **options)


def flight(n=6, steps=0, poke=None, at=200, **options):
    """A flight of n trials of seed 0 that was advanced; `poke` is called before step `at`."""
    model, trim = robot()
    errors = sample_errors(n)
    ctl = Controller(model, trim, **options)
    ctl.reset(n=n, keys=noise_keys(0, range(n)))
    one = Flight(perturbed_models(model, errors), ctl, trim.qpos, trim.ctrl, errors.joint_zero, Criteria())
    for step in range(steps):
        if poke is not None and step == at:
            poke(one, ctl)
        one.advance()
    return one


def same_bits(first, second):
    return np.ascontiguousarray(first).tobytes() == np.ascontiguousarray(second).tobytes()


def test_without_errors_the_full_law_takes_off_straight_as_the_specification_says():
    # Section 7, criterion (e): tilt < 3 deg, yaw < 1 deg, 1 m reached.
    figures = flown(duration=3.0).metrics()
    assert math.degrees(figures["peak_tilt"]) < 3
    assert math.degrees(figures["peak_yaw"]) < 1
    assert figures["success"] == 1
    assert figures["max_height"] > 4


def test_the_prototypes_nominal_flights_come_back_with_its_fixed_vectoring_gain():
    # Section 7: full 2.4 deg of tilt, 1 m at 1.69 s; none 20 deg. The prototype divided by the full thrust at spool-up
    # too: with the floor of 0.3 that trap 8 of the specification names it would be 2.8 deg and 1.63 s.
    figures = flown(ControllerParams(thrust_floor=1.0), duration=2.0).metrics()
    assert math.degrees(figures["peak_tilt"]) == pytest.approx(2.4, abs=0.05)
    assert figures["time_to_goal"] == pytest.approx(1.69, abs=0.005)
    assert math.degrees(figures["peak_yaw"]) < 0.1
    fallen = flown(ControllerParams(mode="none"), duration=2.0).metrics()
    assert math.degrees(fallen["peak_tilt"]) == pytest.approx(20, abs=0.5)
    assert fallen["success"] == 0


def test_one_flight_is_the_same_trial_of_a_batch_to_the_bit():
    model, trim = robot()
    errors, keys = sample_errors(5, seed=4), noise_keys(4, range(5))
    tracks = fly(model, trim, Controller(model, trim), errors, keys, 0.8, Criteria())
    alone = flown(duration=0.8, errors=errors[3:4], seed=4, trial=3)
    for name, value in vars(alone.figures).items():
        if name not in ("foot_effort", "throttle_effort", "lift_lost", "saturation"):
            np.testing.assert_array_equal(value[0], tracks[name][3])


def test_equal_seeds_give_equal_flights_and_other_seeds_do_not():
    first, again, other = (flown(duration=0.6, seed=seed) for seed in (1, 1, 2))
    assert same_bits(first["qpos"], again["qpos"])
    assert not same_bits(first["qpos"], other["qpos"])


@pytest.mark.parametrize(
    "poke",
    [
        lambda one, ctl: one.state.__setitem__((3, 5), np.nan),
        lambda one, ctl: one.state.__setitem__((3, 20), 1e12),
        lambda one, ctl: one.sensors.__setitem__((3, 2), np.nan),
        lambda one, ctl: ctl.memory["integral"].__setitem__((3, 1), np.nan),
    ],
    ids=["state", "huge", "sensor", "memory"],
)
@pytest.mark.parametrize("allocation", ["closed_form", "qp"])
def test_what_is_not_finite_in_one_trial_leaves_the_others_bit_identical(poke, allocation, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log there
    params = ControllerParams(allocation=allocation)
    clean, broken = flight(steps=350, params=params), flight(steps=350, poke=poke, params=params)
    others = [0, 1, 2, 4, 5]
    assert same_bits(clean.state[others], broken.state[others])
    assert same_bits(clean.tracks[others], broken.tracks[others])
    assert broken.tracks["diverged_at"][3] == pytest.approx(0.4, abs=0.003)
    assert np.isfinite(broken.state).all()


def test_a_flight_that_diverges_alone_is_an_error_with_its_time():
    def poke(one):
        if one.time >= 0.1:
            one.sensors[0, 0] = np.nan

    with pytest.raises(SimulationDiverged, match=r"diverged at 0\.100 s") as caught:
        flown(duration=0.3, on_step=poke)
    assert caught.value.time == pytest.approx(0.1)


def turned_and_straight(model, trim):
    """A flight from a yaw of 1.1 rad, turned back by it, and the flight from none: places and angles."""
    psi = 1.1
    turned = trim.qpos.copy()
    turned[3:7] = [math.cos(psi / 2), 0, 0, math.sin(psi / 2)]
    ctl = Controller(model, trim, None, TRUTH)
    errors = canned_errors()[2:3]
    straight = simulate(model, ctl, 1.2, errors, trim=trim)
    askew = simulate(model, ctl, 1.2, errors, trim=dataclasses.replace(trim, qpos=turned))
    back = np.array([[math.cos(psi), -math.sin(psi)], [math.sin(psi), math.cos(psi)]])
    places = askew["qpos"][:, :2] @ back
    return (places, askew.angles - [0, 0, psi]), (straight["qpos"][:, :2], straight.angles)


def test_the_starting_yaw_turns_the_whole_flight():
    # Exactly in free flight; on the ground friction acts along the axes of a pyramid that does not turn along.
    model = build_spec(RobotParams(), contact=False).compile()
    askew, straight = turned_and_straight(model, robot()[1])
    np.testing.assert_allclose(askew[0], straight[0], atol=1e-9)
    np.testing.assert_allclose(askew[1], straight[1], atol=1e-9)
    askew, straight = turned_and_straight(*robot())
    np.testing.assert_allclose(askew[0], straight[0], atol=0.02)
    np.testing.assert_allclose(askew[1], straight[1], atol=0.02)


def test_mirrored_errors_give_a_mirrored_flight():
    model, trim = build_spec(RobotParams(), contact=False).compile(), robot()[1]
    errors = canned_errors()[5:6]
    mirror = np.array([-1, -1, 1, 1, 1])  # hip roll and yaw change their sign
    swapped = np.concatenate([errors.joint_zero[:, 5:] * mirror, errors.joint_zero[:, :5] * mirror], axis=1)
    reflected = Errors(errors.com_shift * [1, -1], errors.mass, swapped, errors.fan_gain[:, [0, 1, 3, 2]])
    for one, tolerance in ((model, 1e-9), (robot()[0], 0.02)):  # contacts amplify the last digit
        ctl = Controller(one, trim, None, TRUTH)
        flight, other = (simulate(one, ctl, 1.2, each, trim=trim) for each in (errors, reflected))
        np.testing.assert_allclose(other.angles, flight.angles * [-1, 1, -1], atol=tolerance)
        np.testing.assert_allclose(other["qpos"][:, :3], flight["qpos"][:, :3] * [1, -1, 1], atol=tolerance)
        assert np.abs(flight.angles[:, 2]).max() > 0.01


def test_joint_errors_act_on_the_plant_and_not_on_what_the_controller_sees():
    errors = no_errors(1)
    errors.joint_zero[0, 1] = 0.1  # left hip yaw
    flight = flown(None, TRUTH, 0.2, errors)
    assert flight["ctrl"][0, 1] == 0.0
    assert flight["qpos"][-1, 8] == pytest.approx(0.1, abs=0.03)


def test_the_fan_is_an_exact_first_order_lag_that_passes_the_weight_when_the_specification_says():
    class FullThrottle:
        period = 0.002

        def step(self, t, sensordata):
            ctrl = np.array(robot()[1].ctrl)
            ctrl[10:] = 1
            return ctrl[None]

    model, trim = robot()
    flight = simulate(model, FullThrottle(), 0.4, trim=trim)
    np.testing.assert_allclose(flight["fan"][:, 0], 1 - np.exp(-flight["time"] / 0.1), atol=1e-12)
    passed = np.interp(0.85, flight["fan"][:, 0], flight["time"])
    assert passed == pytest.approx(0.18971, abs=2e-5)
    np.testing.assert_array_equal(flight["estimate"][:-1], flight["qpos"][:-1, 3:7])


def test_a_negative_command_to_a_quadratic_fan_is_no_lift():
    class Negative:
        period = 0.002

        def step(self, t, sensordata):
            ctrl = np.zeros((1, 14))
            ctrl[0, 10:] = [-1, -0.5, 0.5, 2]
            return ctrl

    model = load_model(RobotParams(thrust_map="quadratic", fan_time_constant=0.01))
    flight = simulate(model, Negative(), 0.2)
    np.testing.assert_allclose(flight["fan"][-1], [0, 0, 0.25, 1], atol=1e-6)


def test_a_longer_control_period_steps_the_same_physics():
    flight = flown(ControllerParams(control_period=0.01), TRUTH, 2.0)
    assert len(flight["time"]) == 201
    assert flight.metrics()["success"] == 1


def test_height_and_speed_are_held_where_that_is_asked_for():
    params = ControllerParams(height_hold=True, velocity_hold=True, velocity_reference=0.5)
    flight = flown(params, TRUTH, 8.0)
    assert flight["qpos"][-1, 2] - flight["qpos"][0, 2] == pytest.approx(1.0, abs=0.1)
    assert flight["qvel"][-1, 0] == pytest.approx(0.5, abs=0.1)
    throttles = flight["ctrl"][400:, 10:12]  # after the ramp, front and back carry the collective
    assert throttles.min() >= 0.7 - 1e-12
    assert throttles.max() <= 1.0


@pytest.mark.parametrize("mode", ["full", "differential"])
def test_the_predictive_controller_flies_too(mode):
    flight = flown(ControllerParams(mode=mode, pitch_mpc=True), TRUTH, 2.5)
    assert flight.metrics()["success"] == 1


def test_a_trajectory_survives_its_file_to_the_bit(tmp_path):
    flight = flown(duration=0.1)
    flight.to_npz(tmp_path / "run.npz")
    back = Trajectory.from_npz(tmp_path / "run.npz")
    assert back.dt == flight.dt
    assert {*back.arrays} == {*flight.arrays}
    assert all(same_bits(back[name], flight[name]) for name in flight.arrays)
    np.testing.assert_equal(back.metrics(), flight.metrics())
    flight.to_csv(tmp_path / "run.csv")
    table = np.genfromtxt(tmp_path / "run.csv", delimiter=",", names=True)
    np.testing.assert_array_equal(table["qpos_2"], flight["qpos"][:, 2])
    assert len(table.dtype.names) == 1 + 17 + 16 + 4 + 14 + 1 + 3 + 4


def test_a_file_that_is_no_trajectory_is_named(tmp_path):
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    for name in ("cut.npz", "none.npz"):
        with pytest.raises(JetHR2Error, match=f"{name} is no trajectory"):
            Trajectory.from_npz(tmp_path / name)


def test_what_cannot_be_flown_is_refused():
    model, _ = robot()
    with pytest.raises(ParameterError, match="duration"):
        flown(duration=0.0)
    with pytest.raises(ParameterError, match="those of one trial"):
        flown(errors=canned_errors())
    with pytest.raises(ParameterError, match="seed"):
        flown(seed=-1)
    assert mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value) == 38
    assert flight(1).state.shape == (1, 38)
