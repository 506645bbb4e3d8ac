"""What is known of attitude and rate in flight (spec 2.4).

Under power the accelerometer reads the thrust over the mass along the body, whatever the tilt, so it says where up is
only on the ground or while it reads 1 g; elsewhere the attitude is the integrated gyro.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence

import numba
import numpy as np
from jaxtyping import Bool, Float, UInt64

from jethr2.errors import ParameterError
from jethr2.kernels import euler, normal_pair, turn, upright, wrap
from jethr2.params import EstimatorParams

MODES = ("truth", "noisy_truth", "mahony")
TRUTH, NOISY_TRUTH, MAHONY = range(3)
STANDARD_GRAVITY = 9.81
"""m/s^2, the model's."""

ESTIMATOR = np.dtype(
    [
        ("mode", "i8"),
        ("kp", "f8"),
        ("ki", "f8"),
        ("gate", "f8"),
        ("gated", "i8"),
        ("lowpass", "f8"),
        ("attitude_sd", "f8"),
        ("gyro_sd", "f8"),
        ("gyro_bias_sd", "f8"),
        ("accelerometer_sd", "f8"),
        ("gravity", "f8"),
    ]
)
"""`EstimatorParams` for compiled code."""

ESTIMATE = np.dtype(
    [
        ("quat", "f8", 4),
        ("bias", "f8", 3),
        ("rate", "f8", 3),
        ("started", "i8"),
        ("levelled", "i8"),
        ("key", "u8"),
        ("tick", "i8"),
    ]
)
"""One trial's estimate. `started` and `levelled` say whether a rate and an attitude are known; `key` is that of its noise, 0: none; `tick` counts the samples that had noise."""

_BIAS_COUNTER = 1 << 60


class AttitudeEstimator:
    """Attitudes and rates of n robots from their gyros and accelerometers.

    Attributes:
        params: gains, gate and noise.
        state: records of the type ESTIMATE, one per robot; none before the first step.
    """

    def __init__(
        self,
        mode: str = "mahony",
        params: EstimatorParams | None = None,
        *,
        seed: int = 0,
        gravity: float = STANDARD_GRAVITY,
    ) -> None:
        """Makes an estimator that starts with its first step.

        Args:
            mode: `mahony`; or `truth` or `noisy_truth`, which hand on the attitude that `step` is given.
            params: gains, gate and noise; its own `mode` gives way to this one.
            seed: of the noise of `noisy_truth`.
            gravity: that the accelerometer's reading is compared with, m/s^2.
        """
        if mode not in MODES:
            raise ParameterError("mode", mode, f"one of {', '.join(MODES)}")
        if seed < 0:
            raise ParameterError("seed", seed, "at least 0")
        self.params = params or EstimatorParams()
        self._constants = estimator_constants(self.params, mode, gravity)
        self._seed = seed
        self.state = np.zeros(0, ESTIMATE)

    def step(
        self,
        gyro: Float[np.ndarray, "n 3"],
        accel: Float[np.ndarray, "n 3"],
        dt: float,
        thrust_on: Bool[np.ndarray, " n"],
        *,
        attitude: Float[np.ndarray, "n 4"] | None = None,
        yaw: Float[np.ndarray, " n"] | None = None,
    ) -> tuple[Float[np.ndarray, "n 4"], Float[np.ndarray, "n 3"]]:
        """Takes in one sample of each robot.

        Args:
            gyro: body rate, rad/s.
            accel: specific force in the body's axes, m/s^2; at rest it points up.
            dt: since the last sample, s.
            thrust_on: whether the robot may be in the air, so that the gate is asked.
            attitude: the true one (w, x, y, z), which `truth` and `noisy_truth` need.
            yaw: a reference that corrects the yaw of `mahony`, rad.

        Returns:
            Attitude (w, x, y, z) and low-passed body rate, rad/s.

        Raises:
            ParameterError: another number of robots than before, numbers that are not finite, dt not positive, no
                attitude for a mode that needs it.
        """
        for name, value in (("gyro", gyro), ("accel", accel), ("attitude", attitude), ("yaw", yaw)):
            if value is not None and not np.isfinite(value).all():
                raise ParameterError(name, "NaN or infinity", "finite")
        if not (dt > 0 and math.isfinite(dt)):
            raise ParameterError("dt", dt, "positive")
        if attitude is None and self._constants["mode"] != MAHONY:
            raise ParameterError("attitude", None, f"given in mode {MODES[self._constants['mode']]}")
        if attitude is not None and not np.linalg.norm(attitude, axis=1).all():
            raise ParameterError("attitude", "a quaternion of norm 0", "a rotation")
        self._expect(len(gyro))
        truth = attitude if attitude is not None else np.tile([1.0, 0, 0, 0], (len(gyro), 1))
        truth = truth / np.linalg.norm(truth, axis=1, keepdims=True)
        reference = np.full(len(gyro), np.nan) if yaw is None else yaw
        _estimate_rows(self._constants, self.state, gyro, accel, truth, thrust_on, reference, float(dt))
        return self.state["quat"].copy(), self.state["rate"].copy()

    def reset(
        self, mask: Bool[np.ndarray, " n"] | None = None, *, attitude: Float[np.ndarray, "n 4"] | None = None
    ) -> None:
        """Forgets what is known of the robots in the mask, or of all.

        Args:
            mask: which robots start anew.
            attitude: from where `mahony` starts; without it, from the first accelerometer reading of 1 g, yaw 0.
        """
        if attitude is not None:
            self._expect(len(attitude))
        chosen = np.ones(len(self.state), bool) if mask is None else mask
        fresh = self._fresh(len(self.state))
        if attitude is not None:
            fresh["quat"] = attitude / np.linalg.norm(attitude, axis=1, keepdims=True)
            fresh["levelled"] = 1
        self.state[chosen] = fresh[chosen]

    def zero(self, gyro: Float[np.ndarray, "samples n 3"]) -> None:
        """Takes the mean of samples at rest for the gyros' bias, as the lab does.

        Raises:
            ParameterError: fewer samples than `zero_samples`.
        """
        if len(gyro) < self.params.zero_samples:
            raise ParameterError("gyro", f"{len(gyro)} samples", f"at least {self.params.zero_samples} samples at rest")
        self._expect(gyro.shape[1])
        self.state["bias"] = gyro.mean(axis=0)

    def _expect(self, count: int) -> None:
        if len(self.state) == 0:
            self.state = self._fresh(count)
        if len(self.state) != count:
            raise ParameterError("gyro", f"{count} rows", f"{len(self.state)} rows, as before")

    def _fresh(self, count: int) -> np.ndarray:
        return fresh_estimates(noise_keys(self._seed, range(count)))


