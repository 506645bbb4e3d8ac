"""The posture to take off from: feet level, and no pitch moment when all fans push alike (section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jethr2.errors import ModelError, ParameterError
from jethr2.layout import (
    FANS,
    SIDES,
    fan_ctrl_ids,
    fan_full_thrusts,
    fan_site_ids,
    joint_ctrl_ids,
    joint_qpos_ids,
    pitch_chain,
)

if TYPE_CHECKING:
    import mujoco

CLEARANCE = 1e-4
"""m under the soles at the start [M]; the specification's base height of 0.53508 m contains it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trim:
    """A posture with level feet, and the controls that hold it in the air.

    Attributes:
        qpos: of the robot standing on the ground, m and rad.
        ctrl: joint references, rad, and hover throttles.
        com: centre of mass from the base's origin, base axes, m.
        inertia: about the centre of mass, base axes, kg m^2.
        fan_arms: from the centre of mass to front, back, left, right fan, base axes, m.
        mass: kg.
        hip_pitch: rad; nan for a robot with other legs, as `knee` and `ankle_pitch`.
        knee: rad.
        ankle_pitch: rad.
        base_height: m.
    """

    qpos: Float[np.ndarray, " nq"]
    ctrl: Float[np.ndarray, " nu"]
    com: Float[np.ndarray, " 3"]
    inertia: Float[np.ndarray, "3 3"]
    fan_arms: Float[np.ndarray, "4 3"]
    mass: float
    hip_pitch: float
    knee: float
    ankle_pitch: float
    base_height: float

    def __post_init__(self) -> None:
        for value in (self.qpos, self.ctrl, self.com, self.inertia, self.fan_arms):
            value.setflags(write=False)


def takeoff_trim(model: mujoco.MjModel, knee: float = 0.8) -> Trim:
    """Finds the hip pitch at which the mean of the fans' x is the centre of mass's.

    A robot whose legs are not of three pitch joints keeps the pose of its keyframe `takeoff`, or its reference pose;
    its hover throttles then differ from fan to fan.

    Args:
        model: of `load_model`.
        knee: rad.

    Returns:
        The posture, with the ankles at -(hip pitch + knee) so that the soles are level.

    Raises:
        ParameterError: the knee is out of its range.
        ModelError: no hip pitch within its range balances the robot, or its ankle is out of its range.

    Reference: specification, section 2.2.
    """
    import mujoco

    data = mujoco.MjData(model)
    chains = [pitch_chain(model, side) for side in SIDES]
    angles = (np.nan, np.nan, np.nan)
    _reference_pose(model, data)
    if all(len(chain) == 3 for chain in chains):
        angles = _balance(model, data, chains, knee)
    _update(model, data)
    data.qpos[2] += CLEARANCE - _lowest(model, data)
    _update(model, data)
    return _trim(model, data, angles)


def _reference_pose(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    import mujoco

    key = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_KEY, "takeoff")
    data.qpos[:] = model.qpos0 if key < 0 else model.key_qpos[key]
    data.qpos[:7] = [0, 0, model.qpos0[2], 1, 0, 0, 0]


def _balance(
    model: mujoco.MjModel, data: mujoco.MjData, chains: list[tuple[str, ...]], knee: float
) -> tuple[float, float, float]:
    """Bends both legs so that equal thrusts have no pitch moment."""
    from scipy.optimize import brentq

    low, high = _common_range(model, [chain[1] for chain in chains])
    if not low <= knee <= high:
        raise ParameterError("knee", knee, f"within the joint's range of {low:g} to {high:g} rad")

    def imbalance(hip: float) -> float:
        for chain in chains:
            for name, angle in zip(chain, (hip, knee, -(hip + knee)), strict=True):
                data.qpos[model.jnt_qposadr[model.joint(name).id]] = angle
        _update(model, data)
        return float(data.site_xpos[fan_site_ids(model), 0].mean() - data.subtree_com[0, 0])

    low, high = _common_range(model, [chain[0] for chain in chains])
    ankle_low, ankle_high = _common_range(model, [chain[2] for chain in chains])
    low, high = max(low, -knee - ankle_high), min(high, -knee - ankle_low)
    # Feet that swing on an arc cross the balance twice; the take-off posture is the one with the hip bent forward.
    low, high = (low, min(high, 0.0)) if knee >= 0 else (max(low, 0.0), high)
    if not low < high or imbalance(low) * imbalance(high) > 0:
        raise ModelError(
            f"no hip pitch in {low:.3g} to {high:.3g} rad balances the robot with the knee at {knee:g} rad"
        )
    hip = brentq(imbalance, low, high, xtol=1e-15)
    imbalance(hip)
    return hip, knee, -(hip + knee)


