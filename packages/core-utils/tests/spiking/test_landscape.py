"""The loss around a network."""

import numpy as np
import pytest
import torch
from torch import nn

from core_utils.errors import UserError
from core_utils.spiking.dynamics import Neuron
from core_utils.spiking.landscape import loss_landscape, loss_rise, random_directions
from core_utils.spiking.networks import tiny_vgg


class Line(nn.Module):
    """Outputs [T, B, 1] that are the weight w itself, so that a loss of outputs is a known function of w."""

    def __init__(self, weight):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[weight]], dtype=torch.float64))
        self.bias = nn.Parameter(torch.ones(1))

    def forward(self, x_seq):
        return self.w.expand(*x_seq.shape[:2], 1)


BATCHES = [(torch.zeros(2, 1, 3), torch.zeros(2)), (torch.zeros(1, 1, 3), torch.zeros(1))]


def square(model, frames, labels):
    return model(frames.transpose(0, 1)).square().mean()


def test_the_landscape_of_a_known_function():
    # w = 2; both directions are +-2, as long as the filter: (2 + 2 (+-a +- b))^2.
    places = np.linspace(-1, 1, 5)
    signs = [np.sign(each["w"].item()) for each in random_directions(Line(2.0), 2, seed=3)]
    expected = (2 + 2 * (signs[0] * places[:, None] + signs[1] * places[None, :])) ** 2
    np.testing.assert_allclose(loss_landscape(Line(2.0), BATCHES, square, n=5, seed=3), expected, rtol=1e-6, atol=1e-12)


def test_the_rise_of_a_known_function():
    # ((2 + 1)^2 + (2 - 1)^2) / 2 - 2^2 = 1 at half the norm, whatever the direction's sign.
    assert loss_rise(Line(2.0), BATCHES, square, 0.5) == pytest.approx(1.0, rel=1e-6)


def test_directions_are_as_long_as_the_filters_and_leave_biases_and_normalisation():
    model = tiny_vgg(Neuron(decay=0.5), 2, 10, (4, 8), 8)
    (direction,) = random_directions(model, 1, seed=0)
    assert direction.keys() == {name for name, value in model.named_parameters() if value.ndim > 1}
    for name, step in direction.items():
        weight = model.get_parameter(name)
        torch.testing.assert_close(step.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1).detach())
    (again,) = random_directions(model, 1, seed=0)
    assert all(torch.equal(again[name], step) for name, step in direction.items())


def test_nothing_to_evaluate_on_is_refused():
    with pytest.raises(UserError, match="the loader is empty"):
        loss_landscape(Line(2.0), [], square, n=1)
    with pytest.raises(UserError, match="n must be at least 1"):
        loss_landscape(Line(2.0), BATCHES, square, n=0)
