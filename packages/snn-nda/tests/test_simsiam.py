"""Pre-training without labels: its loss, its monitor, its probe."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from core_utils.errors import UserError
from core_utils.runs import Run
from core_utils.training import Arrays, Loader, seed_everything
from snn_nda.augment import Draw, Geometric
from snn_nda.nda import NDA
from snn_nda.networks import tiny_vgg
from snn_nda.probe import calibrate, encoded, linear_probe
from snn_nda.simsiam import (
    CollapseWarning,
    PretrainConfig,
    SimSiam,
    pretrain,
    simsiam_loss,
    spread,
    two_views,
)

RNG = np.random.default_rng(0)
FRAMES = RNG.poisson(0.3, (13, 3, 2, 12, 12)).astype(np.float32)
LABELS = np.arange(13) % 3
CONFIG = PretrainConfig(epochs=2, batch_size=4, dim=16)
AUGMENT = Geometric(NDA("M2N1"))


def model(dim=16):
    seed_everything(0)
    return SimSiam(tiny_vgg(widths=(4, 8), size=12).blocks, dim, size=12)


def loader(frames=FRAMES, **options):
    return Loader(Arrays(frames, LABELS), 4, seed=1, **options)


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_the_loss_is_half_the_cosine_of_each_prediction_with_the_other_view():
    p1, p2 = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    z1, z2 = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 1.0]])
    assert simsiam_loss(p1, p2, z1, z2).item() == pytest.approx(-0.5 * (0.5**0.5 + 1.0))
    assert simsiam_loss(z1, z1, z1, z1).item() == pytest.approx(-1.0)


def test_projections_get_no_gradient_from_the_loss():
    p1, p2, z1, z2 = (torch.randn(5, 8, requires_grad=True) for _ in range(4))
    simsiam_loss(p1, p2, z1, z2).backward()
    assert z1.grad is None
    assert z2.grad is None
    assert p1.grad.abs().sum() > 0
    assert p2.grad.abs().sum() > 0


def test_the_encoder_learns_through_the_predictor_alone():
    simsiam = model()
    z, p = simsiam(torch.from_numpy(FRAMES).transpose(0, 1))
    fixed = z.detach()
    simsiam_loss(p, p, z, z).backward()
    grads = [parameter.grad.clone() for parameter in simsiam.encoder.parameters()]
    simsiam.zero_grad()
    _, p = model()(torch.from_numpy(FRAMES).transpose(0, 1))
    simsiam = model()
    _, p = simsiam(torch.from_numpy(FRAMES).transpose(0, 1))
    simsiam_loss(p, p, fixed, fixed).backward()
    for grad, parameter in zip(grads, simsiam.encoder.parameters(), strict=True):
        assert torch.allclose(grad, parameter.grad, atol=1e-7)


def test_layers_are_those_of_the_original():
    simsiam = SimSiam(tiny_vgg().blocks, size=24)
    linear = [layer for layer in simsiam.projector if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(576, 512), (512, 512), (512, 512)]
    assert [type(layer) for layer in simsiam.projector[3 * 2 :]] == [nn.Linear, nn.BatchNorm1d]
    assert not simsiam.projector[-1].affine
    assert (simsiam.predictor[0].out_features, simsiam.predictor[-1].out_features) == (128, 512)
    assert SimSiam(tiny_vgg().blocks, 64, 7, size=24).predictor[0].out_features == 7


def test_spread_is_one_over_root_d_for_directions_everywhere_and_nothing_for_one():
    torch.manual_seed(0)
    assert spread(torch.randn(4000, 64)) == pytest.approx(64**-0.5, rel=0.02)
    assert spread(torch.randn(1, 64).expand(100, 64)) == pytest.approx(0.0, abs=1e-7)


class Constant(nn.Module):
    """An encoder that says the same of everything."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x_seq):
        return self.weight * torch.ones(*x_seq.shape[:2], 6)


def test_a_constant_encoder_is_reported_as_collapsed():
    simsiam = SimSiam(Constant(), 16, size=12)
    with pytest.warns(CollapseWarning, match=r"the projections collapse: spread .* healthy is 0.25"):
        history = pretrain(simsiam, loader(), CONFIG, augment=AUGMENT, progress=False)
    assert history.last["spread"] < 0.1 * history.last["healthy_spread"] == 0.025


def test_a_healthy_training_is_logged_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = pretrain(model(), loader(), CONFIG, augment=AUGMENT, progress=False)
    assert [record["healthy_spread"] for record in history.records] == [0.25, 0.25]
    assert all(0.1 < record["spread"] <= 0.25 + 1e-6 for record in history.records)
    assert all(-1 <= record["loss"] <= 1 for record in history.records)
    assert history.last["step"] == 6  # 13 recordings in batches of 4, the thirteenth left out


def test_views_agree_more_with_training():
    alike = Geometric(NDA("M1N1", ops=("cutout",), flip=0.0))
    history = pretrain(model(), loader(), replace(CONFIG, epochs=30, base_rate=4.0), augment=alike, progress=False)
    assert history.last["loss"] < history.records[0]["loss"] - 0.2


