"""Neuromorphic data augmentation: event data for spiking networks, moved by geometry (arXiv 2203.06145)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import core_utils

if TYPE_CHECKING:
    from snn_nda.nda import NDA
    from snn_nda.params import Params
    from snn_nda.policies import Policy, policy

if core_utils.CONTRACT != 1:
    raise ImportError("snn-nda needs core-utils with contract 1")

__all__ = ["NDA", "Params", "Policy", "policy"]

_HOMES = {
    "nda": ("NDA",),
    "params": ("Params",),
    "policies": ("Policy", "policy"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Loads torch only when a name that needs it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