def _common_range(model: mujoco.MjModel, names: list[str]) -> tuple[float, float]:
    ids = [model.joint(name).id for name in names]
    ranges = [tuple(model.jnt_range[j]) if model.jnt_limited[j] else (-np.pi, np.pi) for j in ids]
    return max(low for low, _ in ranges), min(high for _, high in ranges)


def _update(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    import mujoco

    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)


def _lowest(model: mujoco.MjModel, data: mujoco.MjData) -> float:
    """Height of the lowest corner of what can touch the ground, m."""
    colliding = (model.geom_bodyid > 0) & ((model.geom_contype | model.geom_conaffinity) != 0)
    if not colliding.any():
        return 0.0
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8)
    box = model.geom_aabb[colliding]
    corners = box[:, :3, None] + box[:, 3:, None] * signs
    heights = np.einsum("gk,gkc->gc", data.geom_xmat[colliding][:, 6:], corners) + data.geom_xpos[colliding, 2:]
    return float(heights.min())


def _trim(model: mujoco.MjModel, data: mujoco.MjData, angles: tuple[float, float, float]) -> Trim:
    root = int(np.flatnonzero(model.body_parentid == 0)[1])  # the world is its own parent
    com = data.subtree_com[root]
    sites = fan_site_ids(model)
    arms = data.site_xpos[sites] - com
    ctrl = np.zeros(model.nu)
    ctrl[joint_ctrl_ids(model)] = data.qpos[joint_qpos_ids(model)]
    ctrl[fan_ctrl_ids(model)] = _hover(model, arms, data.site_xmat[sites].reshape(-1, 3, 3)[:, :, 2])
    hip, knee, ankle = (float(angle) for angle in angles)
    return Trim(
        qpos=data.qpos.copy(),
        ctrl=ctrl,
        com=com - data.xpos[root],
        inertia=_inertia(model, data, com),
        fan_arms=arms,
        mass=float(model.body_subtreemass[root]),
        hip_pitch=hip,
        knee=knee,
        ankle_pitch=ankle,
        base_height=float(data.qpos[2]),
    )


def _hover(model: mujoco.MjModel, arms: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Throttles nearest to equal ones that carry the weight without roll and pitch moment."""
    full = fan_full_thrusts(model)
    forces = axes * full[:, None]
    effects = np.vstack([forces[:, 2], np.cross(arms, forces)[:, :2].T])
    weight = model.body_subtreemass[0] * -model.opt.gravity[2]
    equal = np.full(len(FANS), weight / forces[:, 2].sum())
    # Rounding leaves moments of 1e-14 N m, which need no answer.
    lack = np.array([weight, 0.0, 0.0]) - effects @ equal
    lack[np.abs(lack) < 1e-9 * weight] = 0.0
    return equal + np.linalg.pinv(effects) @ lack


def _inertia(model: mujoco.MjModel, data: mujoco.MjData, com: np.ndarray) -> np.ndarray:
    """Of all bodies about `com`, world axes, kg m^2."""
    axes = data.ximat.reshape(-1, 3, 3)
    arms = data.xipos - com
    own = np.einsum("bij,bj,bkj->ik", axes, model.body_inertia, axes)
    squares = np.einsum("b,bi,bi->", model.body_mass, arms, arms) * np.eye(3)
    return own + squares - np.einsum("b,bi,bj->ij", model.body_mass, arms, arms)
