"""Simulated recordings: balanced, repeatable, and the same as events and as frames."""

import numpy as np
import pytest

from core_utils.errors import UserError
from core_utils.spiking.events import EVENT
from snn_nda.synthetic import SyntheticEventDataset


def test_classes_are_balanced_and_the_seed_decides():
    first, again, other = (SyntheticEventDataset(n=25, T=3, size=16, seed=seed) for seed in (0, 0, 1))
    assert np.bincount(first.labels).min() == 2
    assert len(first) == len(list(first)) == 25
    np.testing.assert_array_equal(first.samples, again.samples)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert not np.array_equal(first.samples, other.samples)


def test_frames_count_the_events():
    frames = SyntheticEventDataset(n=10, T=4, size=20)
    events = SyntheticEventDataset(n=10, T=4, size=20, output="events")
    assert frames[0][0].shape == (4, 2, 20, 20)
    for (counts, label), (recording, same) in zip(frames, events, strict=True):
        assert label == same
        assert recording.dtype == EVENT
        assert counts.sum() == len(recording) > 100
        np.testing.assert_array_equal(counts.sum(0), binned(recording))


def binned(events):
    cells = np.zeros((2, 20, 20))
    np.add.at(cells, (events["p"], events["y"], events["x"]), 1)
    return cells


def test_training_and_test_images_differ():
    train, test = (SyntheticEventDataset(n=30, size=16, part=part, pose=False) for part in ("train", "test"))
    assert not np.array_equal(train.samples, test.samples)


def test_digits_are_not_mirrored_and_say_so():
    pytest.importorskip("sklearn")
    digits = SyntheticEventDataset("digits", n=10)
    assert digits.label_safe_flip is False
    assert SyntheticEventDataset(n=10).label_safe_flip is True
    assert digits.sensor_size == (24, 24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fashion-nist", 10), "source 'fashion-nist' is no folder"),
        (("fashion-mnist", 0), "n must lie between 1 and 8000 for fashion-mnist"),
        (("fashion-mnist", 2001, 5, 24, 0, "test"), "n must lie between 1 and 2000"),
    ],
)
def test_what_cannot_be_made_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        SyntheticEventDataset(*arguments)
