import numpy as np
import pytest
from scipy.optimize import minimize

from jethr2.errors import ParameterError
from jethr2.mpc import PitchMPC
from jethr2.params import MPCParams

DEGREE = np.pi / 180


@pytest.mark.parametrize(
    ("state", "move"),
    [  # the specification's, section 2.6
        ((0.0, 0, 0, 0), (10, 10, 0)),
        ((0.0, 0, -5 * DEGREE, 0.2), (50, 10, 0)),
        ((0.0, 0, -1 * DEGREE, 0.1), (16.235, 10, 0)),
    ],
)
def test_first_moves_are_those_of_the_lab_program(state, move):
    controller = PitchMPC(MPCParams(pitch_rate_offset=-10 * DEGREE))
    np.testing.assert_allclose(controller.first_move(np.array(state)), move, atol=5e-4)


def rolled_out(inputs, x, reference, p):
    """The cost of a plan, step by step from the model's equations; the cosine stays that of the start."""
    cost, cosine, x = p.input_weight * (inputs**2).sum(), np.cos(x[2]), np.array(x)
    for front, back, force in inputs.reshape(-1, 3):
        change = [x[1], force / p.mass, x[3], p.arm * cosine * (front - back) / p.inertia]
        x = x + p.step * np.array(change)
        cost += (np.array(p.state_weights) * (x - reference) ** 2).sum()
    return cost


def test_the_plan_is_the_cheapest_by_a_general_optimiser():
    p = MPCParams(state_weights=(0.0, 10.0, 50.0, 1.0))
    x, reference = np.array([0.1, 0.4, -0.06, 0.1]), np.array([0.0, 0.2, 0.02, 0.0])
    bounds = [p.fan_range, p.fan_range, p.force_range] * p.horizon
    best = minimize(
        rolled_out, np.tile([20.0, 20, 0], 5), (x, reference, p), bounds=bounds, method="L-BFGS-B", tol=1e-14
    )
    np.testing.assert_allclose(PitchMPC(p).first_move(x, reference), best.x[:3], atol=0.02)


def test_a_nose_that_is_too_low_is_raised_by_the_front_fan():
    front, back, force = PitchMPC().first_move(np.array([0.0, 0, -0.05, 0]))
    assert front > back
    assert force == pytest.approx(0, abs=1e-9)


def test_the_tilt_is_limited():
    controller = PitchMPC()
    assert controller.tilt((20.0, 20.0, 20.0), 0.1) == pytest.approx(40 * DEGREE)  # 45 deg + 0.1 rad
    assert controller.tilt((50.0, 20.0, -5.0), 0.02) == pytest.approx(np.arctan2(-5, 50) + 0.02)


def test_states_that_are_no_numbers_are_refused():
    with pytest.raises(ParameterError, match="x must be finite"):
        PitchMPC().first_move(np.array([0, np.nan, 0, 0]))
