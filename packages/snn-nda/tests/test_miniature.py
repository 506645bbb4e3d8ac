"""The miniature: paired, posed, and with a test part that no seed moves."""

import numpy as np
import pytest

from core_utils.data import DataError
from snn_nda.miniature import posed_miniature

SMALL = {"train_per_class": 3, "test_per_class": 2}


def test_recordings_are_clipped_counts_of_every_class():
    split = posed_miniature(0, **SMALL, time_steps=4)
    assert (split.x_train.shape, split.x_train.dtype) == ((30, 4, 2, 24, 24), np.float32)
    assert np.bincount(split.y_train).tolist() == [3] * 10
    assert np.bincount(split.y_test).tolist() == [2] * 10
    assert set(np.unique((3 * split.x_train).round(5)).tolist()) == {0, 1, 2, 3}
    assert 0.02 < (split.x_train > 0).mean() < 0.4


def test_a_seed_moves_the_training_part_alone():
    first, again, other = (posed_miniature(seed, **SMALL) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.x_train, again.x_train)
    assert not np.array_equal(first.x_train, other.x_train)
    np.testing.assert_array_equal(first.x_test, other.x_test)


def test_too_many_of_a_class_are_refused():
    with pytest.raises(DataError, match="class 0 has 800 members, 801 were asked for"):
        posed_miniature(0, train_per_class=801)
