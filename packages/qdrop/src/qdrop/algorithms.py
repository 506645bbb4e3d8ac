"""QDrop, BRECQ and AdaRound as algorithms of a quantisation benchmark: the entry points `mqbench_lite.algorithms`.

The benchmark makes the model and decides where a tensor is quantised and with which scheme; it puts the quantisers that
`make_quantizer` gives into the model as submodules: a weight's under its layer, an activation's wherever its tensor
passes. `apply` then finds ranges and learns the rounding. Nothing of the benchmark is imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from qdrop import calibration as samples_of
from qdrop.config import Method, QDropConfig
from qdrop.engine import Engine
from qdrop.errors import CalibrationError, ConfigError, PlanError
from qdrop.fake_quant import fake_quantize
from qdrop.planning import Plan, PlannedTensor, PlannedUnit, plan_prepared
from qdrop.quantization import reconstruct_unit
from qdrop.ranks import max_over_ranks
from qdrop.sites import Site
from qdrop.student import ActivationQuantizer, QuantizedWeight, grid

Role = Literal["weight", "act"]


@runtime_checkable
class Scheme(Protocol):
    """What the benchmark says about one tensor's grid; the names are its own."""

    bits: int
    symmetric: bool
    per_channel: bool
    signed: bool | str
    pot_scale: bool
    narrow_range: bool
    reduce_range: bool


class ActivationPort(ActivationQuantizer):
    """An activation quantiser whose grid the benchmark decides.

    An asymmetric range is looked for on [0, 2^b - 1] and shifted to a signed grid where the scheme wants one. A
    symmetric grid whose sign is `auto` has one if the calibration data has negative values.
    """

    def __init__(self, scheme: Scheme) -> None:
        super().__init__(_width(scheme), scheme.symmetric)
        self.scheme = scheme
        self._choose(signed=scheme.signed is True or (scheme.symmetric and scheme.signed == "auto"))

    def find_range(self, chunks: list[Tensor]) -> None:
        """As for every quantiser, once the sign of the grid is decided."""
        least = float(-max_over_ranks(-torch.stack([chunk.min() for chunk in chunks]).min()))
        if self.scheme.symmetric and self.scheme.signed == "auto":
            self._choose(signed=least < 0)
        if self.scheme.symmetric and self.qmin == 0 and least < 0:
            raise CalibrationError("the scheme is symmetric without a sign, but there are negative values")
        super().find_range(chunks)

    def set_range(self, scale: Tensor, zero_point: Tensor) -> None:
        """Takes a step size, and a zero point on [0, 2^b - 1]."""
        super().set_range(scale, zero_point + self.shift)

    def _choose(self, *, signed: bool) -> None:
        self.symmetric = self.scheme.symmetric and signed  # without a sign, a one-sided range has its zero at 0
        self.qmin, self.qmax = grid(self.bits, signed)
        self.shift = self.qmin if signed and not self.scheme.symmetric else 0
        if self.symmetric and self.scheme.narrow_range:
            self.qmin += 1


