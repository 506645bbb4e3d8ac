"""What the fans do to the body: sensitivities, and what errors cost of the authority (section 2.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from jethr2.errors import ModelError
from jethr2.layout import FANS, SIDES, fan_full_thrusts, fan_site_ids, joint_names, pitch_chain
from jethr2.params import ControllerParams, ErrorParams
from jethr2.posture import Trim

if TYPE_CHECKING:
    import mujoco

DEGREE = np.pi / 180


class Effect(NamedTuple):
    """What one change does to the wrench about the centre of mass, body axes.

    Attributes:
        change: in words.
        force: x, y, z, N.
        moment: x, y, z, N m.
    """

    change: str
    force: tuple[float, float, float]
    moment: tuple[float, float, float]


class Demand(NamedTuple):
    """What one source of error, at one standard deviation, asks of the actuators at full throttle.

    Attributes:
        source: in words.
        size: its standard deviation.
        unit: of `size`.
        moment: standard deviations of the moments x, y, z, N m.
        foot_angle_sym: common foot angle that cancels the pitch moment, rad.
        foot_angle_diff: opposite foot angles that cancel the yaw moment, rad.
        roll_throttle: throttle between left and right that cancels the roll moment.
        pitch_throttle: throttle between front and back that would cancel the pitch moment instead of the feet.
    """

    source: str
    size: float
    unit: str
    moment: tuple[float, float, float]
    foot_angle_sym: float
    foot_angle_diff: float
    roll_throttle: float
    pitch_throttle: float


def fan_wrench(
    model: mujoco.MjModel,
    trim: Trim,
    throttle: Float[np.ndarray, " 4"],
    offsets: Mapping[str, float] | None = None,
) -> Float[np.ndarray, " 6"]:
    """Force and moment about the centre of mass of the posture that the legs then have, N and N m, body axes.

    Args:
        model: of `load_model`.
        trim: of `takeoff_trim`.
        throttle: of front, back, left, right.
        offsets: angles that joints are off their trim, rad, by name.
    """
    import mujoco

    data = mujoco.MjData(model)
    data.qpos[:] = trim.qpos
    for name, angle in (offsets or {}).items():
        data.qpos[model.jnt_qposadr[model.joint(name).id]] += angle
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    sites = fan_site_ids(model)
    thrusts = throttle * fan_full_thrusts(model)
    forces = thrusts[:, None] * data.site_xmat[sites].reshape(4, 3, 3)[:, :, 2]
    moments = np.cross(data.site_xpos[sites] - data.subtree_com[0], forces)
    return np.concatenate([forces.sum(axis=0), moments.sum(axis=0)])


def authority(model: mujoco.MjModel, trim: Trim) -> list[Effect]:
    """The sensitivities of section 2.3 at full throttle: foot and hip angles by 1 degree, each fan by -10 %.

    Args:
        model: of `load_model`; a robot without foot or hip roll joints has no rows for them.
        trim: of `takeoff_trim`.
    """
    full = np.ones(4)
    start = fan_wrench(model, trim, full)

    def effect(change: str, throttle: np.ndarray, offsets: Mapping[str, float]) -> Effect:
        change_of = fan_wrench(model, trim, throttle, offsets) - start
        return Effect(change, _triple(change_of[:3]), _triple(change_of[3:]))

    rows = []
    chains = [pitch_chain(model, side) for side in SIDES]
    if all(chains):
        left, right = (chain[-1] for chain in chains)
        rows.append(effect("both feet +1 deg", full, {left: DEGREE, right: DEGREE}))
        rows.append(effect("left foot +1 deg, right foot -1 deg", full, {left: DEGREE, right: -DEGREE}))
    rolls = [f"{side}_hip_roll" for side in SIDES]
    if set(rolls) <= set(joint_names(model)):
        rows.append(effect("both hip rolls +1 deg", full, dict.fromkeys(rolls, DEGREE)))
    for index, fan in enumerate(FANS):
        rows.append(effect(f"{fan} fan -10 %", np.where(np.arange(4) == index, 0.9, 1.0), {}))
    return rows


def error_budget(model: mujoco.MjModel, trim: Trim, errors: ErrorParams) -> list[Demand]:
    """What each source of error asks of feet and fans, and all together (root of the sum of squares), the last row.

    Args:
        model: of `load_model`, with hinges that turn the feet.
        trim: of `takeoff_trim`.
        errors: standard deviations.

    Raises:
        ModelError: it has none.
    """
    full = np.ones(4)
    start = fan_wrench(model, trim, full)
    sources: list[tuple[str, float, str, list[np.ndarray]]] = []
    # The thrust passes beside a centre of mass that is shifted by c: the moment is -c x F.
    shifts = [np.cross(-errors.com_shift_sd * axis, start[:3]) for axis in np.eye(3)[:2]]
    sources.append(("centre of mass", errors.com_shift_sd, "m", shifts))
    for kind in _joint_kinds(model):
        names = [name for name in joint_names(model) if _kind(name) == kind]
        moments = [(fan_wrench(model, trim, full, {name: errors.joint_zero_sd}) - start)[3:] for name in names]
        sources.append((f"{kind} zero", errors.joint_zero_sd, "rad", moments))
    gains = [(fan_wrench(model, trim, full + errors.fan_gain_sd * unit) - start)[3:] for unit in np.eye(4)]
    sources.append(("fan gain", errors.fan_gain_sd, "", gains))
    effects = _actuator_effects(model, trim)
    rows = [_demand(name, size, unit, moments, effects) for name, size, unit, moments in sources]
    every = [moment for _, _, _, moments in sources for moment in moments]
    return [*rows, _demand("all", 1.0, "", every, effects)]


def required_authority(
    model: mujoco.MjModel,
    trim: Trim,
    errors: ErrorParams,
    thrust_to_weight: Float[np.ndarray, " ratios"],
    *,
    sigmas: float = 3.0,
    control: ControllerParams | None = None,
) -> dict[str, Float[np.ndarray, " ratios"]]:
    """What rejecting errors takes against the thrust-to-weight ratio: the chart of a design.

    A differential pair that must not exceed full thrust lowers one fan by twice the throttle difference, so that lift
    is lost; turned feet lose only the cosine.

    Args:
        model: of `load_model`; moments grow with the thrust, so that angles and throttles of 1 are the same at any
            ratio, and what differs is the lift that is left.
        trim: of `takeoff_trim`.
        errors: standard deviations.
        thrust_to_weight: ratios, all fans at full throttle.
        sigmas: how many standard deviations must be rejected.
        control: its foot angle limits; None: the defaults.

    Returns:
        Columns over the ratios: `vectoring_margin` and `differential_margin`, thrust over weight minus 1 after pitch
        is rejected by feet or by waist fans, roll by the foot fans in both; `sym_share` and `diff_share`, the used
        shares of the foot angle limits.
    """
    control = ControllerParams() if control is None else control
    total = error_budget(model, trim, errors)[-1]
    roll, pitch = sigmas * total.roll_throttle, sigmas * total.pitch_throttle
    sym, diff = sigmas * total.foot_angle_sym, sigmas * total.foot_angle_diff
    # Of four fans at 1, each pair's second fan is lowered by twice the difference.
    by_feet = (2 + 2 * np.cos(np.hypot(sym, diff)) - 2 * roll) / 4
    by_fans = (4 - 2 * pitch - 2 * roll) / 4
    ones = np.ones_like(thrust_to_weight)
    return {
        "thrust_to_weight": thrust_to_weight,
        "vectoring_margin": thrust_to_weight * by_feet - 1,
        "differential_margin": thrust_to_weight * by_fans - 1,
        "sym_share": ones * sym / control.foot_angle_sym,
        "diff_share": ones * diff / control.foot_angle_diff,
    }


def _actuator_effects(model: mujoco.MjModel, trim: Trim) -> tuple[float, float, float, float]:
    """Moments per rad of common and opposite foot angle (y, z), and per throttle difference (x of feet, y of waist)."""
    full, small = np.ones(4), 1e-6
    chains = [pitch_chain(model, side) for side in SIDES]
    if not all(chains):
        raise ModelError("the robot has no hinges about y that turn its feet")
    left, right = (chain[-1] for chain in chains)

    def slope(offsets: Mapping[str, float]) -> np.ndarray:
        back = {name: -angle for name, angle in offsets.items()}
        change = fan_wrench(model, trim, full, offsets) - fan_wrench(model, trim, full, back)
        return change[3:] / (2 * small)

    sym, diff = slope({left: small, right: small}), slope({left: small, right: -small})
    start = fan_wrench(model, trim, full)
    roll = (fan_wrench(model, trim, full + np.array([0.0, 0, 1, -1])) - start)[3:]
    pitch = (fan_wrench(model, trim, full + np.array([-1.0, 1, 0, 0])) - start)[3:]
    return float(sym[1]), float(diff[2]), float(roll[0]), float(pitch[1])


def _demand(
    source: str, size: float, unit: str, moments: list[np.ndarray], effects: tuple[float, float, float, float]
) -> Demand:
    deviation = np.sqrt(np.sum(np.square(moments), axis=0))
    sym, diff, roll, pitch = (abs(effect) for effect in effects)
    x, y, z = _triple(deviation)
    return Demand(source, size, unit, (x, y, z), y / sym, z / diff, x / roll, y / pitch)


def _joint_kinds(model: mujoco.MjModel) -> list[str]:
    return list(dict.fromkeys(_kind(name) for name in joint_names(model)))


def _kind(joint: str) -> str:
    for side in SIDES:
        joint = joint.removeprefix(f"{side}_")
    return joint.replace("_", " ")


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
