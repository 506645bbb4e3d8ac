"""Metrics against matrices and vectors that were worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcl import average_accuracy, backward_transfer, drift, forgetting, forward_transfer
from fedcl.metrics import Spread, seen_tasks

ORDERS = np.array([[0, 1, 2], [0, 2, 1]])
ACCURACY = np.array([[0.9, 0.5, 0.4], [0.8, 0.7, 0.9], [0.85, 0.6, 0.7]])


def test_tasks_are_seen_from_the_first_client_s_phase_on():
    assert (seen_tasks(ORDERS) == [[True, False, False], [True, True, True], [True, True, True]]).all()


def test_matrix_metrics():
    seen = seen_tasks(ORDERS)
    np.testing.assert_allclose(average_accuracy(ACCURACY, seen), [0.9, 0.8, 2.15 / 3])
    np.testing.assert_allclose(average_accuracy(ACCURACY)[0], 0.6)
    # Best before the last phase minus the last, over all three tasks: (.9-.85), (.7-.6), (.9-.7).
    assert forgetting(ACCURACY, seen) == pytest.approx((0.05 + 0.1 + 0.2) / 3)
    # From the first phase in which a task was seen: .85-.9, .6-.7, .7-.9.
    assert backward_transfer(ACCURACY, seen) == pytest.approx((-0.05 - 0.1 - 0.2) / 3)
    # In phase 0, before tasks 1 and 2 were seen, beside an untrained model.
    assert forward_transfer(ACCURACY, seen, np.array([0.5, 0.4, 0.5])) == pytest.approx((0.1 - 0.1) / 2)


def test_a_task_that_nobody_had_trained_before_the_last_phase_is_not_forgotten():
    seen = np.array([[True, False], [True, True]])
    accuracy = np.array([[0.9, 1.0], [0.7, 0.2]])
    assert forgetting(accuracy, seen) == pytest.approx(0.2)
    assert math.isnan(forgetting(accuracy[:1, :1], seen[:1, :1]))
    assert math.isnan(forward_transfer(accuracy, np.ones((2, 2), bool), np.zeros(2)))


def test_drift_is_its_definition():
    deltas = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    # Mean (1/2, 1/2): each lies sqrt(1/2) away, and the mean is as long.
    assert drift(deltas) == pytest.approx(1.0)
    # Weights 3 and 1 give (3/4, 1/4): distances^2 1/8 and 9/8, mean 5/8; length^2 5/8.
    assert drift(deltas, [3.0, 1.0]) == pytest.approx(1.0)
    assert drift([torch.ones(5)] * 4) == 0.0
    assert math.isnan(drift([torch.ones(2), -torch.ones(2)]))


@given(
    values=st.lists(st.lists(st.floats(-3, 3), min_size=3, max_size=3), min_size=2, max_size=6), seed=st.integers(0, 9)
)
def test_passing_by_gives_what_holding_all_gives(values, seed):
    deltas = [torch.tensor(row, dtype=torch.float64) + 0.1 for row in values]
    weights = np.random.default_rng(seed).uniform(0.5, 2, len(deltas)).tolist()
    spread = Spread()
    for delta, weight in zip(deltas, weights, strict=True):
        spread.add(delta, weight)
    stack, w = torch.stack(deltas), torch.tensor(weights, dtype=torch.float64)
    mean = (w[:, None] * stack).sum(0) / w.sum()
    torch.testing.assert_close(spread.mean, mean)
    expected = ((stack - mean) ** 2).sum(1).mean() / (mean**2).sum()
    if float(mean.norm()) > 1e-3:
        assert spread.drift == pytest.approx(float(expected), rel=1e-6, abs=1e-9)
    units = stack / stack.norm(dim=1, keepdim=True).clamp_min(1e-300)
    pairs = (units @ units.T)[~torch.eye(len(deltas), dtype=bool)]
    assert spread.cosine == pytest.approx(float(pairs.mean()), abs=1e-9)


def test_one_update_has_no_drift_and_no_cosine():
    spread = Spread()
    spread.add(torch.ones(3))
    assert spread.drift == 0.0
    assert math.isnan(spread.cosine)
