"""What is timed answers the same question on both sides."""

import numpy as np
import pytest
import torch
from snn_nda.benchmarks import (
    BATCH,
    BENCHMARKS,
    frames,
    our_binning,
    our_code_policy,
    our_rotation,
    tonics_binning,
    torchvisions_code_policy,
    torchvisions_rotation,
    training_step,
)

from core_utils.bench import Benchmark


def test_binning_counts_every_event():
    counts = our_binning(10_000)()
    assert counts.shape == (10, 2, 128, 128)
    assert counts.sum() == 10_000


def test_tonic_counts_the_same_but_at_the_borders_of_its_bins():
    pytest.importorskip("tonic")
    ours, theirs = our_binning(10_000)(), tonics_binning(10_000)()
    assert np.abs(ours - theirs).sum() < 100  # tonic's bins are whole microseconds wide and leave out the rest


@pytest.mark.parametrize("sides", [(our_rotation, torchvisions_rotation), (our_code_policy, torchvisions_code_policy)])
def test_both_sides_move_the_batch_by_as_much(sides):
    pytest.importorskip("torchvision")
    ours, theirs = (side()() for side in sides)
    assert ours.shape == theirs.shape == BATCH
    kept = [float(moved.sum() / frames().sum()) for moved in (ours, theirs)]
    assert kept[0] == pytest.approx(kept[1], abs=0.05)  # rotation and shear lose corners
    assert not torch.equal(ours, frames())


def test_the_step_learns():
    step = training_step()
    step()


def test_benchmarks_have_ids_of_their_own():
    assert all(isinstance(benchmark, Benchmark) for benchmark in BENCHMARKS)
    assert len({benchmark.id for benchmark in BENCHMARKS}) == len(BENCHMARKS)
