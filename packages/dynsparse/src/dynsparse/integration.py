"""Explicit Euler integration (invented paper, eq. 1)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from core_utils.errors import UserError


class StepError(UserError):
    """A step that does not fit into the duration."""


def integrate(
    rate: Float[np.ndarray, " n"], start: Float[np.ndarray, " n"], *, step: float, duration: float
) -> Float[np.ndarray, " n"]:
    """Integrates dx/dt = rate * x from `start` for `duration` seconds.

    Args:
        rate: growth rates, 1/s; negative ones decay.
        start: initial state, any unit.
        step: step length, s, in (0, duration]; rounded down so that a whole number of steps fills the duration.
        duration: integration time, s.

    Returns:
        State at `duration`, in the unit of `start`.

    Raises:
        StepError: `step` is not in (0, duration].

    Reference:
        Invented paper, eq. (1): x[k+1] = x[k] + h rate x[k], hence x[K] = (1 + h rate)^K x[0].
    """
    if not 0 < step <= duration:
        raise StepError(f"step must lie in (0, {duration}] s, got {step}")
    steps = int(np.ceil(duration / step))
    return start * (1 + duration / steps * rate) ** steps
