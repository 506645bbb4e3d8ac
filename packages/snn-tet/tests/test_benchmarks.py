"""What is timed is one neuron on both sides."""

import importlib.util

import pytest
import torch
from snn_tet.benchmarks import BENCHMARKS, SHAPE, ours, peer

from core_utils.bench import Benchmark


def test_ours_runs_forward_and_backward():
    call = ours()
    (x_seq,) = (cell.cell_contents for cell in call.__closure__ if isinstance(cell.cell_contents, torch.Tensor))
    call()
    assert x_seq.grad.shape == SHAPE


@pytest.mark.skipif(importlib.util.find_spec("spikingjelly") is not None, reason="the peer is installed here")
def test_a_peer_that_is_not_installed_is_named():
    with pytest.raises(ImportError, match="spikingjelly"):
        peer()


def test_benchmarks_have_ids_of_their_own():
    assert all(isinstance(benchmark, Benchmark) for benchmark in BENCHMARKS)
    assert len({benchmark.id for benchmark in BENCHMARKS}) == len(BENCHMARKS)
