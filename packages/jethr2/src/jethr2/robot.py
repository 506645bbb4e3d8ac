"""The biped as a MuJoCo model (section 2.1)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jethr2.errors import ModelError, ParameterError
from jethr2.layout import (
    FANS,
    IMU_SENSORS,
    JOINTS,
    LEG_JOINTS,
    SENSORS,
    SIDES,
    fan_ctrl_ids,
    joint_ctrl_ids,
    sensor_columns,
)
from jethr2.params import RobotParams
from jethr2.posture import takeoff_trim

if TYPE_CHECKING:
    import mujoco

__all__ = ["FANS", "JOINTS", "SENSORS", "build_spec", "fan_ctrl_ids", "joint_ctrl_ids", "load_model", "to_mjcf"]
__all__ += ["fan_effort", "sensor_columns"]

Place = tuple[float, float, float]

STIFF_STEP = 0.6
"""N m s/rad: a position servo's gain times the time step beyond which it is warned of (kp 120 at 5 ms)."""


def build_spec(params: RobotParams, *, contact: bool = True, timestep: float = 0.002) -> mujoco.MjSpec:
    """Builds the biped with floor, fans, sensors and the keyframes `stand` and `takeoff`.

    Args:
        params: lengths, masses, drives.
        contact: False for free flight.
        timestep: s.

    Returns:
        The specification: compile it, or change it first.

    Raises:
        ParameterError: the time step is not positive.
        ModelError: the masses make no rigid body, or no posture takes off.
    """
    import mujoco

    if not (np.isfinite(timestep) and timestep > 0):
        raise ParameterError("timestep", timestep, "a positive number of seconds")
    if timestep * params.joint_kp > STIFF_STEP:
        warnings.warn(f"a time step of {timestep:g} s is long for a joint_kp of {params.joint_kp:g}", stacklevel=2)
    spec = mujoco.MjSpec()
    spec.modelname, spec.compiler.degree = "jethr2", False
    _set_options(spec, params, contact, timestep)
    _add_defaults(spec, params)
    spec.worldbody.add_light(pos=[0, 0, 4], dir=[0, 0, -1])
    floor = spec.worldbody.add_geom(_default(spec, "collision"), name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE)
    floor.size, floor.rgba, floor.group = [0, 0, 0.05], [0.9, 0.9, 0.9, 1], 0
    floor.priority, floor.conaffinity = 0, 1
    base = _add_base(spec, params)
    for side, sign in zip(SIDES, (1, -1), strict=True):
        _add_leg(spec, base, params, side, sign)
    _add_actuators(spec, params)
    _add_sensors(spec)
    _add_keyframes(spec, params)
    return spec


def load_model(params: RobotParams | str | Path) -> mujoco.MjModel:
    """Compiles the biped, or another robot with four fans.

    Args:
        params: the biped's, or an MJCF or URDF file with the sites `front_fan`, `back_fan`, `left_fan`, `right_fan` and
            `imu`; see `jethr2.foreign`.

    Returns:
        The model; its fans, joints and sensors are found by name through `jethr2.layout`.

    Raises:
        ModelError: the file cannot be read, or lacks what is needed; the message names the file.
    """
    if isinstance(params, RobotParams):
        return build_spec(params).compile()
    from jethr2.foreign import load_foreign

    return load_foreign(Path(params))


def to_mjcf(params: RobotParams) -> str:
    """The biped's MJCF."""
    spec = build_spec(params)
    spec.compile()
    return spec.to_xml()


def fan_effort(throttle: Float[np.ndarray, "*fans"], thrust_map: str) -> Float[np.ndarray, "*fans"]:
    """Share of the full thrust that a fan settles at: the model's `ctrl` for a throttle command.

    Args:
        throttle: commands; below 0 is 0, above 1 is 1.
        thrust_map: `linear`, or `quadratic` in the clipped throttle.
    """
    clipped = np.clip(throttle, 0.0, 1.0)
    return clipped * clipped if thrust_map == "quadratic" else clipped


def _set_options(spec: mujoco.MjSpec, params: RobotParams, contact: bool, timestep: float) -> None:
    import mujoco

    spec.option.timestep = timestep
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.gravity = [0, 0, -params.gravity]
    # A reset on divergence would hide it: the clock starts again and only a counter tells.
    spec.option.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    if not contact:
        spec.option.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
    spec.visual.global_.offwidth, spec.visual.global_.offheight = 1920, 1080
    spec.add_text(name="thrust_map", data=params.thrust_map)


