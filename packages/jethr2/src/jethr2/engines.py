"""The same flight in MuJoCo and in PyBullet (section 2.9): their difference must vanish with the time step."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from jethr2.errors import JetHR2Error, ParameterError, SimulationDiverged
from jethr2.layout import FANS, JOINTS, fan_site_ids, joint_dof_ids, joint_qpos_ids
from jethr2.params import RobotParams
from jethr2.posture import Trim, takeoff_trim
from jethr2.robot import build_spec
from jethr2.urdf import to_urdf

if TYPE_CHECKING:
    import mujoco

ANKLE_STEPS = (0.05, -0.03)
"""rad added to the left and right ankle's reference, so that the flight turns about all axes."""
THROTTLES = (1.0, 0.97, 1.0, 0.98)
"""Of front, back, left, right fan."""


class Flight(NamedTuple):
    """Where a flight ends.

    Attributes:
        position: of the base's origin, m.
        quaternion: of the base, wxyz.
        joints: angles, rad.
    """

    position: Float[np.ndarray, " 3"]
    quaternion: Float[np.ndarray, " 4"]
    joints: Float[np.ndarray, " 10"]


@dataclass(frozen=True, kw_only=True)
class CrossCheck:
    """How far two engines are apart at the end of one flight.

    Attributes:
        dt: time steps, s.
        duration: s.
        position_error: distance of the bases, per time step, m.
        attitude_error: angle between the bases, rad.
        joint_error: greatest difference of a joint, rad.
        attitude: roll, pitch, yaw at the end in MuJoCo with the smallest step, rad.
    """

    dt: tuple[float, ...]
    duration: float
    position_error: tuple[float, ...]
    attitude_error: tuple[float, ...]
    joint_error: tuple[float, ...]
    attitude: tuple[float, float, float]

    @property
    def max_position_error(self) -> float:
        """The greatest over the time steps, m."""
        return max(self.position_error)

    @property
    def order(self) -> float:
        """Order of convergence of the position: slope of log error over log step, by least squares."""
        if len(self.dt) < 2:
            return math.nan
        return float(np.polyfit(np.log(self.dt), np.log(self.position_error), 1)[0])


def crosscheck(
    params: RobotParams | None = None, dt: tuple[float, ...] = (5e-4, 2.5e-4), duration: float = 0.8
) -> CrossCheck:
    """Flies the robot freely in both engines: no contact, joints without armature and damping, the same servos and fans.

    The servos' torque is integrated explicitly on light links, which is unstable at steps of 1 ms and more.

    Args:
        params: the robot's; None: the defaults.
        dt: time steps, s.
        duration: s.

    Raises:
        ParameterError: a time or a step is not positive, a step is too long to be stable, or there is none.
        JetHR2Error: PyBullet is not installed.
        SimulationDiverged: an engine's state is no longer finite, or a joint turned by more than a revolution.
    """
    for name, values in (("dt", dt), ("duration", (duration,))):
        if not values or not all(math.isfinite(value) and value > 0 for value in values):
            raise ParameterError(name, values, "positive, s")
    load_pybullet()
    bare = dataclasses.replace(params or RobotParams(), joint_armature=0.0, joint_damping=0.0)
    # Kinematics and masses alone are taken from this model, whose own step is never used.
    model = build_spec(bare, contact=False, timestep=1e-3).compile()
    trim = takeoff_trim(model)
    longest = _longest_step(model, trim, bare)
    if max(dt) >= longest:
        raise ParameterError("dt", dt, f"less than {longest:.2g} s: explicit servos on links without armature diverge")
    pairs = []
    for step in dt:
        count = round(duration / step)
        pairs.append((_fly_mujoco(model, trim, bare, step, count), fly_in_bullet(model, trim, bare, step, count)))
    finest = pairs[int(np.argmin(dt))][0]
    return CrossCheck(
        dt=tuple(dt),
        duration=duration,
        position_error=tuple(float(np.linalg.norm(one.position - other.position)) for one, other in pairs),
        attitude_error=tuple(_angle(one.quaternion, other.quaternion) for one, other in pairs),
        joint_error=tuple(float(np.abs(one.joints - other.joints).max()) for one, other in pairs),
        attitude=_euler(finest.quaternion),
    )


