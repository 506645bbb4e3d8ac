"""Mirrors and labels: which data sets bear them."""

from types import SimpleNamespace

import pytest

from snn_nda.errors import FlipError, PolicyError
from snn_nda.labels import FACTS, checked_label_map, facts
from snn_nda.policies import PAPER, policy

NO_FLIP = policy("code", "cifar10-dvs")


@pytest.mark.parametrize("name", ["n-mnist", "digits"])
def test_a_mirrored_digit_is_refused_but_not_without_a_mirror(name):
    with pytest.raises(FlipError, match=r"says that not a mirrored sample keeps its label.*set flip to 0"):
        checked_label_map(PAPER, FACTS[name])
    assert checked_label_map(NO_FLIP, FACTS[name]) == {}


def test_a_warning_can_be_enough():
    with pytest.warns(UserWarning, match="the policy mirrors"):
        assert checked_label_map(PAPER, FACTS["n-mnist"], unsafe="warn") == {}


def test_a_data_set_that_says_nothing_is_refused():
    with pytest.raises(FlipError, match="SimpleNamespace does not say whether"):
        checked_label_map(PAPER, SimpleNamespace())
    assert checked_label_map(PAPER, SimpleNamespace(label_safe_flip=True)) == {}


def test_objects_keep_their_labels():
    for name in ("cifar10-dvs", "n-caltech101", "n-cars", "fashion-mnist"):
        assert checked_label_map(PAPER, FACTS[name]) == {}


def test_mirrored_gestures_swap_arms_and_sense_of_turning():
    swapped = checked_label_map(PAPER, FACTS["dvs-gesture"])
    names = {1: "right wave", 2: "left wave", 3: "right cw", 4: "right ccw", 5: "left cw", 6: "left ccw"}

    def mirror(name):
        side, what = name.split()
        return f"{'left' if side == 'right' else 'right'} {({'cw': 'ccw', 'ccw': 'cw'}).get(what, what)}"

    assert {names[old]: names[new] for old, new in swapped.items()} == {name: mirror(name) for name in names.values()}
    assert all(swapped[swapped[label]] == label for label in swapped)


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(PolicyError, match="did you mean 'n-mnist'"):
        facts("nmnist")
    assert facts("n-cars").sensor_size == (120, 100)
