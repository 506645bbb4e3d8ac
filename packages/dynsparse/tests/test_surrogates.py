"""The step and its stand-in derivatives against the spec's table."""

import pytest
import torch

from dynsparse import surrogates
from dynsparse.surrogates import step

Q = [-1.5, -1, -0.75, -0.4, -0.25, -0.1, 0, 0.1, 0.25, 0.4, 0.75, 1, 2]
MASK = [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]  # spec section 10
LONG_TAIL = [0, 0.4, 0.4, 0.4, 1, 1.6, 2, 1.6, 1, 0.4, 0.4, 0.4, 0]  # same


def slopes(surrogate, q, upstream=1.0):
    q = torch.tensor(q, dtype=torch.float64, requires_grad=True)
    (step(q, surrogate) * upstream).sum().backward()
    return q.grad.tolist()


@pytest.mark.parametrize("surrogate", surrogates.SURROGATES)
def test_the_step_is_strict_for_every_surrogate(surrogate):
    assert step(torch.tensor(Q), surrogate).tolist() == MASK


def test_the_long_tail_has_the_slopes_of_the_table():
    assert slopes("long_tail", Q) == pytest.approx(LONG_TAIL, abs=1e-15)


def test_upstream_gradients_multiply_the_slope():
    assert slopes("long_tail", Q, upstream=-3.0) == pytest.approx([-3 * slope for slope in LONG_TAIL], abs=1e-15)
    assert slopes("identity", [-9.0, 0.0, 9.0], upstream=2.0) == [2, 2, 2]


def test_the_sigmoid_surrogate_is_the_derivative_of_a_sigmoid():
    beta, width = surrogates.SIGMOID_SHARPNESS, 1e-6
    for q in (-0.3, 0.0, 0.05, 1.0):
        ends = torch.sigmoid(torch.tensor([beta * (q - width), beta * (q + width)], dtype=torch.float64))
        assert slopes("sigmoid", [q])[0] == pytest.approx((ends[1] - ends[0]).item() / (2 * width), rel=1e-6)
