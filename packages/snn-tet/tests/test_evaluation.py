"""Accuracy over time steps."""

import pytest
import torch
from torch import nn

from core_utils.errors import UserError
from core_utils.training import Arrays, Loader
from snn_tet import accuracy_vs_steps, early_exit, tiny_vgg


class Scripted(nn.Module):
    """Puts out what the frames hold: outputs [T, B, K] are the frames themselves."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x_seq):
        return x_seq


def batches(outputs, labels, size=2):
    frames = outputs.transpose(0, 1)
    return [(frames[start : start + size], labels[start : start + size]) for start in range(0, len(labels), size)]


def test_prefix_and_single_accuracies_of_known_outputs():
    # Three samples of class 0; the votes for class 0 minus those for class 1 at each of three steps.
    votes = torch.tensor([[1.0, -2.0, 3.0], [-1.0, 3.0, -1.0], [-1.0, -1.0, -1.0]]).T
    outputs, labels = torch.stack([votes, torch.zeros_like(votes)], -1), torch.zeros(3, dtype=torch.long)
    result = accuracy_vs_steps(Scripted(), batches(outputs, labels))
    assert result["single"] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert result["prefix"] == pytest.approx([1 / 3, 1 / 3, 2 / 3])  # sums 1 -1 2; -1 2 1; -1 -2 -3


def test_all_steps_equal_the_plain_evaluation_and_fewer_are_a_prefix():
    torch.manual_seed(1)
    model, frames, labels = tiny_vgg(), torch.rand(30, 4, 2, 24, 24), torch.randint(10, (30,))
    model(frames.transpose(0, 1))  # running averages that are not those of the start
    loader = Loader(Arrays(frames, labels), 7, shuffle=False)  # the last batch is smaller
    result = accuracy_vs_steps(model, loader)
    model.eval()
    outputs = model(frames.transpose(0, 1))
    assert result["prefix"][-1] == pytest.approx((outputs.mean(0).argmax(-1) == labels).double().mean().item())
    assert result["single"] == pytest.approx((outputs.argmax(-1) == labels).double().mean(1).tolist())
    assert accuracy_vs_steps(model, loader, 2)["prefix"] == pytest.approx(result["prefix"][:2])


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_left_as_it_was(training):
    model = tiny_vgg().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    accuracy_vs_steps(model, [(torch.rand(2, 3, 2, 24, 24), torch.tensor([0, 1]))])
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [(4, "4 time steps were asked for, the data has 3"), (0, "at least 1, got 0"), (-1, "at least 1")],
)
def test_steps_that_are_not_there_are_refused(steps, complaint):
    with pytest.raises(UserError, match=complaint):
        accuracy_vs_steps(Scripted(), batches(torch.rand(3, 2, 2), torch.tensor([0, 1])), steps)


def test_an_empty_loader_is_refused():
    with pytest.raises(UserError, match="the loader is empty"):
        accuracy_vs_steps(Scripted(), [])


@pytest.mark.parametrize("metric", ["maxprob", "entropy"])
def test_early_exit_takes_one_step_at_0_and_all_above_1(metric):
    outputs = torch.randn(5, 20, 4, generator=torch.Generator().manual_seed(0))
    classes, steps = early_exit(outputs, 0.0, metric)
    assert torch.equal(classes, outputs[0].argmax(-1))
    assert set(steps.tolist()) == {1}
    classes, steps = early_exit(outputs, 1.01, metric)
    assert torch.equal(classes, outputs.mean(0).argmax(-1))
    assert set(steps.tolist()) == {5}


def test_a_sample_stops_when_the_mean_so_far_is_sure():
    # Two classes, logit differences 0, 4 and 20 of the steps; of the means so far 0, 2 and 8.
    outputs = torch.tensor([0.0, 4.0, 20.0]).view(3, 1, 1) * torch.tensor([0.0, 1.0])
    for threshold, stop in ((0.5, 1), (0.88, 2), (0.99, 3)):  # probabilities 0.5, 0.881, 0.9997
        assert early_exit(outputs, threshold)[1].item() == stop
    # 1 - H / log 2 is 0, 0.473 and 0.996.
    for threshold, stop in ((0.0, 1), (0.47, 2), (0.48, 3)):
        assert early_exit(outputs, threshold, "entropy")[1].item() == stop
    assert early_exit(outputs, 0.5)[0].item() == 0
    assert early_exit(outputs, 0.88)[0].item() == 1


def test_early_exit_needs_a_step():
    with pytest.raises(UserError, match=r"T >= 1, got shape \[0, 1, 2\]"):
        early_exit(torch.zeros(0, 1, 2), 0.5)
