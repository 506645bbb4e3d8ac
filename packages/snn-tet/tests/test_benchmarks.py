"""What is timed is one neuron on both sides."""

import importlib.util

import pytest
from snn_tet.benchmarks import BENCHMARKS, SHAPE, ours

from core_utils.bench import Benchmark


def test_ours_runs_forward_and_backward():
    spikes, gradient = ours()()
    assert spikes.shape == gradient.shape == SHAPE
    assert 0.3 < spikes.mean() < 0.4
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.id)
def test_a_peer_that_is_not_installed_is_named(benchmark):
    package = "snntorch" if "snntorch" in benchmark.id else "spikingjelly"
    if importlib.util.find_spec(package) is not None:
        pytest.skip("the peer is installed here")
    with pytest.raises(ImportError, match=package):
        benchmark.peer()


def test_benchmarks_have_ids_of_their_own():
    assert all(isinstance(benchmark, Benchmark) for benchmark in BENCHMARKS)
    assert len({benchmark.id for benchmark in BENCHMARKS}) == len(BENCHMARKS)
