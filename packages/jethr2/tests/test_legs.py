"""Leg kinematics: the specification's angles, the round trip, and MuJoCo's own kinematics."""

import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jethr2 import JetHR2Error, LegGeometry, ParameterError, ReachError, RobotParams, leg_fk, leg_ik, load_model
from jethr2.layout import JOINTS, joint_qpos_ids

LEVEL = np.array([0, 0, 0.5, 1, 0, 0, 0.0])
BELOW = np.array([0, 0.1168, 0.0])
RANGES = np.array([(-0.6, 0.6), (-0.8, 0.8), (-1.6, 1.6), (0.0, 2.4), (-1.2, 1.2)])


def random_poses(count, seed=0):
    rng = np.random.default_rng(seed)
    angles = rng.uniform(*RANGES.T, (count, 5))
    base = np.concatenate([rng.normal(size=(count, 3)), rng.normal(size=(count, 4))], axis=1)
    base[:, 3:] /= np.linalg.norm(base[:, 3:], axis=1, keepdims=True)
    return base, angles


@pytest.mark.parametrize(
    ("forward", "yaw", "degrees"),
    [
        (0.0, 0.0, (0, 0, -55.14487, 73.61290, -18.46804)),
        (0.03, 0.0, (0, 0, -59.77017, 72.66959, -12.89942)),
        (0.0, 10.0, (0, 10, -55.14487, 73.61290, -18.46804)),
    ],
)
def test_angles_are_the_specifications(forward, yaw, degrees):
    sole = BELOW + np.array([forward, 0, 0])
    angles = leg_ik(LEVEL, sole, np.radians(yaw), 0.0, "left")
    np.testing.assert_allclose(np.degrees(angles), degrees, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_thousand_random_poses_are_found_again(side):
    base, angles = random_poses(3500)
    sole, yaw, pitch = leg_fk(base, angles, side)
    # Poses with the sole above the hip, or the toe turned back, are no leg's work: the hip's roll would flip.
    rotation = np.zeros((len(base), 9))
    for row, quaternion in zip(rotation, base[:, 3:], strict=True):
        mujoco.mju_quat2Mat(row, quaternion)
    hip = base[:, :3] + rotation.reshape(-1, 3, 3) @ [0, 0.1168 if side == "left" else -0.1168, 0]
    down = np.einsum("ni,nij,j->n", sole - hip, rotation.reshape(-1, 3, 3), [0, 0, -1.0])
    good = np.flatnonzero((down > 0.1) & (np.abs(angles[:, 2:].sum(axis=1)) < 1.4))[:1000]
    assert len(good) == 1000
    found = leg_ik(base[good], sole[good], yaw[good], pitch[good], side)
    again = leg_fk(base[good], found, side)
    np.testing.assert_allclose(again[0], sole[good], atol=1e-9)
    turn = np.angle(np.exp(1j * (again[1] - yaw[good])))
    np.testing.assert_allclose(turn * np.cos(pitch[good]), 0, atol=1e-9)
    np.testing.assert_allclose(again[2], pitch[good], atol=1e-9)
    np.testing.assert_allclose(found, angles[good], atol=1e-7)


@given(
    yaw=st.sampled_from([0.0, 1e-4, -1e-4, 0.3, 20.0]),
    pitch=st.sampled_from([0.0, 1e-4, -1e-4, 0.4, -0.56, 15.0]),
    across=st.sampled_from([0.0, 1e-6, -1e-6, 0.05]),
)
def test_tiny_foot_angles_are_not_dropped(yaw, pitch, across):
    sole, aim, tilt = BELOW + np.array([0.01, across, 0]), np.radians(yaw), np.radians(pitch)
    angles = leg_ik(LEVEL, sole, aim, tilt, "left")
    found = leg_fk(LEVEL, angles, "left")
    np.testing.assert_allclose(found[0], sole, atol=1e-12)
    np.testing.assert_allclose(found[1:], [aim, tilt], atol=1e-12)
    if across == 0 and yaw == 0:
        assert angles[2:].sum() == pytest.approx(np.radians(pitch), abs=1e-12)


def test_mujoco_places_the_sole_where_the_kinematics_do():
    model = load_model(RobotParams())
    data = mujoco.MjData(model)
    base, angles = random_poses(50, seed=1)
    for row, left, right in zip(base, angles, angles[::-1], strict=True):
        data.qpos[:7] = row
        data.qpos[joint_qpos_ids(model)] = np.r_[left, right]
        mujoco.mj_kinematics(model, data)
        for side, joints in (("left", left), ("right", right)):
            foot = data.body(f"{side}_foot")
            axes = foot.xmat.reshape(3, 3)
            sole, yaw, pitch = leg_fk(row, joints, side)
            np.testing.assert_allclose(sole, foot.xpos - 0.1 * axes[:, 2], atol=1e-12)
            np.testing.assert_allclose(np.sin(pitch), -axes[2, 0], atol=1e-12)
            np.testing.assert_allclose(
                [np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw)], axes[:2, 0], atol=1e-12
            )
    assert JOINTS[:5] == tuple(f"left_{name}" for name in ("hip_roll", "hip_yaw", "hip_pitch", "knee", "ankle_pitch"))


