"""From a wrench to four throttles and two foot angles (spec 2.5): a closed form, a quadratic programme, a pseudo-inverse.

The fans are front and back on the waist, left and right on the feet. A foot turned by a about body y turns its thrust F
to (F sin a, 0, F cos a); x = (f1, f2, f3x, f3z, f4x, f4z) are the forces that a wrench (Fz, Mx, My, Mz) = A x asks for.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass

import numba
import numpy as np
from jaxtyping import Float

from jethr2.errors import ParameterError
from jethr2.kernels import box_qp
from jethr2.params import Allocation, ControllerParams, Mode

MODES = typing.get_args(Mode)
METHODS = typing.get_args(Allocation)
NONE, DIFFERENTIAL, PITCH_ONLY, YAW_ONLY, FULL = range(5)
CLOSED_FORM, QP, PINV = range(3)

WRENCH_WEIGHTS = np.array([1.0, 20.0, 20.0, 20.0])
"""Of Fz, Mx, My, Mz in the quadratic programme (spec 2.5)."""

FORCE_WEIGHT = 1e-4
"""Of |x|^2 there: it decides among the forces that make the same wrench."""

MOMENT_TOLERANCE = 0.01
"""N m by which a moment may be missed before its axis counts as saturated, where limits are not met one by one."""

PLAN = np.dtype(
    [
        ("method", "i8"),
        ("mode", "i8"),
        ("max_thrust", "f8"),
        ("foot_angle_sym", "f8"),
        ("foot_angle_diff", "f8"),
        ("differential_limit", "f8"),
        ("thrust_floor", "f8"),
        ("drop", "f8"),
        ("half_track", "f8"),
        ("half_waist", "f8"),
        ("variables", "i8"),
        ("effect", "f8", (4, 6)),
        ("spread", "f8", (6, 6)),
        ("hessian", "f8", (6, 6)),
        ("gradient", "f8", (6, 4)),
        ("inverse", "f8", (6, 4)),
        ("low", "f8", 6),
        ("high", "f8", 6),
    ]
)
"""What one allocation needs to know, for compiled code. `spread` makes x of the variables that the mode leaves free."""


@dataclass(frozen=True, kw_only=True)
class AllocationLimits:
    """What fans and feet can do.

    Attributes:
        fan_max_thrust: of one fan, N.
        foot_angle_sym: of the feet's common angle, rad.
        foot_angle_diff: of their opposite angles, rad.
        differential_limit: of the throttle added to one fan of a pair and taken from the other.
        thrust_floor: share of the full thrust below which the closed form's angles do not grow further.
    """

    fan_max_thrust: float
    foot_angle_sym: float = math.radians(15)
    foot_angle_diff: float = math.radians(12)
    differential_limit: float = 0.4
    thrust_floor: float = 0.3

    def __post_init__(self) -> None:
        for name, highest in (
            ("fan_max_thrust", math.inf),
            ("foot_angle_sym", math.pi / 2),
            ("foot_angle_diff", math.pi / 2),
            ("differential_limit", 1.0),
            ("thrust_floor", 1.0),
        ):
            value = getattr(self, name)
            if not (0 <= value <= highest and math.isfinite(value)):
                raise ParameterError(name, value, f"in [0, {highest:.4g}]")
        if self.fan_max_thrust == 0 or self.thrust_floor == 0:
            name = "fan_max_thrust" if self.fan_max_thrust == 0 else "thrust_floor"
            raise ParameterError(name, 0.0, "positive")


def allocate(
    w: Float[np.ndarray, "*batch 4"],
    arms: Float[np.ndarray, "4 3"],
    limits: AllocationLimits,
    method: str = "closed_form",
    mode: str = "full",
) -> tuple[Float[np.ndarray, "*batch 4"], Float[np.ndarray, "*batch 2"], Float[np.ndarray, "*batch 4"]]:
    """Finds throttles and foot angles for wrenches about the centre of mass.

    Args:
        w: Fz in N; Mx, My, Mz in N m.
        arms: from the centre of mass to the fans front, back, left, right, m.
        limits: of fans and feet.
        method: `closed_form`, `qp` or `pinv`.
        mode: which of fans and feet may act, as in `ControllerParams`.

    Returns:
        Throttles in [0, 1] in the order of `arms`; angles of the left and the right foot, rad; and what they do, sines
        and arms exact, less what was asked for (N, N m).

    Raises:
        ParameterError: an unknown method or mode, or numbers that are not finite.
    """
    plan = allocation_plan(arms, limits, method, mode)
    if not np.isfinite(w).all():
        raise ParameterError("w", float(w[~np.isfinite(w)][0]), "finite")
    rows = np.ascontiguousarray(w, np.float64).reshape(-1, 4)
    throttle, angle = np.empty((len(rows), 4)), np.empty((len(rows), 2))
    _allocate_rows(plan, rows, throttle, angle)
    residual = wrench(throttle, angle, arms, limits.fan_max_thrust) - rows
    batch = w.shape[:-1]
    return throttle.reshape(*batch, 4), angle.reshape(*batch, 2), residual.reshape(*batch, 4)


def wrench(
    throttle: Float[np.ndarray, "*batch 4"],
    foot_angle: Float[np.ndarray, "*batch 2"],
    arms: Float[np.ndarray, "4 3"],
    max_thrust: float,
) -> Float[np.ndarray, "*batch 4"]:
    """What throttles and foot angles do: Fz in N and the moments about the centre of mass in N m."""
    thrust = throttle * max_thrust
    angle = np.concatenate([np.zeros_like(foot_angle), foot_angle], axis=-1)
    x, z = thrust * np.sin(angle), thrust * np.cos(angle)
    moments = ((arms[:, 1] * z), (arms[:, 2] * x - arms[:, 0] * z), (-arms[:, 1] * x))
    return np.stack([each.sum(axis=-1) for each in (z, *moments)], axis=-1)


def allocation_plan(arms: Float[np.ndarray, "4 3"], limits: AllocationLimits, method: str, mode: str) -> np.void:
    """Everything about an allocation that no wrench changes, as one record of the type PLAN."""
    for name, value, known in (("method", method, METHODS), ("mode", mode, MODES)):
        if value not in known:
            raise ParameterError(name, value, f"one of {', '.join(known)}")
    if arms.shape != (4, 3) or not np.isfinite(arms).all():
        raise ParameterError("arms", arms.tolist(), "four finite vectors: front, back, left, right")
    plan = np.zeros(1, PLAN)[0]
    plan["method"], plan["mode"] = METHODS.index(method), MODES.index(mode)
    plan["max_thrust"] = limits.fan_max_thrust
    for name in ("foot_angle_sym", "foot_angle_diff", "differential_limit", "thrust_floor"):
        plan[name] = getattr(limits, name)
    plan["drop"] = -arms[2:, 2].mean()
    plan["half_track"] = (arms[2, 1] - arms[3, 1]) / 2
    plan["half_waist"] = (arms[0, 0] - arms[1, 0]) / 2
    for name, length, where in (
        ("drop", plan["drop"], "the feet's fans below the centre of mass"),
        ("half_track", plan["half_track"], "the left foot's fan to the left of the right one's"),
        ("half_waist", plan["half_waist"], "the front fan before the back one"),
    ):
        if method == "closed_form" and not (length > 0 or (name == "drop" and mode in ("none", "differential"))):
            raise ParameterError("arms", arms.tolist(), f"with {where} for closed_form; qp does without")
    _fill_programme(plan, arms, limits, mode)
    return plan


def limits_of(params: ControllerParams, fan_max_thrust: float) -> AllocationLimits:
    """The limits that a controller's parameters name."""
    return AllocationLimits(
        fan_max_thrust=fan_max_thrust,
        foot_angle_sym=params.foot_angle_sym,
        foot_angle_diff=params.foot_angle_diff,
        differential_limit=params.differential_limit,
        thrust_floor=params.thrust_floor,
    )


