"""Compiled arithmetic that allocation, estimator and controller share: rotations, noise, a small quadratic programme.

One row is one trial. No row reads another's, no sum is reordered and nothing runs in parallel inside, so a trial has the
same bits in any batch. Quaternions are w, x, y, z and turn body vectors into the world.
"""

from __future__ import annotations

import math
import typing

import numba
import numpy as np

QP_STEPS = 200
"""More than any programme of these sizes was seen to need (hundreds of thousands of random ones: below 60)."""

QP_TOLERANCE = 1e-13
"""Of a multiplier's sign, relative to the terms that it is the sum of."""

_MIX_1, _MIX_2, _GOLDEN = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(0x9E3779B97F4A7C15)
_TO_UNIT = 2.0**-53


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def turn(q, rate_x, rate_y, rate_z, dt):
    """Turns the quaternion in place by a body rate held for dt: exact for a constant rate."""
    speed = math.sqrt(rate_x * rate_x + rate_y * rate_y + rate_z * rate_z)
    half = 0.5 * speed * dt
    w = math.cos(half)
    # sin(half) / speed tends to dt / 2 where there is no rate to divide by
    scale = math.sin(half) / speed if speed * dt > 1e-12 else 0.5 * dt
    x, y, z = rate_x * scale, rate_y * scale, rate_z * scale
    a, b, c, d = q[0], q[1], q[2], q[3]
    q[0] = a * w - b * x - c * y - d * z
    q[1] = a * x + b * w + c * z - d * y
    q[2] = a * y - b * z + c * w + d * x
    q[3] = a * z + b * y - c * x + d * w
    norm = math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
    for k in range(4):
        q[k] /= norm


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def upright(q):
    """World z seen from the body; the last component is the cosine of the tilt."""
    return (
        2 * (q[1] * q[3] - q[0] * q[2]),
        2 * (q[2] * q[3] + q[0] * q[1]),
        1 - 2 * (q[1] * q[1] + q[2] * q[2]),
    )


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def euler(q):
    """Roll, pitch and yaw, intrinsic z-y-x, rad."""
    x, y, z = upright(q)
    yaw = math.atan2(2 * (q[1] * q[2] + q[0] * q[3]), 1 - 2 * (q[2] * q[2] + q[3] * q[3]))
    return math.atan2(y, z), math.asin(min(1.0, max(-1.0, -x))), yaw


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def wrap(angle):
    """The angle in [-pi, pi)."""
    return angle - 2 * math.pi * math.floor(angle / (2 * math.pi) + 0.5)


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def rotation_vector(q, yaw):
    """Body-frame rotation vector from the level attitude at that yaw to q; the short way round."""
    c, s = math.cos(0.5 * yaw), math.sin(0.5 * yaw)
    w, x, y, z = c * q[0] + s * q[3], c * q[1] + s * q[2], c * q[2] - s * q[1], c * q[3] - s * q[0]
    if w < 0:
        w, x, y, z = -w, -x, -y, -z
    sine = math.sqrt(x * x + y * y + z * z)
    scale = 2 * math.atan2(sine, w) / sine if sine > 1e-12 else 2.0
    return x * scale, y * scale, z * scale


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _uniform(key, counter):
    """A number in (0, 1) that depends on key and counter alone: splitmix64's finaliser."""
    x = key + (np.uint64(counter) + np.uint64(1)) * _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    x = x ^ (x >> np.uint64(31))
    return (np.float64(x >> np.uint64(11)) + 0.5) * _TO_UNIT


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def normal_pair(key, counter):
    """Two independent standard normals from a key and a counter: any step of any trial can be drawn alone."""
    radius = math.sqrt(-2 * math.log(_uniform(key, 2 * counter)))
    angle = 2 * math.pi * _uniform(key, 2 * counter + 1)
    return radius * math.cos(angle), radius * math.sin(angle)


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def box_qp(H, g, low, high, x):
    """Minimises x'Hx/2 + g'x over low <= x <= high by a primal active-set method, exact after finitely many steps.

    Args:
        H: positive definite, [n, n].
        g: [n].
        low: lower bounds, [n].
        high: upper bounds, none below its lower one, [n].
        x: where to start, clipped into the box; receives the minimiser.

    Returns:
        Steps taken.
    """
    n = x.shape[0]
    free, place = np.ones(n, np.bool_), np.empty(n, np.int64)
    gradient, step, factor = np.empty(n), np.empty(n), np.empty((n, n))
    for i in range(n):
        x[i] = min(max(x[i], low[i]), high[i])
        free[i] = low[i] < x[i] < high[i]
    for iteration in range(QP_STEPS):
        m, worst, scale, released = 0, 0.0, 0.0, -1
        for i in range(n):
            gradient[i] = g[i]
            scale = max(scale, abs(g[i]))
            for j in range(n):
                gradient[i] += H[i, j] * x[j]
                scale = max(scale, abs(H[i, j] * x[j]))
            if free[i]:
                place[m] = i
                m += 1
        _newton_step(H, gradient, place, m, factor, step)
        length, blocking = 1.0, -1
        for k in range(m):
            i = place[k]
            room = (high[i] if step[k] > 0 else low[i]) - x[i]
            if abs(step[k]) * length > abs(room):
                length, blocking = room / step[k], i
        for k in range(m):
            x[place[k]] += length * step[k]
        if blocking >= 0:
            x[blocking] = min(max(x[blocking], low[blocking]), high[blocking])
            x[blocking] = (
                high[blocking] if high[blocking] - x[blocking] < x[blocking] - low[blocking] else low[blocking]
            )
            free[blocking] = False
            continue
        for i in range(n):
            if not free[i] and low[i] < high[i]:
                slope = g[i]
                for j in range(n):
                    slope += H[i, j] * x[j]
                pull = -slope if x[i] <= low[i] else slope
                if pull > worst + QP_TOLERANCE * scale:
                    worst, released = pull, i
        if released < 0:
            return iteration + 1
        free[released] = True
    return QP_STEPS


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _newton_step(H, gradient, place, m, factor, step):
    """Solves H step = -gradient among the m free variables, by Cholesky."""
    for i in range(m):
        for j in range(i + 1):
            total = H[place[i], place[j]]
            for k in range(j):
                total -= factor[i, k] * factor[j, k]
            factor[i, j] = math.sqrt(total) if i == j else total / factor[j, j]
    for i in range(m):
        total = -gradient[place[i]]
        for k in range(i):
            total -= factor[i, k] * step[k]
        step[i] = total / factor[i, i]
    for i in range(m - 1, -1, -1):
        for k in range(i + 1, m):
            step[i] -= factor[k, i] * step[k]
        step[i] /= factor[i, i]
