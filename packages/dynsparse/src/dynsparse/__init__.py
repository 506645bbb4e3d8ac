"""Sparse dynamic convolution: exact sparsity, and zeros that pay (arXiv 2204.02227)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import core_utils
from core_utils.lazy import lazy

if TYPE_CHECKING:
    from dynsparse.converting import convert, dynamic_layers
    from dynsparse.costs import CostReport, count
    from dynsparse.diagnosis import LayerDiagnosis, diagnose
    from dynsparse.errors import (
        CheckpointError,
        ConfigError,
        ConversionError,
        DynSparseError,
        InputError,
        SparsityError,
        SparsityWarning,
    )
    from dynsparse.exporting import export_onnx
    from dynsparse.layers import LayerDensity, SDConv1d, SDConv2d, SDConv3d, SDConvNd
    from dynsparse.loading import load_static, load_weights
    from dynsparse.miniature import miniature_images
    from dynsparse.models import (
        sd_mobilenet_v1,
        sd_mobilenet_v2,
        sd_resnet10,
        sd_resnet18,
        sd_resnet34,
        sd_resnet50,
        sd_tiny,
    )
    from dynsparse.parameters import param_groups
    from dynsparse.runtime.compiling import CompiledModel, LayerReport, compile_sparse
    from dynsparse.schedules import TemperatureSchedule
    from dynsparse.sparsity import SparsityController
    from dynsparse.sparsity_report import SparsityReport
    from dynsparse.storage import load, save
    from dynsparse.surrogates import step
    from dynsparse.training import TrainConfig, evaluate, train

if core_utils.CONTRACT != 1:
    raise ImportError("dynsparse needs core-utils with contract 1")

_HOMES = {
    "converting": ("convert", "dynamic_layers"),
    "costs": ("CostReport", "count"),
    "diagnosis": ("LayerDiagnosis", "diagnose"),
    "errors": (
        "CheckpointError",
        "ConfigError",
        "ConversionError",
        "DynSparseError",
        "InputError",
        "SparsityError",
        "SparsityWarning",
    ),
    "exporting": ("export_onnx",),
    "layers": ("LayerDensity", "SDConv1d", "SDConv2d", "SDConv3d", "SDConvNd"),
    "loading": ("load_static", "load_weights"),
    "miniature": ("miniature_images",),
    "models": (
        "sd_mobilenet_v1",
        "sd_mobilenet_v2",
        "sd_resnet10",
        "sd_resnet18",
        "sd_resnet34",
        "sd_resnet50",
        "sd_tiny",
    ),
    "parameters": ("param_groups",),
    "runtime.compiling": ("CompiledModel", "LayerReport", "compile_sparse"),
    "schedules": ("TemperatureSchedule",),
    "sparsity": ("SparsityController",),
    "sparsity_report": ("SparsityReport",),
    "storage": ("load", "save"),
    "surrogates": ("step",),
    "training": ("TrainConfig", "evaluate", "train"),
}

__all__ = [
    "CheckpointError",
    "CompiledModel",
    "ConfigError",
    "ConversionError",
    "CostReport",
    "DynSparseError",
    "InputError",
    "LayerDensity",
    "LayerDiagnosis",
    "LayerReport",
    "SDConv1d",
    "SDConv2d",
    "SDConv3d",
    "SDConvNd",
    "SparsityController",
    "SparsityError",
    "SparsityReport",
    "SparsityWarning",
    "TemperatureSchedule",
    "TrainConfig",
    "compile_sparse",
    "convert",
    "count",
    "diagnose",
    "dynamic_layers",
    "evaluate",
    "export_onnx",
    "load",
    "load_static",
    "load_weights",
    "miniature_images",
    "param_groups",
    "save",
    "sd_mobilenet_v1",
    "sd_mobilenet_v2",
    "sd_resnet10",
    "sd_resnet18",
    "sd_resnet34",
    "sd_resnet50",
    "sd_tiny",
    "step",
    "train",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
