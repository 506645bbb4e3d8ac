"""Sensitivities: the specification's figures, the small-angle model, MuJoCo's own forces."""

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jethr2 import ErrorParams, ModelError, RobotParams, authority, build_spec, load_model, takeoff_trim
from jethr2.layout import JOINTS
from jethr2.wrenches import error_budget, fan_wrench, required_authority

DEGREE = np.pi / 180


@pytest.fixture(scope="module")
def model():
    return load_model(RobotParams())


@pytest.fixture(scope="module")
def trim(model):
    return takeoff_trim(model)


def test_sensitivities_are_the_specifications(model, trim):
    rows = {row.change: np.r_[row.force, row.moment] for row in authority(model, trim)}
    assert len(rows) == 7
    assert rows["both feet +1 deg"][[0, 4]] == pytest.approx([1.7121, -0.67636], abs=5e-5)
    assert rows["both feet +1 deg"][4] == pytest.approx(-0.67636, abs=5e-6)
    assert rows["left foot +1 deg, right foot -1 deg"][5] == pytest.approx(-0.19997, abs=5e-6)
    assert rows["both hip rolls +1 deg"][1] == pytest.approx(-1.7121, abs=5e-5)
    assert rows["both hip rolls +1 deg"][3] == pytest.approx(-0.22938, abs=6e-6)  # -0.229385
    assert rows["front fan -10 %"][4] == pytest.approx(0.70017, abs=5e-6)
    assert rows["back fan -10 %"][4] == pytest.approx(-0.77133, abs=6e-6)
    assert rows["left fan -10 %"][3] == pytest.approx(-0.57290, abs=6e-6)
    assert rows["right fan -10 %"][3] == pytest.approx(0.57290, abs=6e-6)
    for fan in ("front", "back", "left", "right"):
        assert rows[f"{fan} fan -10 %"][2] == pytest.approx(-4.905, abs=1e-9)