def test_a_batch_is_its_rows():
    base, angles = random_poses(8, seed=2)
    angles[:, 2:] = np.array([-0.6, 0.8, -0.2]) + 0.1 * angles[:, 2:]
    sole, yaw, pitch = leg_fk(base, angles, "right")
    batch = leg_ik(base, sole, yaw, pitch, "right")
    for i in range(8):
        np.testing.assert_array_equal(batch[i], leg_ik(base[i], sole[i], yaw[i], pitch[i], "right"))


def test_a_straight_leg_is_within_reach():
    angles = leg_ik(LEVEL, BELOW - [0, 0, 0.059], 0.0, 0.0, "left")
    np.testing.assert_allclose(angles, 0, atol=1e-6)


def test_out_of_reach_says_how_far():
    with pytest.raises(ReachError, match=r"0\.4180 m from the hip, and the leg reaches 0\.3770 m") as caught:
        leg_ik(LEVEL, BELOW - [0, 0, 0.1], 0.0, 0.0, "left")
    assert caught.value.distance == pytest.approx(0.418, abs=1e-12)
    assert caught.value.limit == pytest.approx(0.377, abs=1e-12)
    with pytest.raises(ReachError) as caught:
        leg_ik(LEVEL, BELOW + np.array([0, 0, 0.2]), 0.0, 0.0, "left")
    assert caught.value.limit == pytest.approx(0.167, abs=1e-12)
    assert isinstance(caught.value, JetHR2Error)


def test_what_is_no_pose_is_refused():
    zero = 0.0
    with pytest.raises(ParameterError, match="base must be a position and a quaternion wxyz that is not 0"):
        leg_ik(np.zeros(7), BELOW, zero, zero, "left")
    with pytest.raises(ParameterError, match="sole must be finite"):
        leg_ik(LEVEL, np.array([0, np.nan, 0]), zero, zero, "left")
    with pytest.raises(ParameterError, match="with the toe less than 90 degrees from forward"):
        leg_ik(LEVEL, BELOW, np.pi, zero, "left")


def test_lengths_come_from_the_robot():
    params = RobotParams(thigh=0.2, shank=0.25, half_hip=0.1)
    geometry = LegGeometry.from_params(params)
    angles = np.array([0.1, 0.2, -0.5, 0.9, -0.3])
    sole, yaw, pitch = leg_fk(LEVEL, angles, "right", geometry)
    np.testing.assert_allclose(leg_ik(LEVEL, sole, yaw, pitch, "right", geometry), angles, atol=1e-12)
    model = load_model(params)
    data = mujoco.MjData(model)
    data.qpos[:7], data.qpos[12:] = LEVEL, angles
    mujoco.mj_kinematics(model, data)
    foot = data.body("right_foot")
    np.testing.assert_allclose(sole, foot.xpos - 0.1 * foot.xmat.reshape(3, 3)[:, 2], atol=1e-12)
