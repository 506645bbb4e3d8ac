"""What `quantize` goes through: ranges, nearest rounding, then one unit after the other, each kept when it is done."""

from __future__ import annotations

import hashlib
import math
import sys
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core_utils.runs import Run
from qdrop.activation_ranges import find_ranges
from qdrop.cache import Samples, Store
from qdrop.calibration import Calibration, Forward, batch_size
from qdrop.config import QDropConfig
from qdrop.fake_quant import fake_quantize
from qdrop.planning import Plan
from qdrop.prefix import Prefix
from qdrop.ranges import search_range
from qdrop.ranks import Ranks, all_ranks_agree
from qdrop.reconstruction import Unit, UnitCache, UnitResult
from qdrop.student import QuantizedModel


class Engine:
    """Two networks side by side, the float one and the one that is being quantised, taken from unit to unit.

    Args:
        teacher: the prepared float model.
        plan: its plan.
        config: method and schedule.
        data: calibration batches.
        forward: runs a model on a batch.
        example: inputs of one small batch.
        folder: where finished units are kept.
        student: what is quantised, if it is not to be a copy of the teacher.
    """

    def __init__(
        self,
        teacher: nn.Module,
        plan: Plan,
        config: QDropConfig,
        data: Calibration,
        forward: Forward,
        example: Any,
        folder: Run | None,
        student: Any = None,
    ) -> None:
        self.teacher, self.plan, self.config, self.forward, self.folder = teacher, plan, config, forward, folder
        self.samples = Ranks.gather(data.samples)
        if config.method != "nearest" and config.batch_size > self.samples.samples:
            text = f"batch_size {config.batch_size} is more than the {self.samples.samples} samples; all are taken"
            warnings.warn(text, stacklevel=3)
        self.student = student or QuantizedModel(deepcopy(teacher), plan, config)
        self.student.example = example
        self.data, whole = _as_one_tensor(data)
        device = next((value.device for value in teacher.parameters()), torch.device("cpu"))
        store = Store(config.cache, config.cache_budget, device, None if folder is None else folder.path)
        self.token_mask = _token_mask(self.data, store)
        entries = self._entries(example)
        self.traced = max(1, batch_size(example))
        students = [
            Unit(unit, self.student.model, self.student, entry) for unit, entry in zip(plan.units, entries, strict=True)
        ]
        teachers = [Unit(unit, teacher) for unit in plan.units]
        self.quantised = Prefix(self.student.model, self._run_student, students, self.data, whole, store)
        self.floating = Prefix(teacher, forward, teachers, self.data, whole, store)

    def quantize(
        self,
        reconstruct: Callable[..., UnitResult],
        progress: bool,
        callback: Callable[[UnitResult], None] | None,
    ) -> None:
        """Quantises `student` through all units; `reconstruct` has the signature of `reconstruct_unit`."""
        student, config = self.student, self.config
        inside = {site.name for unit in self.plan.units for site in unit.sites}
        outside = [name for name in student.activations if name not in inside]
        if self.ranges_first:
            self._find_ranges(list(student.activations))
        elif self.behind_quantised:
            self._find_ranges(outside)
        self._round_to_nearest()
        student.set_enabled(outside if self.behind_quantised else [], True)
        if config.method != "nearest":
            self._reconstruct(reconstruct, progress, callback)
            if not self.behind_quantised:
                self._find_ranges(list(student.activations))
        student.set_enabled(None, True)

    @property
    def behind_quantised(self) -> bool:
        """Whether a unit's input comes from units whose activations are quantised: in all cases but case 1."""
        return self.config.method in ("case2", "case3", "qdrop")

    @property
    def ranges_first(self) -> bool:
        """Whether all activation ranges come from the float network, before any unit is reconstructed."""
        return self.config.method == "nearest" or (self.config.feels_activations and self.config.act_init == "fp")

    def _reconstruct(
        self,
        reconstruct: Callable[..., UnitResult],
        progress: bool,
        callback: Callable[[UnitResult], None] | None,
    ) -> None:
        float_inputs = quantised_inputs = None
        for number, planned in enumerate(self.plan.units):
            float_inputs = self.floating.enter(number, float_inputs)
            quantised_inputs = self.quantised.enter(number, quantised_inputs)
            if all_ranks_agree(quantised_inputs.equals(float_inputs)):
                quantised_inputs = float_inputs
            state = None if self.folder is None else self.folder.load_state(f"unit_{number}")
            if state is not None:
                result = self._restore(number, *state)
            else:
                result = self._reconstruct_one(number, float_inputs, quantised_inputs, reconstruct)
                self._keep(number, result)
            self.student.set_enabled([site.name for site in planned.sites], self.behind_quantised)
            self.student.report.append(result)
            if progress and self.samples.rank == 0:
                _show(number, len(self.plan.units), result)
            if callback is not None:
                callback(result)

    def _reconstruct_one(
        self, number: int, float_inputs: Samples, quantised_inputs: Samples, reconstruct: Callable[..., UnitResult]
    ) -> UnitResult:
        unit, config = self.quantised.units[number], self.config
        if config.feels_activations and not self.ranges_first:
            self._find_unit_ranges(unit, quantised_inputs)
        self.student.set_enabled([site.name for site in unit.planned.sites], config.feels_activations)
        outputs = self.floating.outputs(number, float_inputs)
        cache = UnitCache(float_inputs, quantised_inputs, outputs, self.token_mask)
        generator = torch.Generator().manual_seed(_seed(config.seed, unit.name))
        result = reconstruct(unit, self.floating.units[number], cache, config, generator)
        if config.method == "case3":
            self._find_unit_ranges(unit, quantised_inputs)
        return result

    def _find_ranges(self, names: list[str]) -> None:
        """Ranges of these quantisers in the student as it is, with no activation quantised."""
        student, samples = self.student, self._init_samples()
        student.set_enabled(None, False)

        def run() -> None:
            with torch.no_grad():
                for batch, _ in self.data.first(samples):
                    self._run_student(student, batch)

        find_ranges({name: student.activations[name] for name in names}, self._sizes(), run, samples)

    def _find_unit_ranges(self, unit: Unit, inputs: Samples) -> None:
        """Ranges of one unit's quantisers behind the quantised units before it."""
        samples = self._init_samples()

        def run() -> None:
            seen = 0
            with torch.no_grad():
                for value, size in zip(inputs.in_batches(), inputs.sizes, strict=True):
                    if seen < samples:
                        unit(value)
                        seen += size

        names = [site.name for site in unit.planned.sites]
        find_ranges({name: self.student.activations[name] for name in names}, self._sizes(), run, samples)

    def _sizes(self) -> dict[str, int]:
        """Elements a sample of every planned tensor."""
        return {tensor.site.name: math.prod(tensor.shape) // self.traced for tensor in self.plan.tensors}

    def _init_samples(self) -> int:
        """This rank's part of the first `init_samples` samples of all ranks."""
        return min(self.data.samples, max(0, self.config.init_samples - self.samples.offset))

    def _run_student(self, _: Any, inputs: Any) -> Any:
        """The inner model, its calls counted from 0."""
        self.student.counts.clear()
        return self.forward(self.student.model, inputs)

    def _entries(self, example: Any) -> list[dict[str, int]]:
        """How often the student's modules were called before each unit is entered."""
        found: dict[int, dict[str, int]] = {}
        handles = []
        for number, unit in enumerate(self.plan.units):
            module = self.student.model.get_submodule(unit.steps[0][0])

            def note(*_: Any, number: int = number) -> None:
                found.setdefault(number, dict(self.student.counts))

            handles.append(module.register_forward_pre_hook(note))
        try:
            with torch.no_grad():
                self._run_student(self.student, example)
        finally:
            for handle in handles:
                handle.remove()
        return [found.get(number, {}) for number in range(len(self.plan.units))]

    def _round_to_nearest(self) -> None:
        """Gives every layer its range and the nearest codes."""
        for path, weight in self.student.weights.items():
            value = self.teacher.get_submodule(path).weight.detach().float()
            found = search_range(value, weight.bits, weight.symmetric, weight.axis if weight.per_channel else None)
            channels = weight.scale.shape
            scale, zero_point = (each.expand(channels).contiguous() for each in found)
            weight.scale, weight.zero_point = scale, zero_point
            rounded = fake_quantize(value, scale, zero_point, weight.qmin, weight.qmax, axis=weight.axis)
            wide = [-1 if axis == weight.axis else 1 for axis in range(value.dim())]
            codes = torch.round(rounded / scale.view(wide)) + zero_point.view(wide)
            self.student.set_codes(path, codes.clamp(weight.qmin, weight.qmax))

    def _keep(self, number: int, result: UnitResult) -> None:
        """Writes a finished unit, so that it need not be learned again."""
        if self.folder is None:
            return
        unit = self.quantised.units[number]
        tensors: dict[str, Tensor] = {}
        for path, weight in unit.weights.items():
            tensors |= {f"{path}/codes": weight.codes, f"{path}/scale": weight.scale, f"{path}/zero": weight.zero_point}
        for site in unit.planned.sites:
            quantizer = self.student.activations[site.name]
            tensors |= {f"{site.name}/scale": quantizer.scale, f"{site.name}/zero": quantizer.zero_point}
        arrays: dict[str, np.ndarray] = {name: value.cpu().numpy() for name, value in tensors.items()}
        facts = {name: str(value) if isinstance(value, float) else value for name, value in asdict(result).items()}
        facts["losses"] = [str(loss) for loss in result.losses]
        self.folder.save_state(f"unit_{number}", arrays, facts)

    def _restore(self, number: int, tensors: dict[str, np.ndarray], facts: dict[str, Any]) -> UnitResult:
        """Takes a unit that an earlier run finished."""
        unit = self.quantised.units[number]
        given = {name: torch.from_numpy(value.copy()) for name, value in tensors.items()}
        for path, weight in unit.weights.items():
            device = weight.scale.device
            weight.scale, weight.zero_point = given[f"{path}/scale"].to(device), given[f"{path}/zero"].to(device)
            self.student.set_codes(path, given[f"{path}/codes"].to(device))
        for site in unit.planned.sites:
            self.student.activations[site.name].set_range(given[f"{site.name}/scale"], given[f"{site.name}/zero"])
        numbers = {"sqnr_db", "unconverged", "seconds", "loss_start", "loss_end"}
        told: dict[str, Any] = {name: float(value) if name in numbers else value for name, value in facts.items()}
        told["losses"] = [float(loss) for loss in facts["losses"]]
        return UnitResult(**told)


def _as_one_tensor(data: Calibration) -> tuple[Calibration, Tensor | None]:
    """The batches as views of one tensor, where they are tensors of one shape: the first unit's input needs no copy."""
    batches = data.batches
    if not all(isinstance(batch, Tensor) and batch.shape[1:] == batches[0].shape[1:] for batch in batches):
        return data, None
    whole = batches[0] if len(batches) == 1 else torch.cat(batches)
    return replace(data, batches=list(whole.split(data.sizes))), whole


def _token_mask(data: Calibration, store: Store) -> Samples | None:
    """[N, T] of the batches' `attention_mask`, if they have one: padded tokens are no part of the loss."""
    masks = [batch.get("attention_mask") if isinstance(batch, dict) else None for batch in data.batches]
    if not all(isinstance(mask, Tensor) and mask.dim() == 2 for mask in masks):
        return None
    found = Samples(data.sizes, store)
    for mask in masks:
        found.add(mask)
    return found


def _seed(seed: int, unit: str) -> int:
    """Every unit draws from a stream of its own, so that no other unit changes it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{unit}".encode()).digest()[:7], "big")


def _show(number: int, units: int, result: UnitResult) -> None:
    line = f"{number + 1}/{units} {result.name}: error {result.loss_start:.4g} -> {result.loss_end:.4g}"
    line += f", {result.sqnr_db:.1f} dB, {result.seconds:.1f} s" + (f" ({result.note})" if result.note else "")
    sys.stderr.write(line + "\n")
