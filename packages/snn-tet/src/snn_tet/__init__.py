"""Temporal efficient training of spiking networks: the loss on every time step (arXiv 2202.11946)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import core_utils

if TYPE_CHECKING:
    from snn_tet.evaluation import accuracy_vs_steps
    from snn_tet.losses import TETLoss, sdt_loss, tet_loss
    from snn_tet.miniature import posed_miniature
    from snn_tet.networks import TinyVGG, tiny_vgg
    from snn_tet.training import Loaders, TrainConfig, train

if core_utils.CONTRACT != 1:
    raise ImportError("snn-tet needs core-utils with contract 1")

__all__ = [
    "Loaders",
    "TETLoss",
    "TinyVGG",
    "TrainConfig",
    "accuracy_vs_steps",
    "posed_miniature",
    "sdt_loss",
    "tet_loss",
    "tiny_vgg",
    "train",
]

_HOME = {
    "accuracy_vs_steps": "evaluation",
    "TETLoss": "losses",
    "sdt_loss": "losses",
    "tet_loss": "losses",
    "posed_miniature": "miniature",
    "TinyVGG": "networks",
    "tiny_vgg": "networks",
    "Loaders": "training",
    "TrainConfig": "training",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    """Loads torch only when a name that needs it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