def test_sensitivities_have_closed_forms(model, trim):
    """To 1e-6, from arms and angles alone; the fan moves 40 mm below its axis and takes the centre of mass along."""
    rows = {row.change: np.r_[row.force, row.moment] for row in authority(model, trim)}
    F, (x, _, z), D = 49.05, trim.fan_arms[2], 0.1168
    shift = 0.04 * np.array([1 - np.cos(DEGREE), np.sin(DEGREE)])  # up and back
    com = np.array([2 * 0.9 * -shift[1] / 17, 2 * 0.9 * shift[0] / 17])
    arm_x, arm_z = x - shift[1] - com[0], z + shift[0] - com[1]
    feet = 2 * F * (arm_z * np.sin(DEGREE) - arm_x * np.cos(DEGREE))
    waist = F * (-(trim.fan_arms[0, 0] - com[0]) - (trim.fan_arms[1, 0] - com[0]))
    assert rows["both feet +1 deg"][0] == pytest.approx(2 * F * np.sin(DEGREE), abs=1e-9)
    assert rows["both feet +1 deg"][4] == pytest.approx(feet + waist, abs=1e-6)
    assert rows["left foot +1 deg, right foot -1 deg"][5] == pytest.approx(-2 * F * D * np.sin(DEGREE), abs=1e-6)
    assert rows["left fan -10 %"][3] == pytest.approx(-0.1 * F * D, abs=1e-9)
    assert rows["front fan -10 %"][4] == pytest.approx(0.1 * F * trim.fan_arms[0, 0], abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_the_wrench_is_what_mujoco_applies(model, trim, data):
    """Force on the free joint, and its moment moved from the base's origin to the centre of mass."""
    angles = data.draw(st.lists(st.floats(-0.3, 0.3), min_size=10, max_size=10))
    throttle = np.array(data.draw(st.lists(st.floats(0, 1), min_size=4, max_size=4)))
    offsets = dict(zip(JOINTS, angles, strict=True))
    found = fan_wrench(model, trim, throttle, offsets)
    state = mujoco.MjData(model)
    state.qpos[:] = trim.qpos
    state.qpos[7:] += angles
    state.act[:] = throttle
    mujoco.mj_forward(model, state)
    force = state.qfrc_actuator[:3]
    moment = state.qfrc_actuator[3:6] - np.cross(state.subtree_com[0] - state.qpos[:3], force)
    np.testing.assert_allclose(found, np.r_[force, moment], atol=1e-10)


def test_small_feet_angles_follow_the_simplified_model(model, trim):
    """Section 2.3 with the lever that the moving fan leaves: M_y = -2 F L' a_s, M_z = -2 F D a_d."""
    full, small = np.ones(4), 1e-5
    start = fan_wrench(model, trim, full)
    turned = fan_wrench(model, trim, full, {"left_ankle_pitch": 2 * small, "right_ankle_pitch": 0.0}) - start
    lever = 0.42664625 - 0.04 + 2 * 0.04 * 2 * 0.9 / 17  # the fans' own 40 mm, and the centre of mass that follows
    assert turned[0] == pytest.approx(2 * 49.05 * small, rel=1e-6)
    assert turned[5] == pytest.approx(-2 * 49.05 * 0.1168 * small, rel=1e-3)
    assert turned[4] == pytest.approx(-2 * 49.05 * lever * small, rel=1e-3)


def test_an_error_budget_adds_up(model, trim):
    rows = {row.source: row for row in error_budget(model, trim, ErrorParams())}
    assert rows["centre of mass"].moment == pytest.approx((0.005 * 196.2, 0.005 * 196.2, 0), abs=1e-12)
    assert rows["fan gain"].moment[0] == pytest.approx(0.03 * 49.05 * 0.1168 * np.sqrt(2), rel=1e-9)
    assert rows["hip yaw zero"].moment == pytest.approx((0, 0, 0), abs=1e-12)
    parts = np.array([row.moment for name, row in rows.items() if name != "all"])
    np.testing.assert_allclose(rows["all"].moment, np.sqrt((parts**2).sum(axis=0)), rtol=1e-12)
    # 1 mm of the centre of mass costs 0.29 degrees of the feet: F d / (2 F_fan L').
    assert np.degrees(rows["centre of mass"].foot_angle_sym) / 5 == pytest.approx(0.29, abs=0.001)
    # A degree of one ankle's zero is a degree of that foot: as many degrees of opposite angle for the pair's root mean.
    assert rows["ankle pitch zero"].foot_angle_diff == pytest.approx(ErrorParams().joint_zero_sd / np.sqrt(2), rel=1e-3)


def test_the_demand_cancels_the_moment(model, trim):
    """Turning the feet by the budget's angle undoes a shift of the centre of mass."""
    row = error_budget(model, trim, ErrorParams(com_shift_sd=0.001))[0]
    ankles = dict.fromkeys(("left_ankle_pitch", "right_ankle_pitch"), row.foot_angle_sym)
    change = fan_wrench(model, trim, np.ones(4), ankles) - fan_wrench(model, trim, np.ones(4))
    assert -change[4] == pytest.approx(row.moment[1], rel=0.01)


def test_vectoring_keeps_the_lift_that_differential_thrust_loses(model, trim):
    ratios = np.array([1.05, 1.1, 20 / 17, 1.3])
    chart = required_authority(model, trim, ErrorParams(), ratios)
    assert (chart["vectoring_margin"] > chart["differential_margin"]).all()
    assert (np.diff(chart["vectoring_margin"]) > 0).all()
    none = required_authority(model, trim, ErrorParams(), ratios, sigmas=0.0)
    np.testing.assert_allclose(none["vectoring_margin"], ratios - 1, atol=1e-12)
    np.testing.assert_allclose(none["differential_margin"], ratios - 1, atol=1e-12)
    assert chart["sym_share"][0] == pytest.approx(3 * 1.9754 / 15, abs=1e-3)


def test_a_robot_without_feet_has_no_rows_for_them():
    spec = build_spec(RobotParams())
    for side in ("left", "right"):
        for joint in ("hip_roll", "hip_pitch", "knee", "ankle_pitch"):
            name = f"{side}_{joint}"
            spec.delete(spec.actuator(name))
            for suffix in ("pos", "vel"):
                spec.delete(spec.sensor(f"{name}_{suffix}"))
            spec.delete(spec.joint(name))
    for key in list(spec.keys):
        spec.delete(key)
    model = spec.compile()
    trim = takeoff_trim(model)
    assert [row.change for row in authority(model, trim)] == [
        f"{fan} fan -10 %" for fan in ("front", "back", "left", "right")
    ]
    with pytest.raises(ModelError, match="no hinges about y that turn its feet"):
        error_budget(model, trim, ErrorParams())
