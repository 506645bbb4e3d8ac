"""What is timed computes the same on both sides."""

import pytest
import torch
from dynsparse.benchmarks import BENCHMARKS, LAYERS, layer, training

from core_utils.bench import Benchmark


@pytest.mark.parametrize("name", ["pointwise-512", "conv-512"])
@pytest.mark.parametrize("sharing", ["shared", "independent"])
def test_both_sides_give_the_same_outputs(name, sharing):
    dense = layer(name, "dense", sharing=sharing)()
    assert dense.shape == (1, LAYERS[name][1], LAYERS[name][2], LAYERS[name][2])
    torch.testing.assert_close(layer(name, "auto", sharing=sharing)(), dense, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(layer(name, "torch", sharing=sharing)(), dense, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["masked", "dense", "timm"])
def test_a_training_step_runs(kind):
    training(kind)()


def test_benchmarks_have_ids_of_their_own():
    assert all(isinstance(benchmark, Benchmark) for benchmark in BENCHMARKS)
    assert len({benchmark.id for benchmark in BENCHMARKS}) == len(BENCHMARKS)
