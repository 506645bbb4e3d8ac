import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from core_utils.errors import UserError
from core_utils.spiking.events import EVENT, events_to_frames, resize_frames

W, H = 7, 5


def recording(n, seed=0, duration=1000):
    rng = np.random.default_rng(seed)
    events = np.empty(n, EVENT)
    events["t"] = 10**15 + np.sort(rng.integers(0, duration, n))
    events["x"], events["y"], events["p"] = rng.integers(0, W, n), rng.integers(0, H, n), rng.integers(0, 2, n)
    return events


def at(*times):
    events = np.zeros(len(times), EVENT)
    events["t"] = times
    return events


def per_step(*times, **options):
    return events_to_frames(at(*times), sensor_size=(W, H), **options).sum((1, 2, 3)).tolist()


@given(
    n=st.integers(1, 60),
    time_steps=st.integers(1, 9),
    duration=st.integers(1, 80),
    by=st.sampled_from(["time", "number"]),
    remainder=st.sampled_from(["last", "drop"]),
    seed=st.integers(0, 99),
)
def test_frames_are_those_of_the_loop(n, time_steps, duration, by, remainder, seed):
    events = recording(n, seed, duration)
    assume(by == "time" or n >= time_steps)
    t = events["t"].astype(object)
    if by == "number":
        step = np.minimum(np.arange(n) // (n // time_steps), time_steps - 1)
        used = n - n % time_steps if remainder == "drop" else n
    elif t[-1] == t[0]:
        step, used = np.full(n, time_steps - 1), n
    else:
        step, used = np.minimum((t - t[0]) * time_steps // (t[-1] - t[0]), time_steps - 1).astype(int), n
    expected = np.zeros((time_steps, 2, H, W))
    np.add.at(expected, tuple(axis[:used] for axis in (step, events["p"], events["y"], events["x"])), 1)
    frames = events_to_frames(events, time_steps, (W, H), by=by, remainder=remainder)
    assert frames.dtype == np.float32
    assert frames.sum() == used
    np.testing.assert_array_equal(frames, expected)


def test_time_bins_are_half_open_but_the_last():
    assert per_step(0, 49, 50, 99, 100, time_steps=2) == [2, 3]


def test_an_empty_time_bin_is_an_empty_frame():
    assert per_step(0, 1, 100, time_steps=4) == [2, 0, 0, 1]


def test_events_of_one_time_are_the_last_step():
    assert per_step(7, 7, 7, time_steps=3) == [0, 0, 3]


@pytest.mark.parametrize(("remainder", "expected"), [("last", [2, 2, 4]), ("drop", [2, 2, 2])])
def test_remainder_goes_to_the_last_step_or_nowhere(remainder, expected):
    assert per_step(*range(8), time_steps=3, by="number", remainder=remainder) == expected


def test_fields_go_by_name():
    """The field order of tonic, with bool polarity."""
    events = recording(50)
    foreign = np.empty(50, [("x", "u2"), ("y", "u2"), ("t", "u8"), ("p", "?")])
    for name in EVENT.names:
        foreign[name] = events[name]
    np.testing.assert_array_equal(events_to_frames(foreign, 4, (W, H)), events_to_frames(events, 4, (W, H)))


def test_no_event_gives_empty_frames_and_a_warning():
    with pytest.warns(UserWarning, match="without events"):
        frames = events_to_frames(at(), 3, (W, H), by="number", dtype=np.uint8)
    assert frames.shape == (3, 2, H, W)
    assert frames.dtype == np.uint8
    assert not frames.any()


def test_fewer_events_than_steps_is_refused_by_number_alone():
    with pytest.raises(UserError, match="2 events cannot fill 3 steps"):
        events_to_frames(at(0, 1), 3, (W, H), by="number")
    assert per_step(0, 1, time_steps=3) == [1, 0, 1]


def test_decreasing_time_is_named():
    with pytest.raises(UserError, match="time decreases from event 2 to 3"):
        events_to_frames(at(0, 5, 6, 4, 7), 2, (W, H))


@pytest.mark.parametrize("time_type", ["u4", "i8"])
def test_decreasing_time_is_seen_in_any_integer_type(time_type):
    events = np.zeros(2, [("t", time_type), ("x", "i2"), ("y", "i2"), ("p", "i1")])
    events["t"] = [1, 0]
    with pytest.raises(UserError, match="time decreases"):
        events_to_frames(events, 1, (W, H))


@pytest.mark.parametrize(("field", "value"), [("x", W), ("x", -1), ("y", H), ("y", -1)])
def test_a_pixel_outside_the_sensor_is_named(field, value):
    events = at(0, 1, 2)
    events[field][1] = value
    with pytest.raises(UserError, match=rf"event 1 at x=.*, y=.* outside the sensor of width {W} and height {H}"):
        events_to_frames(events, 2, (W, H))


def test_swapped_width_and_height_are_suspected():
    with pytest.raises(UserError, match="width and height look swapped"):
        events_to_frames(recording(100), 2, (H, W))


def test_signed_polarity_is_refused_rather_than_miscounted():
    events = recording(10)
    events["p"][4:] = -1
    with pytest.raises(UserError, match=r"event 4 has polarity -1, not 0 or 1 \(signed=True reads -1 and 1\)"):
        events_to_frames(events, 2, (W, H))


def test_counts_that_would_wrap_are_refused():
    with pytest.raises(UserError, match="a pixel counts 256 events, more than uint8 holds"):
        events_to_frames(at(*[0] * 256), 1, (W, H), dtype=np.uint8)
    assert events_to_frames(at(*[0] * 255), 1, (W, H), dtype=np.uint8).max() == 255


@pytest.mark.parametrize(
    "events",
    [
        np.zeros(3),
        np.zeros(3, [("t", "i8"), ("x", "i2"), ("y", "i2")]),
        np.zeros(3, [("t", "f8"), ("x", "i2"), ("y", "i2"), ("p", "i1")]),
    ],
)
def test_other_arrays_are_refused(events):
    with pytest.raises(UserError, match="integer fields t, x, y and p"):
        events_to_frames(events, 2, (W, H))


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("options", [{"time_steps": 0}, {"by": "count"}, {"remainder": "first"}])
def test_bad_options_are_named(options):
    name, value = next(iter(options.items()))
    with pytest.raises(UserError, match=rf"{name}.*{value}"):
        events_to_frames(at(0, 1), **{"time_steps": 2, **options}, sensor_size=(W, H))


def test_events_need_numpy_alone():
    code = "import sys, core_utils.spiking.events; print(*{'torch', 'jaxtyping', 'scipy', 'numba'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == []


def test_signed_polarity_is_read_when_asked():
    events = recording(50)
    signed = events.copy()
    signed["p"] = 2 * events["p"] - 1
    np.testing.assert_array_equal(events_to_frames(signed, 4, (W, H), signed=True), events_to_frames(events, 4, (W, H)))
    with pytest.raises(UserError, match="has polarity 0, not -1 or 1"):
        events_to_frames(events, 4, (W, H), signed=True)


def probe():
    return (31 * np.arange(4 * 2 * 12 * 10) % 7).reshape(4, 2, 12, 10)


def test_nearest_takes_the_pixels_that_torchvision_takes():
    small = resize_frames(probe(), (6, 5), "nearest")
    assert small.dtype == probe().dtype
    np.testing.assert_array_equal(small, probe()[..., ::2, ::2])
    assert small.sum() == 723  # specs/snn-nda.md, section 10; the probe itself sums to 2877


@given(rows=st.integers(1, 15), columns=st.integers(1, 15))
def test_sum_conserves_counts_and_area_the_mean(rows, columns):
    frames = probe()
    summed = resize_frames(frames, (rows, columns), "sum")
    assert summed.shape == (4, 2, rows, columns)
    np.testing.assert_allclose(summed.sum((2, 3)), frames.sum((2, 3)), rtol=1e-5)
    mean = resize_frames(frames, (rows, columns), "area")
    np.testing.assert_allclose(mean.mean((2, 3)), frames.mean((2, 3)), rtol=1e-5)


def test_sum_and_area_of_whole_blocks():
    blocks = probe().reshape(4, 2, 6, 2, 5, 2)
    np.testing.assert_allclose(resize_frames(probe(), (6, 5), "sum"), blocks.sum((3, 5)), rtol=1e-6)
    np.testing.assert_allclose(resize_frames(probe(), (6, 5), "area"), blocks.mean((3, 5)), rtol=1e-6)


def test_a_pixel_on_a_border_is_shared_by_its_parts():
    row = np.array([[3.0, 5.0, 7.0]])
    np.testing.assert_allclose(resize_frames(row, (1, 2), "sum"), [[5.5, 9.5]])


@pytest.mark.parametrize("size", [48, 5, (7, 30), (12, 10)])
def test_bilinear_is_pytorchs_with_antialiasing(size):
    torch = pytest.importorskip("torch")
    frames = np.random.default_rng(0).random((3, 2, 12, 10)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(frames), size, mode="bilinear", antialias=True, align_corners=False
    )
    resized = resize_frames(frames, size, "bilinear")
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected, atol=1e-6)


def test_float64_stays():
    assert resize_frames(probe().astype(float), 3).dtype == np.float64


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("frames", "size", "method", "message"),
    [
        (np.zeros(5), 3, "area", r"shape \[5\]"),
        (np.zeros((3, 0)), 3, "nearest", r"shape \[3, 0\]"),
        (np.zeros((3, 3)), (0, 2), "sum", "to 0 x 2"),
        (np.zeros((3, 3)), 2, "cubic", "method 'cubic' is unknown"),
    ],
)
def test_frames_that_cannot_be_resized(frames, size, method, message):
    with pytest.raises(UserError, match=message):
        resize_frames(frames, size, method)
