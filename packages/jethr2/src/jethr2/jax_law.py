"""The control law of `law` in JAX, for one robot at a time under `vmap`: the same formulas, the same noise.

It knows the closed form of allocation and an attitude that is true or true with noise; what else a controller can do
has branches and programmes that a GPU gains nothing from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jethr2.allocation import CLOSED_FORM, DIFFERENTIAL, FULL, NONE, PITCH_ONLY, YAW_ONLY
from jethr2.control import Controller
from jethr2.errors import ParameterError
from jethr2.estimation import MAHONY, NOISY_TRUTH, noise_vectors

Memory = dict[str, Array]
"""What one robot's controller remembers, by the names of `law.MEMORY`, and its low-passed `rate`."""

_PLAN = ("max_thrust", "foot_angle_sym", "foot_angle_diff", "differential_limit", "thrust_floor", "drop")
_LAW = ("kp", "kd", "ki", "integral_limit", "liftoff", "euler_cosine", "period", "u0", "ramp", "fan_decay")


def constants_of(pilot: Controller) -> dict[str, Array]:
    """A controller's gains, limits and places as arrays.

    Raises:
        ParameterError: it does what this law does not.
    """
    law, plan, estimator, rest = pilot.constants
    for name, able, known in (
        ("allocation", plan["method"] == CLOSED_FORM, "closed_form"),
        ("height_hold", not law["height_hold"], False),
        ("velocity_hold", not law["velocity_hold"], False),
        ("pitch_mpc", not law["pitch_mpc"], False),
    ):
        if not able:
            raise ParameterError(name, getattr(pilot.params, name), f"{known} on MJX")
    if estimator["mode"] == MAHONY:
        raise ParameterError("mode", pilot.estimator.mode, "truth or noisy_truth on MJX")
    mode, lag = plan["mode"], float(estimator["lowpass"])
    values: dict[str, Any] = {
        name: law[name] for name in (*_LAW, "quadratic", "fans", "ankles", "ankle_low", "ankle_high")
    }
    values |= {name: plan[name] for name in (*_PLAN, "half_track", "half_waist")}
    values |= {
        "rest": rest,
        "rolls": mode != NONE,
        "leans": mode == DIFFERENTIAL,
        "pitches": mode in (PITCH_ONLY, FULL),
        "yaws": mode in (YAW_ONLY, FULL),
        "keep": math.exp(-float(law["period"]) / lag) if lag > 0 else 0.0,
    }
    return {name: jnp.asarray(value) for name, value in values.items()}


def noise_of(pilot: Controller, keys: np.ndarray, ticks: int) -> Float[np.ndarray, "n ticks 6"]:
    """What is added to the rate, rad/s, and turns the attitude, rad: a trial's noise, as `estimation.add_noise` has it."""
    _, _, estimator, _ = pilot.constants
    if estimator["mode"] != NOISY_TRUTH:
        return np.zeros((len(keys), ticks, 6))
    return noise_vectors(estimator, keys, ticks)


def fresh_memory(like: Array) -> Memory:
    """Of a robot that has not started."""
    zero = jnp.zeros((), like.dtype)
    return {
        "yaw": zero,
        "height": zero,
        "integral": jnp.zeros(3, like.dtype),
        "fan": jnp.zeros(4, like.dtype),
        "rate": jnp.zeros(3, like.dtype),
        "saturated": jnp.zeros(3, bool),
    }


def control(
    c: Mapping[str, Array], memory: Memory, tick: Array, quat: Array, gyro: Array, height: Array, noise: Array
) -> tuple[Memory, Array, Array]:
    """One control step.

    Args:
        c: of `constants_of`.
        memory: of the step before.
        tick: number of the step, from 0.
        quat: true attitude, w, x, y, z.
        gyro: true body rate, rad/s.
        height: of the IMU, m.
        noise: one row of `noise_of`.

    Returns:
        Memory, commands [nu], and the thrust of the collective that limits took away, N.
    """
    started = tick > 0
    quat = _turned(quat, noise[3:])
    rate = gyro + noise[:3]
    rate = rate + (memory["rate"] - rate) * jnp.where(started, c["keep"], 0.0)
    yaw = jnp.where(started, memory["yaw"], _euler(quat)[2])
    start = jnp.where(started, memory["height"], height)
    ramp = jnp.where(c["ramp"] > 0, jnp.minimum(tick * c["period"] / c["ramp"], 1.0), 1.0)
    error = _attitude_error(c, quat, yaw)
    moved = jnp.clip(memory["integral"] + error * c["period"], -c["integral_limit"], c["integral_limit"])
    runs = (height - start > c["liftoff"]) & ~memory["saturated"]
    integral = jnp.where(runs, moved, memory["integral"])
    moment = -(c["kp"] * error + c["kd"] * rate + c["ki"] * integral)
    collective = ramp * c["u0"]
    throttle, angle, saturated = _closed_form(c, collective, moment, 0.5 * (memory["fan"][2] + memory["fan"][3]))
    lift_lost = c["max_thrust"] * (4 * collective - throttle.sum())
    wanted = c["rest"][c["ankles"]] + ramp * angle
    held = jnp.clip(wanted, c["ankle_low"], c["ankle_high"])
    saturated = saturated | jnp.array([False, True, True]) & (held != wanted).any()
    ctrl = c["rest"].at[c["ankles"]].set(held)
    ctrl = ctrl.at[c["fans"]].set(jnp.where(c["quadratic"] == 1, jnp.sqrt(throttle), throttle))
    kept = {"yaw": yaw, "height": start, "integral": integral, "rate": rate, "saturated": saturated}
    return {**kept, "fan": throttle + (memory["fan"] - throttle) * c["fan_decay"]}, ctrl, lift_lost


