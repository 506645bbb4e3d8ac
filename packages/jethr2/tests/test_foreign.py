"""Other robots with four fans: what is completed, what is refused, what is never read."""

import mujoco
import numpy as np
import pytest

from jethr2 import InfeasibleThrust, ModelError, RobotParams, authority, linearize, load_model, takeoff_trim, to_urdf
from jethr2.foreign import load_foreign
from jethr2.layout import (
    JOINTS,
    SENSORS,
    fan_act_ids,
    fan_ctrl_ids,
    fan_full_thrusts,
    joint_ctrl_ids,
    joint_names,
    sensor_columns,
    thrust_map,
)
from jethr2.robot import to_mjcf

QUADRUPED_OF_FANS = """
<mujoco model="tilter">
  <worldbody>
    <body name="hull" pos="0 0 1"><freejoint/>
      <geom type="box" size=".2 .2 .05" mass="4"/><geom type="box" size=".05 .05 .02" pos=".1 0 .06" mass="1"/>
      <site name="imu"/><site name="front_fan" pos=".3 0 0"/><site name="back_fan" pos="-.3 0 0"/>
      <body name="l" pos="0 .3 0"><joint name="left_tilt" axis="0 1 0" range="-40 40"/><geom size=".05" mass=".3"/>
        <site name="left_fan"/></body>
      <body name="r" pos="0 -.3 0"><joint name="right_tilt" axis="0 1 0"/><geom size=".05" mass=".3"/>
        <site name="right_fan"/></body>
    </body>
  </worldbody>
  {extra}
</mujoco>
"""


@pytest.fixture
def written(tmp_path):
    def write(text, name="robot.xml"):
        file = tmp_path / name
        file.write_text(text)
        return file

    return write


def tilter(extra="", old="", new=""):
    text = QUADRUPED_OF_FANS.replace("{extra}", extra)
    assert old in text
    return text.replace(old, new)


def test_a_robot_without_drives_and_sensors_gets_them(written):
    model = load_model(written(tilter()))
    assert joint_names(model) == ("left_tilt", "right_tilt")
    np.testing.assert_array_equal(model.actuator_gainprm[joint_ctrl_ids(model), 0], 120.0)
    np.testing.assert_allclose(fan_full_thrusts(model), 49.05)
    assert fan_act_ids(model).tolist() == [0, 1, 2, 3]
    assert sensor_columns(model) == {
        "quat": slice(0, 4),
        "gyro": slice(4, 7),
        "accel": slice(7, 10),
        "pos": slice(10, 13),
        "vel": slice(13, 16),
        "joint_pos": slice(16, 18),
        "joint_vel": slice(18, 20),
        "touch": slice(0, 0),
    }
    assert thrust_map(model) == "linear"
    assert model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_AUTORESET


def test_its_trim_balances_a_centre_of_mass_that_is_off(written):
    """The payload sits forward: front and back throttles differ, the weight is carried, moments vanish."""
    model = load_model(written(tilter()))
    trim = takeoff_trim(model)
    thrusts = 49.05 * trim.ctrl[fan_ctrl_ids(model)]
    assert thrusts.sum() == pytest.approx(5.6 * 9.81, rel=1e-12)
    np.testing.assert_allclose(np.cross(trim.fan_arms, np.outer(thrusts, [0, 0, 1.0])).sum(axis=0), 0, atol=1e-12)
    assert thrusts[0] > thrusts[1] > 0
    assert trim.com[0] == pytest.approx(0.1 / 5.6, rel=1e-12)
    assert trim.base_height == pytest.approx(0.05 + 1e-4, abs=1e-12)
    assert np.isnan(trim.knee)
    assert len(authority(model, trim)) == 6
    assert linearize(model, trim)[0].shape == (2 * 8 + 4, 2 * 8 + 4)


