"""Grids as calibration files of engines that are not run here."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from mqbench_lite.errors import ExportError
from mqbench_lite.graph import QParams, QuantizedGraph

TENSORRT_HEADER = "TRT-8601-EntropyCalibration2"
QNN_VERSION = "0.6.1"


def tensorrt_cache(model: QuantizedGraph) -> str:
    """TensorRT's calibration cache: a line for each tensor, with its step size as the hexadecimal bits of a float32.

    Raises:
        ExportError: an activation's grid is not symmetric.
    """
    lines = [TENSORRT_HEADER]
    for name, grid in model.grids.items():
        if int(grid.zero_point) != 0 or grid.qmin >= 0:
            raise ExportError(f"{name}: TensorRT quantises symmetrically to signed codes", "use the profile tensorrt")
        bits = struct.pack(">f", float(grid.scale)).hex()
        lines.append(f"{_tensor(model, name)}: {bits}")
    return "\n".join(lines) + "\n"


def clip_ranges(model: QuantizedGraph) -> dict[str, Any]:
    """Greatest absolute value of each activation, by the tensor's name: TensorRT's dynamic range."""
    ranges = {}
    for name, grid in model.grids.items():
        low, high = _limits(grid)
        ranges[_tensor(model, name)] = float(max(abs(low[0]), abs(high[0])))
    return {"tensorrt": {"blob_range": ranges}}


def qnn_encodings(model: QuantizedGraph) -> dict[str, Any]:
    """SNPE's and QNN's quantisation overrides: bit width, range, step size and offset of every tensor.

    An offset is minus the code of 0, counted from the range's least code.
    """
    activations = {_tensor(model, name): _encodings(grid) for name, grid in model.grids.items()}
    parameters = {
        f"{name}.weight": _encodings(layer.grid) for name, layer in model.layers.items() if layer.grid is not None
    }
    return {"version": QNN_VERSION, "activation_encodings": activations, "param_encodings": parameters}


def _encodings(grid: QParams) -> list[dict[str, Any]]:
    low, high = _limits(grid)
    scales, zeros = np.atleast_1d(grid.scale), np.atleast_1d(grid.zero_point)
    symmetric = bool((zeros == 0).all()) and grid.qmin < 0
    return [
        {
            "bitwidth": int(grid.qmax - grid.qmin).bit_length(),
            "dtype": "int",
            "is_symmetric": str(symmetric),
            "min": float(least),
            "max": float(most),
            "scale": float(scale),
            "offset": int(grid.qmin - zero),
        }
        for least, most, scale, zero in zip(low, high, scales, zeros, strict=True)
    ]


def _limits(grid: QParams) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest value of each channel."""
    scales, zeros = np.atleast_1d(grid.scale), np.atleast_1d(grid.zero_point)
    return (grid.qmin - zeros) * scales, (grid.qmax - zeros) * scales


def _tensor(model: QuantizedGraph, quantizer: str) -> str:
    """The name in the file of the tensor that a quantiser reads."""
    return model.graph[quantizer].inputs[0]
