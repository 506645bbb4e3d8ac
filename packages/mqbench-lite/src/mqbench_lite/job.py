"""What the commands do: a network quantised for a device, a file verified, layers weighed one by one."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from core_utils.runs import Run
from core_utils.training import Loader
from mqbench_lite import profiles
from mqbench_lite.calibration import calibrate
from mqbench_lite.cells import Cell, accuracy, held_out, network_of, quantised
from mqbench_lite.data import FASHION_MNIST, Preprocessing, samples, some
from mqbench_lite.errors import ExportError
from mqbench_lite.exporting import Artifact, export
from mqbench_lite.grids import GridConfig
from mqbench_lite.model import LayerBits, QuantModel
from mqbench_lite.preparing import prepare
from mqbench_lite.reading import read
from mqbench_lite.verification import AgreementReport, verify

if TYPE_CHECKING:
    from torch import nn

BATCH = 250


def quantize_job(
    run: Run, config: GridConfig, profile: str, algorithm: str, bits: str, kind: str, seed: int
) -> dict[str, Any]:
    """Quantises a network and writes `model.onnx`, its grids and `model.safetensors` into the run.

    Args:
        run: where everything is written; an interrupted training goes on from it.
        config: network, data and settings.
        profile: of the hardware.
        algorithm: its name, or `minmax` or `mse`.
        bits: of weights and activations, as `8/8`.
        kind: a format of `export`.
        seed: of calibration images and the order of training.

    Returns:
        Accuracies in percent of the test part, files, and a row a layer with its bits.
    """
    cell = Cell(config=config, algorithm=algorithm, profile=profile, bits=bits, seed=seed, workdir=run.path / "work")
    network = network_of(config)
    net = network.model
    qm = quantised(cell, network, run=run)
    test = held_out(config, network.preprocessing)
    qm.save(run.path / "model.safetensors")
    artifact = export(qm, run.path / "model.onnx", format=kind)
    return {
        "profile": profile,
        "algorithm": algorithm,
        "bits": bits,
        "float_accuracy": accuracy(net, test),
        "accuracy": accuracy(qm, test),
        "sha256": artifact.sha256,
        "files": [path.name for path in (artifact.path, artifact.qparams, *artifact.others)],
        "layers": [dataclasses.asdict(row) for row in qm.bits],
    }


def verify_job(file: Path, engines: Sequence[str], data: Path | None, count: int) -> AgreementReport:
    """Compares engines with the integer model of a file, on images that fit its input.

    Args:
        file: ONNX.
        engines: names.
        data: folder of images; None: the embedded ones.
        count: images of the test part, from its start.

    Raises:
        ExportError: the file cannot be read, or has another input than images.
    """
    graph = read(file)
    shapes = list(graph.shapes.values())
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ExportError(f"{file} reads {shapes}, not one batch of images", "verify such a model in Python")
    _, channels, size, _ = shapes[0]
    preprocessing = FASHION_MNIST if (channels, size) == (1, 28) else Preprocessing(size=size, resize=size * 8 // 7)
    test = samples(data, "test", preprocessing)
    some_of_it = torch.utils.data.Subset(test, range(min(count, len(test))))  # type: ignore[arg-type]
    artifact = Artifact(
        path=file,
        qparams=file.with_suffix(".qparams.json"),
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        profile=graph.profile,
    )
    return verify(graph, artifact, engines, Loader(some_of_it, BATCH, shuffle=False))


def sensitivity_job(config: GridConfig, profile: str, bits: str, observer: str, seed: int) -> list[dict[str, Any]]:
    """What each layer costs if it alone is quantised, weight and input.

    Args:
        config: network, data and calibration.
        profile: of the hardware.
        bits: of weights and activations.
        observer: how ranges are found.
        seed: of calibration images.

    Returns:
        A row a layer in order of execution: signal over noise of the outputs on the calibration images, dB, and the share
        of them whose best class stays, percent.
    """
    network = network_of(config)
    net, preprocessing = network.model, network.preprocessing
    weight_bits, act_bits = map(int, bits.split("/"))
    calibration = some(samples(config.data, "train", preprocessing), config.calibration, config.batch_size, seed)
    images = [batch[0] for batch in calibration]
    qm = prepare(
        net,
        profile=profiles.get(profile),
        example_inputs=(images[0][:2],),
        weight_bits=weight_bits,
        act_bits=act_bits,
        algorithm="minmax",
        edge_bits=None,
    )
    calibrate(qm, calibration, batches=len(images), observer=observer)
    qm.eval()
    _enable(qm, None)
    expected = _outputs(qm, images)
    rows = []
    for each in qm.bits:
        _enable(qm, each)
        found = _outputs(qm, images)
        noise = float((found - expected).square().sum())
        sqnr = 10 * torch.log10(expected.square().sum() / noise).item() if noise > 0 else float("inf")
        kept = (found.argmax(1) == expected.argmax(1)).float().mean().item()
        rows.append({"layer": each.name, "sqnr_db": round(sqnr, 2), "same_class_percent": round(100 * kept, 2)})
    return rows


def _enable(qm: QuantModel, layer: LayerBits | None) -> None:
    """Quantises one layer's weight and input and nothing else."""
    quantizers: dict[str, Any] = {name: module.weight_quantizer for name, module in qm.layers.items()}
    for name, quantizer in {**quantizers, **qm.act_quantizers}.items():
        if quantizer is not None:
            quantizer.enabled = layer is not None and name in (layer.name, layer.act)


@torch.no_grad()
def _outputs(net: nn.Module, images: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([net(batch) for batch in images]).double()
