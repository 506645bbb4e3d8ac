"""ExecuTorch with its XNNPACK delegate, which alone is given statically quantised operations."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 -- its usual name
from jaxtyping import Float32, Int32
from torch import Tensor, nn

from mqbench_lite.accumulation import along, apply_layer, centred_weight
from mqbench_lite.engines import API_VERSION, Coverage
from mqbench_lite.errors import EngineMissingError, ExportError
from mqbench_lite.exporting import Artifact
from mqbench_lite.float_operations import evaluate
from mqbench_lite.graph import LAYERS, Layer, Node, QParams, QuantizedGraph
from mqbench_lite.reading import read

LAYER_NAMES = ("convolution", "linear", "addmm", "mm.default")


class ExecuTorch:
    """Lowers a file's model for the batch that it is given, and runs that."""

    name = "executorch"
    api_version = API_VERSION
    exact = False

    def available(self) -> bool:
        """Whether ExecuTorch and torchao, which has the operators that it reads, are installed."""
        return find_spec("executorch") is not None and find_spec("torchao") is not None

    def versions(self) -> dict[str, str]:
        """Of both, and torch's."""
        names = ("executorch", "torchao", "torch")
        return {name: version(name) for name in names} if self.available() else {}

    def run(self, artifact: Artifact, x: Float32[np.ndarray, " ..."]) -> Float32[np.ndarray, " ..."]:
        """The first output."""
        return self._outputs(artifact, x)[0]

    def integer_coverage(self, artifact: Artifact) -> Coverage:
        """Layers that went to the delegate, which takes quantised ones only; the others run in float."""
        model = read(artifact.path)
        shape = [1 if size < 0 else size for size in model.shapes[model.graph.inputs[0]]]
        lowered = _lowered(str(artifact.path), artifact.sha256, tuple(shape)).program
        delegated = _layers_of(lowered, inside=True)
        return Coverage(
            integer={f"delegated.{at}": name for at, name in enumerate(delegated)},
            floating={f"left.{at}": name for at, name in enumerate(_layers_of(lowered, inside=False))},
        )

    def layer_codes(
        self,
        artifact: Artifact,  # noqa: ARG002 -- the protocol's
        x: Float32[np.ndarray, " ..."],  # noqa: ARG002 -- same
    ) -> dict[str, Int32[np.ndarray, " ..."]]:
        """None: tensors inside the delegate cannot be asked for."""
        return {}

    def _outputs(self, artifact: Artifact, x: np.ndarray) -> list[np.ndarray]:
        if not self.available():
            raise EngineMissingError("executorch", "executorch")
        method = _lowered(str(artifact.path), artifact.sha256, x.shape).method
        return [each.numpy().copy() for each in method.execute([torch.tensor(x)])]


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A program for one shape of input.

    Attributes:
        program: as it was partitioned.
        method: what runs.
        owners: of the memory that the method uses.
    """

    program: Any
    method: Any
    owners: tuple[Any, ...]


@functools.lru_cache(maxsize=8)
def _lowered(path: str, sha256: str, shape: tuple[int, ...]) -> Lowered:  # noqa: ARG001 -- the hash names the content
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ExecuTorch and torchao warn of themselves while they are imported
        import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401 -- registers the operators
        from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.runtime import Runtime

        module = _Module(read(Path(path))).eval()
        program = torch.export.export(module, (torch.zeros(shape),))
        partitioner = XnnpackPartitioner(config_precisions=[ConfigPrecisionType.STATIC_QUANT])
        try:
            lowered = to_edge_transform_and_lower(program, partitioner=[partitioner])
            content = lowered.to_executorch().buffer
        except Exception as error:
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ExportError(f"ExecuTorch cannot lower {path}: {line}") from error
    try:
        loaded = Runtime.get().load_program(content)
        return Lowered(program=lowered, method=loaded.load_method("forward"), owners=(content, loaded))
    except RuntimeError as error:  # XNNPACK has no kernel for some ratios of step sizes
        raise ExportError(f"ExecuTorch cannot load what it made of {path}: {error}") from error


def _layers_of(lowered: Any, inside: bool) -> list[str]:
    """Names of the layers' operators within the delegates or outside of them."""
    program = lowered.exported_program()
    modules = [program.graph_module]
    if inside:
        attributes = (getattr(program.graph_module, name) for name in dir(program.graph_module))
        lowered_modules = [each for each in attributes if type(each).__name__ == "LoweredBackendModule"]
        modules = [each.original_module.graph_module for each in lowered_modules]
    targets = [str(node.target) for module in modules for node in module.graph.nodes if node.op == "call_function"]
    return [target for target in targets if any(name in target for name in LAYER_NAMES)]


