"""Benchmarks: the interval against a brute-force sum, and sides whose cost is known by construction."""

import itertools
import json
import math
import os
import sys
import types

import numpy as np
import pytest

from core_utils.bench import Benchmark, BenchmarkError, Comparison, Ratio, compare, median_interval
from core_utils.errors import UserError
from core_utils.jsonable import dumps

pytestmark = pytest.mark.bare

MATRIX = 300


def one_product():
    a = np.ones((MATRIX, MATRIX))
    return lambda: a @ a


def four_products():
    a = np.ones((MATRIX, MATRIX))
    return lambda: [a @ a for _ in range(4)]


def twenty_megabytes():
    return lambda: np.ones(20_000_000, np.uint8)


def eighty_megabytes():
    return lambda: np.ones(80_000_000, np.uint8)


def missing():
    import a_peer_that_nobody_has  # noqa: F401


def missing_when_called():
    return missing


def broken():
    raise ZeroDivisionError("no inputs")


def deadly():
    return lambda: os._exit(7)


def picky_about_threads():
    """Works only where the variables are set and a loaded torch was told too."""
    torch = types.ModuleType("torch")
    torch.set_num_threads = lambda threads: setattr(torch, "threads", threads)
    sys.modules["torch"] = torch

    def call():
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
        assert {os.environ[name] for name in names} == {"1"}
        assert torch.threads == 1

    return call


class TestMedianInterval:
    @pytest.mark.parametrize("n", range(6, 31))
    def test_is_the_narrowest_with_at_least_95_percent_by_the_binomial_sum(self, n):
        def coverage(k):  # P(at least k and at most n - k of the values lie below the median)
            return sum(math.comb(n, below) for below in range(k, n - k + 1)) / 2**n

        found = median_interval([float(rank) for rank in range(1, n + 1)])
        k = int(found.low)
        assert found.high == n + 1 - k
        assert coverage(k) >= 0.95
        assert coverage(k + 1) < 0.95

    def test_misses_the_median_of_six_only_when_all_lie_on_one_side(self):
        signs = itertools.product((-1.0, 1.0), repeat=6)
        covered = [(found := median_interval(each)).low < 0 < found.high for each in signs]
        assert (sum(covered), len(covered)) == (62, 64)

    def test_gives_the_median_whatever_the_order(self):
        assert median_interval([3.0, 1.0, 2.0, 9.0, 5.0, 4.0]) == Ratio(3.5, 1.0, 9.0, 6)


@pytest.fixture(scope="module")
def four_to_one():
    return Benchmark("products", "One product is cheaper than four.", one_product, four_products, target=1.5).run(20)


class TestCompare:
    def test_four_times_the_work_takes_about_four_times_as_long(self, four_to_one):
        assert 2 < four_to_one.ratio.median < 8  # 4 by construction
        assert four_to_one.ratio.low <= four_to_one.ratio.median <= four_to_one.ratio.high
        assert four_to_one.ratio.n == 20
        assert four_to_one.ours.seconds < four_to_one.peer.seconds

    def test_says_of_what_the_figures_are_and_whether_they_reach_the_target(self, four_to_one):
        assert (four_to_one.id, four_to_one.target, four_to_one.outcome) == ("products", 1.5, "met")

    def test_records_where_it_ran(self, four_to_one):
        where = four_to_one.environment
        assert where["versions"]["numpy"] == np.__version__
        assert "jinja2" not in {name.lower() for name in where["versions"]}  # only what was loaded
        assert (where["threads"], where["cores"]) == (1, os.cpu_count())
        assert where["processor"]

    def test_survives_strict_json(self, four_to_one):
        assert Comparison.from_json(json.loads(dumps(four_to_one), parse_constant=pytest.fail)) == four_to_one

    def test_four_times_the_memory_is_four_times_the_peak(self):
        found = compare(twenty_megabytes, eighty_megabytes, 6)
        assert found.memory_ratio == pytest.approx(4, rel=0.25)
        assert found.peer.peak_bytes == pytest.approx(80e6, rel=0.25)
        assert found.ours.resident_bytes > 10e6  # an interpreter with NumPy

    def test_threads_are_set_and_a_peak_below_a_mebibyte_gives_no_ratio(self):
        assert compare(picky_about_threads, picky_about_threads, 6).memory_ratio is None

    @pytest.mark.parametrize("peer", [missing, missing_when_called])
    def test_a_missing_peer_is_named_and_nothing_is_measured(self, peer):
        found = compare(one_product, peer)
        assert found == Comparison(not_measured="peer: No module named 'a_peer_that_nobody_has'")
        assert found.outcome == "not measured"
        assert Comparison.from_json(json.loads(dumps(found))) == found

    def test_the_side_that_raises_is_named(self):
        with pytest.raises(BenchmarkError, match=r"^ours raised ZeroDivisionError: no inputs\n") as caught:
            compare(broken, one_product)
        assert "in broken" in caught.value.__notes__[0]

    def test_a_side_that_dies_is_an_error(self):
        with pytest.raises(BenchmarkError, match="died"):
            compare(deadly, one_product)

    def test_five_repeats_are_too_few(self):
        with pytest.raises(UserError, match="at least 6, got 5"):
            compare(one_product, one_product, 5)


@pytest.mark.parametrize(
    ("low", "high", "target", "outcome"),
    [
        (1.0, 1.2, 1.0, "met"),
        (0.8, 0.99, 1.0, "missed"),
        (0.8, 1.0, 1.0, "inconclusive"),
        (0.8, 1.0, None, "no target"),
    ],
)
def test_the_outcome_is_where_the_interval_lies(low, high, target, outcome):
    assert Comparison(ratio=Ratio((low + high) / 2, low, high, 10), target=target).outcome == outcome
