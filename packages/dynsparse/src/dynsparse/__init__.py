"""Sparse dynamic convolution: exact sparsity, and zeros that pay (arXiv 2204.02227)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import core_utils

if TYPE_CHECKING:
    from dynsparse.errors import (
        CheckpointError,
        ConfigError,
        ConversionError,
        DynSparseError,
        InputError,
        SparsityError,
        SparsityWarning,
    )
    from dynsparse.integration import StepError, integrate
    from dynsparse.layers import LayerDensity, SDConv1d, SDConv2d, SDConv3d, SDConvNd
    from dynsparse.runtime.compiling import CompiledModel, LayerReport, compile_sparse
    from dynsparse.surrogates import step

if core_utils.CONTRACT != 1:
    raise ImportError("dynsparse needs core-utils with contract 1")

__all__ = [
    "CheckpointError",
    "CompiledModel",
    "ConfigError",
    "ConversionError",
    "DynSparseError",
    "InputError",
    "LayerDensity",
    "LayerReport",
    "SDConv1d",
    "SDConv2d",
    "SDConv3d",
    "SDConvNd",
    "SparsityError",
    "SparsityWarning",
    "StepError",
    "compile_sparse",
    "integrate",
    "step",
]

_HOMES = {
    "errors": (
        "CheckpointError",
        "ConfigError",
        "ConversionError",
        "DynSparseError",
        "InputError",
        "SparsityError",
        "SparsityWarning",
    ),
    "integration": ("StepError", "integrate"),
    "layers": ("LayerDensity", "SDConv1d", "SDConv2d", "SDConv3d", "SDConvNd"),
    "runtime.compiling": ("CompiledModel", "LayerReport", "compile_sparse"),
    "surrogates": ("step",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Loads torch only when a name that needs it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
