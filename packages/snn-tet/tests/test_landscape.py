"""The loss around a network."""

import numpy as np
import pytest
import torch
from torch import nn

from core_utils.errors import UserError
from snn_tet import loss_landscape, loss_rise, sdt_loss, tiny_vgg
from snn_tet.landscape import loss_at, random_directions


class Line(nn.Module):
    """Outputs [T, B, 1] that are the weight w itself, so that a loss of outputs is a known function of w."""

    def __init__(self, weight):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[weight]], dtype=torch.float64))
        self.bias = nn.Parameter(torch.ones(1))

    def forward(self, x_seq):
        return self.w.expand(*x_seq.shape[:2], 1)


BATCHES = [(torch.zeros(2, 1, 3), torch.zeros(2)), (torch.zeros(1, 1, 3), torch.zeros(1))]


def square(outputs, target):
    return outputs.square().mean()


def events(samples=4):
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(samples, 3, 2, 24, 24, generator=generator), torch.arange(samples))]


def test_the_landscape_of_a_known_function():
    # w = 2; both directions are +-2, as long as the filter: (2 + 2 (+-a +- b))^2.
    places = np.linspace(-1, 1, 5)
    signs = [np.sign(each["w"].item()) for each in random_directions(Line(2.0), 2, seed=3)]
    expected = (2 + 2 * (signs[0] * places[:, None] + signs[1] * places[None, :])) ** 2
    np.testing.assert_allclose(
        loss_landscape(Line(2.0), BATCHES, n=5, seed=3, loss=square), expected, rtol=1e-6, atol=1e-12
    )


def test_the_rise_of_a_known_function():
    # ((2 + 1)^2 + (2 - 1)^2) / 2 - 2^2 = 1 at half the norm, whatever the direction's sign.
    assert loss_rise(Line(2.0), BATCHES, 0.5, loss=square) == pytest.approx(1.0, rel=1e-6)


def test_the_middle_is_the_network_itself():
    torch.manual_seed(0)
    model = tiny_vgg()
    with torch.no_grad():
        plain = sdt_loss(model.eval()(events()[0][0].transpose(0, 1)), events()[0][1]).item()
    landscape = loss_landscape(model, events(), n=3)
    assert landscape.shape == (3, 3)
    assert landscape[1, 1] == pytest.approx(plain, rel=1e-6)
    assert loss_landscape(model, events(), n=1)[0, 0] == pytest.approx(plain, rel=1e-6)


def test_samples_count_alike_whatever_the_batches():
    torch.manual_seed(0)
    model, ((frames, labels),) = tiny_vgg(), events()
    apart = [(frames[:1], labels[:1]), (frames[1:], labels[1:])]
    assert loss_at(model, apart, ()) == pytest.approx(loss_at(model, events(), ()), rel=1e-6)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_weights_and_mode_come_back_to_the_bit(fails, training):
    model = tiny_vgg().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = []

    def loss(outputs, target):
        calls.append(1)
        if fails and len(calls) == 3:
            raise ZeroDivisionError
        return sdt_loss(outputs, target)

    if fails:
        with pytest.raises(ZeroDivisionError):
            loss_landscape(model, events(), n=3, loss=loss)
    else:
        loss_landscape(model, events(), n=3, loss=loss)
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_directions_are_as_long_as_the_filters_and_leave_biases_and_normalisation():
    model = tiny_vgg()
    (direction,) = random_directions(model, 1, seed=0)
    assert direction.keys() == {name for name, value in model.named_parameters() if value.ndim > 1}
    for name, step in direction.items():
        weight = model.get_parameter(name)
        torch.testing.assert_close(step.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1).detach())
    (again,) = random_directions(model, 1, seed=0)
    assert all(torch.equal(again[name], step) for name, step in direction.items())


def test_nothing_to_evaluate_on_is_refused():
    with pytest.raises(UserError, match="the loader is empty"):
        loss_landscape(tiny_vgg(), [], n=1)
    with pytest.raises(UserError, match="n must be at least 1"):
        loss_landscape(tiny_vgg(), events(), n=0)
