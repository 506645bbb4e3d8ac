"""Quantisers as modules: what is observed, learned and frozen, and when.

A quantiser goes from `idle` (passes tensors unchanged) over `observing` (passes and looks) to `ready` (quantises; may
learn) and `frozen` (quantises; never changes). What mixes these raises: learning while observing, quantising in training
before there is a range, observing what is frozen. Calibrating again starts the range afresh.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor, nn

from mqbench_lite.errors import CalibrationError, NotCalibratedError, ProfileError
from mqbench_lite.fake_quant import codes_of, fake_quantize
from mqbench_lite.observers import BadValuesError, Observer, make_observer
from mqbench_lite.specs import QuantSpec

_log = logging.getLogger(__name__)

Role = Literal["weight", "act"]
State = Literal["idle", "observing", "ready", "frozen"]
STATES: tuple[State, ...] = ("idle", "observing", "ready", "frozen")


class Quantizer(nn.Module):
    """A grid whose range is found once; gradients pass straight through within it.

    Args:
        spec: the grid.
        role: whether it quantises a weight or an activation.
        observer: how its range is found where calibration names no other observer.

    Attributes:
        scale: step size, float32: [], or [C] for a weight with channels.
        zero_point: code of 0, int32, likewise.
        qmin: least code; qmax: greatest code. Calibration decides their sign where the spec leaves it open.
        axis: the channels' axis of a weight.
        enabled: False passes tensors unchanged, whatever the state.
        state: `idle`, `observing`, `ready` or `frozen`.
        label: name of its tensor, for messages; batch: number of the batch that passes, likewise.
        exportable: whether its values lie on a uniform grid of its input, so that an engine can do what it does.
    """

    exportable: ClassVar[bool] = True
    scale: Tensor
    zero_point: Tensor

    def __init__(self, spec: QuantSpec, role: Role, *, observer: str = "minmax") -> None:
        super().__init__()
        if spec.per_channel and role == "act":
            raise ProfileError("activations are quantised per tensor, not per channel", "unset per_channel")
        self.spec, self.role, self.default_observer = spec, role, observer
        self.qmin, self.qmax = spec.grid(signed=True)
        self.axis, self.enabled = 0, True
        self.label, self.batch = "", 0
        self.state: State = "idle"
        self.observer: Observer | None = None
        self.allocate(() if not spec.per_channel else (1,))

    def attach(self, shape: Sequence[int], axis: int = 0) -> None:
        """Gives what is kept its final shape; a weight's quantiser is told before its state is loaded or used.

        Args:
            shape: of the weight.
            axis: its axis of output channels.
        """
        self.axis = axis
        if self.spec.per_channel:
            self.allocate((shape[axis],))

    def allocate(self, shape: tuple[int, ...]) -> None:
        """Makes room for step sizes and zero points."""
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("zero_point", torch.zeros(shape, dtype=torch.int32))

    def observe(self, observer: str | None = None) -> None:
        """Begins to look at what passes; what was found before is forgotten.

        Args:
            observer: a name of `OBSERVERS`; None: the algorithm's own.

        Raises:
            CalibrationError: it is frozen.
        """
        if self.state == "frozen":
            raise CalibrationError(self.label, self.batch, "its quantiser is frozen")
        axis = self.axis if self.spec.per_channel else None
        self.observer = make_observer(observer or self.default_observer, self.spec, axis)
        self.state, self.batch = "observing", 0

    def ready(self) -> None:
        """Takes the range of what passed.

        Raises:
            CalibrationError: nothing passed.
            NotCalibratedError: it was not observing.
        """
        if self.state != "observing" or self.observer is None:
            raise NotCalibratedError(f"{self.label or 'a quantiser'} is {self.state}", "observe first")
        try:
            self.observer.join()
            self.take(self.observer)
        except BadValuesError as error:
            raise CalibrationError(self.label, self.batch, str(error)) from None
        self.observer, self.state = None, "ready"

    def take(self, observer: Observer) -> None:
        """Decides the sign and takes over the grid that an observer found."""
        low, high = observer.extremes()
        negative = bool((low < 0).any())
        self.qmin, self.qmax = self.spec.grid(signed=negative)
        if self.spec.symmetric and self.qmin == 0 and negative:
            _log.warning("%s: the grid has no sign; negative values become 0", self.label)
        dead = int(((low == 0) & (high == 0)).sum())
        if dead:
            _log.warning("%s: %d of %d ranges hold only 0; the least step size is taken", self.label, dead, len(low))
        scale, zero_point = observer.grid(self.qmin, self.qmax)
        self.set_grid(scale.reshape(self.scale.shape), zero_point.reshape(self.scale.shape))

    @torch.no_grad()
    def set_grid(self, scale: Float32[Tensor, "*c"], zero_point: Int32[Tensor, "*c"]) -> None:
        """Takes a step size and a zero point."""
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def freeze(self) -> None:
        """Ends learning.

        Raises:
            NotCalibratedError: it has no range yet.
        """
        if self.state not in ("ready", "frozen"):
            raise NotCalibratedError(f"{self.label or 'a quantiser'} is {self.state}", "calibrate first")
        self.state = "frozen"
        self.requires_grad_(False)

    def reset(self) -> None:
        """Back to `idle`: tensors pass unchanged."""
        self.observer, self.state = None, "idle"

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The tensor on its grid, or as it is while there is none.

        Raises:
            NotCalibratedError: it would learn and has no range.
            CalibrationError: it would learn while it observes, or the values have no range.
        """
        learning = self.training and torch.is_grad_enabled()
        if self.state == "observing":
            if learning:
                raise CalibrationError(self.label, self.batch, "a model that observes cannot learn; use eval() first")
            self._look_at(x)
            return x
        if not self.enabled:
            return x
        if self.state == "idle":
            if learning:
                raise NotCalibratedError(f"{self.label or 'a quantiser'} has no range yet", "calibrate before training")
            return x
        return self.quantize(x)

    def quantize(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The nearest values of the grid."""
        return fake_quantize(x, self.scale, self.zero_point, self.qmin, self.qmax, self.axis)

    def codes(self, x: Float[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
        """The codes of what `quantize` gives: (codes - zero_point) * scale, with both read after this call."""
        return codes_of(x, self.scale, self.zero_point, self.qmin, self.qmax, self.axis)

    def gain(self, x: Tensor) -> float:
        """LSQ's 1 / sqrt(N qmax); N is the number of elements that share a step size."""
        return (max(x.numel(), 1) / self.scale.numel() * self.qmax) ** -0.5

    def get_extra_state(self) -> Tensor:
        """State and codes' ends as int64 [3]; a quantiser that observes is saved as idle."""
        state = "idle" if self.state == "observing" else self.state
        return torch.tensor([STATES.index(state), self.qmin, self.qmax])

    def set_extra_state(self, state: Any) -> None:
        """Takes over what `get_extra_state` gave."""
        index, self.qmin, self.qmax = state.tolist()
        self.state, self.observer = STATES[index], None
        if self.state == "frozen":
            self.requires_grad_(False)

    def extra_repr(self) -> str:
        """Role, grid and state."""
        sharing = f"per channel of axis {self.axis}" if self.spec.per_channel else "per tensor"
        width = math.log2(self.qmax - self.qmin + 1)
        return f"{self.role}, {width:.3g} bit, codes {self.qmin} to {self.qmax}, {sharing}, {self.state}"

    def _look_at(self, x: Tensor) -> None:
        """Observes an activation in every batch, a weight once, because it does not change."""
        assert self.observer is not None  # noqa: S101 -- made with the state
        if self.role == "weight" and self.observer.low is not None:
            return
        try:
            self.observer.update(x)
        except BadValuesError as error:
            raise CalibrationError(self.label, self.batch, str(error)) from None
