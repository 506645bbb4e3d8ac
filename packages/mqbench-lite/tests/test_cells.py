import dataclasses

import pytest
import torch
from hosts import ONNXRUNTIME
from small import config

from core_utils.errors import UserError
from mqbench_lite.cells import Cell, accuracy, held_out, measure, network_of, quantised
from mqbench_lite.errors import MQBenchError


def cell(folder, algorithm="mse", profile="onnxruntime", bits="8/8", seed=0, **options):
    asked = {"algorithm": algorithm, "profile": profile, "bits": bits, "seed": seed}
    return Cell(config=config(folder, **options), workdir=folder / "work", **asked)


def test_a_point_on_onnx_runtime_has_no_differing_output(tmp_path):
    point = cell(tmp_path, profile=ONNXRUNTIME)
    found = measure(point)
    (engine,) = found["engines"]["engines"]
    assert (engine["engine"], engine["logits"], engine["differing"], engine["layers"]) == ("onnxruntime", 20000, 0, 1.0)
    assert abs(found["accuracy"] - found["float_accuracy"]) < 3
    assert (tmp_path / "work" / point.key / "model.onnx").is_file()


def test_a_device_that_is_exported_for_runs_on_no_engine(tmp_path):
    assert measure(cell(tmp_path, profile="tensorrt"))["engines"] == {}
    assert measure(cell(tmp_path, verify=False))["engines"] == {}


@pytest.mark.parametrize("algorithm", ["lsq", "pact", "dorefa", "dsq", "ste", "adaround"])
def test_every_algorithm_gives_a_frozen_model_and_the_seed_decides_it(tmp_path, algorithm):
    point = cell(tmp_path, algorithm, bits="4/4")
    network = network_of(point.config)
    images = next(iter(held_out(point.config, network.preprocessing)))[0][:50]
    outputs = []
    for seed in (0, 0, 1):
        qm = quantised(dataclasses.replace(point, seed=seed), network)
        with torch.no_grad():
            outputs.append(qm(images))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    qm.freeze()  # every quantiser has its range


@pytest.mark.parametrize("algorithm", ["qil", "apot"])
def test_algorithms_without_a_grid_belong_to_the_academic_setting(tmp_path, algorithm):
    point = cell(tmp_path, algorithm, profile="academic", bits="4/4")
    quantised(point, network_of(point.config))
    hardware, network = dataclasses.replace(point, profile="onnxruntime"), network_of(point.config)
    with pytest.raises(MQBenchError):
        quantised(hardware, network)


def test_accuracy_is_the_share_of_right_classes():
    logits = torch.eye(4)
    batches = [(logits[:2], torch.tensor([0, 1])), (logits[2:], torch.tensor([0, 3]))]
    assert accuracy(torch.nn.Identity(), batches) == 75.0
    with pytest.raises(UserError, match="nothing to evaluate on"):
        accuracy(torch.nn.Identity(), [])
