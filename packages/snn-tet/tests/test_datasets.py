import hashlib
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import textwrap
import time

import jaxtyping
import numpy as np
import pytest
import torch

from core_utils.data import DataError
from core_utils.errors import UserError
from core_utils.files import FileError
from core_utils.spiking.events import cache
from core_utils.training import Loader
from snn_tet.augmentation import FlipAndRoll
from snn_tet.datasets import cifar10_dvs, prepare
from snn_tet.frame_cache import FrameOptions, recording_frames

QUICK = {"time_steps": 3, "size": 16, "progress": False}


@pytest.fixture
def as_users_run_it():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def write_recording(path, pixels):
    """AEDAT 2.0: brighter events at (x, y), one a millisecond."""
    content = b"#!AER-DAT2.0\r\n# made by a test\r\n"
    for time_, (x, y) in enumerate(pixels):
        content += struct.pack(">II", (127 - x) << 8 | (127 - y) << 1, 1000 * time_)
    path.write_bytes(content)


def write_recordings(folder):
    """Two classes of 20 recordings; recording k of a class holds 9 + k events at (6 k, 4)."""
    for name in ("frog", "ship"):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            write_recording(folder / name / f"cifar10_{name}_{number}.aedat", [(6 * number, 4)] * (9 + number))
    return folder


