"""Training, evaluation, energy and released weights."""

import numpy as np
import pytest
import torch

from core_utils.runs import Run
from core_utils.training import Arrays, Loader, seed_everything
from snasnet.datasets import load_data
from snasnet.networks import Neurons, SNASNet
from snasnet.specs import DatasetSpec
from snasnet.training import TrainConfig, accuracy, profile, train

CELL = "0302 0030 3003 0000"
OPTIONS = {"width": 6, "hidden": 32, "T": 3}


def network(cell="0203 0000 0000 0000"):
    seed_everything(0)
    return SNASNet(cell, DatasetSpec(1, 8, 10), **OPTIONS)


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


def test_a_trained_cell_reads_digits(data):
    model = network("0003 0000 0000 0000")
    config = TrainConfig(steps=40, batch_size=64, optimizer="adamw", learning_rate=1e-2)
    history = train(model, (Loader(data.train, 64), Loader(data.validation, 100)), config, progress=False)
    assert history.last["accuracy"] > 0.25  # chance is 0.1, six standard deviations below
    assert accuracy(model, Loader(data.test, 90, shuffle=False)) > 0.2


def test_a_training_that_was_cut_ends_as_one_that_was_not(data, tmp_path):
    images, labels = (column[:64] for column in data.train.columns)

    def trained(run=None, epochs=2):
        model = network(CELL)
        config = TrainConfig(epochs=epochs, batch_size=32, lowest=1.0)
        train(model, (Loader(Arrays(images, labels), 32), None), config, run=run, progress=False)
        return model.state_dict()

    whole = trained()
    with Run.open(tmp_path / "run", {}) as run:
        trained(run, epochs=1)
    with Run.open(tmp_path / "run", {}, resume=True) as run:
        resumed = trained(run)
    different = [name for name, value in whole.items() if not torch.equal(value, resumed[name])]
    assert different == [] or all("num_batches" not in name for name in different)
    assert different == []


def test_the_defaults_are_the_paper_s():
    config = TrainConfig()
    assert (config.epochs, config.batch_size, config.optimizer) == (300, 64, "sgd")
    assert (config.learning_rate, config.lowest, config.weight_decay) == (0.1, 0.01, 5e-4)
    with pytest.raises(ValueError, match="optimizer must be one of sgd, adamw"):
        TrainConfig(optimizer="lion")


def test_spikes_and_operations_are_counted_as_hooks_see_them(data):
    model = network(CELL).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.bias, 0.7)  # so that fresh running averages let neurons fire
    torch.nn.init.normal_(model.hidden.weight, std=0.5)
    images, labels = (column[:10] for column in data.test.columns)
    spikes = []
    for module in model.modules():
        if isinstance(module, Neurons):
            module.register_forward_hook(lambda _, __, out: spikes.append(float(out.sum())))
    with torch.no_grad():
        model(images)
    expected = sum(spikes) / 10
    found = profile(model, Loader(Arrays(images, labels), 5, shuffle=False))
    assert found["spikes_per_image"] == pytest.approx(expected)
    assert expected > 100
    by_name = {layer["name"]: layer for layer in found["layers"]}
    assert by_name["stem"]["multiplies"] == 3 * 6 * (3 * 8 - 2) ** 2  # T steps, C channels, borders reach less
    readout = by_name["readout"]["accumulates"]
    assert readout == pytest.approx(found["spikes"]["hidden_spike"] * 100)
    assert by_name["hidden"]["accumulates"] == pytest.approx(found["spikes"]["vector_spike"] * 32)
    joules = 4.6e-12 * by_name["stem"]["multiplies"] + 0.9e-12 * found["synaptic_operations"]
    assert found["theoretical_energy_uj"] == pytest.approx(1e6 * joules)


def test_frames_take_the_place_of_images():
    model = network(CELL)
    frames = torch.rand(6, 3, 1, 8, 8)  # [B, T, C, H, W], as loaders give them
    loader = Loader(Arrays(frames, np.arange(6)), 3)
    train(model, (loader, None), TrainConfig(epochs=1, batch_size=3), progress=False)
    assert 0 <= accuracy(model, loader) <= 1
    assert profile(model, loader)["samples"] == 6


def test_labels_that_are_no_classes_are_named():
    loader = Loader(Arrays(torch.rand(4, 1, 8, 8), np.array([0, 1, 2, 10])), 4)
    with pytest.raises(ValueError, match="labels reach from 0 to 10, the network has 10 classes"):
        train(network(), (loader, None), TrainConfig(epochs=1), progress=False)