def test_a_robots_own_drives_are_kept_under_the_names_of_their_targets(written):
    extra = """<actuator>
      <position name="servo" joint="right_tilt" kp="7" kv="1"/>
      <general name="edf" site="front_fan" gear="0 0 2 0 0 0" gainprm="30" ctrlrange="0 1" ctrllimited="true"/>
    </actuator><sensor><gyro name="mine" site="imu"/></sensor>"""
    model = load_foreign(written(tilter(extra)), RobotParams(joint_kp=33.0, fan_max_thrust=42.0))
    assert model.actuator_gainprm[joint_ctrl_ids(model), 0].tolist() == [33.0, 7.0]
    assert fan_full_thrusts(model).tolist() == [60.0, 42.0, 42.0, 42.0]
    assert model.sensor("mine").dim[0] == 3
    assert sensor_columns(model)["quat"] == slice(3, 7)


def test_the_biped_reads_back_from_its_own_files(written):
    own = load_model(RobotParams(thrust_map="quadratic"))
    for file in (written(to_mjcf(RobotParams(thrust_map="quadratic"))), written(to_urdf(own), "robot.urdf")):
        model = load_model(file)
        assert joint_names(model) == JOINTS
        assert {**sensor_columns(model), "touch": None} == {**SENSORS, "touch": None}
        assert takeoff_trim(model).hip_pitch == pytest.approx(takeoff_trim(own).hip_pitch, abs=1e-6)
        np.testing.assert_array_equal(fan_ctrl_ids(model), fan_ctrl_ids(own))
        assert model.body_subtreemass[0] == pytest.approx(17.0, abs=1e-9)
        assert model.nbody == 12  # the links that stand for sites are no bodies
    assert thrust_map(load_model(written(to_mjcf(RobotParams(thrust_map="quadratic"))))) == "quadratic"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('name="left_fan"', 'name="port_fan"', "has no site left_fan; sites needed are front_fan, back_fan"),
        ('<site name="imu"/>', "", "has no site imu"),
        ('joint name="left_tilt" ', "joint ", "a joint of body l has no name"),
        ('name="left_tilt" axis', 'type="slide" name="left_tilt" axis', "joint left_tilt is no hinge"),
        ("<freejoint/>", "", "its first joint must be its root's free joint"),
        ('mass="4"', 'mass="-4"', "robot.xml"),
        ('mass="4"', 'mass="nan"', "mass of <geom> must be finite, got 'nan'"),
        ('pos="0 .3 0"', 'pos="0 inf 0"', "pos of <body> must be finite, got '0 inf 0'"),
        ('range="-40 40"', 'range="40 -40"', "the range of joint left_tilt is reversed"),
        (
            '<geom type="box" size=".2 .2 .05" mass="4"/>',
            '<inertial pos="0 0 0" mass="4" diaginertia="1 1 3"/>',
            "A \\+ B >= C",
        ),
        ("<mujoco", "<!DOCTYPE x [<!ENTITY a 'b'>]><mujoco", "declares a document type"),
        ('<mujoco model="tilter">', '<scene model="tilter">', "is not XML"),
        ("</worldbody>", '</worldbody><extension><plugin plugin="mujoco.pid"/></extension>', "plugins are not loaded"),
    ],
)
def test_files_that_lack_what_is_needed_are_refused_in_one_line(written, old, new, complaint):
    file = written(tilter(old=old, new=new))
    with pytest.raises(ModelError, match=complaint) as caught:
        load_model(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_entities_cannot_hide_in_another_encoding(tmp_path):
    file = tmp_path / "robot.xml"
    file.write_bytes("<!DOCTYPE x [<!ENTITY a 'b'>]><mujoco/>".encode("utf-16"))
    with pytest.raises(ModelError, match="is not XML in UTF-8"):
        load_model(file)


@pytest.mark.parametrize(
    ("drive", "complaint"),
    [
        ('<motor joint="left_tilt"/>', "actuator of joint left_tilt is no position servo"),
        ('<position joint="left_tilt"/><velocity joint="left_tilt"/>', "2 actuators drive left_tilt"),
        ('<motor site="back_fan" gear="1 0 0 0 0 0" ctrlrange="0 1" ctrllimited="true"/>', "back_fan must push along"),
        ('<motor site="back_fan" gear="0 0 1 0 0 0" ctrlrange="0 50" ctrllimited="true"/>', "ctrlrange of 0 to 1"),
        ('<motor site="back_fan" refsite="imu" gear="0 0 1 0 0 0" ctrlrange="0 1"/>', "back_fan must push along"),
    ],
)
def test_drives_that_the_controller_cannot_use_are_refused(written, drive, complaint):
    with pytest.raises(ModelError, match=complaint):
        load_model(written(tilter(f"<actuator>{drive}</actuator>")))


def test_an_actuator_with_several_inputs_is_refused(written):
    drive = '<general joint="left_tilt" dyntype="pid" dynprm="0" gaintype="pid" biastype="affine" biasprm="0 -1 -1"/>'
    text = tilter(f"<actuator>{drive}</actuator>")
    assert mujoco.MjModel.from_xml_string(text).nu == 2
    with pytest.raises(ModelError, match="actuator left_tilt has several inputs, one is needed"):
        load_model(written(text))


def test_a_robot_heavier_than_its_thrust_is_warned_of(written):
    with pytest.warns(
        InfeasibleThrust, match=r"robot\.xml: a full thrust of 196\.20 N cannot lift a weight of 250\.16 N"
    ):
        load_model(written(tilter(old='mass="4"', new='mass="23.9"')))


@pytest.mark.parametrize("text", ["", "<mujoco><worldbody>", "\x00\x01"])
def test_empty_and_cut_files_are_no_xml(written, text):
    with pytest.raises(ModelError, match="is not XML"):
        load_model(written(text))


def test_a_missing_file_and_a_folder_cannot_be_read(tmp_path):
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        load_model(tmp_path / "none.xml")
    with pytest.raises(ModelError, match="cannot be read: Is a directory"):
        load_model(str(tmp_path))


def test_another_kind_of_xml_is_named(written):
    with pytest.raises(ModelError, match="neither MJCF nor URDF: its root is <svg>"):
        load_model(written("<svg/>"))


@pytest.mark.parametrize(
    "extra",
    [
        '<asset><mesh name="m" file="{outside}"/></asset>',
        '<asset><mesh name="m" file="../outside.obj"/></asset>',
        '<compiler meshdir=".."/><asset><mesh name="m" file="outside.obj"/></asset>',
        '<asset><mesh name="m" file="link.obj"/></asset>',
        '<include file="inner.xml"/>',
        '<asset><texture name="t" type="cube" fileright="../outside.png"/></asset>',
    ],
)
def test_nothing_outside_the_files_folder_is_read(tmp_path, extra):
    folder, outside = tmp_path / "robot", tmp_path / "outside.obj"
    folder.mkdir()
    outside.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\nf 1 3 4\nf 2 3 4\n")
    (folder / "link.obj").symlink_to(outside)
    (folder / "inner.xml").write_text('<mujoco><asset><mesh name="m" file="../outside.obj"/></asset></mujoco>')
    file = folder / "robot.xml"
    file.write_text(tilter(extra.format(outside=outside)))
    with pytest.raises(ModelError, match="outside its folder"):
        load_model(file)


def test_meshes_and_parts_within_the_folder_are_read(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "m.obj").write_text(
        "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
    )
    (tmp_path / "inner.xml").write_text(
        '<mujoco><compiler meshdir="parts"/><asset><mesh name="m" file="m.obj"/></asset></mujoco>'
    )
    file = tmp_path / "robot.xml"
    file.write_text(tilter('<include file="inner.xml"/>'))
    assert load_model(file).nmesh == 1


def test_a_urdf_link_without_inertial_is_named(written):
    text = to_urdf(load_model(RobotParams()))
    start = text.index("<inertial>", text.index('name="left_thigh"'))
    cut = text[:start] + text[text.index("</inertial>", start) + len("</inertial>") :]
    with pytest.raises(ModelError, match="link left_thigh has no inertial with mass and inertia"):
        load_model(written(cut, "robot.urdf"))
