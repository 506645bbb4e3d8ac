"""Published layouts: files that the tests write come back as events, with their labels and parts."""

import numpy as np
import pytest
from recordings import aedat2_bytes, aedat31_bytes, bin_bytes, dat_bytes, recording, write

from core_utils.errors import UserError
from snn_nda.folders import GESTURES, FolderEvents, published_parts


def one_class(folder, name, suffix, to_bytes, count, **options):
    """`count` recordings, number i with seed i."""
    for number in range(count):
        write(folder / f"{name}_{number}{suffix}", to_bytes(recording(seed=number, **options)))


def gestures(folder, users=3, per_user=2):
    """A file a user with spans of 5 ms, the classes counted through; the last user is for testing."""
    for user in range(users):
        name = f"user{user:02}_led"
        write(folder / f"{name}.aedat", aedat31_bytes(recording(400, seed=user, width=128, height=128)))
        rows = [f"{1 + user * per_user + i},{5000 * i + 1000},{5000 * i + 6000}" for i in range(per_user)]
        write(folder / f"{name}_labels.csv", "\n".join(["class,startTime_usec,endTime_usec", *rows, ""]).encode())
    names = [f"user{user:02}_led.aedat" for user in range(users)]
    write(folder / "trials_to_train.txt", "\n".join(names[:-1]).encode())
    write(folder / "trials_to_test.txt", (names[-1] + "\n").encode())
    return folder


def test_cifar10_dvs_is_split_nine_to_one_by_number(tmp_path):
    for name in ("airplane", "bird"):
        one_class(tmp_path / name, f"cifar10_{name}", ".aedat", aedat2_bytes, 20, width=128, height=128)
    train, test = published_parts(tmp_path, "cifar10-dvs")
    assert (len(train), len(test)) == (36, 4)
    assert [path.name for path in test.paths] == [
        f"cifar10_{name}_{i}.aedat" for name in ("airplane", "bird") for i in (18, 19)
    ]
    events, label = test[3]
    np.testing.assert_array_equal(events, recording(seed=19, width=128, height=128))
    assert label == 1
    assert train.classes == ("airplane", "bird")
    assert (train.sensor_size, train.label_safe_flip, train.label_map) == ((128, 128), True, {})


def test_n_caltech101_counts_its_classes_and_takes_recordings_of_any_size(tmp_path):
    for place, name in enumerate(("BACKGROUND_Google", "Faces_easy", "accordion")):
        one_class(tmp_path / "Caltech101" / name, "image", ".bin", bin_bytes, 10, width=240 - place, height=180)
    write(tmp_path / "Caltech101_annotations" / "accordion" / "annotation_0001.bin", b"no recording")
    train, test = published_parts(tmp_path, "n-caltech101")
    assert train.classes == ("BACKGROUND_Google", "Faces_easy", "accordion")
    assert (len(train), len(test)) == (27, 3)
    np.testing.assert_array_equal(test[2][0], recording(seed=9, width=238, height=180))


@pytest.mark.parametrize(("train_name", "test_name"), [("train", "test"), ("n-cars_train", "n-cars_test")])
def test_n_cars_comes_in_two_folders(tmp_path, train_name, test_name):
    for part, count in ((train_name, 3), (test_name, 2)):
        for name in ("background", "cars"):
            one_class(tmp_path / part / name, "obj_td", ".dat", dat_bytes, count, width=120, height=100)
    train, test = published_parts(tmp_path, "n-cars")
    assert (len(train), len(test)) == (6, 4)
    assert test.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(train[5][0], recording(seed=2, width=120, height=100))


def test_n_mnist_must_not_be_mirrored(tmp_path):
    for part in ("Train", "Test"):
        for digit in "07":
            one_class(tmp_path / part / digit, "0000", ".bin", bin_bytes, 2)
    train, test = published_parts(tmp_path, "n-mnist")
    assert train.label_safe_flip is test.label_safe_flip is False
    assert train.sensor_size == (34, 34)


