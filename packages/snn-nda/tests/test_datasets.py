"""The parts of a data set, from folders that the tests write."""

import numpy as np
import pytest

from core_utils.data import DataError
from core_utils.errors import UserError
from core_utils.spiking.events import EVENT
from core_utils.training import Loader
from snn_nda.datasets import event_data, miniature_data
from snn_nda.frame_cache import FrameOptions
from snn_nda.recording_files import write_dat

OPTIONS = FrameOptions(time_steps=2, size=10)


def write(path, mark, sensor=(120, 100)):
    """Ten events, as many brighter ones as the mark says."""
    events = np.zeros(10, EVENT)
    events["t"] = np.arange(10)
    events["x"], events["y"] = 3, 5
    events["p"] = np.arange(10) < mark
    write_dat(path, events, sensor)


@pytest.fixture
def cars(tmp_path):
    for part, count in (("train", 10), ("test", 3)):
        for label, name in enumerate(("background", "cars")):
            for index in range(count):
                write(tmp_path / part / name / f"obj_{index}.dat", mark=2 + 3 * label)
    return tmp_path


def test_published_parts_are_kept_and_a_share_is_held_out(cars):
    sets = event_data("n-cars", cars, OPTIONS, validation=0.2, progress=False)
    assert [len(part) for part in (sets.train, sets.validation, sets.test)] == [16, 4, 6]
    assert (sets.num_classes, sets.size, sets.label_safe_flip) == (2, 10, True)
    assert {name.split("/")[0] for name in sets.split["test"]} == {"test"}
    assert not set(sets.split["train"]) & set(sets.split["validation"])
    for part in (sets.train, sets.validation, sets.test):
        labels = [label for _, label in (part[index] for index in range(len(part)))]
        assert labels.count(0) == labels.count(1)
    for index in range(len(sets.train)):
        frames, label = sets.train[index]
        assert frames.shape == (2, 2, 10, 10)
        assert frames[:, 1].sum() == pytest.approx(2 + 3 * label)
        assert frames.sum() == pytest.approx(10)


def test_a_seed_decides_what_is_held_out(cars):
    splits = [event_data("n-cars", cars, OPTIONS, seed=seed, progress=False).split for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_batches_come_from_the_cache(cars, tmp_path):
    sets = event_data("n-cars", cars, OPTIONS, validation=0, cache=tmp_path / "cache", progress=False)
    assert sets.validation is None
    assert sets.split["validation"] == []
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2
    frames, labels = next(iter(Loader(sets.train, 5, seed=0)))
    assert frames.shape == (5, 2, 2, 10, 10)
    assert labels.dtype.is_floating_point is False


def test_an_unnamed_data_set_says_its_own_facts(cars):
    facts = {"sensor_size": (120, 100), "label_safe_flip": False}
    sets = event_data(None, cars, OPTIONS, **facts, progress=False)
    assert sets.label_safe_flip is False
    assert sets.train[0][0].sum() == pytest.approx(10)


def test_a_single_folder_is_parted_nine_to_one_by_number(tmp_path):
    for index in range(20):
        write(tmp_path / "car" / f"{index}.dat", mark=0)
    sets = event_data(None, tmp_path, OPTIONS, validation=0, sensor_size=(120, 100), progress=False)
    assert sets.split["test"] == ["car/18.dat", "car/19.dat"]


@pytest.mark.parametrize("share", [-0.1, 1, 1.5])
def test_a_share_outside_its_range_is_refused(cars, share):
    with pytest.raises(UserError, match=r"validation must lie in \[0, 1\)"):
        event_data("n-cars", cars, OPTIONS, validation=share, progress=False)


def test_a_class_of_which_all_would_be_held_out_is_named(cars):
    with pytest.raises(DataError, match="class background has no training recording left"):
        event_data("n-cars", cars, OPTIONS, validation=0.99, progress=False)


def test_the_miniature_holds_nothing_out():
    sets = miniature_data(3, train_per_class=2, test_per_class=4, time_steps=3)
    assert (len(sets.train), sets.validation, len(sets.test)) == (20, None, 40)
    assert (sets.num_classes, sets.size, sets.label_safe_flip) == (10, 24, True)
    assert sets.train[0][0].shape == (3, 2, 24, 24)
