"""The network up to a unit, taken one unit further at a time: every unit is run once, whatever the depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdrop.cache import Samples, Store
from qdrop.calibration import Calibration
from qdrop.errors import ReconstructionError
from qdrop.reconstruction import Unit


class Prefix:
    """Inputs of one unit after the other, in one network.

    Eager models have no graph to cut. So the whole model is called, but every unit that is done returns what is known
    of its output at once, and the next one, when called, hands over its inputs and ends the pass. Outputs that no later
    unit needs are not kept; a tensor of zeros stands for them.

    Args:
        model: the network.
        forward: runs it on the inputs of a batch.
        units: its units, in order of execution.
        calibration: the batches.
        whole: all batches as one tensor, if they are parts of one.
        store: where inputs and outputs are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[nn.Module, Any], Any],
        units: list[Unit],
        calibration: Calibration,
        whole: Tensor | None,
        store: Store,
    ) -> None:
        self.model, self.forward, self.units, self.calibration = model, forward, units, calibration
        self.whole, self.store = whole, store
        self.shapes: list[list[Any]] = []  # by unit and batch: the tree of its output, on the meta device
        self.live: dict[int, Samples] = {}  # outputs of units that a later one than the next needs

    def enter(self, number: int, inputs: Samples | None) -> Samples:
        """Inputs of a unit, from those of the one before it.

        Args:
            number: of the unit, from 0.
            inputs: of unit `number - 1`; None for the first.

        Returns:
            (args, kwargs) of the unit's first module.
        """
        found = Samples(self.calibration.sizes, self.store)
        before = None if inputs is None else inputs.in_batches()
        for index, batch in enumerate(self.calibration.batches):
            outputs = {} if before is None else self._outputs(number, index, next(before))
            value = self._call(number, batch, outputs)
            found.add(value, share=self._shared(value, batch))
        self.live = {unit: kept for unit, kept in self.live.items() if self._last_use(unit) > number}
        return found

    def outputs(self, number: int, inputs: Samples) -> Samples:
        """The unit's output, behind its functions, for its inputs."""
        found = Samples(self.calibration.sizes, self.store)
        with torch.no_grad():
            for value in inputs.in_batches():
                found.add(self.units[number](value))
        return found

    def _outputs(self, number: int, index: int, inputs: Any) -> dict[int, Any]:
        """Outputs of all units before `number` in one batch: real where they matter, zeros elsewhere."""
        last = number - 1
        with torch.no_grad():
            value = self.units[last].call(inputs)
        if index == 0:
            self.shapes.append([])
        self.shapes[last].append(pytree.tree_map(_shape, value))
        if self._last_use(last) > number:
            if index == 0:
                self.live[last] = Samples(self.calibration.sizes, self.store)
            self.live[last].add(value)
        needed = self.units[number].planned.frontier
        outputs = {
            unit: pytree.tree_map(_zeros, self.shapes[unit][index]) for unit in range(last) if unit not in needed
        }
        outputs |= {unit: self.live[unit].batch(index) for unit in needed if unit != last}
        return outputs | {last: value}

    def _last_use(self, unit: int) -> int:
        return max((number for number, later in enumerate(self.units) if unit in later.planned.frontier), default=-1)

    def _call(self, number: int, batch: Any, outputs: Mapping[int, Any]) -> Any:
        """Calls the model until unit `number` is reached."""
        stubs = _Stubs(self.units, number, outputs)
        with stubs.installed(), torch.no_grad():
            try:
                self.forward(self.model, batch)
            except _Reached as reached:
                return reached.inputs
        raise ReconstructionError(f"unit {self.units[number].name} is not reached on every calibration batch")

    def _shared(self, value: Any, batch: Any) -> Tensor | None:
        """All batches as one tensor, if the value is nothing but the model's input."""
        leaves = pytree.tree_leaves(value)
        if self.whole is None or len(leaves) != 1 or not isinstance(leaves[0], Tensor):
            return None
        same = leaves[0].data_ptr() == batch.data_ptr() and leaves[0].shape == batch.shape
        return self.whole if same and leaves[0].stride() == batch.stride() else None


class _Reached(Exception):  # noqa: N818 -- how a pass ends, not an error
    """The unit was called; carries its (args, kwargs)."""

    def __init__(self, inputs: Any) -> None:
        super().__init__()
        self.inputs = inputs


class _Stubs:
    """Replaces the modules of units by what they are known to return, and the module of the next by an end."""

    def __init__(self, units: list[Unit], number: int, outputs: Mapping[int, Any]) -> None:
        self.units, self.number, self.outputs = units, number, outputs
        self.calls: dict[str, int] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        actions: dict[str, dict[int, Callable[..., Any]]] = {}
        for unit in range(self.number + 1):
            steps = self.units[unit].planned.steps
            for position, (path, call) in enumerate(steps):
                last = position == len(steps) - 1
                actions.setdefault(path, {})[call] = self._action(unit, first=position == 0, last=last)
        before: list[tuple[nn.Module, Any]] = []
        switched = self._switch_off()
        try:
            for path, by_call in actions.items():
                module = self.units[0].network.get_submodule(path)
                before.append((module, vars(module).get("forward")))
                module.forward = self._stub(path, module.forward, by_call)
            yield
        finally:
            for module, forward in before:
                del module.forward
                if forward is not None:
                    module.forward = forward
            for quantizer in switched:
                quantizer.enabled = True

    def _switch_off(self) -> list[Any]:
        """Quantisers inside units that do not run would meet placeholders; those of functions behind them do run."""
        inside = [
            self.units[unit].student.activations[site.name]  # type: ignore[union-attr]
            for unit in range(self.number)
            if self.units[unit].student is not None
            for site in self.units[unit].planned.sites
            if site != self.units[unit].planned.tail_site
        ]
        switched = [quantizer for quantizer in inside if quantizer.enabled]
        for quantizer in switched:
            quantizer.enabled = False
        return switched

    def _stub(
        self, path: str, original: Callable[..., Any], by_call: dict[int, Callable[..., Any]]
    ) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = self.calls.get(path, 0)
            self.calls[path] = call + 1
            return by_call.get(call, original)(*args, **kwargs)

        return forward

    def _action(self, unit: int, *, first: bool, last: bool) -> Callable[..., Any]:
        def action(*args: Any, **kwargs: Any) -> Any:
            if first:
                self.units[unit].restore_counts()
                if unit == self.number:
                    raise _Reached((args, kwargs))
            return self.outputs[unit] if last else args[0]

        return action


def _shape(leaf: Any) -> Any:
    return leaf.to("meta") if isinstance(leaf, Tensor) else leaf


def _zeros(leaf: Any) -> Any:
    return torch.zeros(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, Tensor) else leaf
