"""Temporal efficient training of spiking networks: the loss on every time step (arXiv 2202.11946)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import core_utils

if TYPE_CHECKING:
    from snn_tet.evaluation import accuracy_vs_steps, early_exit
    from snn_tet.landscape import loss_landscape, loss_rise
    from snn_tet.losses import TETLoss, sdt_loss, step_gradients, tet_loss
    from snn_tet.miniature import posed_miniature
    from snn_tet.networks import TinyVGG, tiny_vgg
    from snn_tet.training import Loaders, Stage, TrainConfig, time_inheritance, train

if core_utils.CONTRACT != 1:
    raise ImportError("snn-tet needs core-utils with contract 1")

__all__ = [
    "Loaders",
    "Stage",
    "TETLoss",
    "TinyVGG",
    "TrainConfig",
    "accuracy_vs_steps",
    "early_exit",
    "loss_landscape",
    "loss_rise",
    "posed_miniature",
    "sdt_loss",
    "step_gradients",
    "tet_loss",
    "time_inheritance",
    "tiny_vgg",
    "train",
]

_HOME = {
    "accuracy_vs_steps": "evaluation",
    "early_exit": "evaluation",
    "loss_landscape": "landscape",
    "loss_rise": "landscape",
    "TETLoss": "losses",
    "sdt_loss": "losses",
    "step_gradients": "losses",
    "tet_loss": "losses",
    "posed_miniature": "miniature",
    "TinyVGG": "networks",
    "tiny_vgg": "networks",
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
