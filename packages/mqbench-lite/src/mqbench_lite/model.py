"""A quantised model as a module: it simulates, learns, and becomes numbers on integer grids."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from core_utils.files import disk_errors, write_atomically
from core_utils.states import DamagedState, pack, unpack
from mqbench_lite.bn_folding import BatchNorm, QuantLayer, quantises
from mqbench_lite.building import Segment
from mqbench_lite.errors import ExportError, MQBenchError, NotCalibratedError
from mqbench_lite.graph import LAYERS, Graph, Layer, QParams, QuantizedGraph
from mqbench_lite.lowering import BATCH
from mqbench_lite.placement import home_of
from mqbench_lite.profiles import to_toml
from mqbench_lite.specs import HardwareProfile

if TYPE_CHECKING:
    from mqbench_lite.integers import IntegerModel

_log = logging.getLogger(__name__)

BIAS_LIMIT = 2**30
"""Greatest bias in steps: a sum that starts there has half of int32 left."""
ON_GRID = 1e-3
"""How far, in steps, a quantised weight may lie from a code, as rounding errors do."""


@dataclass(frozen=True, kw_only=True)
class LayerBits:
    """Widths of one layer.

    Attributes:
        name: of its node.
        op: its operation.
        weight_bits: None in float; weight_codes: least and greatest code.
        act_bits: of its input; None in float.
        act: name of the quantiser whose grid its input lies on.
    """

    name: str
    op: str
    weight_bits: int | None
    weight_codes: tuple[int, int] | None
    act_bits: int | None
    act: str | None


class QuantModel(nn.Module):
    """A model with quantisers; `prepare` makes one.

    It is called as the user's model is, and gives what that gives.

    Attributes:
        net: layers and quantisers under the names that they have in the user's model; that of the tensor `a.b` is `a.Q:b`.
        graph: what it computes.
        profile: what it was made for, with the widths that were asked for.
        algorithm: name of the algorithm whose quantisers it holds.
        shared: for each `quantize` node the one whose grid, and quantiser, it has.
        weight_bits: width of each layer's weight, by the layer's name; None in float.
        shapes: of the inputs, -1 for the batch.
        arguments: names of the model's arguments; inputs: structure of those of the example.
        outputs: structure of the result.
        constants: for each constant, by its node's name, its name in `held`.
        modules_of: for each node the module that computes it, unless it needs none.
        sources: for each tensor the `quantize` node on whose grid it lies.
    """

    graph: Graph
    profile: HardwareProfile
    algorithm: str
    shared: dict[str, str]
    weight_bits: dict[str, int | None]
    shapes: dict[str, tuple[int, ...]]
    arguments: tuple[str, ...]
    inputs: pytree.TreeSpec
    outputs: pytree.TreeSpec
    constants: dict[str, str]
    modules_of: dict[str, nn.Module]
    sources: dict[str, str | None]

    def __init__(self) -> None:
        super().__init__()
        self.net = Segment()
        self.held = nn.Module()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the user's model returns, with everything on its grid that has one.

        Raises:
            MQBenchError: other inputs than the example's.
        """
        values = self._given(args, kwargs)
        values.update({name: self._constant(name) for name in self.constants})
        gives = self.net._gives
        results = self.net(*(values[name] for name in self.net._reads)) if gives else ()
        by_name = {**values, **dict(zip(gives, results if len(gives) > 1 else (results,), strict=True))}
        return pytree.tree_unflatten([by_name[name] for name in self.graph.outputs], self.outputs)

    @property
    def act_quantizers(self) -> dict[str, nn.Module]:
        """For each `quantize` node its quantiser, which several may share."""
        return {node.name: self.modules_of[node.name] for node in self.graph if node.op == "quantize"}

    @property
    def layers(self) -> dict[str, QuantLayer]:
        """For each node of a layer its module, which several may share."""
        found = {node.name: self.modules_of[node.name] for node in self.graph if node.op in LAYERS}
        return {name: module for name, module in found.items() if isinstance(module, QuantLayer)}

    @property
    def bits(self) -> tuple[LayerBits, ...]:
        """The widths of every layer, in order."""
        found = []
        for name, layer in self.layers.items():
            source = self.sources[self.graph[name].inputs[0]]
            quantizer = layer.weight_quantizer
            found.append(
                LayerBits(
                    name=name,
                    op=self.graph[name].op,
                    weight_bits=self.weight_bits[home_of(name)],
                    weight_codes=None if quantizer is None else (quantizer.qmin, quantizer.qmax),
                    act_bits=None if source is None else self.graph[source].attributes["bits"],
                    act=source,
                )
            )
        return tuple(found)

    def table(self) -> str:
        """The widths of every layer as text, for people."""
        head = ("layer", "operation", "weight", "input", "input's quantiser")
        rows = [
            (each.name, each.op, _width(each.weight_bits), _width(each.act_bits), each.act or "-") for each in self.bits
        ]
        widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows))
        return "\n".join(line.rstrip() for line in lines)

    def freeze_statistics(self) -> None:
        """Training uses batch normalisation's running statistics from now on: the end of strategies 2 to 4."""
        for layer in self.layers.values():
            layer.statistics_frozen = True

    @torch.no_grad()
    def freeze(self) -> QuantizedGraph:
        """The model's numbers on their grids; the model itself stays as it is, but see below.

        Where a bias is so many steps that int32 could overflow, as with a dead channel, the weight's step size of that
        channel grows, here as in the model.

        Raises:
            NotCalibratedError: a quantiser has no range yet.
            ExportError: a quantiser's values lie on no uniform grid, or a bias fits in no int32.
        """
        for name, quantizer in self._quantizers():
            if not quantises(quantizer):
                raise NotCalibratedError(f"{name} has no range", "calibrate first")
        grids = {name: _grid_of(quantizer) for name, quantizer in self.act_quantizers.items()}
        layers = {name: self._frozen(name, layer, grids) for name, layer in self.layers.items()}
        constants = {name: _array(self._constant(name)) for name in self.constants}
        for node in self.graph:
            if node.op in ("batch_norm", "layer_norm"):
                constants.update(_numbers_of(node.name, self.modules_of[node.name]))
        return QuantizedGraph(
            graph=self.graph,
            grids=grids,
            layers=layers,
            constants=constants,
            shapes=dict(self.shapes),
            storage=self.profile.storage,
            profile=self.profile.name,
        )

    def to_integer(self) -> IntegerModel:
        """The frozen model on integers.

        Raises:
            NotCalibratedError: a quantiser has no range yet.
            ExportError: as `freeze`.
        """
        from mqbench_lite.integers import IntegerModel

        return IntegerModel(self.freeze())

    def save(self, path: Path) -> None:
        """Writes weights, ranges and states of quantisers as one safetensors file.

        Raises:
            FileError: it cannot be written.
        """
        arrays = {name: _array(value) for name, value in self.state_dict().items()}
        facts = {name: _facts_of(quantizer) for name, quantizer in self._quantizers()}
        write_atomically(path, pack(arrays, {"quantizers": facts}, owner=self._digest()))

    def load(self, path: Path) -> None:
        """Reads what `save` wrote, into a model that was prepared alike.

        Raises:
            MQBenchError: the file is damaged, or of another network, profile, widths or algorithm.
        """
        with disk_errors(path):
            content = path.read_bytes()
        try:
            arrays, facts, owner = unpack(content)
        except DamagedState as error:
            raise MQBenchError(f"{path} {error}", "save the model again") from None
        if owner != self._digest():
            raise MQBenchError(
                f"{path} is of another network, profile, widths or algorithm",
                "prepare the model as before it was saved",
            )
        for name, quantizer in self._quantizers():
            _set_facts(quantizer, facts["quantizers"][name], arrays, self._path_of(quantizer))
        self.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})

    def _given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Input tensors by the names of their nodes."""
        if kwargs:
            unknown = set(kwargs) - set(self.arguments[len(args) :])
            if unknown:
                raise MQBenchError(f"the model has no argument {sorted(unknown)[0]!r}")
            args = (*args, *(kwargs[name] for name in self.arguments[len(args) :] if name in kwargs))
        leaves, structure = pytree.tree_flatten((args, {}))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if structure != self.inputs or len(tensors) != len(self.shapes):
            raise MQBenchError(f"the model was captured with {len(self.shapes)} input tensors, got {len(tensors)}")
        for (name, shape), tensor in zip(self.shapes.items(), tensors, strict=True):
            fits = tensor.dim() == len(shape) and all(
                want in (BATCH, got) for want, got in zip(shape, tensor.shape, strict=True)
            )
            if not fits:
                expected = ", ".join("N" if size == BATCH else str(size) for size in shape)
                raise MQBenchError(f"the input {name} has shape {tuple(tensor.shape)}, expected ({expected})")
        return dict(zip(self.shapes, tensors, strict=True))

    def _constant(self, name: str) -> Tensor:
        return getattr(self.held, self.constants[name])  # type: ignore[no-any-return]

    def _quantizers(self) -> list[tuple[str, Any]]:
        """Every quantiser once, with the name to speak of it."""
        found: dict[nn.Module, str] = {}
        for name, layer in self.layers.items():
            if layer.weight_quantizer is not None:
                found.setdefault(layer.weight_quantizer, f"the weight of {home_of(name)}")
        for name, quantizer in self.act_quantizers.items():
            found.setdefault(quantizer, name)
        return [(name, quantizer) for quantizer, name in found.items()]

    def _path_of(self, quantizer: nn.Module) -> str:
        return next(path for path, module in self.named_modules() if module is quantizer)

    def _frozen(self, name: str, layer: QuantLayer, grids: Mapping[str, QParams]) -> Layer:
        weight, bias = layer.folded()
        quantizer = layer.weight_quantizer
        if quantizer is None:
            return Layer(weight=_array(weight), bias=None if bias is None else _array(bias))
        source = self.sources[self.graph[name].inputs[0]]
        step = None if source is None else torch.from_numpy(np.array(grids[source].scale)).to(weight.device)
        rounds = bias is not None and step is not None and layer.rounds_bias
        if rounds:
            _raise_steps(name, layer, weight, bias, step)  # type: ignore[arg-type]
        codes, scale, zero_point = _codes_of(name, quantizer, weight, layer.axis)
        kind = np.int8 if quantizer.qmin < 0 else np.uint8
        grid = QParams(scale=scale, zero_point=zero_point, qmin=quantizer.qmin, qmax=quantizer.qmax, axis=layer.axis)
        if bias is None:
            rounded = None
        elif rounds:
            steps = bias / (step * layer.channelwise(torch.from_numpy(np.array(scale)).to(weight.device)))  # type: ignore[operator]
            rounded = _array(torch.round(steps).to(torch.int64).to(torch.int32))
        else:
            rounded = _array(bias)
        return Layer(weight=codes.astype(kind), grid=grid, bias=rounded)

    def _digest(self) -> str:
        facts = [
            self.algorithm,
            to_toml(self.profile),
            sorted(self.weight_bits.items()),
            [(node.name, node.op, node.inputs, node.attributes.get("bits")) for node in self.graph],
            sorted(self.shared.items()),
            [layer.strategy for layer in self.layers.values()],
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _codes_of(name: str, quantizer: Any, weight: Tensor, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weight's codes with the grid that they lie on: codes first, since the grid may follow from the weight."""
    if not getattr(quantizer, "exportable", True):
        raise ExportError(f"{name}: the weights' values lie on no uniform grid", "use another algorithm to export")
    if hasattr(quantizer, "codes"):
        codes = quantizer.codes(weight)
        return _array(codes), *_numbers(quantizer)
    values = quantizer(weight)
    scale, zero_point = (
        each.reshape([-1 if at == axis else 1 for at in range(weight.dim())]) if each.dim() else each
        for each in (quantizer.scale, quantizer.zero_point)
    )
    codes = torch.round(values / scale) + zero_point
    if float(((codes - zero_point) - values / scale).abs().max()) > ON_GRID:
        raise ExportError(f"{name}: the weights' values lie on no uniform grid", "use another algorithm to export")
    return _array(codes), *_numbers(quantizer)