def product(p: Array, q: Array) -> Array:
    """Of quaternions: the turn q in the axes that p made."""
    (a, b, c, d), (w, x, y, z) = p, q
    return jnp.array(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ]
    )


def rotated(q: Array, vector: Array) -> Array:
    """A vector turned by a quaternion of norm 1."""
    conjugate = q * jnp.array([1.0, -1.0, -1.0, -1.0])
    return product(product(q, jnp.concatenate([jnp.zeros(1), vector])), conjugate)[1:]


def _closed_form(c: Mapping[str, Array], collective: Array, moment: Array, foot: Array) -> tuple[Array, Array, Array]:
    """Throttles, foot angles, and whether roll, pitch and yaw are at a limit; `foot` is a foot fan's state."""
    full, limit = c["max_thrust"], c["differential_limit"]
    thrust = jnp.maximum(foot, c["thrust_floor"]) * full
    roll = c["rolls"] * moment[0] / (2 * c["half_track"] * full)
    lean = c["leans"] * moment[1] / (2 * c["half_waist"] * full)
    sym = c["pitches"] * -moment[1] / (2 * thrust * c["drop"])
    diff = c["yaws"] * -moment[2] / (2 * thrust * c["half_track"])
    saturated = jnp.array(
        [
            jnp.abs(roll) > limit,
            (jnp.abs(lean) > limit) | (jnp.abs(sym) > c["foot_angle_sym"]),
            jnp.abs(diff) > c["foot_angle_diff"],
        ]
    )
    roll, lean = jnp.clip(roll, -limit, limit), jnp.clip(lean, -limit, limit)
    sym = jnp.clip(sym, -c["foot_angle_sym"], c["foot_angle_sym"])
    diff = jnp.clip(diff, -c["foot_angle_diff"], c["foot_angle_diff"])
    throttle = jnp.concatenate([_pair(collective, -lean), _pair(collective, roll)])
    return throttle, jnp.array([sym + diff, sym - diff]), saturated


def _pair(collective: Array, difference: Array) -> Array:
    """More on one fan, less on the other; both give up what exceeds full thrust."""
    excess = jnp.maximum(0.0, collective + jnp.abs(difference) - 1)
    return jnp.clip(jnp.array([collective + difference - excess, collective - difference - excess]), 0.0, 1.0)


def _attitude_error(c: Mapping[str, Array], quat: Array, yaw: Array) -> Array:
    """Euler angles while the tilt is moderate, beyond it the rotation vector of the error."""
    angles = _euler(quat) - jnp.array([0.0, 0.0, 1.0]) * yaw
    angles = angles.at[2].set(angles[2] - 2 * math.pi * jnp.floor(angles[2] / (2 * math.pi) + 0.5))
    return jnp.where(_upright(quat)[2] <= c["euler_cosine"], _rotation_vector(quat, yaw), angles)


def _turned(q: Array, vector: Array) -> Array:
    """The attitude turned by a rotation vector in its own axes, of norm 1."""
    angle = jnp.sqrt((vector**2).sum())
    scale = jnp.where(angle > 1e-12, jnp.sin(0.5 * angle) / jnp.where(angle > 1e-12, angle, 1.0), 0.5)
    turned = product(q, jnp.concatenate([jnp.cos(0.5 * angle)[None], vector * scale]))
    return turned / jnp.sqrt((turned**2).sum())


def _upright(q: Array) -> tuple[Array, Array, Array]:
    """World z seen from the body."""
    return 2 * (q[1] * q[3] - q[0] * q[2]), 2 * (q[2] * q[3] + q[0] * q[1]), 1 - 2 * (q[1] ** 2 + q[2] ** 2)


def _euler(q: Array) -> Array:
    """Roll, pitch and yaw, intrinsic z-y-x, rad."""
    x, y, z = _upright(q)
    yaw = jnp.arctan2(2 * (q[1] * q[2] + q[0] * q[3]), 1 - 2 * (q[2] ** 2 + q[3] ** 2))
    return jnp.array([jnp.arctan2(y, z), jnp.arcsin(jnp.clip(-x, -1.0, 1.0)), yaw])


def _rotation_vector(q: Array, yaw: Array) -> Array:
    """From the level attitude at that yaw to q in body axes, the short way round."""
    c, s = jnp.cos(0.5 * yaw), jnp.sin(0.5 * yaw)
    error = jnp.array([c * q[0] + s * q[3], c * q[1] + s * q[2], c * q[2] - s * q[1], c * q[3] - s * q[0]])
    error = error * jnp.where(error[0] < 0, -1.0, 1.0)
    sine = jnp.sqrt((error[1:] ** 2).sum())
    small = sine <= 1e-12
    return error[1:] * jnp.where(small, 2.0, 2 * jnp.arctan2(sine, error[0]) / jnp.where(small, 1.0, sine))
