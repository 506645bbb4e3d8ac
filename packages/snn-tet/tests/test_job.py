"""Whole trainings as configurations."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from core_utils.errors import UserError
from core_utils.runs import Run
from core_utils.settings import settings
from snn_tet import accuracy_vs_steps
from snn_tet.job import JobConfig, Preset, evaluation_loader, fit_job, load_data, make_network, preset_file
from snn_tet.training import Stage


@pytest.mark.parametrize("name", get_args(Preset))
def test_every_preset_is_a_whole_configuration(name):
    config = settings(JobConfig, file=preset_file(name)).complete
    assert config.dataset == name
    assert config.encoding == ("frames" if name == "cifar10-dvs" else "direct")


def test_presets_hold_the_papers_figures():
    dvs = settings(JobConfig, file=preset_file("cifar10-dvs"))
    assert (dvs.network, dvs.time_steps, dvs.lam, dvs.epochs, dvs.batch_size) == ("vggsnn", 10, 1e-3, 150, 128)
    cifar = settings(JobConfig, file=preset_file("cifar100"))
    assert (cifar.network, cifar.time_steps, cifar.learning_rate, cifar.optimizer) == ("resnet19", 6, 1e-3, "adam")


def test_stages_are_read_with_the_rates_they_name():
    config = JobConfig(time_steps=5, learning_rate=2e-3, stages=("2:30", "5:5", "5:1:1e-5"))
    assert config.parsed_stages() == [Stage(2, 30, 2e-3), Stage(5, 5, 5e-4), Stage(5, 1, 1e-5)]


@pytest.mark.parametrize("text", ["2", "2:x", "2:3:4:5", "", "2:3:fast"])
def test_a_stage_that_cannot_be_read_is_named(text):
    with pytest.raises(UserError, match="stages must be like 2:25"):
        JobConfig(stages=(text,))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"train_per_class": 0}, "train_per_class must be at least 1"),
        ({"validation": 1.0, "dataset": "cifar10"}, "validation must lie in"),
        ({"workers": -1}, "workers must not be negative"),
        ({"stages": ("2:3",)}, "stages must end at time_steps 5"),
    ],
)
def test_a_configuration_out_of_range_is_refused(options, complaint):
    with pytest.raises(UserError, match=complaint):
        JobConfig(**options)


def test_the_same_seed_makes_the_same_network():
    configs = [JobConfig(seed=seed, train_per_class=1) for seed in (1, 1, 2)]
    data = load_data(configs[0], None)
    one, two, other = (make_network(config, data).state_dict() for config in configs)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["readout.weight"], other["readout.weight"])


def test_a_data_set_without_its_folder_is_refused():
    for dataset in ("cifar10", "cifar100", "cifar10-dvs", "imagenet"):
        with pytest.raises(UserError, match=f"dataset {dataset} needs its folder"):
            load_data(JobConfig(dataset=dataset), None)


def write_cifar(folder, count, test):
    """CIFAR-10's binary layout with random images of every class."""
    rng = np.random.default_rng(0)
    for name, rows in (("data_batch_1.bin", count), ("test_batch.bin", test)):
        labels = (np.arange(rows) % 10).astype(np.uint8)
        pixels = rng.integers(0, 256, (rows, 3072), dtype=np.uint8)
        (folder / name).write_bytes(np.column_stack([labels, pixels]).tobytes())


def test_still_images_are_trained_at_any_number_of_steps(tmp_path):
    write_cifar(tmp_path, 20, 10)
    options = {"dataset": "cifar10", "network": "tiny_vgg", "epochs": 1, "batch_size": 10, "validation": 0.5}
    config = JobConfig(time_steps=2, stages=("1:1", "2:1"), **options).complete
    data = load_data(config, tmp_path)
    with Run.open(tmp_path / "run", config) as run:
        model = fit_job(config, data, tmp_path, run=run, progress=False)
        assert [record["stage"] for record in run.records()] == ["stage-0-1-steps", "stage-1-2-steps"]
    result = accuracy_vs_steps(model, evaluation_loader(config, data.test), 4, encoding="direct")
    assert len(result["prefix"]) == 4
    with pytest.raises(UserError, match="has 10 classes, dataset is cifar100"):
        load_data(replace(config, dataset="cifar100"), tmp_path)