def estimator_constants(params: EstimatorParams, mode: str, gravity: float) -> np.void:
    """The parameters as one record of the type ESTIMATOR."""
    record = np.zeros(1, ESTIMATOR)[0]
    for name in ESTIMATOR.names or ():
        if name not in ("mode", "gravity"):
            record[name] = getattr(params, name)
    record["mode"], record["gravity"] = MODES.index(mode), gravity
    return record


def fresh_estimates(keys: np.ndarray) -> np.ndarray:
    """States of robots that have seen nothing yet, with the keys of their noise."""
    state = np.zeros(len(keys), ESTIMATE)
    state["quat"][:, 0] = 1
    state["key"] = keys
    return state


def noise_keys(seed: int, trials: Sequence[int]) -> np.ndarray:
    """Keys of the noise of trials; a trial's is the same whatever else is asked for."""
    # Appending to the spawn key is what SeedSequence.spawn does, without making the trials before.
    states = [np.random.SeedSequence(seed, spawn_key=(trial, 1)).generate_state(1, np.uint64)[0] for trial in trials]
    return np.array(states, np.uint64).reshape(-1) | np.uint64(1)


def noise_vectors(constants: np.void, keys: UInt64[np.ndarray, " n"], ticks: int) -> Float[np.ndarray, "n ticks 6"]:
    """What `add_noise` adds in `noisy_truth`, sample by sample: to the rate, rad/s, and as a turn of the attitude, rad."""
    vectors = np.empty((len(keys), ticks, 6))
    _draw_noise(constants, keys, vectors)
    return vectors


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _draw_noise(c, keys, vectors):
    for i in range(len(keys)):
        for tick in range(vectors.shape[1]):
            for pair in range(3):
                vectors[i, tick, 2 * pair], vectors[i, tick, 2 * pair + 1] = normal_pair(keys[i], 3 * tick + pair)
            vectors[i, tick, :3] *= c.gyro_sd
            vectors[i, tick, 3:] *= c.attitude_sd


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _estimate_rows(c, state, gyro, accel, truth, thrust_on, yaw, dt):
    g, a, q = np.empty(3), np.empty(3), np.empty(4)
    for i in range(len(state)):
        g[:], a[:], q[:] = gyro[i], accel[i], truth[i]
        if c.mode == NOISY_TRUTH:
            add_noise(c, state[i], g, a, q)
        estimate(c, state[i], g, a, q, thrust_on[i], yaw[i], dt)


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def add_noise(c, s, gyro, accel, truth):
    """What the trial's instruments read, in place of what is true; counted, so that no two samples share noise."""
    if c.mode == TRUTH:
        return
    first = 3 * s.tick
    g_x, g_y = normal_pair(s.key, first)
    g_z, other_x = normal_pair(s.key, first + 1)
    other_y, other_z = normal_pair(s.key, first + 2)
    s.tick += 1
    gyro[0] += c.gyro_sd * g_x
    gyro[1] += c.gyro_sd * g_y
    gyro[2] += c.gyro_sd * g_z
    if c.mode == NOISY_TRUTH:
        turn(truth, c.attitude_sd * other_x, c.attitude_sd * other_y, c.attitude_sd * other_z, 1.0)
        return
    bias_x, bias_y = normal_pair(s.key, _BIAS_COUNTER)
    bias_z, _ = normal_pair(s.key, _BIAS_COUNTER + 1)
    gyro[0] += c.gyro_bias_sd * bias_x
    gyro[1] += c.gyro_bias_sd * bias_y
    gyro[2] += c.gyro_bias_sd * bias_z
    accel[0] += c.accelerometer_sd * other_x
    accel[1] += c.accelerometer_sd * other_y
    accel[2] += c.accelerometer_sd * other_z


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def estimate(c, s, gyro, accel, truth, thrust_on, yaw, dt):
    """One sample into one state; a yaw of NaN is no reference."""
    if c.mode == MAHONY:
        _mahony(c, s, gyro, accel, thrust_on, yaw, dt)
    else:
        s.quat[:] = truth
    keep = math.exp(-dt / c.lowpass) if c.lowpass > 0 and s.started == 1 else 0.0
    for k in range(3):
        rate = gyro[k] - s.bias[k]
        s.rate[k] = rate + (s.rate[k] - rate) * keep
    s.started = 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _mahony(c, s, gyro, accel, thrust_on, yaw, dt):
    """Complementary filter on quaternions, corrected towards the accelerometer's up where that means anything."""
    strength = math.sqrt(accel[0] ** 2 + accel[1] ** 2 + accel[2] ** 2)
    quiet = abs(strength / c.gravity - 1) < c.gate
    if s.levelled == 0:
        # A reading far from 1 g, as in the moment before the soles touch the ground, has no up in it.
        if quiet:
            _level(s.quat, accel, strength)
            s.levelled = 1
        return
    up_x, up_y, up_z = upright(s.quat)
    e_x, e_y, e_z = 0.0, 0.0, 0.0
    if strength > 0 and (not thrust_on or quiet or c.gated == 0):
        a_x, a_y, a_z = accel[0] / strength, accel[1] / strength, accel[2] / strength
        e_x, e_y, e_z = a_y * up_z - a_z * up_y, a_z * up_x - a_x * up_z, a_x * up_y - a_y * up_x
    if not math.isnan(yaw):
        off = wrap(yaw - euler(s.quat)[2])
        e_x, e_y, e_z = e_x + off * up_x, e_y + off * up_y, e_z + off * up_z
    s.bias[0] -= c.ki * e_x * dt
    s.bias[1] -= c.ki * e_y * dt
    s.bias[2] -= c.ki * e_z * dt
    x, y, z = gyro[0] - s.bias[0] + c.kp * e_x, gyro[1] - s.bias[1] + c.kp * e_y, gyro[2] - s.bias[2] + c.kp * e_z
    turn(s.quat, x, y, z, dt)


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _level(q, accel, strength):
    """Roll and pitch from a reading at rest, yaw 0."""
    roll = math.atan2(accel[1], accel[2])
    pitch = math.asin(min(1.0, max(-1.0, -accel[0] / strength)))
    c_r, s_r, c_p, s_p = math.cos(roll / 2), math.sin(roll / 2), math.cos(pitch / 2), math.sin(pitch / 2)
    q[0], q[1], q[2], q[3] = c_r * c_p, s_r * c_p, c_r * s_p, -s_r * s_p
