"""Frame caches: what is in them, when they are made anew, what an interruption leaves."""

import json
from dataclasses import replace

import numpy as np
import pytest

from core_utils.data import DataError
from core_utils.errors import UserError
from core_utils.spiking.events import EVENT, events_to_frames, resize_frames
from snn_nda import frame_cache
from snn_nda.folders import FolderEvents
from snn_nda.frame_cache import CachedFrames, FrameOptions, cached_frames
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


def test_a_part_reads_its_rows_as_floats_and_travels_without_the_map(folder, tmp_path):
    import pickle

    path = cached_frames(recordings(folder), replace(OPTIONS, method="nearest"), tmp_path / "cache", progress=False)
    part = CachedFrames(path, np.array([0, 0, 0, 1, 1]), np.array([4, 1]))
    frames, label = part[0]
    assert (frames.dtype, label, len(part)) == (np.float32, 1, 2)
    np.testing.assert_array_equal(frames, np.load(path)[4])
    sent = pickle.dumps(part)
    assert len(sent) < 2000
    np.testing.assert_array_equal(pickle.loads(sent)[1][0], part[1][0])


def test_a_finished_cache_is_not_made_again(folder, tmp_path, monkeypatch):
    path = cached_frames(recordings(folder), OPTIONS, tmp_path / "cache", progress=False)
    monkeypatch.setattr(frame_cache, "map_jobs", None)
    assert cached_frames(recordings(folder), OPTIONS, tmp_path / "cache", progress=False) == path


@pytest.fixture
def unmade(monkeypatch):
    """Names the files and makes none."""
    monkeypatch.setattr(frame_cache, "_make", lambda target, *_, **__: None)


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


@pytest.mark.parametrize("damage", ["cut", "flipped", "no checksum"])
def test_a_damaged_cache_is_made_anew(folder, tmp_path, damage, caplog):
    path = cached_frames(recordings(folder), OPTIONS, tmp_path / "cache", progress=False)
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-10])
    elif damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.with_suffix(".json").unlink()
    assert cached_frames(recordings(folder), OPTIONS, tmp_path / "cache", progress=False).read_bytes() == content
    assert "is cut or damaged; its frames are made anew" in caplog.text


def test_an_interruption_loses_no_finished_job(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(frame_cache, "SHARD", 2)
    damaged = folder / "class1" / "3.dat"
    content = damaged.read_bytes()
    damaged.write_bytes(b"% Version 2\n")
    stat = damaged.stat()
    listed = recordings(folder)
    with pytest.raises(DataError, match=r"3\.dat"):
        cached_frames(listed, OPTIONS, tmp_path / "cache", progress=False)
    shards = sorted((tmp_path / "cache").glob("*/*.npy"))
    assert [shard.name for shard in shards] == ["0000000.npy", "0000002.npy"]  # order: class0 of 3, class1 of 2
    made = {shard: shard.stat().st_mtime_ns for shard in shards}
    seen = []
    original = frame_cache.map_jobs

    def watched(function, jobs, *, done, **options):
        seen.append((len(jobs), set(done)))
        return original(function, jobs, done=done, **options)

    monkeypatch.setattr(frame_cache, "map_jobs", watched)
    # The file is replaced by one of the same size and time, as if the reading alone had failed.
    monkeypatch.setattr(frame_cache, "_key", lambda recordings, options: shards[0].parent.name.rsplit("-", 1)[1])
    damaged.write_bytes(content)
    path = cached_frames(listed, OPTIONS, tmp_path / "cache", progress=False)
    assert seen == [(3, {"recordings from 0", "recordings from 2"})]
    assert stat.st_size != len(content)
    assert all(not shard.exists() for shard in made)
    whole = cached_frames(recordings(folder), OPTIONS, tmp_path / "other", progress=False)
    assert path.read_bytes() == whole.read_bytes()


def test_processes_make_the_same_file(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(frame_cache, "SHARD", 2)
    one, two = (
        cached_frames(recordings(folder), OPTIONS, tmp_path / str(count), workers=count, progress=False)
        for count in (1, 2)
    )
    assert one.read_bytes() == two.read_bytes()
    assert json.loads(one.with_suffix(".json").read_text())["options"]["size"] == 8
    assert not list(tmp_path.glob("*/.*.tmp"))


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
