"""The lab program's predictive controller of pitch and speed (spec 2.6).

State x, dx/dt, th, dth/dt with th NOSE UP, the opposite of this package's pitch; input F1 (front), F2 (back), Fx in N:

    dx/dt += T Fx / M        dth/dt += T l cos(th) (F1 - F2) / J

The condensed programme (Th'Q Th + R) over the horizon has its cosine outside: H = s s' * H1 + 2 R, g = s * (G x - Gr ref),
with s = cos(th) for the fans and 1 for Fx, so that only s changes from one move to the next.
"""

from __future__ import annotations

import math
import typing
from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Float

from jethr2.errors import ParameterError
from jethr2.kernels import box_qp
from jethr2.params import MPCParams


class Programme(NamedTuple):
    """What of the condensed programme no state changes; inputs are stacked step by step, F1, F2, Fx.

    Attributes:
        hessian: 2 Th'Q Th at th = 0, [3N, 3N].
        by_state: 2 Th'Q Psi at th = 0, [3N, 4].
        by_reference: 2 Th'Q of a reference that stays, [3N, 4].
        weight: 2 R.
        low: bounds, [3N].
        high: bounds, [3N].
    """

    hessian: Float[np.ndarray, "inputs inputs"]
    by_state: Float[np.ndarray, "inputs 4"]
    by_reference: Float[np.ndarray, "inputs 4"]
    weight: float
    low: Float[np.ndarray, " inputs"]
    high: Float[np.ndarray, " inputs"]


class PitchMPC:
    """Plans a few steps ahead and gives the first.

    Attributes:
        params: model, weights and bounds.
    """

    def __init__(self, params: MPCParams | None = None) -> None:
        self.params = params or MPCParams()
        self._programme = programme(self.params)

    def first_move(
        self, x: Float[np.ndarray, " 4"], reference: Float[np.ndarray, " 4"] | None = None
    ) -> tuple[float, float, float]:
        """The forces to apply until the next step.

        Args:
            x: x in m, dx/dt in m/s, th in rad nose up, dth/dt in rad/s.
            reference: what to hold over the horizon, zeros where None; the parameters' offset is added to its dth/dt.

        Returns:
            F1 and F2 of the front and the back fan and the horizontal force Fx, N.

        Raises:
            ParameterError: numbers that are not finite.
        """
        wanted = np.zeros(4) if reference is None else np.array(reference, np.float64)
        wanted[3] += self.params.pitch_rate_offset
        for name, value in (("x", x), ("reference", wanted)):
            if not np.isfinite(value).all():
                raise ParameterError(name, value.tolist(), "finite")
        move = np.empty(3)
        first_move(self._programme, np.asarray(x, np.float64), wanted, move)
        return float(move[0]), float(move[1]), float(move[2])

    def tilt(self, move: tuple[float, float, float], pitch: float) -> float:
        """Angle of the thrust that makes the move's horizontal force with the front fan's, within the limit, rad.

        Args:
            move: of `first_move`, N.
            pitch: nose up, rad.
        """
        limit = self.params.tilt_limit
        return min(max(math.atan2(move[2], move[0]) + pitch, -limit), limit)


def programme(params: MPCParams) -> Programme:
    """Condenses model and weights over the horizon."""
    steps, dt = params.horizon, params.step
    transition = np.eye(4)
    transition[0, 1] = transition[2, 3] = dt
    entry = np.zeros((4, 3))
    entry[1, 2] = dt / params.mass
    entry[3, :2] = np.array([1, -1]) * dt * params.arm / params.inertia
    powers = [np.linalg.matrix_power(transition, k) for k in range(steps + 1)]
    free = np.vstack(powers[1:])
    forced = np.zeros((4 * steps, 3 * steps))
    for row in range(steps):
        for column in range(row + 1):
            forced[4 * row : 4 * row + 4, 3 * column : 3 * column + 3] = powers[row - column] @ entry
    weighted = 2 * forced.T * np.tile(params.state_weights, steps)
    (fan_low, fan_high), (low, high) = params.fan_range, params.force_range
    return Programme(
        weighted @ forced,
        weighted @ free,
        weighted @ np.tile(np.eye(4), (steps, 1)),
        2 * params.input_weight,
        np.tile([fan_low, fan_low, low], steps),
        np.tile([fan_high, fan_high, high], steps),
    )


@numba.njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def first_move(p, x, reference, move):
    """Solves the programme and leaves its first three inputs in `move`."""
    n = p.low.shape[0]
    cosine = math.cos(x[2])
    H, g, scale, inputs = np.empty((n, n)), np.empty(n), np.empty(n), np.zeros(n)
    for i in range(n):
        scale[i] = 1.0 if i % 3 == 2 else cosine
    for i in range(n):
        g[i] = 0.0
        for k in range(4):
            g[i] += p.by_state[i, k] * x[k] - p.by_reference[i, k] * reference[k]
        g[i] *= scale[i]
        for j in range(n):
            H[i, j] = scale[i] * scale[j] * p.hessian[i, j]
        H[i, i] += p.weight
    box_qp(H, g, p.low, p.high, inputs)
    move[0], move[1], move[2] = inputs[0], inputs[1], inputs[2]
