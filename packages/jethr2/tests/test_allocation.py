import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jethr2.allocation import METHODS, MODES, AllocationLimits, allocate, wrench
from jethr2.errors import ParameterError

FULL = 49.05
LIMITS = AllocationLimits(fan_max_thrust=FULL)
# The specification's example (section 10), and the same with what the closed form neglects taken away.
ARMS = np.array(
    [[0.13968, 0, 0.08434], [-0.16032, 0, 0.08434], [0.01032, 0.1168, -0.41033], [0.01032, -0.1168, -0.41033]]
)
PLAIN = np.array([[0.15, 0, 0.0], [-0.15, 0, 0.0], [0.0, 0.1168, -0.41033], [0.0, -0.1168, -0.41033]])

moderate = st.tuples(st.floats(60, 150), st.floats(-1, 1), st.floats(-1, 1), st.floats(-0.3, 0.3))
any_wrench = st.tuples(*(st.floats(-500, 500) for _ in range(4)))


def forces(throttle, angle):
    """x = (f1, f2, f3x, f3z, f4x, f4z)."""
    thrust = FULL * throttle
    feet = [[thrust[2 + k] * math.sin(angle[k]), thrust[2 + k] * math.cos(angle[k])] for k in (0, 1)]
    return np.array([thrust[0], thrust[1], *feet[0], *feet[1]])


def test_the_quadratic_programme_gives_the_forces_of_the_specification():
    # Its box has |fx| <= 12 N; the bound of .97 Fmax on fz that it names too is not reached.
    limits = AllocationLimits(fan_max_thrust=FULL, foot_angle_sym=math.asin(12 / FULL))
    throttle, angle, residual = allocate(np.array([170.0, 1, -2, 0.3]), ARMS, limits, "qp")
    np.testing.assert_allclose(forces(throttle, angle), [43.23, 41.66, 0.863, 46.834, 3.432, 38.272], atol=1e-3)
    assert np.abs(residual).max() < 5e-3


@settings(deadline=None)  # the first call compiles
@given(w=moderate)
def test_closed_form_and_programme_agree_on_the_closed_forms_own_model(w):
    w = np.array(w)
    throttle, angle, _ = allocate(w, PLAIN, LIMITS, "closed_form")
    sym, diff = angle.mean(), (angle[0] - angle[1]) / 2
    thrust = FULL * throttle
    linear = [
        thrust.sum(),
        0.1168 * (thrust[2] - thrust[3]),
        -2 * w[0] / 4 * 0.41033 * sym,
        -2 * w[0] / 4 * 0.1168 * diff,
    ]
    throttle, angle, _ = allocate(w, PLAIN, LIMITS, "qp")
    x = forces(throttle, angle)
    programme = [
        x[0] + x[1] + x[3] + x[5],
        0.1168 * (x[3] - x[5]),
        0.15 * (x[1] - x[0]) - 0.41033 * (x[2] + x[4]),
        -0.1168 * (x[2] - x[4]),
    ]
    np.testing.assert_allclose(linear, w, atol=1e-9)
    # The programme trades a ten-thousandth of the forces' squares: 4 mN at this thrust.
    np.testing.assert_allclose(programme, w, atol=5e-3)


@settings(deadline=None)
@given(w=moderate)
def test_the_closed_form_errs_by_a_tenth_of_a_newton_metre_on_the_exact_wrench(w):
    # The specification's 0.1 N m. At hover the feet's difference in thrust, 4.28 N for 1 N m of roll, and in angle,
    # 0.0308 rad for 0.3 N m of yaw, pitch the robot by 2 * 0.41033 * 4.28 * 0.0308 = 0.108 N m.
    hovering = np.array([17 * 9.81, *w[1:]])
    _, _, residual = allocate(hovering, PLAIN, LIMITS, "closed_form")
    assert np.abs(residual[1:]).max() < 0.11


