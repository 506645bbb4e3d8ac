"""Frame caches: what is in them, and what gives another."""

from dataclasses import replace

import numpy as np
import pytest

from core_utils.data import DataError
from core_utils.errors import UserError
from core_utils.spiking.events import EVENT, events_to_frames, resize_frames
from snn_nda import frame_cache
from snn_nda.folders import FolderEvents
from snn_nda.frame_cache import FrameOptions, cached_frames
from snn_nda.recording_files import write_dat

SENSOR = (20, 16)
OPTIONS = FrameOptions(time_steps=3, size=8)


def recording(seed, count=60):
    rng = np.random.default_rng(seed)
    events = np.empty(count, EVENT)
    events["t"] = np.sort(rng.integers(0, 5000, count))
    events["x"], events["y"] = rng.integers(0, SENSOR[0], count), rng.integers(0, SENSOR[1], count)
    events["p"] = rng.integers(0, 2, count)
    return events


@pytest.fixture
def folder(tmp_path):
    for index in range(5):
        write_dat(tmp_path / "data" / f"class{index % 2}" / f"{index}.dat", recording(index), SENSOR)
    return tmp_path / "data"


def recordings(folder, **facts):
    return FolderEvents(folder, sensor_size=SENSOR, **facts)


def test_frames_are_those_of_the_events(folder, tmp_path):
    listed = recordings(folder)
    path = cached_frames(listed, OPTIONS, tmp_path / "cache", progress=False)
    rows = np.load(path, allow_pickle=False)
    assert rows.dtype == np.float32
    assert rows.shape == (5, 3, 2, 8, 8)
    for row, (events, _) in zip(rows, listed, strict=True):
        counts = events_to_frames(events, 3, SENSOR, by="number")
        np.testing.assert_array_equal(row, resize_frames(counts, 8, "sum"))
    np.testing.assert_allclose(rows.sum((1, 2, 3, 4)), 60, rtol=1e-5)  # "sum" loses no event


def test_nearest_counts_are_kept_whole(folder, tmp_path):
    options = replace(OPTIONS, method="nearest", by="time")
    rows = np.load(cached_frames(recordings(folder), options, tmp_path / "cache", progress=False))
    assert rows.dtype == np.uint16
    counts = events_to_frames(recordings(folder)[2][0], 3, SENSOR, by="time")
    np.testing.assert_array_equal(rows[2], resize_frames(counts, 8, "nearest"))


@pytest.fixture
def unmade(monkeypatch):
    """Names the files and makes none."""
    monkeypatch.setattr(frame_cache, "cache_frames", lambda make, listed, target, **_: target)


def test_other_options_have_another_file(folder, tmp_path, unmade):
    changes = ({}, {"time_steps": 4}, {"size": 9}, {"by": "time"}, {"method": "area"}, {"method": "nearest"})
    files = {cached_frames(recordings(folder), replace(OPTIONS, **change), tmp_path) for change in changes}
    assert len(files) == len(changes)


def test_other_recordings_and_another_sensor_have_another_file(folder, tmp_path, unmade):
    parts = [recordings(folder), replace(recordings(folder), sensor_size=(30, 30)), recordings(folder).subset([0, 1])]
    parts.append(recordings(folder, sort=True))
    files = {cached_frames(part, OPTIONS, tmp_path) for part in parts}
    write_dat(folder / "class0" / "0.dat", recording(99, 70), SENSOR)
    files.add(cached_frames(recordings(folder), OPTIONS, tmp_path))
    assert len(files) == 5


def test_a_recording_that_cannot_fill_the_steps_is_named(folder, tmp_path):
    write_dat(folder / "class0" / "7.dat", recording(7, 2), SENSOR)
    with pytest.raises(DataError, match=r"7\.dat: 2 events cannot fill 3 steps"):
        cached_frames(recordings(folder), OPTIONS, tmp_path / "cache", progress=False)


def test_a_recording_beyond_the_sensor_is_named(folder, tmp_path):
    with pytest.raises(DataError, match=r"\.dat: event .* lies outside the sensor of width 10 and height 10"):
        cached_frames(replace(recordings(folder), sensor_size=(10, 10)), OPTIONS, tmp_path / "cache", progress=False)


@pytest.mark.parametrize("options", [{"time_steps": 0}, {"size": 0}])
def test_options_below_one_are_refused(options):
    with pytest.raises(UserError, match="must be at least 1, got 0"):
        FrameOptions(**options)
