"""Post-training quantisation with randomly dropped activation quantisation (arXiv 2203.05740)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import core_utils
from core_utils.lazy import lazy

if TYPE_CHECKING:
    from qdrop.adaround import AdaRound, beta_schedule
    from qdrop.config import LayerOverride, QDropConfig
    from qdrop.errors import (
        CalibrationError,
        ConfigError,
        ExportError,
        PlanError,
        QDropError,
        ReconstructionError,
    )
    from qdrop.evaluation import agreement, evaluate, flatness
    from qdrop.export import export_onnx
    from qdrop.fake_quant import fake_quantize, lsq_fake_quantize, qdrop_fake_quantize
    from qdrop.planning import Plan, plan
    from qdrop.quantization import quantize, reconstruct_unit
    from qdrop.ranges import search_range
    from qdrop.reconstruction import UnitCache, UnitResult
    from qdrop.saving import load, save
    from qdrop.student import QuantizedModel

if core_utils.CONTRACT != 1:
    raise ImportError("qdrop needs core-utils with contract 1")

__all__ = [
    "AdaRound",
    "CalibrationError",
    "ConfigError",
    "ExportError",
    "LayerOverride",
    "Plan",
    "PlanError",
    "QDropConfig",
    "QDropError",
    "QuantizedModel",
    "ReconstructionError",
    "UnitCache",
    "UnitResult",
    "agreement",
    "beta_schedule",
    "evaluate",
    "export_onnx",
    "fake_quantize",
    "flatness",
    "load",
    "lsq_fake_quantize",
    "plan",
    "qdrop_fake_quantize",
    "quantize",
    "reconstruct_unit",
    "save",
    "search_range",
]

_HOMES = {
    "adaround": ("AdaRound", "beta_schedule"),
    "config": ("LayerOverride", "QDropConfig"),
    "errors": (
        "CalibrationError",
        "ConfigError",
        "ExportError",
        "PlanError",
        "QDropError",
        "ReconstructionError",
    ),
    "evaluation": ("agreement", "evaluate", "flatness"),
    "export": ("export_onnx",),
    "fake_quant": ("fake_quantize", "lsq_fake_quantize", "qdrop_fake_quantize"),
    "planning": ("Plan", "plan"),
    "quantization": ("quantize", "reconstruct_unit"),
    "ranges": ("search_range",),
    "reconstruction": ("UnitCache", "UnitResult"),
    "saving": ("load", "save"),
    "student": ("QuantizedModel",),
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
