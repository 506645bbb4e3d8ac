"""PyTorch's own kernels for quantised layers: x86, oneDNN, FBGEMM, QNNPACK.

There is no file format for them: the layers of an ONNX file run in the kernels, all else in the integer model.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from mqbench_lite.engines import API_VERSION, Coverage
from mqbench_lite.errors import EngineMissingError, ProfileError
from mqbench_lite.exporting import Artifact
from mqbench_lite.fusion import Unit
from mqbench_lite.graph import Layer, QParams
from mqbench_lite.integers import Activation, IntegerModel, Step
from mqbench_lite.reading import parse

UNSIGNED = 128
"""What is added to signed codes, which the kernels want unsigned."""


class TorchKernels:
    """One of the engines that `torch.backends.quantized` names."""

    api_version = API_VERSION
    exact = True

    def __init__(self, kind: str) -> None:
        self.kind, self.name = kind, f"torch-{kind}"

    def available(self) -> bool:
        """Whether this build of torch has the kernels."""
        return self.kind in torch.backends.quantized.supported_engines

    def versions(self) -> dict[str, str]:
        """Torch's version."""
        return {"torch": torch.__version__} if self.available() else {}

    def run(self, artifact: Artifact, x: Float32[np.ndarray, " ..."]) -> Float32[np.ndarray, " ..."]:
        """The first output."""
        outputs = self._model(artifact)(torch.tensor(x))
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        return first.numpy()  # type: ignore[no-any-return]

    def integer_coverage(self, artifact: Artifact) -> Coverage:
        """The layers that run in a kernel. A last one whose result stays float is not the engine's and not counted."""
        model = self._model(artifact)
        leaves = {unit.node.name for unit in model.units.values() if unit.end is None}
        layers = {name: model.model.graph[name].op for name in model.model.layers if name not in leaves}
        return Coverage(
            integer={name: op for name, op in layers.items() if name in model.in_kernels},
            floating={name: op for name, op in layers.items() if name not in model.in_kernels},
        )

    def layer_codes(self, artifact: Artifact, x: Float32[np.ndarray, " ..."]) -> dict[str, Int32[np.ndarray, " ..."]]:
        """Codes of every quantiser."""
        return self._model(artifact).codes(torch.tensor(x))

    def _model(self, artifact: Artifact) -> KernelModel:
        if not self.available():
            raise EngineMissingError(self.name, "torch")
        return _kernel_model(str(artifact.path), artifact.sha256, self.kind)


@functools.lru_cache(maxsize=8)
def _kernel_model(path: str, sha256: str, kind: str) -> KernelModel:  # noqa: ARG001 -- the hash names the content
    parsed = parse(Path(path))
    return KernelModel(kind, parsed.model, floats=parsed.floats, held=parsed.held)


class KernelModel(IntegerModel):
    """An integer model whose layers between two quantisers run in a kernel."""

    def __init__(self, kind: str, *arguments: Any, **options: Any) -> None:
        self.kind = kind
        self.in_kernels: set[str] = set()
        super().__init__(*arguments, **options)

    def _requantized_step(self, unit: Unit, grid: QParams, low: int, high: int) -> Step:
        node, layer = unit.node, self.model.layers[unit.node.name]
        read = self.grids[node.inputs[0]]
        if node.op == "linear" or len(node.attributes["padding"]) == layer.weight.ndim - 2 == 2:
            self.in_kernels.add(node.name)
            kernel = _Kernel(self.kind, unit, layer, read, grid)
            return lambda live: Activation(kernel(live[node.inputs[0]].content).clamp_(low, high), grid)
        return super()._requantized_step(unit, grid, low, high)


class _Kernel:
    """A packed layer."""

    def __init__(self, kind: str, unit: Unit, layer: Layer, read: QParams, grid: QParams) -> None:
        if layer.grid is None:
            raise ProfileError(f"{unit.node.name}: its weight has no grid", "quantise it")
        self.kind, self.op, self.read, self.grid = kind, unit.node.op, read, grid
        steps = np.broadcast_to(read.scale * layer.grid.scale, (len(layer.weight),))
        bias = None if layer.bias is None else torch.tensor((layer.bias * steps).astype(np.float32))
        if layer.bias is not None and layer.bias.dtype != np.int32:
            bias = torch.tensor(layer.bias)
        with _engine(kind):
            weight = _quantized_weight(layer, layer.grid)
            a = unit.node.attributes
            if self.op == "linear":
                self.packed = torch.ops.quantized.linear_prepack(weight, bias)
            else:
                geometry = [list(a[name]) for name in ("stride", "padding", "dilation")]
                self.packed = torch.ops.quantized.conv2d_prepack(weight, bias, *geometry, a["groups"])

    def __call__(self, centred: Tensor) -> Tensor:
        """Centred codes of the result."""
        zero_in, zero_out = (int(each.zero_point) + UNSIGNED * (each.qmin < 0) for each in (self.read, self.grid))
        with _engine(self.kind):
            codes = (centred + zero_in).to(torch.uint8)
            x = torch._make_per_tensor_quantized_tensor(codes, float(self.read.scale), zero_in)
            operator = getattr(torch.ops.quantized, "linear" if self.op == "linear" else "conv2d")
            result = operator(x, self.packed, float(self.grid.scale), zero_out)
            return result.int_repr().contiguous().float().sub_(zero_out)


def _quantized_weight(layer: Layer, grid: QParams) -> Tensor:
    codes = torch.tensor(layer.weight.astype(np.int16) - UNSIGNED * (grid.qmin >= 0)).to(torch.int8)
    zeros = np.broadcast_to(grid.zero_point - UNSIGNED * (grid.qmin >= 0), grid.scale.shape)
    if not grid.scale.ndim:
        return torch._make_per_tensor_quantized_tensor(codes, float(grid.scale), int(zeros))
    scales = torch.tensor(grid.scale.astype(np.float64))
    return torch._make_per_channel_quantized_tensor(codes, scales, torch.tensor(zeros.astype(np.int64)), 0)


@contextlib.contextmanager
def _engine(kind: str) -> Iterator[None]:
    """Chooses the kernels; torch deprecates the tensors in which they take and give their codes."""
    before = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor, .* are deprecated", category=UserWarning)
        torch.backends.quantized.engine = kind
        try:
            yield
        finally:
            torch.backends.quantized.engine = before


X86, ONEDNN, FBGEMM, QNNPACK = (TorchKernels(kind) for kind in ("x86", "onednn", "fbgemm", "qnnpack"))
