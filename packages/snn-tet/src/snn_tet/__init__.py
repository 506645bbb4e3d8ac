"""Temporal efficient training of spiking networks: the loss on every time step (arXiv 2202.11946)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import core_utils

if TYPE_CHECKING:
    from snn_tet.checkpoints import load_reference_checkpoint
    from snn_tet.evaluation import accuracy_vs_steps, early_exit
    from snn_tet.export import export_nir
    from snn_tet.landscape import loss_landscape, loss_rise
    from snn_tet.losses import TETLoss, sdt_loss, step_gradients, tet_loss
    from snn_tet.miniature import posed_miniature
    from snn_tet.networks import resnet19, sew_resnet34, spiking_resnet34, tiny_vgg, vggsnn, vggsnn_woap
    from snn_tet.training import Loaders, Stage, TrainConfig, time_inheritance, train

if core_utils.CONTRACT != 1:
    raise ImportError("snn-tet needs core-utils with contract 1")

__all__ = [
    "Loaders",
    "Stage",
    "TETLoss",
    "TrainConfig",
    "accuracy_vs_steps",
    "early_exit",
    "export_nir",
    "load_reference_checkpoint",
    "loss_landscape",
    "loss_rise",
    "posed_miniature",
    "resnet19",
    "sdt_loss",
    "sew_resnet34",
    "spiking_resnet34",
    "step_gradients",
    "tet_loss",
    "time_inheritance",
    "tiny_vgg",
    "train",
    "vggsnn",
    "vggsnn_woap",
]

_HOME = {
    "load_reference_checkpoint": "checkpoints",
    "accuracy_vs_steps": "evaluation",
    "early_exit": "evaluation",
    "export_nir": "export",
    "loss_landscape": "landscape",
    "loss_rise": "landscape",
    "TETLoss": "losses",
    "sdt_loss": "losses",
    "step_gradients": "losses",
    "tet_loss": "losses",
    "posed_miniature": "miniature",
    "resnet19": "networks",
    "sew_resnet34": "networks",
    "spiking_resnet34": "networks",
    "tiny_vgg": "networks",
    "vggsnn": "networks",
    "vggsnn_woap": "networks",
    "Loaders": "training",
    "Stage": "training",
    "TrainConfig": "training",
    "time_inheritance": "training",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    """Loads torch only when a name that needs it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