@pytest.fixture
def recordings(tmp_path):
    return write_recordings(tmp_path / "CIFAR10DVS")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The same for tests that change nothing."""
    return write_recordings(tmp_path_factory.mktemp("prepared") / "CIFAR10DVS")


# --- recordings


def test_frames_are_slices_of_equal_numbers_divided_by_their_largest(tmp_path):
    path = tmp_path / "a.aedat"
    # 3 slices of 3 events and one that is dropped: two pixels of 2 and 1 events, one of 3, three of 1
    write_recording(path, [(0, 0), (0, 0), (100, 50)] + [(5, 9)] * 3 + [(1, 1), (2, 1), (3, 1)] + [(64, 64)])
    frames = recording_frames(path, FrameOptions(time_steps=3, size=128))
    assert frames.dtype == np.float32
    assert frames.shape == (3, 2, 128, 128)
    expected = np.zeros((3, 2, 128, 128))
    expected[0, 1, 0, 0], expected[0, 1, 50, 100] = 1, 0.5
    expected[1, 1, 9, 5] = 1
    expected[2, 1, 1, 1:4] = 1
    np.testing.assert_array_equal(frames, expected)


def test_frames_are_resized_in_float(tmp_path):
    path = tmp_path / "a.aedat"
    rng = np.random.default_rng(0)
    write_recording(path, rng.integers(0, 128, (400, 2)).tolist())
    whole = torch.from_numpy(recording_frames(path, FrameOptions(time_steps=2, size=128)))
    expected = torch.nn.functional.interpolate(whole, 48, mode="bilinear", antialias=True)
    small = recording_frames(path, FrameOptions(time_steps=2, size=48))
    np.testing.assert_allclose(small, expected, atol=1e-6)
    assert not np.isclose(small * 255, np.round(small * 255), atol=1e-3).all()


def test_the_first_nine_tenths_of_every_class_are_for_training(prepared):
    sets = cifar10_dvs(prepared, **QUICK, validation=0.1, seed=0)
    assert (len(sets.train), len(sets.validation), len(sets.test)) == (32, 4, 4)
    assert sets.split["test"] == [
        f"{name}/cifar10_{name}_{number}.aedat" for name in ("frog", "ship") for number in (18, 19)
    ]
    assert sorted(sets.split["train"] + sets.split["validation"] + sets.split["test"]) == sorted(
        f"{name}/cifar10_{name}_{number}.aedat" for name in ("frog", "ship") for number in range(20)
    )
    assert [name.split("/")[0] for name in sets.split["validation"]] == ["frog", "frog", "ship", "ship"]
    assert (sets.num_classes, sets.channels, sets.size) == (2, 2, 16)
    json.dumps(sets.split)


def test_items_are_the_frames_of_their_recording(prepared):
    sets = cifar10_dvs(prepared, **QUICK)
    for part, names in ((sets.train, sets.split["train"]), (sets.test, sets.split["test"])):
        for index, name in enumerate(names):
            frames, label = part[index]
            np.testing.assert_array_equal(frames, recording_frames(prepared / name, FrameOptions(3, 16)))
            assert label == ("ship" in name)
            assert np.isfinite(frames).all()


def test_the_seed_decides_what_is_held_out_and_nothing_else(prepared):
    splits = [cifar10_dvs(prepared, **QUICK, seed=seed).split for seed in (0, 0, 1)]
    assert splits[0] == splits[1]
    assert splits[0]["validation"] != splits[2]["validation"]
    assert splits[0]["test"] == splits[2]["test"]
    assert cifar10_dvs(prepared, **QUICK, validation=0.0).validation is None


def test_a_random_split_is_stratified(prepared):
    sets = cifar10_dvs(prepared, **QUICK, split="random", seed=3)
    assert [name.split("/")[0] for name in sets.split["test"]] == ["frog", "frog", "ship", "ship"]
    assert not set(sets.split["test"]) & set(sets.split["train"] + sets.split["validation"])
    assert sets.split["test"] != cifar10_dvs(prepared, **QUICK, split="random", seed=4).split["test"]


def test_a_loader_gives_batches_whatever_its_workers(prepared):
    sets = cifar10_dvs(prepared, **QUICK)
    batches = [
        list(Loader(sets.train, 8, seed=1, transform=sets.augment, workers=workers).batches(0)) for workers in (0, 1)
    ]
    assert len(batches[0]) == 4
    for (frames, labels), (other, same) in zip(*batches, strict=True):
        assert frames.shape == (8, 3, 2, 16, 16)
        assert frames.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert torch.equal(frames, other)
        assert torch.equal(labels, same)


def test_pickled_frames_do_not_carry_the_file(prepared):
    train = cifar10_dvs(prepared, **QUICK).train
    frames, _ = train[0]
    content = pickle.dumps(train)
    assert len(content) < 4_000 < train.path.stat().st_size
    np.testing.assert_array_equal(pickle.loads(content)[0][0], frames)


def test_the_cache_is_a_memory_map_that_is_made_once(recordings, monkeypatch):
    file = prepare(recordings, **QUICK)
    assert file.parent == recordings / ".frames"
    assert np.load(file, mmap_mode="r").shape == (40, 3, 2, 16, 16)
    assert sorted(path.suffix for path in file.parent.iterdir()) == [".json", ".lock", ".npy"]
    monkeypatch.setattr(cache, "map_jobs", None)
    assert prepare(recordings, **QUICK) == file
    sets = cifar10_dvs(recordings, **QUICK)
    frames, _ = sets.train[0]
    assert isinstance(sets.train._rows, np.memmap)
    assert not isinstance(frames, np.memmap)


def test_other_options_or_files_never_meet_a_cache(recordings):
    files = [
        prepare(recordings, **QUICK),
        prepare(recordings, **QUICK | {"time_steps": 4}),
        prepare(recordings, **QUICK | {"size": 8}),
    ]
    write_recording(recordings / "ship" / "cifar10_ship_3.aedat", [(1, 1)] * 30)
    files.append(prepare(recordings, **QUICK))
    assert len(set(files)) == 4
    assert np.load(files[1], mmap_mode="r").shape[1] == 4
    assert np.load(files[3], mmap_mode="r")[23].any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("damage", ["cut", "flipped", "no checksum", "torn checksum"])
def test_a_damaged_cache_is_made_anew_and_says_so(recordings, caplog, damage):
    file = prepare(recordings, **QUICK)
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-5])
    elif damage == "flipped":
        file.write_bytes(content[:3000] + bytes([content[3000] ^ 1]) + content[3001:])
    elif damage == "no checksum":
        file.with_suffix(".json").unlink()
    else:
        file.with_suffix(".json").write_text('{"sha')
    assert prepare(recordings, **QUICK) == file
    assert f"{file} is cut or damaged; its frames are made anew" in caplog.text
    assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(content).digest()


def test_finished_shards_are_not_made_again(recordings, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 15)
    expected = np.load(prepare(recordings, **QUICK))
    broken = recordings / "ship" / "cifar10_ship_19.aedat"
    whole, stat = broken.read_bytes(), broken.stat()
    for leftover in (recordings / ".frames").iterdir():
        leftover.unlink()
    broken.write_bytes(b"#" * len(whole))  # of the third shard, and unnoticed by name, size and time
    os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DataError, match=r"cifar10_ship_19\.aedat is of no known format"):
        prepare(recordings, **QUICK)
    (shards,) = (path for path in (recordings / ".frames").iterdir() if path.is_dir())
    first, second = sorted(shards.glob("*.npy"))
    second.write_bytes(second.read_bytes()[:-1])
    (shards / ".0000030.npy.abc.tmp").write_bytes(b"half")
    made = first.stat().st_mtime_ns
    broken.write_bytes(whole)
    os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    original, jobs_done = cache.map_jobs, []
    monkeypatch.setattr(
        cache, "map_jobs", lambda *args, **more: jobs_done.append(more["done"]) or original(*args, **more)
    )
    assert first.stat().st_mtime_ns == made
    file = prepare(recordings, **QUICK)
    assert jobs_done == [{"recordings from 0"}]
    np.testing.assert_array_equal(np.load(file), expected)
    assert not shards.exists()


def test_two_workers_make_the_same_frames(recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 10)
    files = [prepare(recordings, **QUICK, cache=tmp_path / str(workers), workers=workers) for workers in (1, 2)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        ([(1, 1)] * 2, r"cifar10_frog_5\.aedat: 2 events cannot fill 3 steps"),
        ([], r"cifar10_frog_5\.aedat holds no event"),
    ],
)
def test_a_recording_with_too_few_events_is_named(recordings, pixels, message):
    write_recording(recordings / "frog" / "cifar10_frog_5.aedat", pixels)
    with pytest.raises(DataError, match=message):
        prepare(recordings, **QUICK)


def test_times_that_decrease_can_be_sorted(recordings):
    path = recordings / "frog" / "cifar10_frog_5.aedat"
    path.write_bytes(path.read_bytes() + struct.pack(">II", 0, 0))
    with pytest.raises(DataError, match=r"cifar10_frog_5\.aedat: time decreases"):
        prepare(recordings, **QUICK)
    assert len(cifar10_dvs(recordings, **QUICK, sort=True).test) == 4


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "official"}, "split must be index or random, got 'official'"),
        ({"validation": 1.0}, r"validation must lie in \[0, 1\), got 1.0"),
        ({"time_steps": 0}, "time_steps must be at least 1, got 0"),
        ({"size": 0}, "size must be at least 1"),
        ({"validation": 0.99}, "class frog has 18 items, too few to hold out 99% of them"),
    ],
)
def test_bad_options_are_named(prepared, options, message):
    with pytest.raises(UserError, match=message):
        cifar10_dvs(prepared, **QUICK | options)


def test_a_class_without_training_recordings_is_named(recordings):
    for path in sorted((recordings / "ship").iterdir())[1:]:
        path.unlink()
    with pytest.raises(DataError, match="class ship has no training item"):
        cifar10_dvs(recordings, **QUICK)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        cifar10_dvs(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        prepare(tmp_path / "nowhere")


def test_a_cache_that_cannot_be_written_is_named(recordings):
    (recordings / "file").touch()
    with pytest.raises(FileError, match=r"cannot write .*file/frames-3x16"):
        prepare(recordings, **QUICK, cache=recordings / "file")


def test_a_killed_preparation_goes_on(recordings):
    code = textwrap.dedent(f"""
        from pathlib import Path
        from core_utils.spiking.events import cache
        from snn_tet.datasets import prepare
        if __name__ == "__main__":
            cache.SHARD = 1
            prepare({str(recordings)!r}, time_steps=3, size=16, progress=False)
    """)
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(recordings.glob(".frames/*/*.npy")) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    file = prepare(recordings, **QUICK)
    sample = np.load(file, mmap_mode="r")[39]
    last = recordings / "ship" / "cifar10_ship_19.aedat"
    np.testing.assert_array_equal(sample, recording_frames(last, FrameOptions(3, 16)))


# --- augmentation


def test_events_are_flipped_half_the_time_and_rolled_by_at_most_five():
    frames = np.zeros((3, 2, 24, 24), np.float32)
    frames[:, :, 12, 8] = [[1, 2], [3, 4], [5, 6]]
    seen = []
    for seed in range(400):
        moved, label = FlipAndRoll()((frames, 7), np.random.default_rng(seed))
        assert label == 7
        ((row, column),) = {(y, x) for _, _, y, x in np.argwhere(moved)}  # one place at all time steps
        assert moved[:, :, row, column].tolist() == [[1, 2], [3, 4], [5, 6]]
        seen.append((row, column))
    rows, columns = np.array(seen).T
    assert set(rows) == set(range(12 - 5, 12 + 6))
    assert set(columns) == {*range(8 - 5, 8 + 6), *range(15 - 5, 15 + 6)}  # 15 is 8 in the mirror
    assert frames[0, 0, 12, 8] == 1
    assert np.count_nonzero(frames) == 6


def test_flips_are_fair():
    frames = np.zeros((1, 2, 1, 24), np.float32)
    frames[..., 0] = 1
    flipped = sum(
        bool(FlipAndRoll(shift=0)((frames, 0), np.random.default_rng(seed))[0][0, 0, 0, -1]) for seed in range(400)
    )
    assert 160 < flipped < 240  # 200 expected, standard deviation 10


def test_data_sets_need_no_torch():
    code = "import sys, snn_tet.datasets; print(*{'torch', 'PIL', 'torchvision'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == []
