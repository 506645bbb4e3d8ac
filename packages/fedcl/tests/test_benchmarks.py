"""What is timed answers the same question on both sides."""

import numpy as np
from fedcl.benchmarks import RATE, ours, peer


def test_both_sides_reach_the_same_accuracy():
    assert np.abs(ours()() - np.exp(RATE)).max() < 1e-3
    assert np.abs(peer()().y[:, -1] - np.exp(RATE)).max() < 1e-3
