"""EventDrop: what is lost, how often, and that the rest stays."""

import numpy as np
import pytest
from scipy import stats

from core_utils.spiking.events import EVENT
from snn_nda.errors import FramesError, PolicyError
from snn_nda.eventdrop import WAYS, EventDrop

SENSOR = (20, 10)


@pytest.fixture(scope="module")
def events():
    """Five events in every pixel, one microsecond apart in a shuffled order."""
    rng = np.random.default_rng(0)
    events = np.empty(1000, EVENT)
    place = rng.permutation(np.repeat(np.arange(200), 5))
    events["t"] = np.arange(1000)
    events["y"], events["x"] = np.divmod(place, 20)
    events["p"] = rng.integers(2, size=1000)
    return events


def lost(events, kept):
    return np.setdiff1d(np.arange(len(events)), kept["t"])


def test_time_loses_one_stretch_of_its_share(events):
    for seed in range(20):
        gone = lost(events, EventDrop(ways=("time",), time=(0.3,))(events, SENSOR, seed))
        assert len(gone) in (299, 300, 301)
        np.testing.assert_array_equal(gone, np.arange(gone[0], gone[-1] + 1))


def test_area_loses_one_clipped_rectangle(events):
    sizes = set()
    for seed in range(40):
        gone = events[lost(events, EventDrop(ways=("area",), area=(0.2,))(events, SENSOR, seed))]
        x, y = gone["x"], gone["y"]
        inside = (
            (events["x"] >= x.min()) & (events["x"] <= x.max()) & (events["y"] >= y.min()) & (events["y"] <= y.max())
        )
        np.testing.assert_array_equal(events[inside], gone)
        sizes.add((int(np.ptp(x)) + 1, int(np.ptp(y)) + 1))
    assert max(sizes) == (4, 2)  # 0.2 of 20 and of 10
    assert min(sizes) < (4, 2)


def test_single_events_are_lost_with_their_probability(events):
    gone = sum(
        len(lost(events, EventDrop(ways=("events",), events=(0.4,))(events, SENSOR, seed))) for seed in range(20)
    )
    assert stats.binomtest(gone, 20_000, 0.4).pvalue > 0.01


def test_the_four_ways_are_as_likely_and_what_is_left_stays_in_order(events):
    untouched, count = 0, 400
    for seed in range(count):
        kept = EventDrop()(events, SENSOR, seed)
        np.testing.assert_array_equal(kept, events[kept["t"]])
        untouched += len(kept) == len(events)
    assert stats.binomtest(untouched, count, 1 / len(WAYS)).pvalue > 0.01


def test_the_seed_decides(events):
    first, again, other = (EventDrop()(events, SENSOR, seed) for seed in (3, 3, 5))
    np.testing.assert_array_equal(first, again)
    assert len(first) != len(other)


@pytest.mark.parametrize("way", WAYS)
def test_no_event_stays_no_event(way):
    assert len(EventDrop(ways=(way,))(np.empty(0, EVENT), SENSOR, 0)) == 0


@pytest.mark.parametrize("options", [{"time": (1.5,)}, {"area": ()}, {"ways": ("pixels",)}, {"ways": ()}])
def test_what_cannot_be_drawn_is_named(options):
    with pytest.raises(PolicyError, match=f"{next(iter(options))} must be"):
        EventDrop(**options)


@pytest.fixture(scope="module")
def frames():
    return np.full((10, 2, 8, 12), 6, np.int16)


def test_frames_lose_steps_in_a_row(frames):
    kept = EventDrop(ways=("time",), time=(0.4,)).on_frames(frames, 1)
    gone = np.flatnonzero(kept.sum((1, 2, 3)) == 0)
    np.testing.assert_array_equal(gone, np.arange(gone[0], gone[0] + 4))
    assert kept.sum() == frames.sum() * 0.6


def test_frames_lose_a_rectangle_at_all_times(frames):
    sizes = set()
    for seed in range(20):
        empty = EventDrop(ways=("area",), area=(0.25,)).on_frames(frames, seed) == 0
        assert (empty == empty[:1, :1]).all()
        rows, columns = (np.flatnonzero(empty[0, 0].any(axis)) for axis in (1, 0))
        assert empty[0, 0].sum() == len(rows) * len(columns)
        sizes.add((len(rows), len(columns)))
    assert max(sizes) == (2, 3)


def test_frames_lose_single_events(frames):
    kept = EventDrop(ways=("events",), events=(0.4,)).on_frames(frames, 0)
    assert kept.dtype == np.int16
    assert stats.binomtest(int(kept.sum()), int(frames.sum()), 0.6).pvalue > 0.01
    np.testing.assert_array_equal(EventDrop(ways=("nothing",)).on_frames(frames, 0), frames)


@pytest.mark.parametrize("frames", [np.ones((2, 8, 8)), np.full((2, 2, 8, 8), 0.5), np.full((2, 2, 8, 8), -1)])
def test_frames_that_are_no_counts_are_refused(frames):
    with pytest.raises(FramesError, match="from whole counts"):
        EventDrop().on_frames(frames, 0)
