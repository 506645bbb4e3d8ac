"""Names of the robot's parts and where the compiled model keeps them; nothing is found by its number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from jethr2.errors import ModelError

if TYPE_CHECKING:
    import mujoco

FANS = ("front", "back", "left", "right")
"""Order of fans everywhere: two on the waist, two on the feet; the sites and actuators are named `front_fan` etc."""

SIDES = ("left", "right")
LEG_JOINTS = ("hip_roll", "hip_yaw", "hip_pitch", "knee", "ankle_pitch")
JOINTS = tuple(f"{side}_{joint}" for side in SIDES for joint in LEG_JOINTS)

IMU_SENSORS = {"imu_quat": 4, "imu_gyro": 3, "imu_accel": 3, "imu_pos": 3, "imu_vel": 3}
"""Sensors of the IMU's site and their widths: attitude wxyz, body rate, specific force, position and velocity (world)."""

SENSORS = {
    "quat": slice(0, 4),
    "gyro": slice(4, 7),
    "accel": slice(7, 10),
    "pos": slice(10, 13),
    "vel": slice(13, 16),
    "joint_pos": slice(16, 26),
    "joint_vel": slice(26, 36),
    "touch": slice(36, 38),
}
"""Columns of the biped's `sensordata`, 38 in all; `sensor_columns` finds them in any model."""


def joint_names(model: mujoco.MjModel) -> tuple[str, ...]:
    """Names of the hinges in the model's order; of the biped: `JOINTS`."""
    import mujoco

    hinges = [model.joint(j) for j in range(model.njnt) if model.jnt_type[j] == mujoco.mjtJoint.mjJNT_HINGE]
    return tuple(joint.name for joint in hinges)


def joint_qpos_ids(model: mujoco.MjModel) -> Int[np.ndarray, " joints"]:
    """Where `qpos` holds the hinges' angles."""
    return np.array([model.jnt_qposadr[model.joint(name).id] for name in joint_names(model)], dtype=np.int64)


def joint_dof_ids(model: mujoco.MjModel) -> Int[np.ndarray, " joints"]:
    """Where `qvel` holds the hinges' rates."""
    return np.array([model.jnt_dofadr[model.joint(name).id] for name in joint_names(model)], dtype=np.int64)


def joint_ctrl_ids(model: mujoco.MjModel) -> Int[np.ndarray, " joints"]:
    """Where `ctrl` takes the hinges' reference angles."""
    return np.array([_ctrl_id(model, name) for name in joint_names(model)], dtype=np.int64)


def fan_ctrl_ids(model: mujoco.MjModel) -> Int[np.ndarray, " 4"]:
    """Where `ctrl` takes the fans' throttles."""
    return np.array([_ctrl_id(model, f"{fan}_fan") for fan in FANS], dtype=np.int64)


def fan_act_ids(model: mujoco.MjModel) -> Int[np.ndarray, " 4"]:
    """Where `act` holds the fans' states."""
    ids = [model.actuator_actadr[_actuator(model, f"{fan}_fan")] for fan in FANS]
    if min(ids) < 0:
        raise ModelError(f"actuator {FANS[int(np.argmin(ids))]}_fan has no state")
    return np.array(ids, dtype=np.int64)


def fan_actuator_ids(model: mujoco.MjModel) -> Int[np.ndarray, " 4"]:
    """The fans' actuators."""
    return np.array([_actuator(model, f"{fan}_fan") for fan in FANS], dtype=np.int64)


def fan_full_thrusts(model: mujoco.MjModel) -> Float[np.ndarray, " 4"]:
    """Thrust of each fan at full throttle, N."""
    fans = fan_actuator_ids(model)
    return model.actuator_gainprm[fans, 0] * model.actuator_gear[fans, 2]


def thrust_map(model: mujoco.MjModel) -> str:
    """`linear` or `quadratic`, as the parameters that built the model had it; another robot's is linear."""
    import mujoco

    text = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_TEXT, "thrust_map")
    if text < 0:
        return "linear"
    start = model.text_adr[text]
    return bytes(model.text_data[start : start + model.text_size[text]]).rstrip(b"\0").decode()


def fan_site_ids(model: mujoco.MjModel) -> Int[np.ndarray, " 4"]:
    """The sites along whose z axes the fans push.

    Raises:
        ModelError: the model lacks one.
    """
    import mujoco

    ids = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, f"{fan}_fan") for fan in FANS]
    for fan, site in zip(FANS, ids, strict=True):
        if site < 0:
            raise ModelError(f"the model has no site {fan}_fan")
    return np.array(ids, dtype=np.int64)


def pitch_chain(model: mujoco.MjModel, side: str) -> tuple[str, ...]:
    """The hinges about the body's y axis between the root and a foot's fan, root first; the last turns the foot.

    Args:
        model: with its root level in the reference pose.
        side: `left` or `right`.

    Raises:
        ModelError: such a hinge turns about -y.
    """
    import mujoco

    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    names: list[str] = []
    body = model.site_bodyid[fan_site_ids(model)[FANS.index(side)]]
    while body > 0:
        for j in reversed(range(model.body_jntadr[body], model.body_jntadr[body] + model.body_jntnum[body])):
            if model.jnt_type[j] != mujoco.mjtJoint.mjJNT_HINGE or abs(data.xaxis[j, 1]) < 0.99:
                continue
            if data.xaxis[j, 1] < 0:
                raise ModelError(f"joint {model.joint(j).name} must turn about +y, it turns about -y")
            names.insert(0, model.joint(j).name)
        body = model.body_parentid[body]
    return tuple(names)


def sensor_columns(model: mujoco.MjModel) -> dict[str, slice]:
    """Columns of `sensordata` by the names of `SENSORS`; `touch` is empty for a robot without such sensors.

    Raises:
        ModelError: a sensor is missing, or the joints' sensors do not stand side by side; `load_model` adds both.
    """
    import mujoco

    joints = joint_names(model)
    groups = {name.removeprefix("imu_"): [name] for name in IMU_SENSORS}
    groups["joint_pos"] = [f"{joint}_pos" for joint in joints]
    groups["joint_vel"] = [f"{joint}_vel" for joint in joints]
    touch = [f"{side}_touch" for side in SIDES]
    groups["touch"] = [name for name in touch if mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SENSOR, name) >= 0]
    return {group: _columns(model, names) for group, names in groups.items()}


def _columns(model: mujoco.MjModel, names: list[str]) -> slice:
    import mujoco

    start = stop = None
    for name in names:
        sensor = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SENSOR, name)
        if sensor < 0 or stop not in (None, model.sensor_adr[sensor]):
            raise ModelError(f"the model has no sensor {name}" if sensor < 0 else f"sensor {name} is out of its place")
        start = int(model.sensor_adr[sensor]) if start is None else start
        stop = int(model.sensor_adr[sensor] + model.sensor_dim[sensor])
    return slice(start or 0, stop or 0)


def _ctrl_id(model: mujoco.MjModel, name: str) -> int:
    return int(model.actuator_ctrladr[_actuator(model, name)])


def _actuator(model: mujoco.MjModel, name: str) -> int:
    import mujoco

    actuator = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_ACTUATOR, name)
    if actuator < 0:
        raise ModelError(f"the model has no actuator {name}")
    return actuator
