"""Accuracy, closeness and flatness."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qdrop.errors import QDropError
from qdrop.evaluation import agreement, closeness, evaluate, flatness, sqnr_db


class Scores(nn.Module):
    """Gives its input back."""

    def forward(self, x):
        return x


ONE_HOT = torch.eye(4)
BATCHES = [(ONE_HOT[:3], torch.tensor([0, 1, 0])), (ONE_HOT[3:], torch.tensor([3]))]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def test_the_accuracy_counts_samples_not_batches():
    assert evaluate(Scores(), BATCHES) == 3 / 4


def test_a_metric_of_ones_own_is_a_mean_over_samples():
    assert evaluate(Scores(), BATCHES, lambda outputs, labels: labels.float().mean()) == pytest.approx(1.0)


def test_dictionaries_and_models_of_transformers_are_evaluated():
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Tokens(nn.Module):
        def forward(self, input_ids, attention_mask):
            return Output(ONE_HOT[input_ids] * attention_mask)

    batch = {"input_ids": torch.tensor([1, 2]), "attention_mask": torch.ones(2, 1), "labels": torch.tensor([1, 0])}
    assert evaluate(Tokens(), [batch]) == 0.5
    assert agreement(Tokens(), Tokens(), [batch]) == 1.0


def test_the_mode_of_every_module_is_what_it_was():
    model = net()
    model.train()
    model[2].eval()  # a frozen normalisation
    before = model[2].running_mean.clone()
    evaluate(model, [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))])
    assert [module.training for module in model] == [True, True, False, True, True]
    assert model.training
    assert torch.equal(model[2].running_mean, before)
    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.randn(8, 5), torch.zeros(8, dtype=torch.long))])
    assert [module.training for module in model] == [True, True, False, True, True]


@pytest.mark.parametrize(
    ("batches", "metric", "complaint"),
    [
        ([], "top1", "the loader is empty"),
        ([ONE_HOT], "top1", "have no labels"),
        ([(ONE_HOT[0], torch.tensor(0))], "top1", r"the model's output \(shape \[4\]\) has no top class"),
        (BATCHES, "top5", "metric must be"),
    ],
)
def test_what_cannot_be_evaluated_is_an_error(batches, metric, complaint):
    with pytest.raises(QDropError, match=complaint):
        evaluate(Scores(), batches, metric)


def test_agreement_needs_no_labels_and_counts_samples():
    class Shifted(nn.Module):
        def forward(self, x):
            return torch.where(torch.arange(len(x))[:, None] == 0, x.roll(1, 1), x)

    assert agreement(Shifted(), Scores(), [ONE_HOT[:3], ONE_HOT[3:]]) == 2 / 4
    assert agreement(Shifted(), Scores(), BATCHES) == 2 / 4


def test_closeness_of_maps_is_their_noise_alone():
    class Halved(nn.Module):
        def forward(self, x):
            return {"map": x / 2, "count": torch.tensor(3)}

    class Whole(nn.Module):
        def forward(self, x):
            return {"map": x, "count": torch.tensor(3)}

    found = closeness(Halved(), Whole(), [torch.randn(2, 3, 4, 4), torch.randn(1, 3, 4, 4)])
    assert found.agreement is None
    assert found.sqnr_db == pytest.approx(20 * math.log10(2))
    with pytest.raises(QDropError, match="have no top class"):
        agreement(Halved(), Whole(), [torch.randn(2, 3, 4, 4)])


@given(st.floats(1e-3, 1e3), st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_the_noise_ratio_is_that_of_the_powers_at_any_scale(share, seed):
    reference = torch.randn(50, generator=torch.Generator().manual_seed(seed)).double()
    assert sqnr_db(reference, reference * (1 + share)) == pytest.approx(-20 * math.log10(share), abs=1e-6)


def test_the_noise_ratio_of_equals_is_infinite():
    assert sqnr_db(torch.ones(3), torch.ones(3)) == math.inf
    assert sqnr_db(torch.zeros(3), torch.ones(3)) == -math.inf


def test_flatness_at_zero_is_the_model_itself():
    model, x, y = net().eval(), torch.randn(16, 4), torch.randint(0, 3, (16,))
    rows = flatness(net(), model, [(x, y)], [0.0], 2)
    loss, right = nn.functional.cross_entropy(model(x), y).item(), (model(x).argmax(1) == y).float().mean().item()
    assert [(row.magnitude, row.direction) for row in rows] == [(0.0, 0), (0.0, 1)]
    assert all(row.loss == pytest.approx(loss) and row.agreement == pytest.approx(right) for row in rows)


def test_without_labels_the_float_model_is_what_counts():
    model = net()
    rows = flatness(model, model, [torch.randn(64, 4)], [0.0, 3.0], 2)
    assert [row.loss for row in rows[:2]] == pytest.approx([0, 0], abs=1e-6)
    assert [row.agreement for row in rows[:2]] == [1, 1]
    assert all(row.loss > 0.01 and row.agreement < 1 for row in rows[2:])


def test_every_channel_moves_by_its_own_norm_in_the_same_direction():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)
            self.up = nn.ConvTranspose2d(2, 3, 2)
            self.up.register_buffer("extra", torch.zeros(1))
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            seen.append((self.conv.weight.detach().clone(), self.up.weight.detach().clone(), self.norm.weight.clone()))
            return self.norm(self.up(self.conv(x))).mean((2, 3))

    torch.manual_seed(0)
    model = Spy()
    flatness(model, model, [torch.randn(2, 1, 6, 6)], [0.1, 0.2], 1)
    (conv, up, norm), (conv_1, up_1, norm_1), (conv_2, up_2, _) = seen
    steps = [(conv_1 - conv, conv, (1, 2, 3)), (up_1 - up, up, (0, 2, 3))]  # transposed: output channels are second
    for step, weight, axes in steps:
        lengths = torch.linalg.vector_norm(step, dim=axes) / torch.linalg.vector_norm(weight, dim=axes)
        assert torch.allclose(lengths, torch.full_like(lengths, 0.1), atol=1e-5)
    assert torch.allclose(conv_2 - conv, 2 * (conv_1 - conv), atol=1e-5)
    assert torch.allclose(up_2 - up, 2 * (up_1 - up), atol=1e-5)
    assert torch.equal(norm, norm_1)


def test_weights_are_restored_to_the_bit_also_after_an_exception():
    model = net()
    model[0].weight.requires_grad_(False)
    layer = model[4]
    value = layer.weight.detach().clone()
    del layer.weight
    layer.register_buffer("weight", value, persistent=False)  # as quantised layers have it
    before = [model[0].weight.clone(), layer.weight.clone()]
    flatness(net(), model, [torch.randn(4, 4)], [0.3], 3)
    assert torch.equal(model[0].weight, before[0])
    assert torch.equal(layer.weight, before[1])

    calls = iter(range(10))

    def fail(*_):
        if next(calls) == 2:
            raise RuntimeError("in the middle")

    model.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        flatness(net(), model, [torch.randn(4, 4)], [0.3], 3)
    assert torch.equal(model[0].weight, before[0])
    assert torch.equal(layer.weight, before[1])
    assert model.training
    assert not model[0].weight.requires_grad


def test_the_seed_decides_the_directions():
    model, batches = net(), [torch.randn(8, 4)]
    first, again, other = (flatness(model, model, batches, [0.5], 2, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first[0].loss != first[1].loss


def test_tied_weights_move_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight
            self.seen = []

        def forward(self, x):
            self.seen.append(self.a.weight.detach().clone())
            return self.b(self.a(x))

    model = Tied()
    before = model.a.weight.detach().clone()
    flatness(nn.Linear(4, 4), model, [torch.randn(4, 4)], [0.5], 1)
    lengths = torch.linalg.vector_norm(model.seen[-1] - before, dim=1) / torch.linalg.vector_norm(before, dim=1)
    assert torch.allclose(lengths, torch.full((4,), 0.5), atol=1e-5)


@pytest.mark.parametrize(("magnitudes", "directions"), [([-0.1], 1), ([float("nan")], 1), ([0.1], 0)])
def test_directions_and_magnitudes_that_mean_nothing_are_refused(magnitudes, directions):
    with pytest.raises(QDropError, match="directions must be at least 1"):
        flatness(net(), net(), [torch.randn(4, 4)], magnitudes, directions)