def _add_defaults(spec: mujoco.MjSpec, params: RobotParams) -> None:
    spec.default.joint.damping[0] = params.joint_damping
    spec.default.joint.armature = params.joint_armature
    visual = spec.add_default("visual", spec.default).geom
    visual.contype, visual.conaffinity, visual.group, visual.rgba = 0, 0, 2, [0.75, 0.77, 0.8, 1]
    collision = spec.add_default("collision", spec.default).geom
    # Soles touch the floor and not each other.
    collision.contype, collision.conaffinity, collision.group, collision.rgba = 1, 0, 3, [0.25, 0.27, 0.3, 1]
    collision.friction, collision.priority = params.friction, 1


def _default(spec: mujoco.MjSpec, name: str) -> Any:
    return spec.find_default(name)


def _add_base(spec: mujoco.MjSpec, params: RobotParams) -> Any:
    import mujoco

    visual, kinds = _default(spec, "visual"), mujoco.mjtGeom
    height = params.hip_drop + params.thigh + params.shank + params.ankle_height
    base = spec.worldbody.add_body(name="base", pos=[0, 0, height])
    base.add_freejoint(name="root")
    box = base.add_geom(visual, name="base", type=kinds.mjGEOM_BOX, pos=[0, 0, params.base_height])
    box.size, box.mass = params.base_half_size, params.base_mass
    for fan, sign in zip(FANS[:2], (1, -1), strict=True):
        place = (sign * params.fan_half_distance, 0.0, params.waist_fan_height)
        size = (params.fan_radius, params.waist_fan_half_length, 0.0)
        _add_duct(base, visual, fan, place, size, params.waist_fan_mass)
    base.add_site(name="imu", pos=[0, 0, params.imu_height], group=4)
    return base


def _add_duct(body: Any, default: Any, fan: str, place: Place, size: Place, mass: float) -> None:
    import mujoco

    duct = body.add_geom(default, name=f"{fan}_duct", type=mujoco.mjtGeom.mjGEOM_CYLINDER, pos=place, size=size)
    duct.mass, duct.rgba = mass, [0.85, 0.45, 0.1, 1]
    body.add_site(name=f"{fan}_fan", pos=place, group=4)


def _add_leg(spec: mujoco.MjSpec, base: Any, params: RobotParams, side: str, sign: int) -> None:
    import mujoco

    visual, collision, kinds = _default(spec, "visual"), _default(spec, "collision"), mujoco.mjtGeom
    places = [
        [0, sign * params.half_hip, 0],
        [0, 0, -params.hip_drop],
        [0, 0, 0],
        [0, 0, -params.thigh],
        [0, 0, -params.shank],
    ]
    axes = [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0], [0, 1, 0]]
    links = ["hip_roll_link", "hip_yaw_link", "thigh", "shank", "foot"]
    bodies = [base]
    for joint, link, place, axis in zip(LEG_JOINTS, links, places, axes, strict=True):
        body = bodies[-1].add_body(name=f"{side}_{link}", pos=place)
        body.add_joint(name=f"{side}_{joint}", axis=axis, range=getattr(params, f"{joint}_range"))
        bodies.append(body)
    _, roll, yaw, thigh, shank, foot = bodies
    half = params.hip_drop / 2
    roll.add_geom(visual, type=kinds.mjGEOM_BOX, size=[*params.hip_roll_half_size, half], pos=[0, 0, -half])
    roll.geoms[0].mass = params.hip_roll_mass
    yaw.add_geom(visual, type=kinds.mjGEOM_BOX, size=params.hip_yaw_half_size, mass=params.hip_yaw_mass)
    for body, radius, length, mass in (
        (thigh, params.thigh_radius, params.thigh, params.thigh_mass),
        (shank, params.shank_radius, params.shank, params.shank_mass),
    ):
        capsule = body.add_geom(visual, type=kinds.mjGEOM_CAPSULE, fromto=[0, 0, 0, 0, 0, -length], mass=mass)
        capsule.size[0] = radius
    size = (params.fan_radius, params.foot_fan_half_length, 0.0)
    _add_duct(foot, visual, side, (0.0, 0.0, -params.foot_fan_drop), size, params.foot_mass)
    sole = foot.add_geom(collision, name=f"{side}_sole", type=kinds.mjGEOM_BOX, mass=0.0)
    sole.size = [params.toe_length, params.sole_half_width, params.sole_half_thickness]
    sole.pos = [0, 0, params.sole_half_thickness - params.ankle_height]
    skin = foot.add_geom(visual, type=kinds.mjGEOM_BOX, size=sole.size, pos=sole.pos, mass=0.0)
    skin.rgba = sole.rgba
    # The touch sensor counts contacts within its site: a little more than the sole.
    site = foot.add_site(name=f"{side}_sole", type=kinds.mjGEOM_BOX, pos=sole.pos, size=1.1 * sole.size, group=4)
    site.rgba[3] = 0.2


