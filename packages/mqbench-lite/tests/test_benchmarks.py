"""Both sides of a benchmark do the same work, as far as that can be told from their results."""

import numpy as np
import pytest
import torch
from mqbench_lite.benchmarks import BENCHMARKS, deployment, quantisers


def test_identifiers_are_unique_and_targets_are_those_that_were_asked_for():
    targets = {each.id: each.target for each in BENCHMARKS}
    assert len(targets) == len(BENCHMARKS)
    assert targets["fake-quant"] == pytest.approx(1 / 1.3)
    assert (targets["range-search"], targets["integers"], targets["throughput"]) == (10.0, 0.5, 0.95)


def test_both_sides_round_alike():
    shape = (4, 8, 7, 7)
    for ours, peer in (
        (quantisers.ours_per_tensor, quantisers.torch_per_tensor),
        (quantisers.ours_per_channel, quantisers.torch_per_channel),
    ):
        assert torch.equal(ours(shape)()[0], peer(shape)()[0])  # the gradients pass in the same places


def test_both_sides_train_the_same_net():
    nets = [deployment.training_steps(native=native)() for native in (False, True)]
    for ours, peer in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(ours, peer, atol=2e-3, rtol=1e-2)


def test_the_integer_model_is_the_simulation_on_a_grid():
    ours, peer = deployment.integers()(), deployment.simulation()()
    assert (ours.argmax(1) == peer.argmax(1)).float().mean() > 0.97
    assert np.abs((ours - peer).numpy()).max() < 0.2 * np.abs(peer.numpy()).max()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_both_files_give_nearly_the_float_nets_classes():
    ours, theirs = deployment.our_file()()[0], deployment.their_file()()[0]
    with torch.no_grad():
        expected = deployment._net()(deployment._images(deployment.BATCH)[0]).numpy()
    shares = [(outputs.argmax(1) == expected.argmax(1)).mean() for outputs in (ours, theirs)]
    assert min(shares) > 0.9
    assert shares[0] >= shares[1] - 0.03
