"""A quantised model as a module: it simulates, learns, and becomes numbers on integer grids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from core_utils.files import write_atomically
from core_utils.states import DamagedState, pack, unpack
from mqbench_lite.bn_folding import QuantLayer
from mqbench_lite.building import Segment
from mqbench_lite.errors import MQBenchError
from mqbench_lite.freezing import array_of, frozen
from mqbench_lite.graph import LAYERS, Graph, QuantizedGraph
from mqbench_lite.lowering import BATCH
from mqbench_lite.placement import home_of
from mqbench_lite.profiles import to_toml
from mqbench_lite.specs import HardwareProfile

if TYPE_CHECKING:
    from mqbench_lite.integers import IntegerModel


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
        values.update({name: self.constant(name) for name in self.constants})
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

    def quantizers(self) -> list[tuple[str, Any]]:
        """Every quantiser once, with the name to speak of it."""
        found: dict[nn.Module, str] = {}
        for name, layer in self.layers.items():
            if layer.weight_quantizer is not None:
                found.setdefault(layer.weight_quantizer, f"the weight of {home_of(name)}")
        for name, quantizer in self.act_quantizers.items():
            found.setdefault(quantizer, name)
        return [(name, quantizer) for quantizer, name in found.items()]

    def constant(self, name: str) -> Tensor:
        """The value of a constant, by its node's name."""
        return getattr(self.held, self.constants[name])  # type: ignore[no-any-return]

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

    def freeze(self) -> QuantizedGraph:
        """The model's numbers on their grids; the model itself stays as it is, but see below.

        Where a bias is so many steps that int32 could overflow, as with a dead channel, the weight's step size of that
        channel grows, here as in the model.

        Raises:
            NotCalibratedError: a quantiser has no range yet.
            ExportError: a quantiser's values lie on no uniform grid, or a bias fits in no int32.
        """
        return frozen(self)

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
        arrays = {name: array_of(value) for name, value in self.state_dict().items()}
        facts = {name: _facts_of(quantizer) for name, quantizer in self.quantizers()}
        write_atomically(path, pack(arrays, {"quantizers": facts}, owner=self._digest()))

    def load(self, path: Path) -> None:
        """Reads what `save` wrote, into a model that was prepared alike.

        Raises:
            MQBenchError: the file cannot be read, is damaged, or of another network, profile, widths or algorithm.
        """
        try:
            arrays, facts, owner = unpack(path.read_bytes())
        except OSError as error:
            raise MQBenchError(f"{path} cannot be read: {error.strerror}") from None
        except DamagedState as error:
            raise MQBenchError(f"{path} {error}", "save the model again") from None
        if owner != self._digest():
            raise MQBenchError(
                f"{path} is of another network, profile, widths or algorithm",
                "prepare the model as before it was saved",
            )
        for name, quantizer in self.quantizers():
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

    def _path_of(self, quantizer: nn.Module) -> str:
        return next(path for path, module in self.named_modules() if module is quantizer)

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


def _width(bits: int | None) -> str:
    return "float" if bits is None else str(bits)
