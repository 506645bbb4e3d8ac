"""Reproducible and deployable quantisation (arXiv 2111.03759)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import core_utils
from core_utils.lazy import lazy

if TYPE_CHECKING:
    from mqbench_lite import algorithms, engines, networks, profiles
    from mqbench_lite.calibration import calibrate
    from mqbench_lite.errors import (
        AgreementError,
        CalibrationError,
        EngineMissingError,
        ExportError,
        MQBenchError,
        NotCalibratedError,
        ProfileError,
        TraceError,
        TrainingError,
        UnsupportedOpError,
    )
    from mqbench_lite.exporting import Artifact, export
    from mqbench_lite.graph import QuantizedGraph
    from mqbench_lite.integers import IntegerModel
    from mqbench_lite.model import QuantModel
    from mqbench_lite.preparing import prepare
    from mqbench_lite.specs import HardwareProfile, QuantSpec
    from mqbench_lite.training import TrainSettings, train
    from mqbench_lite.verification import AgreementReport, verify

if core_utils.CONTRACT != 1:
    raise ImportError("mqbench-lite needs core-utils with contract 1")

__all__ = [
    "AgreementError",
    "AgreementReport",
    "Artifact",
    "CalibrationError",
    "EngineMissingError",
    "ExportError",
    "HardwareProfile",
    "IntegerModel",
    "MQBenchError",
    "NotCalibratedError",
    "ProfileError",
    "QuantModel",
    "QuantSpec",
    "QuantizedGraph",
    "TraceError",
    "TrainSettings",
    "TrainingError",
    "UnsupportedOpError",
    "algorithms",
    "calibrate",
    "engines",
    "export",
    "networks",
    "prepare",
    "profiles",
    "train",
    "verify",
]

_HOMES = {
    "calibration": ("calibrate",),
    "errors": (
        "AgreementError",
        "CalibrationError",
        "EngineMissingError",
        "ExportError",
        "MQBenchError",
        "NotCalibratedError",
        "ProfileError",
        "TraceError",
        "TrainingError",
        "UnsupportedOpError",
    ),
    "exporting": ("Artifact", "export"),
    "graph": ("QuantizedGraph",),
    "integers": ("IntegerModel",),
    "model": ("QuantModel",),
    "preparing": ("prepare",),
    "specs": ("HardwareProfile", "QuantSpec"),
    "training": ("TrainSettings", "train"),
    "verification": ("AgreementReport", "verify"),
}

__getattr__, __dir__ = lazy(__name__, _HOMES, ("algorithms", "engines", "networks", "profiles"))