class WeightPort(nn.Module):
    """A weight quantiser whose grid the benchmark decides; per-tensor schemes hold equal step sizes for all channels.

    Attributes:
        scale: float32, [C]; zero_point: int32, [C]; both after `apply`.
        enabled: whether weights are quantised; they pass unchanged otherwise.
    """

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.bits, self.symmetric, self.per_channel = _width(scheme), scheme.symmetric, scheme.per_channel
        self.qmin, self.qmax = grid(self.bits, scheme.symmetric)
        if scheme.symmetric and scheme.narrow_range:
            self.qmin += 1
        self.axis, self.enabled = 0, False
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid."""
        if not self.enabled:
            return weight
        return fake_quantize(weight, self.scale, self.zero_point, self.qmin, self.qmax, axis=self.axis)


@dataclass(frozen=True)
class Algorithm:
    """One method of this package as the benchmark calls it."""

    name: str
    method: Method
    kind: ClassVar[str] = "ptq"
    api_version: ClassVar[int] = 1

    def make_quantizer(self, spec: Scheme, role: Role) -> nn.Module:
        """A quantiser for a scheme.

        Args:
            spec: bits, symmetry and the rest of the scheme.
            role: `weight` or `act`.

        Raises:
            ConfigError: the scheme asks for step sizes that are powers of two, or for activations by channel.
        """
        if spec.pot_scale:
            raise ConfigError(f"{self.name} learns step sizes freely; it cannot keep them at powers of two")
        if role == "weight":
            return WeightPort(spec)
        if spec.per_channel:
            raise ConfigError("activations are quantised per tensor, not per channel")
        return ActivationPort(spec)

    def apply(
        self, qmodel: nn.Module, calib_loader: Iterable[Any], *, seed: int, steps: int, **options: Any
    ) -> nn.Module:
        """Finds ranges and learns the rounding, in place.

        Args:
            qmodel: a float model that holds this algorithm's quantisers.
            calib_loader: batches, as for `quantize`.
            seed: decides draws and masks.
            steps: iterations per unit.
            **options: other fields of `QDropConfig`.

        Returns:
            The model, its quantisers enabled and frozen.
        """
        config = QDropConfig(method=self.method, seed=seed, iters=steps, first_last_bits=None, **options)
        device = next((value.device for value in qmodel.parameters()), torch.device("cpu"))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _evaluating(qmodel):
            data = samples_of.read(calib_loader, qmodel, None, None, device)
            example = next(data.first(2))[0]
            teacher = deepcopy(qmodel)
            plan = _own_plan(plan_prepared(teacher, example, config, samples=data.samples), qmodel)
            student = _Ported(qmodel, plan)
            with student.holding_weights():
                Engine(teacher, plan, config, data, samples_of.run, example, None, student=student).quantize(
                    reconstruct_unit, progress=False, callback=None
                )
        return qmodel


class _Ported:
    """The benchmark's model as the engine sees it; it has what the engine uses of a `QuantizedModel`."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.model, self.plan = model, plan
        self.report: list[Any] = []
        self.example: Any = None
        self.counts: Counter[str] = Counter()
        self.activations: dict[str, Any] = {t.site.name: model.get_submodule(t.site.path) for t in plan.tensors}
        self.ports = dict(_weight_ports(model))
        self.weights: dict[str, QuantizedWeight] = {}
        for planned in plan.weights:
            port = self.ports[planned.path]
            weight = QuantizedWeight(planned.shape, port.bits, port.symmetric, port.axis, per_channel=port.per_channel)
            weight.qmin, weight.qmax = port.qmin, port.qmax
            self.weights[planned.path] = weight

    def set_codes(self, path: str, codes: Tensor) -> None:
        weight = self.weights[path]
        weight.codes = codes.to(weight.codes.dtype)
        self.model.get_submodule(path).weight = weight.dequantize()

    def set_enabled(self, names: Any, enabled: bool) -> None:
        for name in self.activations if names is None else names:
            self.activations[name].enabled = enabled

    @contextmanager
    def holding_weights(self) -> Iterator[None]:
        """Weights are plain tensors while they are learned, and parameters again afterwards."""
        layers: dict[str, Any] = {path: self.model.get_submodule(path) for path in self.weights}
        originals = {path: layer._parameters.pop("weight") for path, layer in layers.items()}
        for path, layer in layers.items():
            layer.register_buffer("weight", originals[path].detach(), persistent=False)
        done = False
        try:
            yield
            done = True
        finally:
            for path, layer in layers.items():
                learned, original = layer.weight.detach().clone(), originals[path]
                del layer.weight
                layer.weight = nn.Parameter(learned, requires_grad=original.requires_grad) if done else original
                port, weight = self.ports[path], self.weights[path]
                port.scale, port.zero_point, port.enabled = weight.scale, weight.zero_point, done


def _weight_ports(model: nn.Module) -> Iterator[tuple[str, WeightPort]]:
    for path, module in model.named_modules():
        if isinstance(module, WeightPort):
            yield path.rpartition(".")[0], module


def _own_plan(plan: Plan, model: nn.Module) -> Plan:
    """The plan's units with the benchmark's quantisers in the place of those that this package would put."""
    ports = dict(_weight_ports(model))
    acts = {path: module for path, module in model.named_modules() if isinstance(module, ActivationPort)}
    if not ports:
        raise PlanError("the model holds no weight quantiser of this algorithm", "make them by make_quantizer")
    sites = {path: Site("module", path) for path in acts}
    units = tuple(_own_unit(unit, ports, sites) for unit in plan.units)
    owner = {site.path: unit.name for unit in units for site in unit.sites}
    weights = tuple(weight for weight in plan.weights if weight.path in ports)
    tensors = tuple(
        PlannedTensor(sites[path], port.bits, port.symmetric, (1,), owner.get(path), ()) for path, port in acts.items()
    )
    return replace(plan, units=tuple(unit for unit in units if unit.layers), weights=weights, tensors=tensors)


def _own_unit(unit: PlannedUnit, ports: dict[str, WeightPort], sites: dict[str, Site]) -> PlannedUnit:
    inside = tuple(
        site
        for path, site in sites.items()
        if any(path == step or path.startswith(f"{step}.") for step, _ in unit.steps)
    )
    layers = tuple(path for path in unit.layers if path in ports)
    return replace(unit, layers=layers, sites=inside, tail_site=None)


def _width(scheme: Scheme) -> int:
    return scheme.bits - 1 if scheme.reduce_range else scheme.bits


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


QDROP = Algorithm("qdrop", "qdrop")
BRECQ = Algorithm("brecq", "brecq")
ADAROUND = Algorithm("qdrop-adaround", "adaround")
