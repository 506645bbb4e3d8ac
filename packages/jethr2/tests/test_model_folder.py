"""The exported folder is the same robot."""

import dataclasses

import mujoco
import numpy as np

from jethr2 import RobotParams, load_model
from jethr2.layout import fan_ctrl_ids
from jethr2.model_folder import write_model_folder


def test_the_exported_scene_takes_off_as_the_robot_does(tmp_path):
    params = RobotParams(fan_max_thrust=55.0)
    write_model_folder(params, tmp_path)
    ends = []
    for model in (load_model(params), mujoco.MjModel.from_xml_path(str(tmp_path / "scene.xml"))):
        data = mujoco.MjData(model)
        mujoco.mj_resetDataKeyframe(model, data, model.key("takeoff").id)
        data.ctrl[fan_ctrl_ids(model)] = 1.0
        for _ in range(250):
            mujoco.mj_step(model, data)
        ends.append(data.qpos.copy())
    assert ends[0][2] > 0.6
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-5)  # keyframes are written with 7 digits


def test_the_scene_loads_as_any_other_robot(tmp_path):
    write_model_folder(RobotParams(), tmp_path)
    model = load_model(tmp_path / "scene.xml")
    assert (model.nq, model.nu, model.body_subtreemass[0]) == (17, 14, 17.0)


def test_every_parameter_is_listed_with_its_source(tmp_path):
    write_model_folder(RobotParams(joint_kp=110.0), tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "| joint_kp | 110.0 | N m/rad | L |" in text
    assert all(f"| {field.name} |" in text for field in dataclasses.fields(RobotParams))


def test_the_licence_lies_beside_the_model(tmp_path):
    write_model_folder(RobotParams(), tmp_path)
    assert "Apache License" in (tmp_path / "LICENSE").read_text()
