"""The method against its equation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynsparse import StepError, integrate


def test_one_step_follows_the_equation():
    state = integrate(np.array([-0.5]), np.array([2.0]), step=1.0, duration=1.0)
    assert state == pytest.approx([1.0])  # 2 + 1 * (-0.5) * 2


@given(rate=st.floats(-2.0, 0.0), step=st.floats(0.001, 0.1))
def test_the_error_stays_below_its_first_order_bound(rate, step):
    state = integrate(np.array([rate]), np.array([1.0]), step=step, duration=1.0)
    # Standard bound h/2 max|x''| T exp(0) for a decaying linear equation, |x''| <= rate^2.
    assert abs(state[0] - np.exp(rate)) <= step * rate**2 / 2 + 1e-12


@pytest.mark.parametrize("step", [0.0, -0.1, 1.1, float("nan")])
def test_a_step_outside_the_duration_is_refused(step):
    with pytest.raises(StepError, match="step must lie in"):
        integrate(np.array([-1.0]), np.array([1.0]), step=step, duration=1.0)
