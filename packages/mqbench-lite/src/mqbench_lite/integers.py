"""A quantised network on integers, whose numbers are those of a device.

Between layers there are codes; a layer sums exact products of them and rescales the sum to the next grid:
q_y = clamp(round(float32(sum) M[c]) + z_y), M[c] = float32(float32(s_x s_w[c]) / s_y). What a device leaves in float32
is computed in float32 (`coverage` says what).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn

from mqbench_lite.accumulation import Accumulator, Bound, along, apply_layer, centred_weight, channel_axis, output_steps
from mqbench_lite.errors import ProfileError
from mqbench_lite.float_operations import evaluate
from mqbench_lite.fusion import Clips, Unit, code_limits, grid_owners, same_grid, stored_range, tensor_grids, units
from mqbench_lite.graph import LAYERS, Layer, Node, QParams, QuantizedGraph
from mqbench_lite.pooling import average_pool, global_average, reduce_mean
from mqbench_lite.rescaling import add, multiply, quantize, requantize, rescale

if TYPE_CHECKING:
    from mqbench_lite.engines import Coverage


@dataclass(frozen=True)
class Activation:
    """What flows between nodes.

    Attributes:
        content: float values, or codes minus the zero point, held as float32; a number where a function gives one.
        grid: the codes' grid, or None.
    """

    content: Any
    grid: QParams | None = None

    @property
    def values(self) -> Any:
        """As float32, or the number."""
        return self.content if self.grid is None else self.content * float(self.grid.scale)


Step = Callable[[dict[str, Activation]], Activation]


class IntegerModel(nn.Module):
    """Runs a frozen quantised model on integers, exactly.

    Args:
        model: the frozen model.
        clips: as it is exported; `codes` has every layer between two quantisers on integers, `values` only those whose
            ReLU or clip the quantiser makes redundant.
        floats: names of operations that are known to run in float.
        held: the type of each quantiser's codes in the engine, by its name, where it is not the model's `storage`.

    Raises:
        ProfileError: a layer's sums may leave int32.
    """

    def __init__(
        self,
        model: QuantizedGraph,
        *,
        clips: Clips = "codes",
        floats: Set[str] = frozenset(),
        held: Mapping[str, Literal["u8", "s8"]] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.model, self.floats, self.held = model, floats, held
        self.owners = grid_owners(model)
        self.units = units(model, clips, floats)
        self.grids = tensor_grids(model)
        self.layers = nn.ModuleDict()
        self._inside = {
            part.name for unit in self.units.values() if unit.end is not None for part in (unit.node, *unit.clips)
        }
        self._steps = {node.name: self._step(node) for node in model.graph if node.name not in self._inside}
        self._last_reader = _last_readers(model, self.units)

    @classmethod
    def from_onnx(cls, path: Path | str) -> IntegerModel:
        """Reads any file of QuantizeLinear and DequantizeLinear nodes around float operators.

        Raises:
            ExportError: the file is not such a model.
        """
        from mqbench_lite.reading import parse

        parsed = parse(Path(path))
        return cls(parsed.model, floats=parsed.floats, held=parsed.held)

    @property
    def bounds(self) -> dict[str, Bound]:
        """How large each layer's sums can get and how they are computed exactly, by layer."""
        return {layer.node.name: layer.bound for layer in self.layers.values() if isinstance(layer, Accumulator)}

    @property
    def coverage(self) -> Coverage:
        """Which operations run on integers in an engine and which are left in float."""
        from mqbench_lite.engines import Coverage

        integer = {unit.node.name for unit in self.units.values()}
        relevant = (*LAYERS, "matmul", "add", "mul", "avg_pool", "mean", "concat")
        compute = [node for node in self.model.graph if node.op in relevant and node.name not in self.grids]
        return Coverage(
            integer={node.name: node.op for node in compute if node.name in integer},
            floating={node.name: node.op for node in compute if node.name not in integer},
        )

    @torch.no_grad()
    def forward(self, *inputs: Float[Tensor, " ..."]) -> Any:
        """The model's outputs as float32: a tensor, or a tuple of several."""
        found = self._run(inputs, set(self.model.graph.outputs))
        outputs = tuple(found[name].values for name in self.model.graph.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    @torch.no_grad()
    def codes(self, *inputs: Float[Tensor, " ..."]) -> dict[str, Int32[np.ndarray, " ..."]]:
        """The codes of every quantiser, by its name."""
        wanted = set(self.model.grids)
        found = self._run(inputs, wanted)
        return {name: _codes(found[name]) for name in self.model.grids if name in found}

    @torch.no_grad()
    def shapes(self, *inputs: Float[Tensor, " ..."]) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors but those inside integer units."""
        found = self._run(inputs, set(self._steps))
        return {name: tuple(x.content.shape) for name, x in found.items() if isinstance(x.content, Tensor)}

    def _run(self, inputs: tuple[Tensor, ...], wanted: set[str]) -> dict[str, Activation]:
        names = self.model.graph.inputs
        if len(inputs) != len(names):
            raise TypeError(f"the model takes {len(names)} inputs ({', '.join(names)}), got {len(inputs)}")
        live = {name: Activation(value) for name, value in zip(names, inputs, strict=True)}
        with _exact_products():
            for name, step in self._steps.items():
                if name not in live:
                    live[name] = step(live)
                for read in self._last_reader.get(name, ()):
                    if read not in wanted:
                        live.pop(read, None)
        return live

    def _step(self, node: Node) -> Step:
        unit = self.units.get(node.name)
        if unit is not None:
            return self._integer_step(unit)
        if node.op == "quantize":
            return self._quantize_step(node)
        if node.op in LAYERS:
            return self._layer_step(node)
        if node.op == "constant":
            value = self._held(np.asarray(self.model.constants[node.name]))
            return lambda _: Activation(value())
        if node.op == "mean" and node.name in self.floats:
            return lambda live: Activation(reduce_mean(live[node.inputs[0]].values, node.attributes))
        if node.name in self.grids:  # the codes move, none changes
            return lambda live: Activation(
                self._evaluate(node, [live[x].content for x in node.inputs]), self.grids[node.name]
            )
        return lambda live: Activation(self._evaluate(node, [live[x].values for x in node.inputs]))

    def _evaluate(self, node: Node, inputs: list[Any]) -> Any:
        found = evaluate(node, inputs, self.model.constants)
        return found.contiguous() if isinstance(found, Tensor) else found

    def _quantize_step(self, node: Node) -> Step:
        grid = self.model.grids[node.name]
        return lambda live: Activation(_to_grid(live[node.inputs[0]], grid, *_centred(grid, ())), grid)

    def _layer_step(self, node: Node) -> Step:
        """A layer whose result stays float: exact sums, rescaled, where it reads codes."""
        layer, read, axis = self.model.layers[node.name], self.grids.get(node.inputs[0]), channel_axis(node)
        if layer.grid is None or read is None:
            return self._float_layer_step(node, layer)
        sums = self._accumulator(node, layer, read)
        multipliers = torch.tensor(np.atleast_1d(output_steps(node, layer, read)))
        bias = self._held(layer.bias) if layer.bias is not None and layer.bias.dtype != np.int32 else None

        def step(live: dict[str, Activation]) -> Activation:
            values = rescale(sums(live[node.inputs[0]].content), multipliers, axis)
            return Activation(values if bias is None else values + along(bias(), values, axis))

        return step

    def _float_layer_step(self, node: Node, layer: Layer) -> Step:
        values = layer.weight.astype(np.float32)
        if layer.grid is not None:
            values = centred_weight(layer).astype(np.float32) * _per_channel(layer, layer.grid)
        if layer.bias is not None and layer.bias.dtype == np.int32:
            problem = f"{node.name}: an integer bias needs grids of the input and the weight"
            raise ProfileError(problem, "give it as float32")
        weight, bias = self._held(values), None if layer.bias is None else self._held(layer.bias)

        def step(live: dict[str, Activation]) -> Activation:
            x = live[node.inputs[0]].values
            return Activation(apply_layer(node, x, weight(), None if bias is None else bias()))

        return step

    def _held(self, value: np.ndarray) -> Callable[[], Tensor]:
        """Keeps a constant where `to` moves the model."""
        name = f"constant_{len(self._buffers)}"
        self.register_buffer(name, torch.tensor(value), persistent=False)
        return lambda: self.get_buffer(name)

    def _accumulator(self, node: Node, layer: Layer, read: QParams) -> Accumulator:
        accumulator = Accumulator(node, layer, read)
        self.layers[node.name.replace(".", "/")] = accumulator
        return accumulator

    def _integer_step(self, unit: Unit) -> Step:
        node = unit.node
        if unit.end is None:
            return self._layer_step(node) if node.op == "linear" else self._product_step(unit, None)
        grid = self.model.grids[unit.end.name]
        low, high = _centred(grid, unit.clips)
        if node.op in LAYERS:
            return self._requantized_step(unit, grid, low, high)
        if node.op == "matmul":
            return self._product_step(unit, grid)
        if node.op == "concat":
            axis = node.attributes["axis"]
            return lambda live: Activation(
                torch.cat([_to_grid(live[x], grid, low, high) for x in node.inputs], axis), grid
            )
        steps = tuple(float(self.grids[name].scale) for name in (*node.inputs, unit.end.name))
        zeros = tuple(self._stored_zero(name) for name in (*node.inputs, unit.end.name))

        def step(live: dict[str, Activation]) -> Activation:
            x = [live[name].content for name in node.inputs]
            if node.op == "add":
                return Activation(add(x[0], x[1], steps, zeros, low, high), grid)
            if node.op == "mul":
                return Activation(multiply(x[0], x[1], steps, zeros[-1], low, high), grid)
            pair = (steps[0], steps[-1])
            if node.op == "mean":
                return Activation(global_average(x[0], node.attributes["keep"], pair, low, high), grid)
            return Activation(average_pool(x[0], node.attributes, pair, zeros[-1], low, high), grid)

        return step

    def _requantized_step(self, unit: Unit, grid: QParams, low: int, high: int) -> Step:
        node, layer, read = unit.node, self.model.layers[unit.node.name], self.grids[unit.node.inputs[0]]
        steps = np.atleast_1d(output_steps(node, layer, read))
        if layer.bias is not None and layer.bias.dtype != np.int32:
            layer = replace(layer, bias=np.rint(layer.bias / steps).astype(np.int32))
        sums, axis = self._accumulator(node, layer, read), channel_axis(node)
        multipliers = torch.tensor(steps / grid.scale)
        return lambda live: Activation(
            requantize(sums(live[node.inputs[0]].content), multipliers, axis, low, high), grid
        )

    def _product_step(self, unit: Unit, grid: QParams | None) -> Step:
        """A product of two tensors of codes."""
        node = unit.node
        first, second = (self.grids[name] for name in node.inputs)
        scale = np.atleast_1d(first.scale * second.scale)

        def step(live: dict[str, Activation]) -> Activation:
            sums = torch.matmul(*(live[name].content.double() for name in node.inputs))
            if grid is None:
                return Activation(rescale(sums, torch.tensor(scale), -1))
            return Activation(requantize(sums, torch.tensor(scale / grid.scale), -1, *_centred(grid, unit.clips)), grid)

        return step

    def _stored_zero(self, name: str) -> int:
        grid, storage = self.grids[name], self.held.get(self.owners[name], self.model.storage)
        return int(grid.zero_point) + stored_range(grid, storage)[0]


def _to_grid(x: Activation, grid: QParams, low: int, high: int) -> Tensor:
    if x.grid is not None and same_grid(x.grid, grid):
        return x.content.clamp(low, high)
    return quantize(x.values.contiguous(), float(grid.scale), low, high)


def _centred(grid: QParams, clips: tuple[Node, ...]) -> tuple[int, int]:
    low, high = code_limits(grid, clips)
    return low - int(grid.zero_point), high - int(grid.zero_point)


def _codes(x: Activation) -> np.ndarray:
    if x.grid is None:
        raise TypeError("a tensor without a grid has no codes")
    return x.content.cpu().numpy().astype(np.int32) + int(x.grid.zero_point)


def _per_channel(layer: Layer, grid: QParams) -> np.ndarray:
    if not grid.scale.ndim:
        return grid.scale
    return grid.scale.reshape([-1 if at == grid.axis else 1 for at in range(layer.weight.ndim)])


def _last_readers(model: QuantizedGraph, found: dict[str, Unit]) -> dict[str, list[str]]:
    """By the name of a step, the tensors that no later step reads."""
    last: dict[str, str] = {}
    inner = {part.name: name for name, unit in found.items() for part in (unit.node, *unit.clips)}
    for node in model.graph:
        for name in node.inputs:
            last[name] = inner.get(node.name, node.name)
    by_step: dict[str, list[str]] = {}
    for name, step in last.items():
        by_step.setdefault(step, []).append(name)
    return by_step


class _exact_products:  # noqa: N801 -- a context manager
    """float32 products with all their bits, whatever the user chose for training."""

    def __enter__(self) -> None:
        self.before = torch.get_float32_matmul_precision()
        if self.before != "highest":
            torch.set_float32_matmul_precision("highest")

    def __exit__(self, *_: object) -> None:
        if self.before != "highest":
            torch.set_float32_matmul_precision(self.before)
