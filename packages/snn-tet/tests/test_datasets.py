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
from snn_tet.augmentation import CropAndFlip, FlipAndRoll, RandomResizedCrop, random_box
from snn_tet.datasets import cifar, cifar10_dvs, imagenet, prepare
from snn_tet.frame_cache import FrameOptions, recording_frames
from snn_tet.images import central_crop, normalised

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


def test_a_crop_is_a_window_of_the_image_in_a_black_frame():
    image = np.arange(2 * 4 * 4, dtype=np.float32).reshape(2, 4, 4) + 1
    framed = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    framed[0, framed[0] == 0], framed[1, framed[1] == 0] = -1, -2
    windows = {
        framed[:, y : y + 4, x : x + 4][..., ::step].tobytes() for y in range(3) for x in range(3) for step in (1, -1)
    }
    crops = {
        CropAndFlip((-1.0, -2.0), padding=1)((image, 3), np.random.default_rng(seed))[0].tobytes()
        for seed in range(300)
    }
    assert crops == windows
    assert len(windows) == 18


def test_random_boxes_keep_area_and_shape():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(300, 400, rng) for _ in range(500)])
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= 400
    assert bottom.max() <= 300
    assert 0.07 < (width * height / 120_000).min() < 0.12
    assert (width * height / 120_000).max() > 0.85
    assert 0.73 < (width / height).min() < 0.8
    assert 1.25 < (width / height).max() < 1.36


def test_an_image_too_narrow_for_a_random_box_gives_its_centre():
    assert random_box(1000, 3, np.random.default_rng(0)) == (0, 498, 3, 502)


def test_a_resized_crop_of_one_colour_is_that_colour():
    image = np.full((30, 40, 3), (255, 0, 51), np.uint8)
    crop, label = RandomResizedCrop((0.5, 0.5, 0.5), (0.5, 0.25, 1.0), size=8)((image, 2), np.random.default_rng(0))
    assert crop.dtype == np.float32
    assert label == 2
    np.testing.assert_allclose(crop, np.broadcast_to(np.array([1, -2, -0.3])[:, None, None], (3, 8, 8)), atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 32), (40, 16)])
def test_the_central_crop_is_of_the_scaled_image(shape):
    """Of an image that already has the right shorter side, 8/7 of 14, it is a cut."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    top, left = (shape[0] - 14) // 2, (shape[1] - 14) // 2
    np.testing.assert_array_equal(central_crop(image, 14), image[top : top + 14, left : left + 14])


# --- CIFAR and ImageNet


def write_cifar10(folder, images, labels):
    rows = np.concatenate([labels[:, None].astype(np.uint8), images.reshape(len(images), -1)], axis=1)
    for number, part in enumerate(np.split(rows[:-10], 5), start=1):
        (folder / f"data_batch_{number}.bin").write_bytes(part.tobytes())
    (folder / "test_batch.bin").write_bytes(rows[-10:].tobytes())


@pytest.fixture
def cifar_batches(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (110, 3, 32, 32), dtype=np.uint8)
    labels = np.tile(np.arange(10), 11)
    write_cifar10(tmp_path, images, labels)
    return tmp_path, images, labels


def test_cifar_is_normalised_and_held_out_from_training(cifar_batches):
    folder, images, labels = cifar_batches
    sets = cifar(folder, validation=0.2, seed=1)
    held = sets.split["validation"]
    kept = np.setdiff1d(np.arange(100), held)
    assert (len(sets.train), len(sets.validation), len(sets.test)) == (80, 20, 10)
    assert np.bincount(labels[held]).tolist() == [2] * 10
    mean = np.array([0.4914, 0.4822, 0.4465])[:, None, None]
    deviation = np.array([0.2023, 0.1994, 0.2010])[:, None, None]
    for part, indices in ((sets.train, kept), (sets.validation, held), (sets.test, range(100, 110))):
        for index, source in enumerate(indices):
            image, label = part[index]
            np.testing.assert_allclose(image, (images[source] / 255 - mean) / deviation, atol=1e-5)
            assert image.dtype == np.float32
            assert label == labels[source]
    assert (sets.num_classes, sets.channels, sets.size) == (10, 3, 32)
    np.testing.assert_allclose(sets.augment.black, (-mean / deviation).ravel(), rtol=1e-6)


def test_cifar_in_a_loader(cifar_batches):
    sets = cifar(cifar_batches[0])
    images, labels = next(iter(Loader(sets.train, 6, transform=sets.augment)))
    assert images.shape == (6, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_cifar_100_has_its_own_normalisation(tmp_path):
    rows = np.zeros((200, 3074), np.uint8)
    rows[:, 1] = np.tile(np.arange(100), 2)
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(rows.tobytes())
    sets = cifar(tmp_path, validation=0.5)
    assert (sets.num_classes, len(sets.train), len(sets.validation)) == (100, 100, 100)
    np.testing.assert_allclose(
        sets.test[0][0][:, 0, 0], [-0.5071 / 0.2675, -0.4867 / 0.2565, -0.4408 / 0.2761], rtol=1e-5
    )


def test_a_cifar_class_without_training_images_is_named(tmp_path):
    images, labels = np.zeros((60, 3, 32, 32), np.uint8), np.arange(60) % 5
    labels[-1] = 7
    write_cifar10(tmp_path, images, labels)
    with pytest.raises(DataError, match="class 5 has no training item"):
        cifar(tmp_path)


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for name in ("n01440764", "n01443537"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                image = rng.integers(0, 256, (20, 16 + number, 3), dtype=np.uint8)
                Image.fromarray(image).save(tmp_path / part / name / f"{name}_{number}.png")
    return tmp_path


def test_imagenet_has_crops_of_one_size(pictures):
    sets = imagenet(pictures, size=14, validation=0.25, seed=0)
    assert (len(sets.train), len(sets.validation), len(sets.test)) == (6, 2, 4)
    assert (sets.num_classes, sets.channels, sets.size) == (2, 3, 14)
    assert [name.split("/")[:2] for name in sets.split["validation"]] == [
        ["train", "n01440764"],
        ["train", "n01443537"],
    ]
    assert [sets.test[index][1] for index in range(4)] == [0, 0, 1, 1]
    from PIL import Image

    pixels = np.asarray(Image.open(pictures / "val" / "n01440764" / "n01440764_0.png"))  # 20 x 16, 8/7 of 14 wide
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    np.testing.assert_array_equal(sets.test[0][0], normalised(pixels[3:17, 1:15], mean, deviation))
    images, labels = next(iter(Loader(sets.train, 6, transform=sets.augment)))
    assert images.shape == (6, 3, 14, 14)
    assert images.dtype == torch.float32
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
    again, _ = next(iter(Loader(sets.train, 6, transform=sets.augment, workers=1)))
    assert torch.equal(images, again)


def test_a_class_that_is_missing_from_train_or_val_is_named(pictures):
    (pictures / "val" / "n01440764").rename(pictures / "val" / "n99")
    with pytest.raises(DataError, match="val has no class folder n01440764"):
        imagenet(pictures)


def test_data_sets_need_no_torch():
    code = "import sys, snn_tet.datasets; print(*{'torch', 'PIL', 'torchvision'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == []
