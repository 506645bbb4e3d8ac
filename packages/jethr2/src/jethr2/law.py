"""The control law of section 2.5, one compiled step: sensors, noise, estimate, moments, allocation, limits, commands.

A trial's memory is one record, its sensors one row and its commands another; nothing else is read or written, so the
bits of a trial do not depend on its neighbours.
"""

from __future__ import annotations

import math
import typing

import numba
import numpy as np

from jethr2.allocation import distribute
from jethr2.estimation import add_noise, estimate
from jethr2.kernels import euler, rotation_vector, upright, wrap
from jethr2.mpc import first_move

LAW = np.dtype(
    [
        ("kp", "f8", 3),
        ("kd", "f8", 3),
        ("ki", "f8", 3),
        ("integral_limit", "f8"),
        ("liftoff", "f8"),
        ("euler_cosine", "f8"),
        ("period", "f8"),
        ("u0", "f8"),
        ("ramp", "f8"),
        ("fan_decay", "f8"),
        ("quadratic", "i8"),
        ("height_hold", "i8"),
        ("hover", "f8"),
        ("height_reference", "f8"),
        ("height_kp", "f8"),
        ("height_ki", "f8"),
        ("height_kd", "f8"),
        ("throttle_range", "f8", 2),
        ("velocity_hold", "i8"),
        ("velocity_reference", "f8"),
        ("velocity_kp", "f8"),
        ("velocity_ki", "f8"),
        ("pitch_reference_limit", "f8"),
        ("pitch_mpc", "i8"),
        ("mpc_steps", "i8"),
        ("mpc_arm", "f8"),
        ("mpc_rate_offset", "f8"),
        ("quat", "i8"),
        ("gyro", "i8"),
        ("accel", "i8"),
        ("pos", "i8"),
        ("vel", "i8"),
        ("fans", "i8", 4),
        ("ankles", "i8", 2),
        ("ankle_low", "f8", 2),
        ("ankle_high", "f8", 2),
    ]
)
"""Gains, limits and places, for compiled code; units as in `ControllerParams`."""

MEMORY = np.dtype(
    [
        ("started", "i8"),
        ("ticks", "i8"),
        ("yaw", "f8"),
        ("height", "f8"),
        ("place", "f8", 2),
        ("integral", "f8", 3),
        ("height_integral", "f8"),
        ("velocity_integral", "f8"),
        ("fan", "f8", 4),
        ("mpc_moment", "f8"),
        ("saturated", "i8", 3),
        ("lift_lost", "f8"),
    ]
)
"""What the controller of one trial remembers: where it started (rad, m), integrals, the fans' modelled states, whether
roll, pitch and yaw were at a limit, and the thrust of the collective that its limits took away, N."""


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def control_rows(law, plan, estimator, programme, rest, times, sensors, memory, estimates, ctrl):
    """One control step of every row.

    Args:
        law: record of the type LAW.
        plan: record of the type PLAN.
        estimator: record of the type ESTIMATOR.
        programme: of the predictive controller; empty arrays where there is none.
        rest: commands of the take-off posture, [nu].
        times: since the start of each trial, s, [n].
        sensors: [n, S].
        memory: records of the type MEMORY, [n].
        estimates: records of the type ESTIMATE, [n].
        ctrl: receives the commands, [n, nu].
    """
    gyro, accel, quat, throttle, angle = np.empty(3), np.empty(3), np.empty(4), np.empty(4), np.empty(2)
    x, wanted, move = np.empty(4), np.zeros(4), np.empty(3)
    for i in range(len(sensors)):
        row, m, e = sensors[i], memory[i], estimates[i]
        for k in range(3):
            gyro[k], accel[k], quat[k] = row[law.gyro + k], row[law.accel + k], row[law.quat + k]
        quat[3] = row[law.quat + 3]
        if e.key != 0:
            add_noise(estimator, e, gyro, accel, quat)
        if m.started == 0:
            # The attitude of the standing robot is known: it was at rest before the fans were started.
            for k in range(4):
                e.quat[k] = row[law.quat + k]
            e.levelled = 1
        ramp = min(times[i] / law.ramp, 1.0) if law.ramp > 0 else 1.0
        estimate(estimator, e, gyro, accel, quat, ramp > 0, math.nan, law.period)
        if m.started == 0:
            _start(law, m, e, row)
        collective = ramp * _collective(law, m, row)
        e_x, e_y, e_z = _attitude_error(law, m, e)
        e_y -= _pitch_reference(law, m, row)
        _integrate(law, m, row, e_x, e_y, e_z)
        mx = -(law.kp[0] * e_x + law.kd[0] * e.rate[0] + law.ki[0] * m.integral[0])
        my = -(law.kp[1] * e_y + law.kd[1] * e.rate[1] + law.ki[1] * m.integral[1])
        mz = -(law.kp[2] * e_z + law.kd[2] * e.rate[2] + law.ki[2] * m.integral[2])
        if law.pitch_mpc == 1:
            my = _predicted_moment(law, programme, m, e, row, x, wanted, move)
        foot_thrust = 0.5 * (m.fan[2] + m.fan[3]) * plan.max_thrust
        limited = distribute(plan, 4 * plan.max_thrust * collective, mx, my, mz, foot_thrust, throttle, angle)
        m.saturated[0], m.saturated[1], m.saturated[2] = limited
        m.lift_lost = plan.max_thrust * (4 * collective - throttle[0] - throttle[1] - throttle[2] - throttle[3])
        ctrl[i, :] = rest
        for foot in range(2):
            _turn_foot(law, m, foot, ramp * angle[foot], ctrl[i])
        for fan in range(4):
            m.fan[fan] = throttle[fan] + (m.fan[fan] - throttle[fan]) * law.fan_decay
            ctrl[i, law.fans[fan]] = math.sqrt(throttle[fan]) if law.quadratic == 1 else throttle[fan]
        m.ticks += 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _start(law, m, e, row):
    """Where the trial begins is where its attitude, height and place are held."""
    m.started = 1
    m.yaw = euler(e.quat)[2]
    m.height = row[law.pos + 2]
    m.place[0], m.place[1] = row[law.pos], row[law.pos + 1]


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _collective(law, m, row):
    """The fixed throttle, or proportional and integral control of the height about hover."""
    if law.height_hold == 0:
        return law.u0
    low, high = law.throttle_range[0], law.throttle_range[1]
    rise = row[law.pos + 2] - m.height
    missing = law.height_reference - rise
    wanted = law.hover + law.height_kp * missing - law.height_kd * row[law.vel + 2] + m.height_integral
    if rise > law.liftoff and low < wanted < high:
        m.height_integral += law.height_ki * missing * law.period
    return min(max(wanted, low), high)


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _attitude_error(law, m, e):
    """Euler angles while the tilt is moderate, beyond it the logarithm of the error quaternion, rad."""
    if upright(e.quat)[2] <= law.euler_cosine:
        return rotation_vector(e.quat, m.yaw)
    roll, pitch, yaw = euler(e.quat)
    return roll, pitch, wrap(yaw - m.yaw)


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _pitch_reference(law, m, row):
    """Nose down to gain forward speed, rad; 0 where no speed is held."""
    if law.velocity_hold == 0:
        return 0.0
    missing = law.velocity_reference - _forward(m, row, law.vel)
    limit = law.pitch_reference_limit
    wanted = law.velocity_kp * missing + m.velocity_integral
    if row[law.pos + 2] - m.height > law.liftoff and abs(wanted) < limit:
        m.velocity_integral += law.velocity_ki * missing * law.period
    return min(max(wanted, -limit), limit)


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _forward(m, row, first):
    """Component of a horizontal vector of the sensors along the heading at the start."""
    return math.cos(m.yaw) * row[first] + math.sin(m.yaw) * row[first + 1]


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _integrate(law, m, row, e_x, e_y, e_z):
    """Only in the air, and not on an axis that is at its limit."""
    if not row[law.pos + 2] - m.height > law.liftoff:
        return
    for axis, error in ((0, e_x), (1, e_y), (2, e_z)):
        if m.saturated[axis] == 0:
            moved = m.integral[axis] + error * law.period
            m.integral[axis] = min(max(moved, -law.integral_limit), law.integral_limit)


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _predicted_moment(law, programme, m, e, row, x, wanted, move):
    """Pitch moment of the predictive controller's fans, N m; planned anew every `mpc_steps` control steps.

    Its horizontal force has no actuator of its own here: feet that tilt for it would pitch the robot.
    """
    if m.ticks % law.mpc_steps == 0:
        x[0] = _forward(m, row, law.pos) - (math.cos(m.yaw) * m.place[0] + math.sin(m.yaw) * m.place[1])
        x[1] = _forward(m, row, law.vel)
        x[2], x[3] = -euler(e.quat)[1], -e.rate[1]
        wanted[1], wanted[3] = law.velocity_reference, law.mpc_rate_offset
        first_move(programme, x, wanted, move)
        m.mpc_moment = -law.mpc_arm * (move[0] - move[1])
    return m.mpc_moment


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _turn_foot(law, m, foot, angle, ctrl):
    """Adds the foot's angle to its posture within the ankle's range; what is cut off counts as saturation."""
    wanted = ctrl[law.ankles[foot]] + angle
    ctrl[law.ankles[foot]] = min(max(wanted, law.ankle_low[foot]), law.ankle_high[foot])
    if ctrl[law.ankles[foot]] != wanted:
        m.saturated[1] = m.saturated[2] = 1
