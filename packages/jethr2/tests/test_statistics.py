import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jethr2 import statistics
from jethr2.errors import ParameterError


def test_wilson_bounds_are_those_of_the_specification_and_of_its_formula():
    low, _ = statistics.wilson(127, 128)
    assert low == pytest.approx(0.9570, abs=1e-4)
    # By hand, n = 10, 5 successes: centre 0.5, half width z sqrt(0.025 + z^2 / 400) / (1 + z^2 / 10) with z = 1.96.
    np.testing.assert_allclose(statistics.wilson(5, 10), (0.2366, 0.7634), atol=1e-4)
    assert statistics.wilson(0, 20)[0] == 0.0
    assert statistics.wilson(20, 20)[1] == 1.0


def test_wilson_solves_its_own_equation():
    n, successes = 48, 13
    for bound in statistics.wilson(successes, n):
        assert abs(successes / n - bound) == pytest.approx(1.959964 * np.sqrt(bound * (1 - bound) / n), rel=1e-6)


def test_mcnemar_is_the_two_sided_binomial_tail():
    assert statistics.mcnemar(117, 0) == 2.0**-116  # the specification's
    assert statistics.mcnemar(1, 7) == pytest.approx(2 * 9 / 256)
    assert statistics.mcnemar(0, 0) == 1.0
    assert statistics.mcnemar(3, 3) == 1.0


def test_paired_trials_are_compared_by_their_discordant_ones():
    first = np.array([True] * 6 + [False] * 4)
    second = np.array([True] * 3 + [False] * 3 + [True] + [False] * 3)
    found = statistics.compare(first, second)
    assert (found.only_first, found.only_second) == (3, 1)
    assert found.difference == pytest.approx(0.2)
    assert found.p_value == pytest.approx(10 / 16)
    assert found.low < 0.2 < found.high


def test_the_paired_interval_is_that_of_newcombes_table():
    # Newcombe 1998, table II, (a, b, c, d) = (36, 12, 2, 0): method 10 gives 0.0569 to 0.3404.
    first = np.repeat([True, True, False, False], [36, 12, 2, 0])
    second = np.repeat([True, False, True, False], [36, 12, 2, 0])
    np.testing.assert_allclose(statistics.paired_interval(first, second), (0.0569, 0.3404), atol=1e-4)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_swapping_the_cases_turns_the_interval_round(pairs):
    first, second = np.array(pairs).T
    low, high = statistics.paired_interval(first, second)
    back_low, back_high = statistics.paired_interval(second, first)
    assert (low, high) == pytest.approx((-back_high, -back_low))
    assert low <= first.mean() - second.mean() <= high


def test_the_median_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        _, low, high = statistics.median_interval(rng.exponential(size=41))
        covered += low <= np.log(2) <= high
    assert 940 < covered < 990  # at least 95 % by construction; four standard errors below that is 922


def test_impossible_counts_are_refused():
    with pytest.raises(ParameterError, match="successes"):
        statistics.wilson(5, 4)
    with pytest.raises(ParameterError, match="confidence"):
        statistics.wilson(1, 4, confidence=1.0)
    with pytest.raises(ParameterError, match="at least one"):
        statistics.median_interval(np.array([]))