def load_pybullet() -> ModuleType:
    """The module.

    Raises:
        JetHR2Error: it is not installed.
    """
    try:
        import pybullet
    except ImportError:
        raise JetHR2Error("the cross-check needs pybullet", "pip install 'jethr2[bullet]', Python 3.11") from None
    return pybullet


def _longest_step(model: mujoco.MjModel, trim: Trim, params: RobotParams) -> float:
    """Where semi-implicit Euler loses the stiffest mode of servos and free body: h^2 kp + 2 h kv = 4 / mobility."""
    import mujoco

    data = mujoco.MjData(model)
    data.qpos[:] = trim.qpos
    mujoco.mj_forward(model, data)
    inverse = np.zeros((model.nv, model.nv))
    mujoco.mj_solveM(model, data, inverse, np.eye(model.nv))
    dofs = joint_dof_ids(model)
    mobility = float(np.linalg.eigvalsh(inverse[np.ix_(dofs, dofs)]).max())
    stiffness, damping = params.joint_kp, params.joint_kv
    if stiffness + damping == 0:
        return math.inf
    return 4 / mobility / (damping + math.sqrt(damping**2 + 4 * stiffness / mobility))


def _drive(params: RobotParams, trim: Trim, step: float) -> Callable[[np.ndarray, np.ndarray], tuple]:
    """The servos and fans outside of both engines: torques and thrusts from joint angles and rates, once per step."""
    reference = trim.qpos[7:].copy()
    for side, offset in zip(("left", "right"), ANKLE_STEPS, strict=True):
        reference[JOINTS.index(f"{side}_ankle_pitch")] += offset
    decay = math.exp(-step / params.fan_time_constant) if params.fan_time_constant > 0 else 0.0
    throttle, state = np.array(THROTTLES), np.zeros(len(FANS))

    def drive(angles: np.ndarray, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        torque = params.joint_kp * (reference - angles) - params.joint_kv * rates
        thrust = params.max_thrust * state
        state[:] = throttle + (state - throttle) * decay
        return np.clip(torque, -params.joint_force_limit, params.joint_force_limit), thrust

    return drive


def _fly_mujoco(model: mujoco.MjModel, trim: Trim, params: RobotParams, step: float, count: int) -> Flight:
    import mujoco

    model.opt.timestep = step
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_ACTUATION)
    data = mujoco.MjData(model)
    data.qpos[:] = trim.qpos
    drive = _drive(params, trim, step)
    angles, dofs, sites = joint_qpos_ids(model), joint_dof_ids(model), fan_site_ids(model)
    bodies = model.site_bodyid[sites]
    for index in range(count):
        torque, thrust = drive(data.qpos[angles], data.qvel[dofs])
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        data.qfrc_applied[:] = 0
        for site, body, force in zip(sites, bodies, thrust, strict=True):
            along = force * data.site_xmat[site].reshape(3, 3)[:, 2]
            mujoco.mj_applyFT(model, data, along, np.zeros(3), data.site_xpos[site], body, data.qfrc_applied)
        data.qfrc_applied[dofs] += torque
        mujoco.mj_step(model, data)
        _check_state(data.qpos[angles], index * step)
    return Flight(data.qpos[:3].copy(), data.qpos[3:7].copy(), data.qpos[angles].copy())


def fly_in_bullet(model: mujoco.MjModel, trim: Trim, params: RobotParams, step: float, count: int) -> Flight:
    """PyBullet's side of `crosscheck`: the free flight of the robot's URDF, servos and fans computed outside.

    Args:
        model: without armature and damping; its URDF is loaded.
        trim: where it starts.
        params: of servos and fans.
        step: time step, s.
        count: steps.

    Raises:
        JetHR2Error: PyBullet is not installed.
        SimulationDiverged: its state is no longer finite, or a joint turned by more than a revolution.
    """
    bullet = load_pybullet()
    client = bullet.connect(bullet.DIRECT)
    try:
        robot = _load_bullet(bullet, client, model, trim, step, params.gravity)
        links = {
            bullet.getJointInfo(robot, j, client)[12].decode(): j for j in range(bullet.getNumJoints(robot, client))
        }
        moving = {bullet.getJointInfo(robot, j, client)[1].decode(): j for j in links.values()}
        joints = [moving[name] for name in JOINTS]
        for joint, angle in zip(joints, trim.qpos[7:], strict=True):
            bullet.resetJointState(robot, joint, angle, 0.0, physicsClientId=client)
            bullet.setJointMotorControl2(robot, joint, bullet.VELOCITY_CONTROL, force=0, physicsClientId=client)
        places = _force_places(bullet, client, robot, model, links)
        drive = _drive(params, trim, step)
        for index in range(count):
            states = np.array([state[:2] for state in bullet.getJointStates(robot, joints, client)])
            _check_state(states[:, 0], index * step)
            torque, thrust = drive(states[:, 0], states[:, 1])
            for (link, place, axis), force in zip(places, thrust, strict=True):
                bullet.applyExternalForce(robot, link, force * axis, place, bullet.LINK_FRAME, client)
            bullet.setJointMotorControlArray(
                robot, joints, bullet.TORQUE_CONTROL, forces=torque, physicsClientId=client
            )
            bullet.stepSimulation(client)
        return _bullet_state(bullet, client, robot, joints)
    finally:
        bullet.disconnect(client)


