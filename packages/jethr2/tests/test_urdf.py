"""URDF: MuJoCo reads back the same body, and what URDF cannot say is refused."""

from xml.etree import ElementTree

import mujoco
import numpy as np
import pytest

from jethr2 import ModelError, RobotParams, load_model, to_urdf
from jethr2.layout import JOINTS, fan_site_ids, joint_qpos_ids


def mass_matrix(model, qpos):
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    inverse = np.zeros((model.nv, model.nv))
    mujoco.mj_solveM(model, data, inverse, np.eye(model.nv))
    return np.linalg.inv(inverse)


@pytest.fixture(scope="module")
def robot():
    return load_model(RobotParams(joint_armature=0.0))


@pytest.fixture(scope="module")
def again(robot, tmp_path_factory):
    file = tmp_path_factory.mktemp("urdf") / "robot.urdf"
    file.write_text(to_urdf(robot))
    return load_model(file)


@pytest.mark.parametrize("seed", range(3))
def test_the_mass_matrix_survives(robot, again, seed):
    rng = np.random.default_rng(seed)
    qpos = robot.key("takeoff").qpos.copy()
    qpos[3:7] = rng.normal(size=4)
    qpos[3:7] /= np.linalg.norm(qpos[3:7])
    qpos[7:] += rng.uniform(-0.4, 0.4, 10)
    np.testing.assert_allclose(mass_matrix(again, qpos), mass_matrix(robot, qpos), rtol=0, atol=1e-9)


def test_fans_and_imu_stay_where_they_are(robot, again):
    places = []
    for model in (robot, again):
        data = mujoco.MjData(model)
        data.qpos[:3], data.qpos[joint_qpos_ids(model)] = 0, np.linspace(-0.2, 0.3, 10)
        mujoco.mj_kinematics(model, data)
        places.append(np.r_[data.site_xpos[fan_site_ids(model)], [data.site("imu").xpos]])
    np.testing.assert_allclose(places[1], places[0], atol=1e-12)


def test_joints_keep_ranges_effort_and_damping():
    root = ElementTree.fromstring(to_urdf(load_model(RobotParams())))
    joints = {joint.get("name"): joint for joint in root.iter("joint") if joint.get("type") == "revolute"}
    assert set(joints) == set(JOINTS)
    limit = joints["left_knee"].find("limit").attrib
    assert {key: float(value) for key, value in limit.items()} == {
        "lower": -0.2,
        "upper": 2.4,
        "effort": 36,
        "velocity": 72,
    }
    assert float(joints["left_knee"].find("dynamics").get("damping")) == 0.5


def test_masses_changed_after_the_build_are_written(robot):
    spec_model = load_model(RobotParams())
    spec_model.body_mass[spec_model.body("base").id] += 0.25
    spec_model.body_ipos[spec_model.body("base").id] += [0.003, 0.004, 0]
    link = ElementTree.fromstring(to_urdf(spec_model)).find("link[@name='base']/inertial")
    assert float(link.find("mass").get("value")) == 10.25
    assert link.find("origin").get("xyz").split()[:2] == ["0.003", "0.004"]


def test_turned_bodies_and_shapes_survive():
    """Origins turn by fixed axes, straight up included; tensors are written in the link's axes."""
    model = mujoco.MjModel.from_xml_string("""
<mujoco><compiler angle="degree"/><worldbody><body name="base"><freejoint/><geom type="sphere" size=".1" mass="1"/>
<site name="front_fan" euler="10 20 30"/><site name="back_fan"/><site name="left_fan"/><site name="right_fan"/><site name="imu"/>
<body name="arm" pos=".1 .2 .3" euler="20 90 40"><joint name="elbow" axis="1 2 3"/>
<geom type="capsule" size=".02 .1" euler="30 40 50" mass=".5"/><geom type="box" size=".1 .2 .3" pos=".1 0 0" mass="2"/></body>
<body name="tail" pos="0 0 1" euler="0 -90 5"><joint name="rail" type="slide" axis="0 0 1" range="-1 2"/>
<geom type="cylinder" size=".1 .2" mass="1" euler="0 45 0"/></body></body></worldbody></mujoco>""")
    spec = mujoco.MjSpec.from_string(to_urdf(model))
    spec.compiler.fusestatic = False
    spec.body("base").add_freejoint()
    again = spec.compile()
    qpos = np.r_[0, 0, 0, 1, 0, 0, 0, 0.7, 0.3]
    assert [again.joint(j).name for j in (1, 2)] == ["elbow", "rail"]
    np.testing.assert_allclose(mass_matrix(again, qpos), mass_matrix(model, qpos), atol=1e-12)


@pytest.mark.parametrize(
    ("body", "extra", "complaint"),
    [
        ('<joint name="j" pos="0 0 1"/><geom size=".1"/>', "", "joint j lies beside the origin of body arm"),
        ('<joint name="j"/><joint name="k" axis="1 0 0"/><geom size=".1"/>', "", "body arm moves by more than one"),
        ('<joint name="j" type="ball"/><geom size=".1"/>', "", "body arm moves by more than one hinge or slide"),
        ('<geom type="ellipsoid" size=".1 .2 .3"/>', "", "of arm is no box, sphere, cylinder or capsule"),
        ('<geom size=".1"/>', '<equality><weld body1="base" body2="arm"/></equality>', "no equality constraints"),
        ('<geom size=".1"/><body><geom size=".1"/></body>', "", "body 3 has no name"),
    ],
)
def test_what_urdf_cannot_say_is_refused(body, extra, complaint):
    model = mujoco.MjModel.from_xml_string(
        f'<mujoco><worldbody><body name="base"><freejoint/><geom size=".1"/><body name="arm">{body}</body></body>'
        f"</worldbody>{extra}</mujoco>"
    )
    with pytest.raises(ModelError, match=complaint):
        to_urdf(model)
