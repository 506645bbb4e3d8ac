"""Training, evaluation, energy and released weights."""

import numpy as np
import pytest
import torch

from core_utils.runs import Run
from core_utils.training import Arrays, Loader, seed_everything
from snasnet.datasets import load_data
from snasnet.networks import Neurons, SNASNet
from snasnet.presets import load_released, preset
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
    config = TrainConfig(steps=80, batch_size=64, optimizer="adamw", learning_rate=1e-2)
    history = train(
        model, (Loader(Arrays(*data.train), 64), Loader(Arrays(*data.validation), 100)), config, progress=False
    )
    assert history.last["accuracy"] > 0.25  # chance is 0.1, six standard deviations below
    assert accuracy(model, Loader(Arrays(*data.test), 90, shuffle=False)) > 0.2


def test_a_training_that_was_cut_ends_as_one_that_was_not(data, tmp_path):
    images, labels = (part[:64] for part in data.train)

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
    images, labels = (part[:10] for part in data.test)
    spikes = []
    for module in model.modules():
        if isinstance(module, Neurons):
            module.register_forward_hook(lambda _, __, out: spikes.append(float(out.sum())))
    with torch.no_grad():
        model(torch.from_numpy(images))
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


def test_presets_are_the_paper_s_and_weights_go_back_in(tmp_path):
    assert preset("cifar10")["p2"] == 4
    with pytest.raises(ValueError, match="preset must be one of cifar10, cifar100, tinyimagenet"):
        preset("mnist")
    model = SNASNet(**preset("cifar100"))
    file = tmp_path / "weights.pth.tar"
    torch.save({f"module.{name}": value for name, value in model.state_dict().items()}, file)
    loaded = load_released(file, "cifar100")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    renamed = {f"their.{name}": value for name, value in model.state_dict().items()}
    torch.save(renamed, file)
    with pytest.raises(ValueError, match=r"has none for .*give `names` for its keys: their"):
        load_released(file, "cifar100")
    names = {name: f"their.{name}" for name in model.state_dict()}
    assert torch.equal(load_released(file, "cifar100", names).stem.weight, model.stem.weight)


def test_weights_pooled_otherwise_name_the_p2_that_fits(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save({"hidden.weight": torch.zeros(1024, 2 * 256 * 8 * 8)}, file)  # p2 = 2
    with pytest.raises(ValueError, match=r"Linear of 32768 inputs, p2=4 makes 8192 .p2=2 fits"):
        load_released(file, "cifar10")
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_released(file, "cifar10")


def test_data_are_normal_split_by_class_and_refused_by_name(data):
    assert data.spec == DatasetSpec(1, 8, 10)
    images = data.train[0]
    assert abs(images.mean()) < 0.05
    held = np.bincount(data.validation[1])
    assert len(set(held)) == 1
    assert len(images) + held.sum() == 1437
    assert torch.equal(data.batch(20, 3), data.batch(20, 3))
    with pytest.raises(ValueError, match=r"--batch must lie in 2\.\.\d+, the number of training images, got 5000"):
        data.batch(5000, 0)
    for words, complaint in ((("mnist",), "dataset must be one of"), (("cifar",), "cifar needs its folder")):
        with pytest.raises(ValueError, match=complaint):
            load_data(*words)
