"""Scores of whole networks, ours and others'."""

import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from core_utils.data import digits
from snasnet.cells import Cell
from snasnet.kernels import KernelAccumulator, logdet_score, sahd_kernel
from snasnet.networks import Neurons, SNASNet
from snasnet.scoring import cell_scores, derived_seed, score_cell, score_model
from snasnet.specs import DatasetSpec

SPEC = DatasetSpec(1, 8, 10)
OPTIONS = {"width": 6, "hidden": 16, "T": 3}


@pytest.fixture(scope="module")
def batch():
    return torch.from_numpy(digits().x_train[:24, None] / 16).float()


def test_a_score_is_log_det_of_the_codes_that_hooks_see(batch):
    cell = Cell("0302 0030 3003 0000")
    torch.manual_seed(derived_seed(0, cell.id, 0))
    model = SNASNet(cell, SPEC, **OPTIONS)
    model.dropout.eval()
    kernels, calls = [], []
    for name, module in model.named_modules():
        if isinstance(module, Neurons):
            module.register_forward_hook(lambda _, __, spikes, name=name: calls.append((name, spikes)))
    with torch.no_grad():
        model(batch)
    for _, spikes in calls:
        kernels += [sahd_kernel(step.flatten(1)) for step in spikes]
    assert len(kernels) == 3 * (5 + 1 + 5 + 1 + 1)  # feedback's neurons count in the last step, too
    result = score_cell(cell, SPEC, batch, **OPTIONS)
    assert result.score == pytest.approx(logdet_score(np.mean(kernels, 0))[0], abs=1e-6)
    assert result.sign == 1
    rates = {name: float(torch.cat([s for n, s in calls if n == name]).mean()) for name, _ in calls}
    assert result.rates == pytest.approx(rates)


def test_the_same_cell_and_seed_give_the_same_bits_and_others_do_not(batch):
    cell = Cell("0303 0030 2002 0200")
    scores = [score_cell(cell, SPEC, batch, seed=seed, **OPTIONS).score for seed in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    score_cell(cell, SPEC, batch, **OPTIONS)
    assert torch.equal(torch.get_rng_state(), state)


def test_several_metrics_from_the_same_passes_are_those_from_passes_of_their_own(batch):
    cell, metrics = Cell("0302 0030 3003 0000"), ("sahd", "hd", "sahd")
    together = cell_scores(cell, SPEC, batch, metrics, repeats=2, **OPTIONS)
    for metric, result in zip(metrics, together, strict=True):
        alone = score_cell(cell, SPEC, batch, metric=metric, repeats=2, **OPTIONS)
        assert (result.scores, result.rates) == (alone.scores, alone.rates)


def test_no_spikes_outlive_the_step_in_which_they_were_looked_at(batch):
    seen, most = [], []

    def alive():
        return len({id(each()) for each in seen if each() is not None})

    def metric(codes):
        most.append(alive())
        return codes @ codes.T

    model = SNASNet("0302 0030 3003 0000", SPEC, **OPTIONS)
    for module in model.modules():
        if isinstance(module, Neurons):
            module.register_forward_hook(lambda _, __, spikes: seen.append(weakref.ref(spikes)))
    score_model(model, batch, metric, repeats=2)
    assert len(most) == 2 * 3 * (3 + 1 + 3 + 1 + 1)  # edges that leave one node share their spikes
    assert max(most) <= 4  # those of the cell at work, not of 9 layers and earlier steps
    assert alive() == 0


def test_repeats_average_over_initial_weights(batch):
    cell = Cell("0303 0030 2002 0200")
    one, two = (score_cell(cell, SPEC, batch, repeats=repeats, **OPTIONS) for repeats in (1, 2))
    assert two.scores[0] == one.score
    assert two.scores[1] != one.score
    assert two.score == pytest.approx(np.mean(two.scores))


def test_scoring_leaves_the_model_as_it_was(batch):
    model = SNASNet("0302 0030 3003 0000", SPEC, **OPTIONS).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    score_model(model, batch, repeats=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_dropout_is_off_but_in_compat(batch):
    cell = "0302 0030 0003 0000"
    scores = {}
    for compat in (False, True):
        torch.manual_seed(0)
        model = SNASNet(cell, SPEC, compat=compat, **OPTIONS)
        nn.init.normal_(model.hidden.weight, std=0.5)
        scores[compat] = [score_model(model, batch, seed=seed).score for seed in (0, 1)]
    assert scores[False][0] == scores[False][1]
    assert scores[True][0] != scores[True][1]


def test_other_metrics_and_single_layers_score_too(batch):
    model = SNASNet("0302 0030 3003 0000", SPEC, **OPTIONS)
    sahd, hd, half = (
        score_model(model, batch, metric, alpha=alpha).score
        for metric, alpha in (("sahd", "code"), ("hd", "code"), ("sahd", "half-n"))
    )
    assert len({sahd, hd, half}) == 3
    one = score_model(model, batch, layers=["reduction_spike"])
    assert list(one.rates) == ["reduction_spike"]
    gram = score_model(model, batch, lambda codes: codes @ codes.T + torch.eye(len(codes)))
    assert math.isfinite(gram.score)


def test_samples_that_cannot_be_told_apart_are_degenerate(batch):
    twice = batch.clone()
    twice[1] = twice[0]
    result = score_cell(Cell("0302 0030 3003 0000"), SPEC, twice, **OPTIONS)
    assert (result.degenerate, result.score, result.sign) == (True, -math.inf, 0.0)
    dead = score_cell(Cell("0302 0030 3003 0000"), SPEC, batch, threshold=1e6, **OPTIONS)
    assert (dead.degenerate, dead.dead_fraction, dead.rate) == (True, 1.0, 0.0)


def test_spikingjelly_networks_are_scored_and_reset(batch):
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    torch.manual_seed(0)
    single = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), neuron.LIFNode(tau=4 / 3))
    result = score_model(single, batch)
    assert score_model(single, batch).score == result.score
    theirs = single(batch)
    accumulator = KernelAccumulator()
    accumulator.update(theirs.detach().flatten(1))
    assert result.score == pytest.approx(accumulator.score()[0], abs=1e-9)
    assert 0 < result.rates["2"] < 1


def test_snntorch_networks_are_scored_through_their_tuples(batch):
    snntorch = pytest.importorskip("snntorch")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 100)
            self.leaky = snntorch.Leaky(0.5)

        def forward(self, x):
            v = self.leaky.init_leaky()
            for _ in range(3):
                spikes, v = self.leaky(4 * self.linear(x.flatten(1)), v)
            return spikes

    torch.manual_seed(0)
    result = score_model(Net(), batch)
    assert math.isfinite(result.score)
    assert 0 < result.rates["leaky"] < 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda x: x[:1], "at least 2 samples, got 1"),
        (lambda x: x * torch.nan, "not finite"),
        (lambda x: x[:1].expand(8, 1, 8, 8), "all samples of the batch are the same"),
    ],
)
def test_batches_that_tell_nothing_are_refused(batch, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        score_cell(Cell("0302 0030 3003 0000"), SPEC, change(batch), **OPTIONS)


def test_models_without_spikes_are_refused_by_what_they_hold(batch):
    with pytest.raises(ValueError, match="no spiking layer, only Conv2d, ReLU, Sequential"):
        score_model(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), batch)
    with pytest.raises(ValueError, match="no spiking layer 'stem'"):
        score_model(SNASNet("0001 0000 0000 0000", SPEC, **OPTIONS), batch, layers=["stem"])