def test_gestures_are_spans_of_files_with_the_published_trials(tmp_path):
    train, test = published_parts(gestures(tmp_path), "dvs-gesture")
    assert train.labels.tolist() == [0, 1, 2, 3]
    assert test.labels.tolist() == [4, 5]
    assert test.classes == GESTURES
    assert test.classes[test.labels[0]] == "right arm counter clockwise"
    whole = recording(400, seed=2, width=128, height=128)
    for index, start in enumerate((1000, 6000)):
        inside = (whole["t"] >= start) & (whole["t"] < start + 5000)
        np.testing.assert_array_equal(test[index][0], whole[inside])
    assert train.label_map[4] == 5


def test_a_folder_of_ones_own_says_its_own_facts(tmp_path):
    one_class(tmp_path / "a", "r", ".bin", bin_bytes, 2)
    mine = FolderEvents(tmp_path, sensor_size=(34, 34), label_safe_flip=False, label_map={0: 1})
    assert (mine.sensor_size, mine.label_safe_flip, mine.label_map) == ((34, 34), False, {0: 1})
    unknown = FolderEvents(tmp_path)
    assert (unknown.sensor_size, unknown.label_safe_flip) == (None, None)


def test_times_that_fall_are_sorted_when_asked(tmp_path):
    events = recording(duration=5000)
    write(tmp_path / "a" / "0.bin", bin_bytes(events[::-1]))
    with pytest.raises(UserError, match="time decreases from event 0 to 1"):
        FolderEvents(tmp_path)[0]
    assert (np.diff(FolderEvents(tmp_path, sort=True)[0][0]["t"]) >= 0).all()


def test_a_cut_recording_is_read_as_far_as_it_goes(tmp_path):
    write(tmp_path / "a" / "0.bin", bin_bytes(recording(duration=5000))[:-2])
    with pytest.warns(UserWarning, match="its last 3 bytes are no whole event"):
        assert len(FolderEvents(tmp_path)[0][0]) == 49


def only_train(folder):
    one_class(folder / "train" / "a", "r", ".bin", bin_bytes, 1)


def classes_that_differ(folder):
    only_train(folder)
    one_class(folder / "test" / "b", "r", ".bin", bin_bytes, 1)


def one_recording_a_class(folder):
    one_class(folder / "a", "r", ".bin", bin_bytes, 1)


def overlapping(folder):
    gestures(folder)
    (folder / "trials_to_test.txt").write_text("user00_led.aedat\n")


def a_trial_that_is_not_there(folder):
    gestures(folder)
    (folder / "trials_to_test.txt").write_text("user09_led.aedat\n")


def a_trial_elsewhere(folder):
    gestures(folder)
    (folder / "trials_to_test.txt").write_text("../user00_led.aedat\n")


def a_class_twelve(folder):
    gestures(folder)
    (folder / "user00_led_labels.csv").write_text("class,startTime_usec,endTime_usec\n12,0,5\n")


def another_table(folder):
    gestures(folder)
    (folder / "user00_led_labels.csv").write_text("label,from,to\n1,0,5\n")


def an_empty_class(folder):
    one_recording_a_class(folder)
    (folder / "b").mkdir()


@pytest.mark.parametrize(
    ("write_folder", "message"),
    [
        (only_train, "no folder for the test part"),
        (classes_that_differ, "has no class folder a"),
        (one_recording_a_class, "the training part of .* is empty"),
        (overlapping, "user00_led.aedat is in the training and in the test part"),
        (a_trial_that_is_not_there, r"trials_to_test.txt lists user09_led.aedat, which is not there"),
        (a_trial_elsewhere, "lies outside"),
        (a_class_twelve, r"user00_led_labels.csv has the row 12,0,5 \(classes are 1 to 11"),
        (another_table, "is no list of class,startTime_usec,endTime_usec"),
        (an_empty_class, "class folder .*b holds no recording"),
        (lambda folder: None, "data is empty"),
        (lambda folder: folder.rmdir(), "is no folder"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(tmp_path, write_folder, message):
    folder = tmp_path / "data"
    folder.mkdir()
    write_folder(folder)
    with pytest.raises(UserError, match=message):
        published_parts(folder)


def test_a_span_without_events_is_named(tmp_path):
    gestures(tmp_path, users=1)
    (tmp_path / "user00_led_labels.csv").write_text("class,startTime_usec,endTime_usec\n1,900000,900001\n")
    with pytest.raises(UserError, match="holds no event between 900000 and 900001 microseconds"):
        FolderEvents(tmp_path)[0]
