"""The biped's model: its numbers, its symmetry, and laws of mechanics that any model must obey."""

import dataclasses

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jethr2 import ModelError, ParameterError, RobotParams, build_spec, load_model, takeoff_trim
from jethr2.layout import (
    FANS,
    JOINTS,
    SENSORS,
    fan_act_ids,
    fan_actuator_ids,
    fan_ctrl_ids,
    fan_full_thrusts,
    fan_site_ids,
    joint_ctrl_ids,
    joint_dof_ids,
    joint_names,
    joint_qpos_ids,
    pitch_chain,
    sensor_columns,
    thrust_map,
)
from jethr2.robot import fan_effort, to_mjcf

RNG = np.random.default_rng


@pytest.fixture(scope="module")
def model():
    return load_model(RobotParams())


@pytest.fixture(scope="module")
def airborne():
    return build_spec(RobotParams(), contact=False).compile()


def excited(model, seed, spread=0.3):
    """A state with every joint, the base and the fans in motion."""
    rng, data = RNG(seed), mujoco.MjData(model)
    data.qpos[:] = takeoff_trim(model).qpos
    data.qpos[2] = 2.0
    data.qpos[3:7] = rng.normal(size=4)
    data.qpos[3:7] /= np.linalg.norm(data.qpos[3:7])
    data.qpos[7:] += rng.uniform(-spread, spread, 10)
    data.qvel[:] = rng.normal(size=model.nv)
    data.act[:] = rng.uniform(0, 1, 4)
    data.ctrl[:] = takeoff_trim(model).ctrl + np.append(rng.uniform(-spread, spread, 10), np.zeros(4))
    return data


def test_sizes_and_mass_are_the_specifications(model):
    assert (model.nq, model.nv, model.nu, model.na, model.nbody) == (17, 16, 14, 4, 12)
    assert model.body_subtreemass[0] == 17.0
    assert model.body("base").mass[0] == 10.0
    assert mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS) == 38
    assert (model.opt.timestep, model.opt.integrator) == (0.002, mujoco.mjtIntegrator.mjINT_IMPLICITFAST)
    assert model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_AUTORESET


def test_parts_are_found_by_name(model):
    assert joint_names(model) == JOINTS
    assert [model.actuator(int(i)).name for i in joint_ctrl_ids(model)] == list(JOINTS)
    assert [model.actuator(int(i)).name for i in fan_actuator_ids(model)] == [f"{fan}_fan" for fan in FANS]
    assert fan_ctrl_ids(model).tolist() == [10, 11, 12, 13]
    assert fan_act_ids(model).tolist() == [0, 1, 2, 3]
    assert joint_qpos_ids(model).tolist() == list(range(7, 17))
    assert joint_dof_ids(model).tolist() == list(range(6, 16))
    assert sensor_columns(model) == SENSORS
    assert model.nsensordata == 38
    assert pitch_chain(model, "left") == ("left_hip_pitch", "left_knee", "left_ankle_pitch")


def test_drives_are_the_specifications(model):
    servos, fans = joint_ctrl_ids(model), fan_actuator_ids(model)
    np.testing.assert_array_equal(model.actuator_gainprm[servos, 0], 120.0)
    np.testing.assert_array_equal(model.actuator_biasprm[servos, 1:3], [[-120.0, -3.0]] * 10)
    np.testing.assert_array_equal(model.actuator_forcerange[servos], [[-36.0, 36.0]] * 10)
    np.testing.assert_allclose(fan_full_thrusts(model), 49.05, rtol=1e-14)
    np.testing.assert_array_equal(model.actuator_gear[fans], [[0, 0, 1, 0, 0, 0]] * 4)
    np.testing.assert_array_equal(model.actuator_trnid[fans, 1], -1)  # a reference site would change the wrench
    np.testing.assert_array_equal(model.actuator_ctrlrange[fans], [[0, 1]] * 4)
    np.testing.assert_array_equal(model.dof_damping[joint_dof_ids(model)], 0.5)
    np.testing.assert_array_equal(model.dof_armature, [0] * 6 + [0.05] * 10)
    ranges = [(-0.6, 0.6), (-0.8, 0.8), (-1.6, 1.6), (-0.2, 2.4), (-1.2, 1.2)] * 2
    np.testing.assert_array_equal(model.jnt_range[1:], ranges)


