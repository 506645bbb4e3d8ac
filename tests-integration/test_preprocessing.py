"""What a deployed classifier loses, divided between its pre-processing and its precision: imagenet-s and mqbench-lite."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mqbench_lite as mqb
from core_utils.data import fashion_mnist_small
from core_utils.training import Arrays, Loader, fit, seed_everything
from imagenet_s import Grid, Pipeline, diagnose, evaluate, open_samples
from mqbench_lite.host import host

PIPELINE = Pipeline(size=28, resize_size=28, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
REFERENCE = "pillow/pillow-bilinear"
GRID = Grid(("pillow", "opencv"), ("pillow-bilinear", "pillow-nearest", "opencv-linear"), PIPELINE)
TRAINED, TESTED = 2000, 200


class Split(NamedTuple):
    """Accuracy lost from the float net's reference to one of the views of the quantised net.

    Each share is the Shapley value of its stage: the mean of what it costs before and after the other one.
    """

    total: float
    preprocessing: float
    precision: float


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Garments before stripes one pixel wide, as JPEG files in class folders: `train` and `test`."""
    folder = tmp_path_factory.mktemp("garments")
    images = fashion_mnist_small()
    rng = np.random.default_rng(0)
    parts = {"train": (images.x_train[:TRAINED], images.y_train), "test": (images.x_test[:TESTED], images.y_test)}
    for part, (x, y) in parts.items():
        for number, (image, label) in enumerate(zip(x, y, strict=False)):
            file = folder / part / str(label) / f"{number:04d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(striped(image, side=96 + 8 * (number % 2), phase=rng.integers(2)))
    return folder


def striped(image, *, side, phase):
    """Stripes that a filter turns into grey; picking pixels makes them black or white by lot."""
    garment = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255
    stripes = ((np.arange(side) + phase) % 2).astype(np.float32)
    picture = garment + (1 - garment) * 0.4 * stripes
    file = io.BytesIO()
    Image.fromarray((255 * picture).astype(np.uint8)).convert("RGB").save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


@pytest.fixture(scope="module")
def train(data):
    """Tensors of the training images by the reference's pipeline, and their labels."""
    samples = open_samples(data / "train")
    return Arrays(np.stack([PIPELINE(sample.data) for sample in samples]), np.array(samples.labels))


@pytest.fixture(scope="module")
def float_net(train):
    def stage(inputs, outputs):
        return nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)

    seed_everything(0)
    net = nn.Sequential(
        *(*stage(3, 8), *stage(8, 16), *stage(16, 32)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )
    fit(
        net,
        lambda model, batch, _: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        Loader(train, 50, drop_last=True),
        optimizer=torch.optim.Adam(net.parameters(), 5e-3),
        epochs=4,
        progress=False,
    )
    return net.eval()


def quantised(net, train, bits):
    """The net on so few bits, with ranges of 200 training images."""
    qm = mqb.prepare(
        net,
        profile=host().profile("onnxruntime"),  # 7-bit weights at the ends where 8-bit products overflow
        example_inputs=(train.columns[0][:2],),
        weight_bits=bits,
        act_bits=bits,
        algorithm="minmax",
    )
    return mqb.calibrate(qm, train.columns[0][:200].split(50), observer="mse").eval()


@pytest.fixture(scope="module")
def results(data, float_net, train):
    """imagenet-s' grid over the float net and its quantised versions."""
    nets = {"float": float_net, **{f"{bits} bits": quantised(float_net, train, bits) for bits in (8, 2)}}
    test = open_samples(data / "test")
    return {name: evaluate(net, test, GRID, reference=REFERENCE) for name, net in nets.items()}


def split(results, name, view):
    whole, less = results["float"].accuracy, results[name].accuracy
    return Split(
        whole[REFERENCE] - less[view],
        (whole[REFERENCE] - whole[view] + less[REFERENCE] - less[view]) / 2,
        (whole[REFERENCE] - less[REFERENCE] + whole[view] - less[view]) / 2,
    )


def test_the_shares_of_preprocessing_and_precision_sum_to_the_drop(results):
    for name in ("8 bits", "2 bits"):
        for view in GRID.names:
            total, preprocessing, precision = split(results, name, view)
            assert preprocessing + precision == pytest.approx(total, abs=1e-12)
        assert split(results, name, REFERENCE).preprocessing == 0


def test_the_larger_share_goes_to_what_was_changed_more(results):
    assert results["float"].accuracy[REFERENCE] > 0.6
    assert abs(split(results, "8 bits", REFERENCE).total) < 0.03
    eight, two = (split(results, name, "pillow/pillow-nearest") for name in ("8 bits", "2 bits"))
    assert eight.preprocessing > eight.precision + 0.05
    assert two.precision > two.preprocessing + 0.05


def test_the_stage_by_stage_diagnosis_agrees_with_the_grid(data, float_net, results):
    found = diagnose(float_net, open_samples(data / "test"), PIPELINE, replace(PIPELINE, resizer="pillow-nearest"))
    accuracy = results["float"].accuracy
    (stage,) = found.stages
    assert stage.stage == "resize"
    assert stage.share_drop == found.total.drop
    assert found.total.drop == pytest.approx(accuracy[REFERENCE] - accuracy["pillow/pillow-nearest"], abs=1e-12)


def test_the_exported_net_loses_exactly_what_its_simulation_does(data, float_net, train, results, tmp_path):
    mqb.export(quantised(float_net, train, 8), tmp_path / "net.onnx")
    (tmp_path / "pipeline.json").write_text(PIPELINE.to_json())
    words = ["evaluate", "--model", f"onnx:{tmp_path / 'net.onnx'}", "--data", data / "test", "--out", tmp_path / "run"]
    words += ["--pipeline", tmp_path / "pipeline.json", "--decoders", ",".join(GRID.decoders)]
    words += ["--resizers", ",".join(GRID.resizers), "--quiet"]
    program = Path(sys.executable).with_name("imagenet-s")
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    predictions = json.loads((tmp_path / "run" / "predictions.json").read_text())["predictions"]
    simulated = results["8 bits"]
    assert predictions == dict(zip(simulated.names, simulated.predictions.tolist(), strict=True))