def _load_bullet(
    bullet: ModuleType, client: int, model: mujoco.MjModel, trim: Trim, step: float, gravity: float
) -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "robot.urdf"
        file.write_text(to_urdf(model), encoding="utf-8")
        # Without the flag, inertias are recomputed from the collision shapes.
        flags = bullet.URDF_USE_INERTIA_FROM_FILE
        robot = bullet.loadURDF(str(file), flags=flags, physicsClientId=client)
    bullet.setGravity(0, 0, -gravity, client)
    bullet.setTimeStep(step, client)
    for link in range(-1, bullet.getNumJoints(robot, client)):
        bullet.changeDynamics(
            robot,
            link,
            linearDamping=0,
            angularDamping=0,
            jointDamping=0,
            maxJointVelocity=1e4,
            physicsClientId=client,
        )
    # PyBullet places the inertial frame, not the link's.
    place, turn = bullet.getDynamicsInfo(robot, -1, client)[3:5]
    position, quaternion = bullet.multiplyTransforms(trim.qpos[:3], [0, 0, 0, 1], place, turn)
    bullet.resetBasePositionAndOrientation(robot, position, quaternion, client)
    return robot


def _force_places(
    bullet: ModuleType, client: int, robot: int, model: mujoco.MjModel, links: dict[str, int]
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Each fan's link, place and direction in the link's inertial frame, in which PyBullet takes forces."""
    places = []
    for site in fan_site_ids(model):
        link = links.get(model.body(model.site_bodyid[site]).name, -1)
        origin, turn = bullet.getDynamicsInfo(robot, link, client)[3:5]
        axes = np.array(bullet.getMatrixFromQuaternion(turn)).reshape(3, 3)
        axis = np.zeros(3)
        _rotate_z(axis, model.site_quat[site])
        places.append((link, axes.T @ (model.site_pos[site] - np.array(origin)), axes.T @ axis))
    return places


def _rotate_z(out: np.ndarray, quaternion: np.ndarray) -> None:
    import mujoco

    mujoco.mju_rotVecQuat(out, np.array([0.0, 0.0, 1.0]), quaternion)


def _bullet_state(bullet: ModuleType, client: int, robot: int, joints: list[int]) -> Flight:
    position, quaternion = bullet.getBasePositionAndOrientation(robot, client)
    place, turn = bullet.getDynamicsInfo(robot, -1, client)[3:5]
    position, quaternion = bullet.multiplyTransforms(position, quaternion, *bullet.invertTransform(place, turn))
    angles = [state[0] for state in bullet.getJointStates(robot, joints, client)]
    return Flight(np.array(position), np.roll(quaternion, 1), np.array(angles))


def _check_state(angles: np.ndarray, time: float) -> None:
    if not np.abs(angles).max() < 2 * math.pi:  # a nan as well
        raise SimulationDiverged(time)


def _angle(one: np.ndarray, other: np.ndarray) -> float:
    """Angle of the turn between two attitudes, rad; exact for small ones."""
    sign = 1.0 if one @ other >= 0 else -1.0
    return float(4 * math.asin(min(1.0, float(np.linalg.norm(one - sign * other)) / 2)))


def _euler(quaternion: np.ndarray) -> tuple[float, float, float]:
    """Roll, pitch, yaw (ZYX), rad."""
    w, x, y, z = (float(value) for value in quaternion)
    roll = math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = math.asin(max(-1.0, min(1.0, 2 * (w * y - z * x))))
    return roll, pitch, math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
