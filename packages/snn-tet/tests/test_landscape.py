"""The loss around a network."""

import numpy as np
import pytest
import torch

from core_utils.errors import UserError
from snn_tet import loss_landscape, sdt_loss, tiny_vgg


def events(samples=4):
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(samples, 3, 2, 24, 24, generator=generator), torch.arange(samples))]


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
    whole = loss_landscape(model, events(), n=1)
    np.testing.assert_allclose(loss_landscape(model, apart, n=1), whole, rtol=1e-6)


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


def test_nothing_to_evaluate_on_is_refused():
    with pytest.raises(UserError, match="the loader is empty"):
        loss_landscape(tiny_vgg(), [], n=1)
    with pytest.raises(UserError, match="n must be at least 1"):
        loss_landscape(tiny_vgg(), events(), n=0)
