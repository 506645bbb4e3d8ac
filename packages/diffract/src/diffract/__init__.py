"""Diffractive networks that see through random diffusers (arXiv 2107.06586, 2205.00428)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import core_utils
from core_utils.lazy import lazy

if TYPE_CHECKING:
    from diffract import baselines, targets
    from diffract.designs import Design, TrainConfig
    from diffract.diffusers import RandomDiffuser
    from diffract.errors import ConfigError, SamplingError, SamplingWarning, ShapeError
    from diffract.evaluation import EvalTable, evaluate
    from diffract.geometries import Displacement, Geometry, Misalignment
    from diffract.grids import Grid
    from diffract.losses import energy_penalty, imaging_loss, pcc
    from diffract.networks import DiffractiveNetwork, diffused
    from diffract.objects import load_objects, placed
    from diffract.propagation import propagate
    from diffract.sampling import PropagationReport, propagation_report
    from diffract.statistics import correlation_length, diffuser_distance, expected_distance, unique_bank
    from diffract.streams import Stream, stream
    from diffract.training import TrainResult, train
    from diffract.transfer import transfer_function

if core_utils.CONTRACT != 1:
    raise ImportError("diffract needs core-utils with contract 1")

__all__ = [
    "ConfigError",
    "Design",
    "DiffractiveNetwork",
    "Displacement",
    "EvalTable",
    "Geometry",
    "Grid",
    "Misalignment",
    "PropagationReport",
    "RandomDiffuser",
    "SamplingError",
    "SamplingWarning",
    "ShapeError",
    "Stream",
    "TrainConfig",
    "TrainResult",
    "baselines",
    "correlation_length",
    "diffused",
    "diffuser_distance",
    "energy_penalty",
    "evaluate",
    "expected_distance",
    "imaging_loss",
    "load_objects",
    "pcc",
    "placed",
    "propagate",
    "propagation_report",
    "stream",
    "targets",
    "train",
    "transfer_function",
    "unique_bank",
]

_HOMES = {
    "designs": ("Design", "TrainConfig"),
    "diffusers": ("RandomDiffuser",),
    "errors": ("ConfigError", "SamplingError", "SamplingWarning", "ShapeError"),
    "evaluation": ("EvalTable", "evaluate"),
    "geometries": ("Displacement", "Geometry", "Misalignment"),
    "grids": ("Grid",),
    "losses": ("energy_penalty", "imaging_loss", "pcc"),
    "networks": ("DiffractiveNetwork", "diffused"),
    "objects": ("load_objects", "placed"),
    "propagation": ("propagate",),
    "sampling": ("PropagationReport", "propagation_report"),
    "statistics": ("correlation_length", "diffuser_distance", "expected_distance", "unique_bank"),
    "streams": ("Stream", "stream"),
    "training": ("TrainResult", "train"),
    "transfer": ("transfer_function",),
}

__getattr__, __dir__ = lazy(__name__, _HOMES, modules=("baselines", "targets"))