def _raise_steps(name: str, layer: QuantLayer, weight: Tensor, bias: Tensor, input_step: Tensor) -> None:
    """Enlarges step sizes of a weight so that no bias is more than `BIAS_LIMIT` steps."""
    quantizer = layer.weight_quantizer
    for _ in range(2):
        quantizer(weight)  # the grid may follow from the weight
        needed = bias.abs() / (input_step * BIAS_LIMIT)
        scale = quantizer.scale.detach().clone()
        short = needed > layer.channelwise(scale)
        if not bool(short.any()):
            return
        channels = short.nonzero().flatten().tolist()
        _log.warning("%s: the step sizes of channels %s grow, so that their biases fit in int32", name, channels)
        per_step = needed.reshape(-1, scale.numel()).amax(0) if scale.dim() else needed.amax()
        larger = torch.maximum(scale, 2 * per_step.reshape(scale.shape))
        if quantizer_sets := getattr(quantizer, "set_grid", None):
            quantizer_sets(larger, quantizer.zero_point.detach().clone())
        else:
            quantizer.scale.data.copy_(larger)
    raise ExportError(f"{name}: the bias of channels {channels} does not fit in int32 steps", "is the channel dead?")


def _grid_of(quantizer: Any) -> QParams:
    if not getattr(quantizer, "exportable", True):
        raise ExportError("an activation's values lie on no uniform grid", "use another algorithm to export")
    scale, zero_point = _numbers(quantizer)
    shape = () if scale.size == 1 else scale.shape
    return QParams(
        scale=scale.reshape(shape), zero_point=zero_point.reshape(shape), qmin=quantizer.qmin, qmax=quantizer.qmax
    )