def _add_actuators(spec: mujoco.MjSpec, params: RobotParams) -> None:
    for joint in JOINTS:
        add_servo(spec, joint, params)
    for fan in FANS:
        add_fan(spec, fan, params)


def add_servo(spec: mujoco.MjSpec, joint: str, params: RobotParams) -> None:
    """Adds a position servo that is named as its joint, with the joint's range."""
    import mujoco

    servo = spec.add_actuator(name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    servo.set_to_position(params.joint_kp, params.joint_kv)
    servo.inheritrange = float(spec.joint(joint).limited != 0 and bool(np.diff(spec.joint(joint).range) > 0))
    servo.forcelimited = True
    servo.forcerange = [-params.joint_force_limit, params.joint_force_limit]


def add_fan(spec: mujoco.MjSpec, fan: str, params: RobotParams) -> None:
    """Adds a fan that pushes along its site's z axis: a first-order lag, integrated exactly."""
    import mujoco

    duct = spec.add_actuator(name=f"{fan}_fan", target=f"{fan}_fan", trntype=mujoco.mjtTrn.mjTRN_SITE)
    duct.gear = [0, 0, 1, 0, 0, params.fan_yaw_moment]
    duct.dyntype = mujoco.mjtDyn.mjDYN_FILTEREXACT
    duct.dynprm[0] = params.fan_time_constant
    # Without a lag the thrust follows the command in the same step.
    duct.actearly = params.fan_time_constant == 0
    duct.gaintype, duct.gainprm[0] = mujoco.mjtGain.mjGAIN_FIXED, params.max_thrust
    duct.biastype = mujoco.mjtBias.mjBIAS_NONE
    duct.ctrllimited, duct.ctrlrange = True, [0, 1]


def _add_sensors(spec: mujoco.MjSpec) -> None:
    import mujoco

    add_sensors(spec, JOINTS)
    for side in SIDES:
        touch = spec.add_sensor(name=f"{side}_touch", type=mujoco.mjtSensor.mjSENS_TOUCH, objname=f"{side}_sole")
        touch.objtype = mujoco.mjtObj.mjOBJ_SITE


def add_sensors(spec: mujoco.MjSpec, joints: tuple[str, ...]) -> None:
    """Adds the IMU's sensors, then all joints' angles, then all joints' rates."""
    import mujoco

    kinds, objects = mujoco.mjtSensor, mujoco.mjtObj
    imu = (
        kinds.mjSENS_FRAMEQUAT,
        kinds.mjSENS_GYRO,
        kinds.mjSENS_ACCELEROMETER,
        kinds.mjSENS_FRAMEPOS,
        kinds.mjSENS_FRAMELINVEL,
    )
    for name, kind in zip(IMU_SENSORS, imu, strict=True):
        spec.add_sensor(name=name, type=kind, objtype=objects.mjOBJ_SITE, objname="imu")
    for suffix, kind in (("pos", kinds.mjSENS_JOINTPOS), ("vel", kinds.mjSENS_JOINTVEL)):
        for joint in joints:
            spec.add_sensor(name=f"{joint}_{suffix}", type=kind, objtype=objects.mjOBJ_JOINT, objname=joint)


def _add_keyframes(spec: mujoco.MjSpec, params: RobotParams) -> None:
    """`stand` with straight legs and `takeoff` with bent ones, both on the ground with the fans off."""
    try:
        model = spec.compile()
    except ValueError as error:
        raise ModelError(f"the parameters make no model: {error}") from None
    trim = takeoff_trim(model, knee=min(0.8, params.knee_range[1]))
    fans_off = trim.ctrl.copy()
    fans_off[fan_ctrl_ids(model)] = 0
    spec.add_key(name="stand", qpos=model.qpos0, ctrl=np.zeros(model.nu))
    spec.add_key(name="takeoff", qpos=trim.qpos, ctrl=fans_off)