class _Module(nn.Module):
    """A quantised model in float operations between the pairs of operators that XNNPACK fuses."""

    def __init__(self, model: QuantizedGraph) -> None:
        super().__init__()
        self.model = model
        self.leaves = {name for name in model.layers if not _is_quantized_after(model, name)}
        for name, layer in model.layers.items():
            for key, value in _buffers(layer, self._grid_read_by(model, name), name in self.leaves).items():
                self.register_buffer(_key(name, key), value)

    @staticmethod
    def _grid_read_by(model: QuantizedGraph, name: str) -> QParams | None:
        return model.grids.get(model.graph[name].inputs[0])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs."""
        live = {self.model.graph.inputs[0]: x}
        for node in self.model.graph:
            if node.op == "constant":
                live[node.name] = torch.tensor(self.model.constants[node.name])
            elif node.op != "input":
                live[node.name] = self._result(node, [live[name] for name in node.inputs])
        return tuple(live[name] for name in self.model.graph.outputs)

    def _result(self, node: Node, inputs: list[Tensor]) -> Tensor:
        if node.op == "quantize":
            return _on_grid(inputs[0], self.model.grids[node.name])
        if node.op == "clip" and None not in (node.attributes["low"], node.attributes["high"]):
            return F.hardtanh(inputs[0], node.attributes["low"], node.attributes["high"])  # which the delegate fuses
        if node.op not in LAYERS:
            return evaluate(node, inputs, self.model.constants)
        layer = self.model.layers[node.name]
        weight = getattr(self, _key(node.name, "weight"))
        bias = getattr(self, _key(node.name, "bias"), None)
        if layer.grid is not None and node.name not in self.leaves:
            weight = self._dequantized(node.name, weight, layer.grid)
        return apply_layer(node, inputs[0], weight, bias)

    def _dequantized(self, name: str, weight: Tensor, grid: QParams) -> Tensor:
        operators, limits = torch.ops.quantized_decomposed, (-128, 127, torch.int8)
        if not grid.scale.ndim:
            return operators.dequantize_per_tensor(weight, float(grid.scale), 0, *limits)
        scale, zero = getattr(self, _key(name, "scale")), getattr(self, _key(name, "zero"))
        return operators.dequantize_per_channel(weight, scale, zero, grid.axis, *limits)


def _key(name: str, part: str) -> str:
    return f"{name}/{part}".replace(".", "/")


def _is_quantized_after(model: QuantizedGraph, name: str) -> bool:
    """Whether a layer's result goes to quantisers alone; the delegate has no quantised layer with a float result."""
    readers = model.graph.readers(name)
    while len(readers) == 1 and readers[0].op in ("relu", "clip"):
        readers = model.graph.readers(readers[0].name)
    return bool(readers) and all(reader.op == "quantize" for reader in readers)


def _buffers(layer: Layer, read_grid: QParams | None, leaf: bool) -> dict[str, Tensor]:
    found = {"weight": torch.tensor(layer.weight)}
    if leaf and layer.grid is not None:
        scale = torch.tensor(layer.grid.scale)
        found["weight"] = torch.tensor(centred_weight(layer)).float() * along(scale, found["weight"], layer.grid.axis)
    elif layer.grid is not None and layer.grid.scale.ndim:
        found |= {"scale": torch.tensor(layer.grid.scale), "zero": torch.tensor(layer.grid.zero_point).long()}
    if layer.bias is not None:
        steps = np.float32(1)
        if layer.bias.dtype == np.int32 and layer.grid is not None and read_grid is not None:
            steps = read_grid.scale * layer.grid.scale
        found["bias"] = torch.tensor((layer.bias * steps).astype(np.float32))
    return found


def _on_grid(x: Tensor, grid: QParams) -> Tensor:
    """Quantised to int8 and back; unsigned codes are shifted by 128, narrower grids clipped first."""
    shift = 128 if grid.qmin >= 0 else 0
    low, high = grid.qmin - shift, grid.qmax - shift
    numbers = (float(grid.scale), int(grid.zero_point) - shift, low, high, torch.int8)
    operators = torch.ops.quantized_decomposed
    return operators.dequantize_per_tensor(operators.quantize_per_tensor(x, *numbers), *numbers)


ENGINE = ExecuTorch()