@settings(max_examples=200, deadline=None)
@given(w=any_wrench, method=st.sampled_from(METHODS), mode=st.sampled_from(MODES))
def test_no_wrench_asks_a_fan_to_pull_or_to_exceed_itself(w, method, mode):
    throttle, angle, residual = allocate(np.array(w), ARMS, LIMITS, method, mode)
    assert np.isfinite(residual).all()
    assert ((throttle >= 0) & (throttle <= 1)).all()
    assert np.abs(angle).max() <= math.radians(27) + 1e-12
    np.testing.assert_allclose(residual, wrench(throttle, angle, ARMS, FULL) - w, atol=1e-9)
    if mode in ("none", "differential"):
        assert (angle == 0).all()
    if mode == "none":
        np.testing.assert_allclose(throttle, throttle[0], atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(w=any_wrench)
def test_wider_limits_never_leave_more_of_the_programmes_own_objective(w):
    weights = np.array([1, 20, 20, 20])

    def missed(angle):
        limits = AllocationLimits(fan_max_thrust=FULL, foot_angle_sym=angle, foot_angle_diff=math.pi / 3)
        throttle, feet, residual = allocate(np.array(w), ARMS, limits, "qp")
        # What gives way afterwards, fz beside a large fx, is not the programme's.
        clipped = (throttle[2:] >= 1 - 1e-9).any() or (np.abs(feet) > angle + math.pi / 3 - 1e-9).any()
        return None if clipped else (weights**2 * residual**2).sum() + 1e-4 * (forces(throttle, feet) ** 2).sum()

    narrow, wide = missed(math.radians(5)), missed(math.radians(15))
    if narrow is not None and wide is not None:
        assert wide <= narrow * (1 + 1e-9) + 1e-9


def test_a_difference_at_full_thrust_costs_lift_and_keeps_the_moment():
    throttle, _, residual = allocate(np.array([4 * FULL, 2.0, 0, 0]), PLAIN, LIMITS, "closed_form")
    difference = 2 / (2 * 0.1168 * FULL)
    np.testing.assert_allclose(throttle, [1, 1, 1, 1 - 2 * difference])
    np.testing.assert_allclose(residual, [-2 * difference * FULL, 0, 0, 0], atol=1e-12)


def test_positive_pitch_and_yaw_errors_turn_the_feet_as_the_law_says():
    # + error asks for a negative moment; that takes a_s > 0 and a_d > 0.
    _, angle, _ = allocate(np.array([160.0, 0, -2.0, 0]), ARMS, LIMITS)
    assert angle[0] == angle[1] > 0
    _, angle, _ = allocate(np.array([160.0, 0, 0, -0.5]), ARMS, LIMITS)
    assert angle[0] == -angle[1] > 0


def test_the_clipped_pseudo_inverse_misses_moments_that_the_programme_keeps():
    w = np.array([[196.0, 2.0, -3.0, 0.5]])
    kept = np.abs(allocate(w, ARMS, LIMITS, "qp")[2][0, 1:])
    lost = np.abs(allocate(w, ARMS, LIMITS, "pinv")[2][0, 1:])
    assert lost.max() > 3 * kept.max()


def test_a_row_does_not_depend_on_its_neighbours():
    w = np.random.default_rng(0).normal([150, 0, 0, 0], [40, 3, 3, 1], size=(3, 50, 4))
    for method in METHODS:
        whole = allocate(w, ARMS, LIMITS, method)
        for array, row in zip(whole, allocate(w[1, 17], ARMS, LIMITS, method), strict=True):
            np.testing.assert_array_equal(array[1, 17], row)


def test_bad_numbers_and_names_are_refused_by_name():
    w = np.array([170.0, 0, 0, 0])
    with pytest.raises(ParameterError, match="method must be one of closed_form"):
        allocate(w, ARMS, LIMITS, "magic")
    with pytest.raises(ParameterError, match="w must be finite"):
        allocate(w * np.nan, ARMS, LIMITS)
    with pytest.raises(ParameterError, match="feet's fans below the centre of mass"):
        allocate(w, ARMS * [1, 1, 0], LIMITS)
    assert np.abs(allocate(w, ARMS * [1, 1, 0], LIMITS, "qp")[2]).max() < 0.01
    with pytest.raises(ParameterError, match="the left foot's fan to the left"):
        allocate(w, ARMS[[0, 1, 3, 2]], LIMITS)
    with pytest.raises(ParameterError, match="fan_max_thrust"):
        AllocationLimits(fan_max_thrust=0.0)
    with pytest.raises(ParameterError, match="foot_angle_sym"):
        AllocationLimits(fan_max_thrust=FULL, foot_angle_sym=-0.1)
