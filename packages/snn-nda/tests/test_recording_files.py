"""Recordings written and read again, and what they hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_utils.errors import UserError
from core_utils.spiking.events import EVENT, read_events
from snn_nda.recording_files import statistics_of, write_dat

EVENTS = st.lists(
    st.tuples(st.integers(0, 2**31), st.integers(0, 2**14 - 1), st.integers(0, 2**14 - 1), st.integers(0, 1)),
    min_size=1,
    max_size=20,
)


@settings(max_examples=30, deadline=None)
@given(rows=EVENTS)
def test_what_is_written_is_read(tmp_path_factory, rows):
    events = np.array(sorted(rows), EVENT)
    path = tmp_path_factory.mktemp("dat") / "a.dat"
    write_dat(path, events, (100, 200))
    np.testing.assert_array_equal(read_events(path), events)
    assert b"% Width 100\n% Height 200\n" in path.read_bytes()


@pytest.mark.parametrize(("field", "value"), [("t", -1), ("t", 2**32), ("x", 2**14), ("y", -1)])
def test_what_the_format_cannot_hold_is_refused(tmp_path, field, value):
    events = np.zeros(2, EVENT)
    events[field][1] = value
    with pytest.raises(UserError, match=f"{field} of a .dat file must lie in"):
        write_dat(tmp_path / "a.dat", events, (8, 8))
    assert not list(tmp_path.iterdir())


def test_statistics_are_counted():
    events = np.array([(1000, 3, 7, 1), (2000, 5, 2, 0), (501_000, 4, 4, 1), (501_000, 4, 4, 1)], EVENT)
    assert statistics_of(events) == {
        "events": 4,
        "duration_us": 500_000,
        "rate": 8.0,
        "x_min": 3,
        "x_max": 5,
        "y_min": 2,
        "y_max": 7,
        "brighter": 0.75,
    }
    assert statistics_of(events[:1])["rate"] == float("inf")