def test_inertias_are_those_of_bodies(model):
    moments = model.body_inertia[1:]
    assert (moments > 0).all()
    assert (2 * moments.max(axis=1) <= moments.sum(axis=1)).all()


def test_only_soles_touch_and_only_the_floor(model):
    colliding = [model.geom(i).name for i in range(model.ngeom) if model.geom_contype[i] | model.geom_conaffinity[i]]
    assert sorted(colliding) == ["floor", "left_sole", "right_sole"]
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key("takeoff").id)
    data.qpos[2] = 1.0
    data.qpos[joint_qpos_ids(model)[[0, 5]]] = [-0.6, 0.6]  # the feet are in each other
    mujoco.mj_forward(model, data)
    assert data.ncon == 0
    data.qpos[:] = model.key("takeoff").qpos
    data.qpos[2] -= 0.001
    mujoco.mj_forward(model, data)
    assert data.ncon == 8
    np.testing.assert_allclose(data.contact.friction[:, :2], 0.8)


def test_keyframes_stand_on_the_ground(model):
    data = mujoco.MjData(model)
    for key, height in (("stand", 0.559), ("takeoff", 0.5350793)):
        mujoco.mj_resetDataKeyframe(model, data, model.key(key).id)
        assert data.qpos[2] == pytest.approx(height, abs=1e-7)
        for _ in range(1000):
            mujoco.mj_step(model, data)
        assert data.qpos[2] == pytest.approx(height, abs=0.005)
        assert data.sensordata[SENSORS["touch"]].sum() == pytest.approx(17 * 9.81, rel=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_the_robot_is_its_own_mirror_image(airborne, seed):
    """A mirrored state accelerates as the mirror image."""
    data, mirror = excited(airborne, seed), mujoco.MjData(airborne)
    flip, twist = np.array([1, -1, 1.0]), np.array([-1, 1, -1.0])
    legs = np.tile([-1, -1, 1, 1, 1], 2)
    swapped = np.r_[5:10, 0:5]
    mirror.qpos[:3] = flip * data.qpos[:3]
    mirror.qpos[3:7] = [data.qpos[3], *(twist * data.qpos[4:7])]
    mirror.qpos[7:] = (legs * data.qpos[7:])[swapped]
    mirror.qvel[:] = np.r_[flip * data.qvel[:3], twist * data.qvel[3:6], (legs * data.qvel[6:])[swapped]]
    mirror.act[:] = data.act[[0, 1, 3, 2]]
    mirror.ctrl[:] = np.r_[(legs * data.ctrl[:10])[swapped], 0, 0, 0, 0]
    mujoco.mj_forward(airborne, data)
    mujoco.mj_forward(airborne, mirror)
    expected = np.r_[flip * data.qacc[:3], twist * data.qacc[3:6], (legs * data.qacc[6:])[swapped]]
    np.testing.assert_allclose(mirror.qacc, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_centre_of_mass_feels_the_fans_and_gravity_alone(airborne, seed):
    data = excited(airborne, seed)
    mujoco.mj_forward(airborne, data)
    mujoco.mj_rnePostConstraint(airborne, data)
    total = np.zeros(3)
    for body in range(1, airborne.nbody):
        motion = np.zeros(6)
        mujoco.mj_objectAcceleration(airborne, data, mujoco.mjtObj.mjOBJ_BODY, body, motion, 0)
        total += airborne.body_mass[body] * motion[3:]  # as an accelerometer feels it: without gravity
    axes = data.site_xmat[fan_site_ids(airborne)].reshape(4, 3, 3)[:, :, 2]
    np.testing.assert_allclose(total / 17, 49.05 * data.act @ axes / 17, atol=1e-9)


def test_momentum_stays_while_the_legs_move_without_forces():
    spec = build_spec(RobotParams(), contact=False, timestep=0.0005)
    spec.option.integrator, spec.option.gravity = mujoco.mjtIntegrator.mjINT_RK4, [0, 0, 0]
    model = spec.compile()
    data = excited(model, 3)
    data.act[:] = data.ctrl[fan_ctrl_ids(model)] = 0

    def momentum():
        mujoco.mj_forward(model, data)
        mujoco.mj_subtreeVel(model, data)
        return np.r_[17 * data.subtree_linvel[1], data.subtree_angmom[1]]

    start, angles = momentum(), data.qpos[7:].copy()
    for _ in range(400):
        mujoco.mj_step(model, data)
    assert np.abs(data.qpos[7:] - angles).max() > 0.2
    np.testing.assert_allclose(momentum(), start, atol=1e-6)


def test_fans_follow_their_command_exponentially_and_carry_the_weight_at_the_known_time(model):
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, model.key("takeoff").id)
    data.ctrl[fan_ctrl_ids(model)] = 1.0
    times, thrusts = [0.0], [0.0]
    while data.time < 0.3:
        mujoco.mj_step(model, data)
        np.testing.assert_allclose(data.act, 1 - np.exp(-data.time / 0.1), rtol=1e-11)
        times.append(data.time)
        thrusts.append(4 * 49.05 * data.act[0])
    crossing = np.interp(17 * 9.81, thrusts, times)
    assert crossing == pytest.approx(0.18971, abs=1e-5)
    assert 0.1 * np.log(1 / (1 - 0.85)) == pytest.approx(0.18971, abs=1e-5)


def test_a_fan_without_lag_pushes_at_once():
    model = build_spec(RobotParams(fan_time_constant=0.0), contact=False).compile()
    data = mujoco.MjData(model)
    data.ctrl[fan_ctrl_ids(model)] = 0.5
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(data.actuator_force[fan_actuator_ids(model)], 0.5 * 49.05, rtol=1e-12)
    assert model.na == 4


def test_swirl_turns_the_robot_about_the_fans_axes():
    model = build_spec(RobotParams(fan_yaw_moment=0.01), contact=False).compile()
    data = mujoco.MjData(model)
    data.act[:] = 1.0
    mujoco.mj_forward(model, data)
    assert data.qfrc_actuator[5] == pytest.approx(4 * 49.05 * 0.01, rel=1e-9)


@given(throttle=st.floats(-2, 3))
def test_thrust_is_linear_or_quadratic_in_the_clipped_throttle(throttle):
    clipped = min(max(throttle, 0.0), 1.0)
    assert fan_effort(np.array([throttle]), "linear") == clipped
    assert fan_effort(np.array([throttle]), "quadratic") == clipped**2


def test_the_model_remembers_its_thrust_map(model):
    assert thrust_map(model) == "linear"
    assert thrust_map(load_model(RobotParams(thrust_map="quadratic"))) == "quadratic"


@settings(deadline=None, max_examples=15)
@given(
    mass=st.floats(12.0, 40.0),
    thigh=st.floats(0.08, 0.2),
    shank=st.floats(0.15, 0.4),
    ratio=st.floats(1.01, 2.0),
)
def test_any_sound_parameters_make_a_robot_of_that_mass_and_thrust(mass, thigh, shank, ratio):
    params = RobotParams(mass=mass, thigh=thigh, shank=shank, thrust_to_weight=ratio)
    model = load_model(params)
    assert model.body_subtreemass[0] == pytest.approx(mass, rel=1e-14)
    assert fan_full_thrusts(model).sum() == pytest.approx(ratio * mass * 9.81, rel=1e-12)


@pytest.mark.parametrize("step", [0.0, -0.002, float("nan"), float("inf")])
def test_time_must_advance(step):
    with pytest.raises(ParameterError, match="timestep must be a positive number of seconds"):
        build_spec(RobotParams(), timestep=step)


def test_a_long_time_step_is_warned_of_where_servos_are_stiff():
    with pytest.warns(UserWarning, match=r"0\.006 s is long for a joint_kp of 120"):
        build_spec(RobotParams(), timestep=0.006)
    build_spec(dataclasses.replace(RobotParams(), joint_kp=60.0), timestep=0.006)


def test_legs_that_cannot_balance_are_refused():
    with pytest.raises(ModelError, match=r"no hip pitch in .* balances the robot"):
        build_spec(RobotParams(hip_pitch_range=(-0.1, 0.1)))


def test_mjcf_reads_back_as_the_same_robot(model):
    again = mujoco.MjModel.from_xml_string(to_mjcf(RobotParams()))
    for name in ("body_mass", "body_inertia", "body_ipos", "jnt_range", "dof_armature", "actuator_gainprm"):
        np.testing.assert_allclose(getattr(again, name), getattr(model, name), rtol=1e-14, atol=1e-15, err_msg=name)
    np.testing.assert_allclose(again.key_qpos, model.key_qpos, atol=1e-6)
