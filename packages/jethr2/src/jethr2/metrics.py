"""What became of a take-off (spec 2.7): peaks until the goal height is reached, or until the end.

The figures grow step by step in one record per trial, so that a study need not keep trajectories. They are made of the
true state, not of what the controller believes.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass

import numba
import numpy as np
from jaxtyping import Bool, Float

from jethr2.kernels import euler, upright, wrap

QUIET_TILT = math.radians(2)
QUIET_TIME = 0.2
LIFTOFF = 0.01

LARGEST = 1e10
"""Beyond it MuJoCo warns of a bad state (mjMAXVAL)."""

TRACK = np.dtype(
    [
        ("height", "f8"),
        ("place", "f8", 2),
        ("last_yaw", "f8"),
        ("yaw", "f8"),
        ("quiet_since", "f8"),
        ("commands", "f8"),
        ("peak_tilt", "f8"),
        ("peak_yaw", "f8"),
        ("peak_yaw_rate", "f8"),
        ("time_to_goal", "f8"),
        ("max_height", "f8"),
        ("final_height", "f8"),
        ("drift", "f8"),
        ("settling_time", "f8"),
        ("foot_effort", "f8"),
        ("throttle_effort", "f8"),
        ("lift_lost", "f8"),
        ("saturation", "f8"),
        ("diverged_at", "f8"),
    ]
)
"""One trial's figures while they grow; the first six only help to find the others."""

FIGURES = tuple((TRACK.names or ())[6:])
"""Names of the figures, angles in rad, lengths in m, times in s, forces in N; see `Metrics`."""


@dataclass(frozen=True)
class Criteria:
    """When a take-off counts as a success (spec 2.7 [S]).

    Attributes:
        height: to be reached, m above the start.
        tilt: below which the peak must stay until then, rad.
        yaw: likewise, rad.
    """

    height: float = 1.0
    tilt: float = math.radians(15)
    yaw: float = math.radians(20)


@dataclass(frozen=True, eq=False)
class Metrics:
    """Figures of n trials; of a diverged one, those until it diverged.

    Attributes:
        peak_tilt: greatest angle between body z and world z, rad.
        peak_yaw: greatest turn about the vertical from the start, unwrapped, rad.
        peak_yaw_rate: greatest rate of turn about the vertical, rad/s.
        time_to_goal: when the goal height is reached, s; nan if never.
        max_height: greatest rise of the base over the whole trial, m.
        final_height: rise at the end, m.
        drift: greatest horizontal distance from the start, m.
        settling_time: since when the tilt stayed below 2 deg for 0.2 s after lift-off, s; nan if never.
        foot_effort: root mean square of the ankles' commands about their posture, rad.
        throttle_effort: root mean square of the throttles about their mean.
        lift_lost: mean thrust of the collective that limits took away, N.
        saturation: share of control steps with an axis at a limit.
        diverged_at: when numbers ceased to be finite, s; nan if never.
    """

    peak_tilt: Float[np.ndarray, " n"]
    peak_yaw: Float[np.ndarray, " n"]
    peak_yaw_rate: Float[np.ndarray, " n"]
    time_to_goal: Float[np.ndarray, " n"]
    max_height: Float[np.ndarray, " n"]
    final_height: Float[np.ndarray, " n"]
    drift: Float[np.ndarray, " n"]
    settling_time: Float[np.ndarray, " n"]
    foot_effort: Float[np.ndarray, " n"]
    throttle_effort: Float[np.ndarray, " n"]
    lift_lost: Float[np.ndarray, " n"]
    saturation: Float[np.ndarray, " n"]
    diverged_at: Float[np.ndarray, " n"]

    @classmethod
    def from_tracks(cls, tracks: np.ndarray) -> Metrics:
        """The figures of finished records."""
        figures = {name: tracks[name].copy() for name in FIGURES}
        with np.errstate(invalid="ignore"):
            for name in ("foot_effort", "throttle_effort"):
                figures[name] = np.sqrt(figures[name] / tracks["commands"])
            for name in ("lift_lost", "saturation"):
                figures[name] = figures[name] / tracks["commands"]
        return cls(**figures)

    def __len__(self) -> int:
        return len(self.peak_tilt)

    @property
    def diverged(self) -> Bool[np.ndarray, " n"]:
        """Which trials diverged."""
        return ~np.isnan(self.diverged_at)

    def upright(self, criteria: Criteria | None = None) -> Bool[np.ndarray, " n"]:
        """Which trials reach the goal without a dive, whatever their yaw."""
        criteria = criteria or Criteria()
        return ~np.isnan(self.time_to_goal) & (self.peak_tilt < criteria.tilt) & ~self.diverged

    def success(self, criteria: Criteria | None = None) -> Bool[np.ndarray, " n"]:
        """Which trials reach the goal without a dive and without a spin."""
        criteria = criteria or Criteria()
        return self.upright(criteria) & (self.peak_yaw < criteria.yaw)


