"""Policies: their levels, presets, names and files, and the statistics of what they draw."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from core_utils.errors import UserError
from snn_nda.errors import PolicyError
from snn_nda.params import Cutout, HFlip, Params, Roll, Rotate, ShearX
from snn_nda.policies import NONE, PAPER, Policy, adapted, policy


def drawn(policy_, count=3000, size=(48, 48), seed=0):
    return [policy_.draw(np.random.default_rng([seed, index]), size) for index in range(count)]


def kinds(params):
    return tuple(operation.name for operation in params.operations if operation.name != "hflip")


def test_one_operation_is_drawn_as_often_as_another():
    counts = [sum(kinds(each) == (name,) for each in drawn(PAPER)) for name in PAPER.ops]
    assert sum(counts) == 3000
    assert stats.chisquare(counts).pvalue > 0.01


def test_two_operations_are_drawn_without_replacement_in_any_order():
    pairs = [kinds(each) for each in drawn(policy("M2N2"))]
    counts = {pair: pairs.count(pair) for pair in set(pairs)}
    assert len(counts) == 4 * 3
    assert all(first != second for first, second in counts)
    assert stats.chisquare(list(counts.values())).pvalue > 0.01


@pytest.mark.parametrize("flip", [0.0, 0.3, 0.5, 1.0])
def test_mirrors_come_with_their_probability_and_first(flip):
    samples = drawn(replace(PAPER, flip=flip), 3000)
    flips = sum(each.flipped for each in samples)
    assert all(not isinstance(operation, HFlip) for each in samples for operation in each.operations[1:])
    assert flips == 3000 * flip if flip in (0, 1) else stats.binomtest(flips, 3000, flip).pvalue > 0.01


def test_shifts_are_uniform_over_whole_pixels_on_both_axes():
    shifts = [each.operations[-1] for each in drawn(Policy(ops=("roll",), magnitude=2, flip=0.0))]
    cells = np.zeros((11, 11))
    for shift in shifts:
        cells[shift.dy + 5, shift.dx + 5] += 1
    assert stats.chisquare(cells.ravel()).pvalue > 0.01


@pytest.mark.parametrize("name", ["rotate", "shear"])
def test_angles_are_uniform_up_to_the_level(name):
    angles = [each.operations[-1].degrees for each in drawn(Policy(ops=(name,), magnitude=2))]
    assert stats.kstest(angles, stats.uniform(-30, 60).cdf).pvalue > 0.01


def test_holes_are_uniform_over_the_pixels_of_a_wide_input():
    holes = [each.operations[-1] for each in drawn(Policy(ops=("cutout",)), size=(3, 6))]
    cells = np.zeros((3, 6))
    for hole in holes:
        cells[hole.y, hole.x] += 1
    assert stats.chisquare(cells.ravel()).pvalue > 0.01


@pytest.mark.parametrize(
    ("magnitude", "limits"), [(1, (3, 15, 15, 8)), (2, (5, 30, 30, 16)), (3, (7, 45, 45, 24))]
)  # shared/specs/snn-nda.md, section 2, "Level table"
def test_levels_are_those_of_the_table(magnitude, limits):
    level = Policy(magnitude=magnitude)
    assert tuple(level.limit(name) for name in ("roll", "rotate", "shear", "cutout")) == limits


@pytest.mark.parametrize(
    ("width", "absolute", "pixels"), [(48, False, 5), (128, False, 13), (24, False, 2), (128, True, 5)]
)
def test_pixels_scale_with_the_width_of_the_input(width, absolute, pixels):
    level = Policy(ops=("roll",), absolute=absolute)
    assert level.pixels("roll", width) == pixels
    assert max(each.operations[-1].dx for each in drawn(level, 500, (width, width))) == pixels


def test_ranges_of_zero_are_the_identity():
    still = Policy(roll=0, rotate=0.0, shear=0.0, cutout=0, flip=0.0)
    for each in drawn(still, 50):
        (operation,) = each.operations
        assert operation in (Roll(), Rotate(), ShearX()) or operation.length == 0


def test_paper_and_code_differ_in_the_mirror_in_cutout_and_in_the_level_of_the_data_set():
    code = policy("code", "cifar10-dvs")
    assert code == replace(policy("paper"), flip=0.0, ops=("roll", "rotate", "shear"), magnitude=2)
    assert policy("code", "n-caltech101") == replace(code, magnitude=1)
    assert policy("nda") == policy("paper") == policy("M2N1") == PAPER


def test_names_are_magnitude_and_number_of_operations():
    assert policy("M3N2") == Policy(magnitude=3, num_ops=2)
    assert policy("none").draw(np.random.default_rng(0)) == Params()


def test_a_file_is_a_policy(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('ops = ["roll", "shear"]\nroll = 2\nshear = 10\nflip = 0\nfill = "zero"\n')
    assert policy(str(file)) == Policy(ops=("roll", "shear"), roll=2, shear=10.0, flip=0.0, fill="zero")


def test_a_file_with_an_unknown_key_names_the_nearest(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("magnitud = 2\n")
    with pytest.raises(UserError, match=r"mine.toml: unknown key 'magnitud' \(did you mean 'magnitude'"):
        policy(str(file))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: policy("papre"), "did you mean 'paper'"),
        (lambda: policy("M4N1"), "magnitude must be 1, 2 or 3, got 4"),
        (lambda: policy("M2N5"), "num_ops must lie between 0 and 4"),
        (lambda: policy("code"), "not defined for the data set None"),
        (lambda: policy("code", "n-cars"), "there is cifar10-dvs and n-caltech101"),
        (lambda: policy("none.toml"), "none.toml does not exist"),
        (lambda: Policy(ops=("rol",)), "did you mean 'roll'.*There are roll, rotate, shear, cutout"),
        (lambda: Policy(ops=("roll", "roll")), "twice"),
        (lambda: Policy(magnitude=0), "magnitude must be 1, 2 or 3, got 0"),
        (lambda: Policy(flip=1.5), "flip must be a probability"),
        (lambda: Policy(flip=float("nan")), "flip must be a probability"),
        (lambda: Policy(shear=90.0), r"shear must lie in \[0, 90\)"),
        (lambda: Policy(roll=-1), "roll must not be negative"),
        (lambda: adapted("paper", num_ops=2, ops=("roll",)), "num_ops must lie between 0 and 1"),
    ],
)
def test_what_is_no_policy_is_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


operations = st.one_of(
    st.builds(HFlip, swap_polarity=st.booleans()),
    st.builds(Roll, dy=st.integers(-9, 9), dx=st.integers(-9, 9), wrap=st.booleans()),
    st.builds(Rotate, degrees=st.floats(-180, 180)),
    st.builds(ShearX, degrees=st.floats(-80, 80)),
    st.builds(Cutout, y=st.integers(-5, 60), x=st.integers(-5, 60), length=st.integers(0, 30)),
)


@given(st.lists(operations, max_size=4).map(tuple))
def test_parameters_come_back_from_json(chosen):
    params = Params(chosen)
    assert Params.from_json(params.to_json()) == params


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"name": "rol", "dy": 1}], "operation 0 has the unknown name 'rol'.*'roll'"),
        ([{"name": "roll", "dz": 1}], r"operation 0 \(roll\): unknown key 'dz'"),
        ([{"name": "rotate", "degrees": "much"}], "degrees must be of type float"),
        ([{"name": "cutout", "y": 1, "x": 2}], r"operation 0 \(cutout\) lacks length"),
        ([{"name": "shear", "degrees": 90}], "degrees of a shear must lie in"),
        ([{"dy": 1}], "unknown name None"),
    ],
)
def test_parameters_that_are_none_are_named(data, message):
    with pytest.raises(UserError, match=message):
        Params.from_json(data)


def test_two_mirrors_are_none():
    assert Params((HFlip(),)).flipped
    assert not Params((HFlip(), Roll(dx=1), HFlip())).flipped


def test_no_policy_is_no_lot():
    assert NONE.flip == NONE.num_ops == 0
    with pytest.raises(PolicyError):
        replace(NONE, num_ops=1)