def test_the_two_views_of_a_recording_differ_and_never_recur():
    draws = [view for epoch in range(3) for view in two_views(Draw(5, epoch, (0, 1)))]
    assert len({draw.epoch for draw in draws}) == 6
    assert {(draw.seed, draw.indices) for draw in draws} == {(5, (0, 1))}


def test_labels_are_not_looked_at():
    trained = []
    for labels in (LABELS, LABELS[::-1].copy()):
        simsiam = model()
        pretrain(simsiam, Loader(Arrays(FRAMES, labels), 4, seed=1), CONFIG, augment=AUGMENT, progress=False)
        trained.append(weights(simsiam))
    assert torch.equal(*trained)


class StopError(Exception):
    """What the test interrupts a training with."""


def test_an_interrupted_pretraining_ends_as_an_uninterrupted_one(tmp_path):
    whole = model()
    history = pretrain(whole, loader(), CONFIG, augment=AUGMENT, progress=False)
    calls = []

    def stopping(*batch):
        calls.append(0)
        if len(calls) > 8:  # in the second epoch
            raise StopError
        return AUGMENT(*batch)

    with Run.open(tmp_path / "run", {}) as run, pytest.raises(StopError):
        pretrain(model(), loader(), CONFIG, augment=stopping, run=run, progress=False)
    resumed = model()
    with Run.open(tmp_path / "run", {}, resume=True) as run:
        again = pretrain(resumed, loader(), CONFIG, augment=AUGMENT, run=run, progress=False)
    assert torch.equal(weights(resumed), weights(whole))
    assert again == history


def test_one_recording_a_batch_is_refused():
    with pytest.raises(UserError, match="batch_size must be at least 2"):
        model()(torch.zeros(3, 1, 2, 12, 12))
    with pytest.raises(UserError, match="batch_size must be at least 2, got 1"):
        replace(CONFIG, batch_size=1)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"dim": 0}, "dim must be at least 1"),
        ({"pred_dim": 0}, "pred_dim must be at least 1"),
        ({"base_rate": 0.0}, "base_rate must be positive"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_a_configuration_outside_its_range_is_refused(options, complaint):
    with pytest.raises(UserError, match=complaint):
        PretrainConfig(**options)


def test_dimensions_below_one_are_refused():
    with pytest.raises(UserError, match="dim and pred_dim must be at least 1, got 0 and 1"):
        SimSiam(tiny_vgg().blocks, 0, size=24)


class Marked(nn.Module):
    """An encoder whose activity is two numbers a recording: its first pixel and the one beside it."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x_seq):
        return self.scale * x_seq[:, :, 0, 0, :2]


def marked(labels, noise=0.0):
    frames = torch.zeros(len(labels), 2, 2, 4, 4)
    frames[:, :, 0, 0, 0] = torch.tensor([[label == 1] for label in labels]).float()
    frames[:, :, 0, 0, 1] = torch.tensor([[label == 2] for label in labels]).float()
    return [(frames, torch.tensor(labels))]


def test_the_probe_finds_what_is_linearly_there():
    found = linear_probe(Marked(), marked([0, 1, 2] * 5), marked([2, 1, 0, 0]))
    assert (found["train_accuracy"], found["test_accuracy"]) == (1.0, 1.0)
    assert found["loss"] < 0.1


def test_the_probe_is_the_minimum_of_its_convex_loss():
    """Without features only the bias is left, whose optimum gives each class its share."""
    blank = marked([0, 0, 0, 1])[0][0] * 0
    found = linear_probe(Marked(), [(blank, torch.tensor([0, 0, 0, 1]))], [(blank, torch.tensor([0, 1, 1, 1]))])
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert found["loss"] == pytest.approx(entropy, abs=1e-5)
    assert (found["train_accuracy"], found["test_accuracy"]) == (0.75, 0.25)


def test_probing_changes_neither_encoder_nor_mode():
    encoder = tiny_vgg(widths=(4, 8), size=12).blocks.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    linear_probe(encoder, loader(), loader())
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_calibration_takes_the_statistics_of_the_data_and_changes_nothing_else():
    encoder = tiny_vgg(widths=(4, 8), size=12).blocks.eval()
    before = weights(encoder)
    halves = [(torch.from_numpy(FRAMES[:6]), 0), (torch.from_numpy(FRAMES[6:12]), 0)]
    calibrate(encoder, halves)
    norm = encoder[0].norm.norm
    currents = [encoder[0].conv(frames.flatten(0, 1)) for frames, _ in halves]
    assert torch.allclose(norm.running_mean, sum(each.mean((0, 2, 3)) for each in currents) / 2, atol=1e-6)
    assert torch.allclose(norm.running_var, sum(each.var((0, 2, 3)) for each in currents) / 2, atol=1e-6)
    assert torch.equal(weights(encoder), before)
    assert (norm.momentum, encoder.training) == (0.1, False)
    # Which lets it speak: before, a new network is silent in evaluation.
    silent = tiny_vgg(widths=(4, 8), size=12).blocks.eval()
    frames = torch.from_numpy(FRAMES).transpose(0, 1)
    assert encoder(frames).mean() > 10 * silent(frames).mean()


def test_nothing_to_encode_is_refused():
    with pytest.raises(UserError, match="the loader is empty"):
        encoded(Marked(), [])