def fresh_tracks(qpos: Float[np.ndarray, "n nq"]) -> np.ndarray:
    """Records of trials that start there (base position and quaternion first)."""
    tracks = np.zeros(len(qpos), TRACK)
    tracks["height"], tracks["place"] = qpos[:, 2], qpos[:, :2]
    for name in ("time_to_goal", "settling_time", "diverged_at", "quiet_since"):
        tracks[name] = np.nan
    for track, row in zip(tracks, qpos, strict=True):
        track["last_yaw"] = euler(row[3:7])[2]
    return tracks


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def observe_states(tracks, states, nq, start, dt, goal):
    """Takes in states after physics steps, the first at start + dt: states[n, steps, 1 + nq + nv + ...].

    A trial whose numbers are not finite is marked with the time of the first such step and not looked at again.
    """
    for i in range(len(states)):
        for k in range(states.shape[1]):
            if not math.isnan(tracks[i].diverged_at):
                break
            if _finite(states[i, k]):
                _observe(tracks[i], states[i, k], nq, start + (k + 1) * dt, goal)
            else:
                tracks[i].diverged_at = start + (k + 1) * dt


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def observe_commands(tracks, ctrl, rest, fans, ankles, lift_lost, saturated):
    """Takes in one control step's commands, until the goal is reached: ctrl[n, nu], lift_lost[n], saturated[n, 3]."""
    for i in range(len(ctrl)):
        track, row = tracks[i], ctrl[i]
        if not (math.isnan(track.time_to_goal) and math.isnan(track.diverged_at)):
            continue
        for ankle in ankles:
            track.foot_effort += 0.5 * (row[ankle] - rest[ankle]) ** 2
        mean = 0.25 * (row[fans[0]] + row[fans[1]] + row[fans[2]] + row[fans[3]])
        for fan in fans:
            track.throttle_effort += 0.25 * (row[fan] - mean) ** 2
        track.lift_lost += lift_lost[i]
        if saturated[i, 0] != 0 or saturated[i, 1] != 0 or saturated[i, 2] != 0:
            track.saturation += 1
        track.commands += 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _finite(values):
    """Whether all are numbers that MuJoCo itself would accept."""
    bad = 0
    for value in values:
        bad += not abs(value) < LARGEST
    return bad == 0


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _observe(track, state, nq, t, goal):
    q, w = state[4:8], state[1 + nq + 3 : 1 + nq + 6]
    rise = state[3] - track.height
    track.final_height = rise
    track.max_height = max(track.max_height, rise)
    _settle(track, t, upright(q)[2], rise)
    if not math.isnan(track.time_to_goal):
        return
    up_x, up_y, up_z = upright(q)
    track.peak_tilt = max(track.peak_tilt, math.acos(min(1.0, max(-1.0, up_z))))
    yaw = euler(q)[2]
    track.yaw += wrap(yaw - track.last_yaw)
    track.last_yaw = yaw
    track.peak_yaw = max(track.peak_yaw, abs(track.yaw))
    track.peak_yaw_rate = max(track.peak_yaw_rate, abs(up_x * w[0] + up_y * w[1] + up_z * w[2]))
    track.drift = max(track.drift, math.hypot(state[1] - track.place[0], state[2] - track.place[1]))
    if rise >= goal:
        track.time_to_goal = t


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def _settle(track, t, cosine, rise):
    if not math.isnan(track.settling_time):
        return
    if rise < LIFTOFF or cosine < math.cos(QUIET_TILT):
        track.quiet_since = math.nan
    elif math.isnan(track.quiet_since):
        track.quiet_since = t
    elif t - track.quiet_since >= QUIET_TIME:
        track.settling_time = track.quiet_since
