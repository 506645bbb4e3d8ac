"""One point of the benchmark: an algorithm on a network for a device, at one width, with one seed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core_utils.runs import Run
from core_utils.training import Loader, evaluate_classifier, resolve_device
from mqbench_lite import algorithms, profiles
from mqbench_lite.calibration import calibrate, quantizers_of
from mqbench_lite.data import Preprocessing, samples, some
from mqbench_lite.grids import GridConfig
from mqbench_lite.model import QuantModel
from mqbench_lite.preparing import prepare
from mqbench_lite.pretrained import FloatNetwork, float_network
from mqbench_lite.training import TrainSettings, train

RANGES = ("minmax", "mse")
"""Names of post-training quantisation by ranges alone: the observer is the algorithm."""
TEST_BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A point of the grid; can be sent to another process.

    Attributes:
        config: what all points share.
        algorithm: its name.
        profile: name of the hardware.
        bits: of weights and activations, as `4/4`.
        seed: decides the calibration images and the order of training.
        workdir: where its checkpoints and its exported file are kept.
    """

    config: GridConfig
    algorithm: str
    profile: str
    bits: str
    seed: int
    workdir: Path

    @property
    def key(self) -> str:
        """Its name."""
        return f"{self.algorithm}-{self.profile}-w{self.bits.replace('/', 'a')}-seed{self.seed}"


def measure(cell: Cell) -> dict[str, Any]:
    """Quantises, trains where the algorithm asks for it, tests; and runs the exported file where an engine can.

    Returns:
        What was asked for, `accuracy` and `float_accuracy` in percent of the test part, `seconds` of quantisation, and
        `engines`: by name, what `verification.verify` found, or why nothing ran.
    """
    config, device = cell.config, resolve_device(cell.config.device)
    network = network_of(config)
    net, preprocessing = network.model, network.preprocessing
    test = held_out(config, preprocessing)
    float_accuracy = accuracy(net.to(device), test)
    begin = time.perf_counter()
    qm = quantised(cell, network)
    seconds = time.perf_counter() - begin
    return {
        "network": config.network,
        "bits": cell.bits,
        "algorithm": cell.algorithm,
        "profile": cell.profile,
        "seed": cell.seed,
        "accuracy": accuracy(qm, test),
        "float_accuracy": float_accuracy,
        "seconds": seconds,
        "engines": _engines(cell, qm, test) if config.verify else {},
    }


def network_of(config: GridConfig) -> FloatNetwork:
    """The network before quantisation."""
    return float_network(config.network, config.weights, data=config.data, cache=config.cache)


def quantised(cell: Cell, network: FloatNetwork, *, run: Run | None = None) -> QuantModel:
    """The frozen quantised model of a point; a training goes on where `run` stopped."""
    config, net, preprocessing = cell.config, network.model, network.preprocessing
    weight_bits, act_bits = map(int, cell.bits.split("/"))
    ranges = cell.algorithm in RANGES
    algorithm = algorithms.get(
        "minmax" if ranges else cell.algorithm, **({} if ranges else config.options_of(cell.algorithm))
    )
    training_part = samples(config.data, "train", preprocessing)
    calibration = some(training_part, config.calibration, config.batch_size, cell.seed)
    example = next(iter(calibration))[0][:2]
    profile = profiles.get(cell.profile)
    qm = prepare(
        net,
        profile=profile,
        example_inputs=(example,),
        weight_bits=weight_bits,
        act_bits=act_bits,
        algorithm=algorithm,
        bn_fold=config.bn_fold if algorithm.kind == "qat" and profile.fold_bn else None,
    )
    if algorithm.kind == "ptq" and not ranges:
        qm = algorithm.apply(qm, calibration, seed=cell.seed, steps=config.ptq_steps)  # type: ignore[attr-defined]
    else:
        observer = cell.algorithm if ranges else config.observer
        calibrate(qm, calibration, batches=len(calibration.dataset), observer=observer)
    if algorithm.kind == "qat":
        torch.manual_seed(cell.seed)
        loader = Loader(training_part, config.batch_size, seed=cell.seed, drop_last=True)
        settings = TrainSettings(lr=config.lr, weight_decay=config.weight_decay)
        train(
            qm, loader, steps=config.steps, settings=settings, device=config.device, run=run, progress=run is not None
        )
    for _, quantizer in quantizers_of(qm):
        quantizer.freeze()
    return qm.eval()


def held_out(config: GridConfig, preprocessing: Preprocessing) -> Loader:
    """The test part in order."""
    return Loader(samples(config.data, "test", preprocessing), TEST_BATCH, shuffle=False)


def accuracy(net: nn.Module, batches: Iterable[Any]) -> float:
    """Share of the right classes, percent."""
    return 100 * evaluate_classifier(net, batches)["accuracy"]


def _engines(cell: Cell, qm: QuantModel, test: Loader) -> dict[str, Any]:
    """What the profile's engine makes of the exported file."""
    from mqbench_lite.exporting import export
    from mqbench_lite.verification import verify

    profile = profiles.get(cell.profile)
    if not profile.executable or profile.engine is None:
        return {}
    folder = cell.workdir / cell.key
    folder.mkdir(parents=True, exist_ok=True)
    artifact = export(qm, folder / "model.onnx")
    images: list[Tensor] = [batch[0] for batch in test]
    report = verify(qm, artifact, engines=[profile.engine], data=images)
    return dataclasses.asdict(report)
