"""Training to a sparsity: the exact end, what moves in step, and going on after an interruption."""

import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from core_utils.errors import UserError
from core_utils.runs import Run
from core_utils.training import Arrays, Loader, seed_everything
from dynsparse import TrainConfig, convert, dynamic_layers, evaluate, sd_tiny, train
from dynsparse.training import make_optimizer, one_cycle


def loader(n=48, size=8, batch=16, channels=1):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, channels, size, size)).astype(np.float32)
    return Loader(Arrays(x, rng.integers(0, 10, n)), batch, seed=0)


def network(variant="sd", **settings):
    seed_everything(0)
    return sd_tiny(variant, **settings)


@pytest.mark.parametrize("mode", ["penalty", "global", "alpha", "quantile"])
@pytest.mark.parametrize("freeze_at", [0.5, 1.0])
def test_masks_end_at_exactly_the_sparsity(mode, freeze_at):
    model = network()
    config = TrainConfig(epochs=2, target_sparsity=0.75, sparsity_mode=mode, freeze_at=freeze_at)
    training = train(model, loader(), config, progress=False)
    assert training.sparsity.sparsity == 0.75
    for _, layer in dynamic_layers(model):
        assert layer.frozen
        assert not layer.weight[~layer.masks()].any()
        assert layer.router.temperature.item() == 1.0
    if mode in ("penalty", "quantile"):
        assert [each.nonzero for each in training.sparsity.layers] == [576] * 3  # a quarter of 4 x 576
    assert training.history.last["density"] == (0.25 if freeze_at == 0.5 else training.history.last["density"])


def test_networks_without_masks_have_no_sparsity_and_no_density():
    for variant in ("static", "dy", "condconv"):
        training = train(network(variant), loader(), TrainConfig(epochs=1), progress=False)
        assert training.sparsity is None
        assert "density" not in training.history.last


def test_a_converted_network_is_trained_like_one_of_the_zoo():
    seed_everything(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    model = convert(plain, skip=())
    training = train(model, loader(channels=3), TrainConfig(epochs=1, target_sparsity=0.5), progress=False)
    assert training.sparsity.sparsity == 0.5


class Interrupted:
    """Data for validation that sends a signal in one epoch."""

    def __init__(self, epoch):
        self.left = epoch

    def __iter__(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return iter([(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))])


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_an_interrupted_training_ends_as_if_it_had_not_been(tmp_path, epoch):
    config = TrainConfig(epochs=4, target_sparsity=0.75, freeze_at=0.6)
    whole = network()
    with Run.open(tmp_path / "whole", {}) as run:
        expected = train(whole, loader(), config, run=run, validation=Interrupted(0), progress=False)
    cut = network()
    with pytest.raises(KeyboardInterrupt), Run.open(tmp_path / "cut", {}) as run:
        train(cut, loader(), config, run=run, validation=Interrupted(epoch), progress=False)
    resumed = network()
    with Run.open(tmp_path / "cut", {}, resume=True) as run:
        found = train(resumed, loader(), config, run=run, validation=Interrupted(0), progress=False)
    state = resumed.state_dict()
    assert state.keys() == whole.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())
    assert found.history == expected.history
    assert found.sparsity == expected.sparsity


def test_kernels_learn_k_times_as_fast_under_sgd_only():
    model = network()
    kernels = {id(layer.weight) for _, layer in dynamic_layers(model)}
    taus = {id(layer.threshold.tau) for _, layer in dynamic_layers(model)}

    def rates(**config):
        groups = make_optimizer(model, TrainConfig(learning_rate=0.2, threshold_rate=0.05, **config)).param_groups
        return {id(each): group["lr"] for group in groups for each in group["params"]}

    auto, adam, same = rates(), rates(optimizer="adamw"), rates(kernel_rates="same")
    assert {auto[each] for each in kernels} == {0.8}
    assert {adam[each] for each in kernels} == {same[each] for each in kernels} == {0.2}
    assert {auto[each] for each in taus} == {0.05}


def test_one_cycle_rises_and_falls():
    assert one_cycle(0.0, 0.2) == pytest.approx(1 / 25)
    assert one_cycle(0.1, 0.2) == pytest.approx((1 + 1 / 25) / 2)
    assert one_cycle(0.2, 0.2) == 1.0
    assert one_cycle(0.6, 0.2) == pytest.approx(0.5)
    assert one_cycle(1.0, 0.2) == pytest.approx(0.0)


def test_accuracy_and_loss_are_means_over_images():
    class Says(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.scale * x

    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    labels = torch.tensor([0, 1, 1])
    model = Says().train()
    found = evaluate(model, [(logits[:2], labels[:2]), (logits[2:], labels[2:])])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item())
    assert model.training
    with pytest.raises(UserError, match="the loader is empty"):
        evaluate(model, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_sparsity": 90.0}, r"sparsity is a fraction in \[0, 1\); got 90 \(did you mean 0.9\?\)"),
        ({"target_sparsity": float("nan")}, "sparsity is a fraction"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative, got -1.0"),
        ({"freeze_at": 1.5}, r"freeze_at must lie in \[0, 1\], got 1.5"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**options)
