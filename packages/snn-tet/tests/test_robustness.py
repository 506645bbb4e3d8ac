"""Accuracy under disturbances."""

import pytest
import torch
from torch import nn

from core_utils.errors import UserError
from snn_tet import accuracy_under, accuracy_vs_steps, tiny_vgg
from snn_tet.robustness import add_noise, drop_events


class Linear(nn.Module):
    """A readout of the frames themselves, whose classes vary from sample to sample."""

    def __init__(self):
        super().__init__()
        self.readout = nn.Linear(32, 10)

    def forward(self, x_seq):
        return self.readout(x_seq.flatten(2))


def network_and_batches():
    torch.manual_seed(0)
    frames, model = torch.randn(400, 3, 2, 4, 4), Linear()
    labels = model(frames.transpose(0, 1)).mean(0).argmax(-1)  # what it says undisturbed is right
    return model, [(frames[:250], labels[:250]), (frames[250:], labels[250:])]


@pytest.mark.parametrize("kind", ["input-noise", "event-drop", "weight-noise"])
def test_level_0_changes_nothing_and_a_high_one_costs_accuracy(kind):
    model, batches = network_and_batches()
    none, high = accuracy_under(model, batches, kind, [0.0, 1.0])
    assert none == {"level": 0.0, **accuracy_vs_steps(model, batches)}
    assert none["prefix"][-1] == 1.0
    assert high["prefix"][-1] < 0.9
    assert accuracy_under(model, batches, kind, [1.0]) == [high]  # the seed decides


@pytest.mark.parametrize("fails", [False, True])
def test_weights_come_back_to_the_bit(fails):
    model, batches = network_and_batches()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if fails:
        with pytest.raises(UserError, match="the loader is empty"):
            accuracy_under(model, [], "weight-noise", [0.5])
    else:
        accuracy_under(model, batches, "weight-noise", [0.5])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_disturbances_have_the_size_that_was_asked_for():
    ones = torch.ones(1000, 100)
    noise = add_noise(ones, 0.3, torch.Generator().manual_seed(0)) - ones
    assert noise.std().item() == pytest.approx(0.3, rel=0.02)  # the deviation of 100,000 draws is known to 0.2 %
    dropped = drop_events(ones, 0.3, torch.Generator().manual_seed(0))
    assert dropped.mean().item() == pytest.approx(0.7, abs=0.01)
    assert set(dropped.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("kind", "level", "complaint"),
    [
        ("event-drop", 1.5, "cannot be 1.5"),
        ("input-noise", -0.1, "cannot be -0.1"),
        ("input-noise", float("nan"), "nan"),
    ],
)
def test_a_level_out_of_range_is_refused(kind, level, complaint):
    with pytest.raises(UserError, match=complaint):
        accuracy_under(tiny_vgg(), [], kind, [level])
