"""Whether this installation does what it should: versions, devices, and engines held against one another."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

import numpy as np
import torch

from fedcl.client import LocalTraining
from fedcl.federation import FederatedRun
from fedcl.models.backbones import mlp_backbone
from fedcl.models.nettailor import tailor
from fedcl.protocol import Protocol
from fedcl.scenario import Scenario
from fedcl.server_opt import FedYogi

TOLERANCE = 1e-5
"""Largest difference between tensors of two engines, float32."""
OPTIONAL = ("flwr", "torchvision", "timm", "onnx", "onnxscript", "cryptography", "distributed")


def installed() -> dict[str, Any]:
    """Versions of what is needed and of what is optional, and devices."""
    facts: dict[str, Any] = {name: importlib.metadata.version(name) for name in ("fedcl", "torch", "numpy")}
    for name in OPTIONAL:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    facts["devices"] = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    facts["threads"] = torch.get_num_threads()
    return facts


def agreement(device: str = "cpu") -> dict[str, float | None]:
    """Largest difference of the server's tensors from the local engine's after two phases; None without flwr."""
    states = {"local": _state("local", device), "stacked": _state("stacked", device)}
    if importlib.util.find_spec("flwr") is not None:
        states["flwr"] = _state("flwr", device)
    differences: dict[str, float | None] = {"flwr": None}
    for name, state in states.items():
        if name != "local":
            pairs = [(state[key].double(), value.double()) for key, value in states["local"].items()]
            differences[name] = max(float((a - b).abs().max()) for a, b in pairs if a.numel())
    return differences


def _state(engine: str, device: str) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(160, 6)).astype(np.float32), np.arange(160) % 4
    scenario = Scenario.from_arrays(x, y, x_test=x[:40], y_test=y[:40], tasks=2, clients=3, seed=0)
    return FederatedRun(
        scenario,
        lambda classes: tailor(mlp_backbone(6, 8, 2), num_classes=classes, max_skip=2, input_shape=(6,)),
        FedYogi(0.1),
        engine=engine,  # type: ignore[arg-type]
        training=LocalTraining(3, lr=0.1, batch_size=16),
        protocol=Protocol(scope="shared", rounds=2),
        device=device,
    ).finished_state()