def _fill_programme(plan: np.void, arms: np.ndarray, limits: AllocationLimits, mode: str) -> None:
    """Matrices and box of the quadratic programme |W (A x - w)|^2 + c |x|^2 over the variables that the mode has."""
    (fx, fy, _), (bx, by, _), (lx, ly, lz), (rx, ry, rz) = arms
    effect = np.array(
        [[1, 1, 0, 1, 0, 1], [fy, by, 0, ly, 0, ry], [-fx, -bx, lz, -lx, rz, -rx], [0, 0, -ly, 0, -ry, 0]], np.float64
    )
    front, back, left_x, left_z, right_x, right_z = np.eye(6)
    variables = {
        "none": [front + back + left_z + right_z],
        "differential": [front, back, left_z, right_z],
        "pitch_only": [front, back, left_z, right_z, left_x + right_x],
        "yaw_only": [front, back, left_z, right_z, left_x - right_x],
        "full": [front, back, left_x, left_z, right_x, right_z],
    }[mode]
    spread = np.stack(variables, axis=1)
    weighted = (WRENCH_WEIGHTS**2)[:, None] * effect @ spread
    count = len(variables)
    plan["variables"] = count
    plan["effect"] = effect
    plan["spread"][:, :count] = spread
    plan["hessian"] = np.eye(6)
    plan["hessian"][:count, :count] = (effect @ spread).T @ weighted + FORCE_WEIGHT * spread.T @ spread
    plan["gradient"][:count] = -weighted.T
    sideways = limits.fan_max_thrust * math.sin(limits.foot_angle_sym)
    horizontal = spread[[2, 4]].any(axis=0)
    plan["low"][:count] = np.where(horizontal, -sideways, 0.0)
    plan["high"][:count] = np.where(horizontal, sideways, limits.fan_max_thrust)
    # Forces count by what is available of them, so that a foot is not asked for sideways thrust that it lacks.
    available = plan["high"][:count] ** 2
    reduced = effect @ spread
    plan["inverse"][:count] = available[:, None] * reduced.T @ np.linalg.pinv(reduced * available @ reduced.T)


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _allocate_rows(plan, w, throttle, angle):
    for i in range(len(w)):
        foot_thrust = 0.25 * w[i, 0]
        distribute(plan, w[i, 0], w[i, 1], w[i, 2], w[i, 3], foot_thrust, throttle[i], angle[i])


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def distribute(plan, fz, mx, my, mz, foot_thrust, throttle, angle):
    """One wrench, into throttle[4] and angle[2]; `foot_thrust` is what one foot fan gives now, N.

    Returns:
        Whether roll, pitch and yaw are at a limit.
    """
    if plan.method == CLOSED_FORM:
        return _closed_form(plan, fz, mx, my, mz, foot_thrust, throttle, angle)
    n = plan.variables
    y = np.zeros(n)
    if plan.method == QP:
        g = np.empty(n)
        for i in range(n):
            row = plan.gradient[i]
            g[i] = row[0] * fz + row[1] * mx + row[2] * my + row[3] * mz
        box_qp(plan.hessian[:n, :n], g, plan.low, plan.high, y)
    else:
        for i in range(n):
            row = plan.inverse[i]
            y[i] = min(max(row[0] * fz + row[1] * mx + row[2] * my + row[3] * mz, plan.low[i]), plan.high[i])
    x = np.zeros(6)
    for i in range(6):
        for j in range(n):
            x[i] += plan.spread[i, j] * y[j]
    _realise(plan, x, throttle, angle)
    missed_x, missed_y, missed_z = -mx, -my, -mz
    for j in range(6):
        missed_x += plan.effect[1, j] * x[j]
        missed_y += plan.effect[2, j] * x[j]
        missed_z += plan.effect[3, j] * x[j]
    return abs(missed_x) > MOMENT_TOLERANCE, abs(missed_y) > MOMENT_TOLERANCE, abs(missed_z) > MOMENT_TOLERANCE


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _closed_form(plan, fz, mx, my, mz, foot_thrust, throttle, angle):
    """Feet for pitch and yaw, the foot fans' difference for roll; `differential` has the waist fans' for pitch."""
    collective = min(max(fz / (4 * plan.max_thrust), 0.0), 1.0)
    thrust = max(foot_thrust, plan.thrust_floor * plan.max_thrust)
    mode, limit = plan.mode, plan.differential_limit
    roll, pitch, sym, diff = 0.0, 0.0, 0.0, 0.0
    if mode != NONE:
        roll = mx / (2 * plan.half_track * plan.max_thrust)
    if mode == DIFFERENTIAL:
        pitch = my / (2 * plan.half_waist * plan.max_thrust)
    if mode in (PITCH_ONLY, FULL):
        sym = -my / (2 * thrust * plan.drop)
    if mode in (YAW_ONLY, FULL):
        diff = -mz / (2 * thrust * plan.half_track)
    saturated = (
        abs(roll) > limit,
        abs(pitch) > limit or abs(sym) > plan.foot_angle_sym,
        abs(diff) > plan.foot_angle_diff,
    )
    roll, pitch = min(max(roll, -limit), limit), min(max(pitch, -limit), limit)
    sym = min(max(sym, -plan.foot_angle_sym), plan.foot_angle_sym)
    diff = min(max(diff, -plan.foot_angle_diff), plan.foot_angle_diff)
    _pair(collective, -pitch, throttle, 0)
    _pair(collective, roll, throttle, 2)
    angle[0], angle[1] = sym + diff, sym - diff
    return saturated


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _pair(collective, difference, throttle, first):
    """Adds the difference to one fan and takes it from the other; both give up what exceeds full thrust."""
    excess = max(0.0, collective + abs(difference) - 1)
    throttle[first] = min(max(collective + difference - excess, 0.0), 1.0)
    throttle[first + 1] = min(max(collective - difference - excess, 0.0), 1.0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _realise(plan, x, throttle, angle):
    """Thrusts and angles of the forces; sideways force keeps, upward force gives way where a foot fan has too little."""
    throttle[0], throttle[1] = x[0] / plan.max_thrust, x[1] / plan.max_thrust
    widest = plan.foot_angle_sym + plan.foot_angle_diff
    for foot in range(2):
        sideways = x[2 + 2 * foot]
        upward = min(x[3 + 2 * foot], math.sqrt(max(0.0, plan.max_thrust**2 - sideways**2)))
        x[3 + 2 * foot] = upward
        throttle[2 + foot] = min(math.hypot(sideways, upward) / plan.max_thrust, 1.0)
        turned = math.atan2(sideways, upward) if throttle[2 + foot] > 1e-9 else 0.0
        angle[foot] = min(max(turned, -widest), widest)
