import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_s import statistics
from imagenet_s.errors import ImagenetSError

# Three combinations, four images; row 0 is the reference.
LABELS = np.array([0, 1, 2, 3])
TABLE = np.array(
    [
        [0, 1, 2, 0],  # 3 of 4 right
        [0, 1, 0, 3],  # breaks image 2, fixes image 3
        [1, 0, 2, 0],  # breaks images 0 and 1
    ]
)
predictions = st.integers(2, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=2, max_size=5),
        st.lists(st.integers(0, 3), min_size=n, max_size=n),
        st.permutations(range(n)),
    )
)


def test_the_hand_made_table_gives_the_figures_counted_by_hand():
    np.testing.assert_array_equal(statistics.accuracy(TABLE, LABELS), [0.75, 0.75, 0.25])
    np.testing.assert_array_equal(statistics.drop(TABLE, LABELS, 0), [0, 0, 0.5])
    np.testing.assert_array_equal(statistics.disagreement(TABLE, 0), [0, 0.5, 0.5])
    assert statistics.consistent_accuracy(TABLE, LABELS) == 0.0
    assert statistics.fooled_rate(TABLE, LABELS, 0) == 0.75  # images 0, 1 and 2
    assert statistics.fooled_rate(TABLE[:2], LABELS, 0) == 0.25
    assert [(each.fixed, each.broken) for each in statistics.churn(TABLE, LABELS, 0)] == [(0, 0), (1, 1), (0, 2)]


def test_mcnemar_is_the_two_sided_binomial_tail():
    assert statistics.mcnemar(0, 2) == pytest.approx(0.5)  # 2 * (1/2)^2
    assert statistics.mcnemar(1, 7) == pytest.approx(2 * 9 / 256)
    assert statistics.mcnemar(0, 0) == 1.0
    assert statistics.mcnemar(68, 154) < 1e-3  # the spec's seed 1


def test_holm_multiplies_by_the_hypotheses_left_and_never_decreases():
    assert statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_the_spread_of_a_combination_and_its_opposite_uses_the_population_deviation():
    spread = statistics.spread(np.array([0.4, 0.6]))
    assert (spread.n, spread.mean, spread.worst, spread.best) == (2, 0.5, 0.4, 0.6)
    assert spread.std == pytest.approx(0.1)
    assert spread.range == pytest.approx(0.2)
    with pytest.raises(ImagenetSError, match="at least one"):
        statistics.spread(np.array([]))


def test_the_bootstrap_interval_agrees_with_the_normal_one_and_repeats():
    low, high = statistics.drop_interval(68, 154, 2000, seed=1)
    error = 1.96 * np.sqrt(222 / 2000 - 0.043**2) / np.sqrt(2000)
    assert low == pytest.approx(0.043 - error, abs=0.0015)
    assert high == pytest.approx(0.043 + error, abs=0.0015)
    assert statistics.drop_interval(68, 154, 2000, seed=1) == (low, high)
    assert statistics.drop_interval(0, 0, 50) == (0.0, 0.0)


def test_the_smallest_detectable_drop_shrinks_with_the_images():
    assert statistics.smallest_detectable_drop(100, 2000) == pytest.approx(0.0098)
    assert statistics.smallest_detectable_drop(0, 10) == 0.0


def test_an_additive_table_has_no_interaction_and_its_effects_add_up():
    decoder, resizer = np.array([0.01, -0.01]), np.array([0.03, -0.02, -0.01])
    parts = statistics.decompose(0.7 + decoder[:, None] + resizer, ["a", "b"], ["x", "y", "z"])
    assert parts.mean == pytest.approx(0.7)
    assert parts.decoders == pytest.approx({"a": 0.01, "b": -0.01})
    assert parts.resizers == pytest.approx({"x": 0.03, "y": -0.02, "z": -0.01})
    np.testing.assert_allclose(parts.interaction, 0, atol=1e-12)
    assert parts.shares["decoder"] == pytest.approx(3 * 2e-4 / (3 * 2e-4 + 2 * 14e-4))
    crossed = statistics.decompose(np.array([[1.0, 0.0], [0.0, 1.0]]), ["a", "b"], ["x", "y"])
    assert crossed.shares == {"decoder": 0.0, "resizer": 0.0, "interaction": 1.0}
    assert set(statistics.decompose(np.full((2, 2), 0.3), ["a", "b"], ["x", "y"]).shares.values()) == {0.0}


def test_logits_shifted_by_a_constant_change_no_probability():
    reference = np.array([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
    change = statistics.logit_change(reference + 3, reference)
    np.testing.assert_allclose(change.mean_delta, 3)
    np.testing.assert_allclose(change.total_variation, 0, atol=1e-15)
    np.testing.assert_allclose(change.divergence, 0, atol=1e-15)


def test_two_classes_give_the_closed_form_of_divergence_and_variation():
    # Reference 3:1 for class 0, then 1:1.
    change = statistics.logit_change(np.zeros((1, 2)), np.log([[3.0, 1.0]]))
    assert change.total_variation[0] == pytest.approx(0.25)
    assert change.divergence[0] == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert change.confidence_change[0] == pytest.approx(-0.25)
    assert change.max_delta[0] == pytest.approx(np.log(3))


def test_shapley_shares_a_joint_effect_evenly_and_adds_up():
    joint = statistics.shapley("ab", lambda subset: 6.0 if len(subset) == 2 else 0.0)
    assert joint == {"a": 3.0, "b": 3.0}
    weights = {"a": 1.0, "b": 2.0, "c": 0.0}
    additive = statistics.shapley("abc", lambda subset: sum(weights[each] for each in subset))
    assert additive == pytest.approx(weights)


def test_copies_of_a_combination_count_once_and_the_reference_stands_for_its_own():
    assert statistics.distinct([0, 0, 1, 0, 1], keep=[3]) == [2, 3]


@settings(max_examples=60, deadline=None)
@given(predictions)
def test_the_order_of_the_images_changes_nothing(case):
    rows, labels, order = np.array(case[0]), np.array(case[1]), list(case[2])
    shuffled, names = rows[:, order], labels[order]
    np.testing.assert_array_equal(statistics.drop(shuffled, names, 0), statistics.drop(rows, labels, 0))
    np.testing.assert_array_equal(statistics.disagreement(shuffled, 0), statistics.disagreement(rows, 0))
    assert statistics.churn(shuffled, names, 0) == statistics.churn(rows, labels, 0)
    assert statistics.fooled_rate(shuffled, names, 0) == statistics.fooled_rate(rows, labels, 0)
    assert statistics.consistent_accuracy(shuffled, names) == statistics.consistent_accuracy(rows, labels)


@settings(max_examples=60, deadline=None)
@given(predictions)
def test_a_copy_of_the_reference_drops_nothing_and_drop_is_broken_less_fixed(case):
    rows, labels = np.array(case[0]), np.array(case[1])
    rows[1] = rows[0]
    changes = statistics.churn(rows, labels, 0)
    assert (statistics.drop(rows, labels, 0)[1], statistics.disagreement(rows, 0)[1]) == (0, 0)
    assert changes[1] == statistics.Churn(0, 0, 1.0)
    expected = [(each.broken - each.fixed) / len(labels) for each in changes]
    np.testing.assert_allclose(statistics.drop(rows, labels, 0), expected)
