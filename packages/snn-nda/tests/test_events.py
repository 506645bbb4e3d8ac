"""EventNDA: agreement with the frames of the same events, and what stays as it was."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core_utils.spiking.events import EVENT, events_to_frames
from snn_nda.errors import EventsError
from snn_nda.events import EventNDA, move
from snn_nda.params import Cutout, HFlip, Params, Roll, Rotate, ShearX
from snn_nda.policies import NONE, PAPER
from snn_nda.sampling import transform

WIDTH, HEIGHT = SENSOR = (10, 12)


def recording(n=400, seed=0, width=WIDTH, height=HEIGHT, dtype=EVENT):
    rng = np.random.default_rng(seed)
    events = np.empty(n, dtype)
    events["t"] = np.sort(rng.integers(1000, size=n))
    events["x"], events["y"] = rng.integers(width, size=n), rng.integers(height, size=n)
    events["p"] = rng.integers(2, size=n)
    return events


def counts(events, sensor=SENSOR):
    """Frames of four fixed bins of time, whatever is missing."""
    step = events["t"].astype(int) // 250
    frames = np.zeros((4, 2, sensor[1], sensor[0]), np.int64)
    np.add.at(frames, (step, events["p"].astype(int), events["y"], events["x"]), 1)
    return frames


def framed(events, params, sensor=SENSOR):
    return transform(torch.from_numpy(counts(events, sensor))[None], [params])[0].numpy()


exact = st.one_of(
    st.builds(HFlip, swap_polarity=st.booleans()),
    st.builds(Roll, dy=st.integers(-14, 14), dx=st.integers(-14, 14), wrap=st.booleans()),
    st.builds(Cutout, y=st.integers(0, 11), x=st.integers(0, 9), length=st.integers(0, 8)),
)


@given(st.lists(exact, max_size=4).map(tuple), st.integers(0, 50))
def test_mirrors_rolls_and_holes_give_the_frames_of_the_frames(operations, seed):
    events = recording(seed=seed)
    params = Params(operations)
    np.testing.assert_array_equal(counts(move(events, params, SENSOR)), framed(events, params))


@given(st.booleans(), st.integers(-9, 9), st.integers(-9, 9), st.sampled_from(["time", "number"]))
def test_binning_by_core_utils_before_or_after_is_the_same(flip, dy, dx, by):
    events = recording(seed=abs(dy))
    params = Params((*([HFlip()] if flip else []), Roll(dy=dy, dx=dx)))
    frames = torch.from_numpy(events_to_frames(events, 5, SENSOR, by=by))
    moved = events_to_frames(move(events, params, SENSOR), 5, SENSOR, by=by)
    assert torch.equal(transform(frames[None], [params])[0], torch.from_numpy(moved))


@pytest.mark.parametrize("quarter", [-1, 1, 2, 3])
def test_quarter_turns_of_a_square_sensor_give_the_frames_of_the_frames(quarter):
    events = recording(seed=1, width=9, height=9)
    params = Params((Rotate(degrees=90.0 * quarter),))
    np.testing.assert_array_equal(counts(move(events, params, (9, 9)), (9, 9)), framed(events, params, (9, 9)))


@pytest.mark.parametrize("operation", [Rotate(degrees=30.0), Rotate(degrees=-15.0), ShearX(degrees=25.0)])
def test_rotation_and_shear_take_a_spot_where_the_frames_take_it(operation):
    rng = np.random.default_rng(0)
    events = recording(5000, width=48, height=48)
    events["x"], events["y"] = (np.clip(rng.normal(mean, 2, 5000), 0, 47).astype(int) for mean in (30, 15))
    params = Params((operation,))
    places = np.stack(np.mgrid[:48, :48], axis=-1)

    def centre(frames):
        weights = frames.sum((0, 1))
        return (weights[..., None] * places).sum((0, 1)) / weights.sum()

    by_events = counts(move(events, params, (48, 48)), (48, 48))
    by_frames = framed(events, params, (48, 48))
    assert by_events.sum() == 5000
    np.testing.assert_allclose(centre(by_events), centre(by_frames), atol=0.2)
    assert np.abs(centre(by_events) - centre(counts(events, (48, 48)))).max() > 2


@given(st.integers(0, 200))
def test_times_order_and_types_stay_and_no_event_is_made(seed):
    tonic = np.dtype([("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "?")])
    events = recording(seed=seed, dtype=tonic)
    before = events.copy()
    moved = EventNDA("M3N3", rng=seed)(events, (*SENSOR, 2))
    assert moved.dtype == tonic
    assert len(moved) <= len(events)
    assert (np.diff(moved["t"]) >= 0).all()
    np.testing.assert_array_equal(events, before)
    assert 0 <= moved["x"].min(initial=0) <= moved["x"].max(initial=0) < WIDTH
    assert 0 <= moved["y"].min(initial=0) <= moved["y"].max(initial=0) < HEIGHT


def test_what_was_turned_out_does_not_roll_in_again():
    events = recording(4, width=1, height=1)  # all in the corner, which a turn by 45 degrees takes out of the sensor
    assert len(move(events, Params((Rotate(degrees=45.0), Roll(dx=5, dy=5))), SENSOR)) == 0


def test_events_and_frames_draw_the_same_from_the_same_generator():
    params = EventNDA("M2N3", rng=5).sample_params(SENSOR)
    assert params == EventNDA("M2N3").policy.draw(np.random.default_rng(5), (HEIGHT, WIDTH))
    events = recording()
    nda = EventNDA("M2N3", rng=5)
    np.testing.assert_array_equal(nda(events, SENSOR), nda.apply(events, params, SENSOR))
    assert EventNDA().policy == PAPER
    assert EventNDA(NONE, flip=1).policy.flip == 1


def test_it_takes_the_sensor_of_its_constructor_as_in_a_compose():
    events = recording()
    composed = EventNDA("M1N1", rng=2, sensor_size=(*SENSOR, 2))
    np.testing.assert_array_equal(composed(events), EventNDA("M1N1", rng=2)(events, SENSOR))
    with pytest.raises(EventsError, match="the sensor is unknown"):
        EventNDA()(events)


def test_no_event_stays_no_event():
    assert len(EventNDA("M3N3", rng=0)(np.empty(0, EVENT), SENSOR)) == 0


def with_field(name, value):
    events = recording(20)
    events[name][7] = value
    return events


@pytest.mark.parametrize(
    ("events", "sensor", "message"),
    [
        (with_field("x", 10), SENSOR, "event 7 at x=10, y=.* lies outside the sensor of width 10 and height 12"),
        (with_field("x", -1), SENSOR, "event 7 at x=-1"),
        (with_field("y", 11), (12, 10), "width and height look swapped"),
        (np.zeros(3, [("x", "i2"), ("y", "i2"), ("t", "i8")]), SENSOR, "no field 'p'"),
        (with_field("p", -1), SENSOR, "map -1 to 0 first"),
    ],
)
def test_events_that_do_not_fit_are_named(events, sensor, message):
    with pytest.raises(EventsError, match=message):
        move(events, Params((HFlip(swap_polarity=True),)), sensor)
