"""Federated continual learning with NetTailor students and adaptive server optimisation (arXiv 2203.13321)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import core_utils
from core_utils.lazy import lazy

if TYPE_CHECKING:
    from fedcl.client import LocalTraining, Trainer
    from fedcl.errors import ConfigError, DeployError, QuorumError, ScenarioError
    from fedcl.federation import FederatedRun
    from fedcl.metrics import average_accuracy, backward_transfer, drift, forgetting, forward_transfer
    from fedcl.models.backbones import Backbone, mlp_backbone, resnet_backbone, wrn26
    from fedcl.models.losses import LossTerms, tailor_loss
    from fedcl.models.nettailor import PruneReport, TailoredNet, tailor
    from fedcl.partitions import IID, Dirichlet
    from fedcl.privacy import Privacy, epsilon
    from fedcl.protocol import Protocol, Straggler
    from fedcl.records import RoundRecord, RunResult
    from fedcl.robust import Aggregator
    from fedcl.scenario import Scenario, Subset
    from fedcl.server_opt import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, ServerOptimizer

if core_utils.CONTRACT != 1:
    raise ImportError("fedcl needs core-utils with contract 1")

__all__ = [
    "IID",
    "Aggregator",
    "Backbone",
    "ConfigError",
    "DeployError",
    "Dirichlet",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedYogi",
    "FederatedRun",
    "LocalTraining",
    "LossTerms",
    "Privacy",
    "Protocol",
    "PruneReport",
    "QuorumError",
    "RoundRecord",
    "RunResult",
    "Scenario",
    "ScenarioError",
    "ServerOptimizer",
    "Straggler",
    "Subset",
    "TailoredNet",
    "Trainer",
    "average_accuracy",
    "backward_transfer",
    "drift",
    "epsilon",
    "forgetting",
    "forward_transfer",
    "mlp_backbone",
    "resnet_backbone",
    "tailor",
    "tailor_loss",
    "wrn26",
]

_HOMES = {
    "client": ("LocalTraining", "Trainer"),
    "errors": ("ConfigError", "DeployError", "QuorumError", "ScenarioError"),
    "federation": ("FederatedRun",),
    "metrics": ("average_accuracy", "backward_transfer", "drift", "forgetting", "forward_transfer"),
    "models.backbones": ("Backbone", "mlp_backbone", "resnet_backbone", "wrn26"),
    "models.losses": ("LossTerms", "tailor_loss"),
    "models.nettailor": ("PruneReport", "TailoredNet", "tailor"),
    "partitions": ("IID", "Dirichlet"),
    "privacy": ("Privacy", "epsilon"),
    "protocol": ("Protocol", "Straggler"),
    "records": ("RoundRecord", "RunResult"),
    "robust": ("Aggregator",),
    "scenario": ("Scenario", "Subset"),
    "server_opt": ("FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedYogi", "ServerOptimizer"),
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
