"""Neuromorphic data augmentation: event data for spiking networks, moved by geometry (arXiv 2203.06145)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import core_utils

if TYPE_CHECKING:
    from snn_nda.adapters import EventFrames, ForeignEvents
    from snn_nda.eventdrop import EventDrop
    from snn_nda.events import EventNDA
    from snn_nda.folders import FolderEvents, published_parts
    from snn_nda.functional import cutmix, cutout, hflip, mixup, roll, rotate, shear_x
    from snn_nda.nda import NDA, Augment
    from snn_nda.params import Params
    from snn_nda.policies import Policy, policy
    from snn_nda.preview import preview_gif, preview_png
    from snn_nda.synthetic import SyntheticEventDataset

if core_utils.CONTRACT != 1:
    raise ImportError("snn-nda needs core-utils with contract 1")

__all__ = [
    "NDA",
    "Augment",
    "EventDrop",
    "EventFrames",
    "EventNDA",
    "FolderEvents",
    "ForeignEvents",
    "Params",
    "Policy",
    "SyntheticEventDataset",
    "cutmix",
    "cutout",
    "hflip",
    "mixup",
    "policy",
    "preview_gif",
    "preview_png",
    "published_parts",
    "roll",
    "rotate",
    "shear_x",
]

_HOMES = {
    "adapters": (
        "EventFrames",
        "ForeignEvents",
    ),
    "eventdrop": ("EventDrop",),
    "events": ("EventNDA",),
    "folders": (
        "FolderEvents",
        "published_parts",
    ),
    "functional": (
        "cutmix",
        "cutout",
        "hflip",
        "mixup",
        "roll",
        "rotate",
        "shear_x",
    ),
    "nda": (
        "NDA",
        "Augment",
    ),
    "params": ("Params",),
    "policies": (
        "Policy",
        "policy",
    ),
    "preview": (
        "preview_gif",
        "preview_png",
    ),
    "synthetic": ("SyntheticEventDataset",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Loads torch only when a name that needs it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