def _numbers(quantizer: Any) -> tuple[np.ndarray, np.ndarray]:
    scale = np.asarray(_array(quantizer.scale), np.float32)
    return scale, np.broadcast_to(np.asarray(_array(quantizer.zero_point), np.int32), scale.shape).copy()


def _numbers_of(name: str, norm: nn.Module) -> dict[str, np.ndarray]:
    """What a normalisation that stays in float needs."""
    given: dict[str, Any] = {"weight": norm.weight, "bias": norm.bias}
    if isinstance(norm, BatchNorm):
        given |= {"mean": norm.running_mean, "var": norm.running_var}
        like: Any = norm.running_mean
    else:
        like = torch.zeros(tuple(norm.normalized_shape))  # type: ignore[arg-type]
    neutral = {"weight": torch.ones_like(like), "bias": torch.zeros_like(like)}
    return {f"{name}.{key}": _array(neutral[key] if value is None else value) for key, value in given.items()}


def _facts_of(quantizer: Any) -> dict[str, Any]:
    """What a quantiser keeps outside its tensors."""
    return {key: getattr(quantizer, key) for key in ("qmin", "qmax", "enabled")}


def _set_facts(quantizer: Any, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray], path: str) -> None:
    for key, value in facts.items():
        setattr(quantizer, key, value)
    for key, buffer in quantizer.named_buffers(recurse=False):
        saved = arrays.get(f"{path}.{key}")
        if saved is not None and saved.shape != tuple(buffer.shape):  # a plug-in that learns its shape late
            setattr(quantizer, key, torch.from_numpy(np.array(saved)).to(buffer.device))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().numpy().copy()


def _width(bits: int | None) -> str:
    return "float" if bits is None else str(bits)
