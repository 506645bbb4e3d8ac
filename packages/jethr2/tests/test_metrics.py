import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jethr2.metrics import Criteria, Metrics, fresh_tracks, observe_commands, observe_states

DT = 0.002


def observed(rise, angles=None, rate=(0, 0, 0), place=None, goal=1.0):
    """Figures of one flight: rises in m, z-y-x angles in rad and places in m per step, the first the start."""
    steps = len(rise)
    angles = np.zeros((steps, 3)) if angles is None else np.asarray(angles)
    states = np.zeros((steps, 38))
    states[:, 3] = 0.5 + np.asarray(rise)
    states[:, 1:3] = 0 if place is None else place
    states[:, 4:8] = np.roll(Rotation.from_euler("ZYX", angles).as_quat(), 1, axis=1)
    states[:, 21:24] = rate
    tracks = fresh_tracks(states[:1, 1:18])
    observe_states(tracks, states[None, 1:], 17, 0.0, DT, goal)
    return tracks


def test_peaks_count_until_the_goal_and_heights_until_the_end():
    rise = np.linspace(0, 2, 201)
    pitch = np.where(rise <= 1.0, rise * 0.1, 0.8)
    track = observed(rise, np.c_[0 * rise, pitch, 0 * rise])[0]
    assert track["time_to_goal"] == pytest.approx(100 * DT)
    assert track["peak_tilt"] == pytest.approx(0.1)
    assert track["max_height"] == pytest.approx(2)


def test_the_goal_lies_where_the_criteria_put_it():
    assert observed(np.linspace(0, 2, 201), goal=0.5)[0]["time_to_goal"] == pytest.approx(50 * DT)
    assert math.isnan(observed(np.linspace(0, 0.99, 50))[0]["time_to_goal"])


def test_tilt_is_the_angle_between_the_verticals():
    track = observed([0, 0.1], [[0, 0, 0], [1.0, 0.3, -0.4]])[0]
    assert track["peak_tilt"] == pytest.approx(math.acos(math.cos(0.3) * math.cos(0.4)))


def test_a_robot_that_spins_on_passes_half_a_turn():
    yaw = np.linspace(2.0, 2.0 + 3 * math.pi, 200)
    assert observed(0 * yaw, np.c_[yaw, 0 * yaw, 0 * yaw])[0]["peak_yaw"] == pytest.approx(3 * math.pi)


def test_the_yaw_rate_is_about_the_vertical():
    track = observed([0, 0.1], [[0, 0, 0], [0.7, 0, math.pi / 2]], rate=(0, 2.0, 9.0))[0]
    assert track["peak_yaw_rate"] == pytest.approx(2.0)  # rolled by 90 deg, body y is the vertical


def test_drift_is_the_greatest_horizontal_distance():
    place = [[1.0, 1], [1.3, 1.4], [1.1, 1]]
    assert observed([0, 0.1, 0.2], place=place)[0]["drift"] == pytest.approx(0.5)


def test_settling_counts_from_where_the_tilt_stays_small():
    steps = 400
    rise, tilt = np.full(steps, 0.5), np.full(steps, 0.02)
    rise[:50] = 0  # quiet on the ground counts for nothing
    tilt[100:110] = tilt[180:200] = 0.1
    track = observed(rise, np.c_[0 * tilt, tilt, 0 * tilt])[0]
    assert track["settling_time"] == pytest.approx(200 * DT)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e11])
def test_the_first_number_out_of_bounds_ends_the_trial(bad):
    tracks = observed(np.linspace(0, 0.5, 10))
    states = np.zeros((1, 5, 38))
    states[..., 4] = 1
    states[0, :, 3] = 0.6
    states[0, 3, 30] = bad
    before = tracks["max_height"][0]
    observe_states(tracks, states, 17, 1.0, DT, 1.0)
    assert tracks["diverged_at"][0] == pytest.approx(1.0 + 4 * DT)
    assert tracks["max_height"][0] == max(before, 0.6 - 0.5)
    assert Metrics.from_tracks(tracks).diverged[0]


def test_efforts_are_means_over_control_steps():
    tracks = fresh_tracks(np.array([[0, 0, 0.5, 1, 0, 0, 0.0]]))
    rest = np.zeros(14)
    fans, ankles = np.arange(10, 14), np.array([4, 9])
    for sym, diff, lost, limited in ((0.1, 0.0, 2.0, 1), (0.0, 0.2, 4.0, 0)):
        ctrl = np.zeros((1, 14))
        ctrl[0, [4, 9]] = sym + diff, sym - diff
        ctrl[0, 10:] = 0.9, 0.9, 1.0, 0.8
        saturated = np.array([[0, limited, 0]])
        observe_commands(tracks, ctrl, rest, fans, ankles, np.array([lost]), saturated)
    metrics = Metrics.from_tracks(tracks)
    assert metrics.foot_effort[0] == pytest.approx(math.sqrt((0.01 + 0.04) / 2))
    assert metrics.throttle_effort[0] == pytest.approx(math.sqrt(0.02 / 4))
    assert metrics.lift_lost[0] == pytest.approx(3.0)
    assert metrics.saturation[0] == pytest.approx(0.5)


def test_success_needs_height_tilt_and_yaw_and_uprightness_forgives_the_yaw():
    tracks = np.concatenate(
        [
            observed([0, 1.0]),
            observed([0, 0.9]),
            observed([0, 1.0], [[0, 0, 0], [0, 0.27, 0]]),
            observed([0, 1.0], [[0, 0, 0], [0.4, 0, 0]]),
        ]
    )
    metrics = Metrics.from_tracks(tracks)
    assert metrics.success().tolist() == [True, False, False, False]
    assert metrics.upright().tolist() == [True, False, False, True]
    assert metrics.success(Criteria(tilt=0.3, yaw=0.5)).tolist() == [True, False, True, True]
