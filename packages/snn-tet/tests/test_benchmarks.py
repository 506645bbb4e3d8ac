"""What is timed is one neuron, and one network, on both sides."""

import pytest
import torch
from snn_tet.benchmarks import BENCHMARKS, SHAPE, our_step, ours, snntorch_loop, spikingjelly_eager, spikingjelly_step

from core_utils.bench import Benchmark


@pytest.fixture(scope="module")
def our_layer():
    return ours()()


def test_ours_runs_forward_and_backward(our_layer):
    spikes, gradient = our_layer
    assert spikes.shape == gradient.shape == SHAPE
    assert 0.3 < spikes.mean() < 0.4
    assert gradient.abs().sum() > 0


def test_spikingjelly_gives_the_same_spikes_and_gradients(our_layer):
    spikes, gradient = spikingjelly_eager()()
    assert torch.equal(spikes, our_layer[0])
    torch.testing.assert_close(gradient, our_layer[1], rtol=1e-4, atol=1e-6)


def test_snntorch_gives_the_same_spikes(our_layer):
    assert torch.equal(snntorch_loop()()[0], our_layer[0])  # its gradients differ: it detaches the reset


def test_both_training_steps_are_of_the_same_network():
    networks = [step().__closure__ for step in (our_step, spikingjelly_step)]
    modules = [
        next(c.cell_contents for c in cells if isinstance(c.cell_contents, torch.nn.Module)) for cells in networks
    ]
    own, peer = (list(module.parameters()) for module in modules)
    assert [tuple(value.shape) for value in own] == [tuple(value.shape) for value in peer]
    with torch.no_grad():
        for ours_, theirs in zip(own, peer, strict=True):
            theirs.copy_(ours_)
    frames = torch.rand(4, 3, 2, 24, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(modules[0](frames), modules[1](frames), rtol=1e-4, atol=1e-5)


def test_benchmarks_have_ids_of_their_own():
    assert all(isinstance(benchmark, Benchmark) for benchmark in BENCHMARKS)
    assert len({benchmark.id for benchmark in BENCHMARKS}) == len(BENCHMARKS)
