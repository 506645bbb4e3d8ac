"""Quantisers whose grid is learned, or follows from values that are: LSQ and LSQ+, PACT, DoReFa.

References: Esser et al., LSQ, arXiv:1902.08153; Bhalgat et al., LSQ+, arXiv:2004.09576; Choi et al., PACT,
arXiv:1805.06085; Zhou et al., DoReFa-Net, arXiv:1606.06160.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float32, Int32
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mqbench_lite.fake_quant import clip_gradients, fake_quantize, learned_fake_quantize
from mqbench_lite.observers import Observer
from mqbench_lite.quantizers import Quantizer, Role
from mqbench_lite.ranges import LEAST_SCALE, grid_of_range, nearest_power_of_two
from mqbench_lite.specs import QuantSpec


class LearnedStep(Quantizer):
    """LSQ: the step size is a parameter; where the grid is asymmetric, so is the zero point (LSQ+).

    Attributes:
        step: the learned step size, float32, shaped like `scale`. `scale` is its magnitude, at least `LEAST_SCALE`, or
            the nearest power of two where the spec wants one.
        offset: the learned real zero point of an asymmetric grid; `zero_point` is the nearest code.
    """

    def allocate(self, shape: tuple[int, ...]) -> None:
        """Makes room for parameters."""
        self.step = nn.Parameter(torch.ones(shape))
        zeros = torch.zeros(shape)
        if self.spec.symmetric:
            self.register_buffer("offset", zeros, persistent=False)
        else:
            self.offset = nn.Parameter(zeros)

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """The step size in use, differentiable in `step`."""
        step = _Magnitude.apply(self.step)
        return nearest_power_of_two(step) if self.spec.pot_scale else step

    @property
    def zero_point(self) -> Tensor:  # type: ignore[override]
        """The code nearest to `offset`."""
        return self.offset.detach().round().clamp(self.qmin, self.qmax).to(torch.int32)

    @torch.no_grad()
    def set_grid(self, scale: Float32[Tensor, "*c"], zero_point: Int32[Tensor, "*c"]) -> None:
        """Starts to learn from a step size and a zero point."""
        self.step.copy_(scale)
        self.offset.copy_(zero_point)

    def quantize(self, x: Tensor) -> Tensor:
        """The nearest values of the learned grid."""
        if self.state == "frozen" or not torch.is_grad_enabled():
            return fake_quantize(x, self.scale.detach(), self.zero_point, self.qmin, self.qmax, self.axis)
        grid = self.scale, self.offset, self.qmin, self.qmax, self.axis
        return learned_fake_quantize(x, *grid, gain=self.gain(x))


class _Magnitude(torch.autograd.Function):
    """|s|, at least the least step size; the gradient passes as if s itself were taken, so that none is stuck."""

    @staticmethod
    def forward(ctx: Any, step: Tensor) -> Tensor:
        ctx.save_for_backward(step)
        return step.abs().clamp(min=LEAST_SCALE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (step,) = ctx.saved_tensors
        return torch.where(step < 0, -gradients[0], gradients[0])


class LearnedClip(Quantizer):
    """PACT's activations: the grid ends at a learned alpha, whose gradient is that of all values above it.

    Args:
        spec: the grid.
        role: only `act`.
        start: alpha at first (and, on an asymmetric grid, -start for the lower end); None: the calibrated range.
        observer: for the range, where it is taken.

    Attributes:
        alpha: upper end, float32 []. It is subject to weight decay.
        low_alpha: lower end of an asymmetric grid.
    """

    def __init__(
        self, spec: QuantSpec, role: Role, *, start: float | int | None = 6.0, observer: str = "minmax"
    ) -> None:
        self.start = start
        super().__init__(spec, role, observer=observer)

    def allocate(self, shape: tuple[int, ...]) -> None:
        """Makes room for the ends."""
        start = 6.0 if self.start is None else float(self.start)
        self.alpha = nn.Parameter(torch.full(shape, start))
        if not self.spec.symmetric:
            self.low_alpha = nn.Parameter(torch.full(shape, -start))

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """The step size that follows from the ends."""
        return self._grid()[0]

    @property
    def zero_point(self) -> Tensor:  # type: ignore[override]
        """The code of 0 that follows from the ends."""
        return self._grid()[1]

    @torch.no_grad()
    def set_grid(self, scale: Float32[Tensor, "*c"], zero_point: Int32[Tensor, "*c"]) -> None:
        """Takes the ends of a grid, or the start."""
        if self.start is not None:
            self.alpha.fill_(self.start)
            if not self.spec.symmetric:
                self.low_alpha.fill_(-self.start)
        elif self.spec.symmetric:
            self.alpha.copy_(scale * ((self.qmax - self.qmin) / 2 if self.qmin < 0 else self.qmax))
        else:
            self.alpha.copy_((self.qmax - zero_point) * scale)
            self.low_alpha.copy_((self.qmin - zero_point) * scale)

    def quantize(self, x: Tensor) -> Tensor:
        """The nearest values of the grid, whose own ends clip, so that an engine needs no clip beside it."""
        low = None if self.spec.symmetric else self.low_alpha
        return _Clipped.apply(x, self.alpha, low, *self._grid(), self.qmin, self.qmax)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _grid(self) -> tuple[Tensor, Tensor]:
        low = torch.zeros_like(self.alpha) if self.spec.symmetric else self.low_alpha
        return grid_of_range(
            low, self.alpha, self.qmin, self.qmax, symmetric=self.spec.symmetric, power_of_two=self.spec.pot_scale
        )


class _Clipped(torch.autograd.Function):
    """Quantises x; each end gets the gradient of what lies beyond it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        alpha: Tensor,
        low: Tensor | None,
        scale: Tensor,
        zero_point: Tensor,
        qmin: int,
        qmax: int,
    ) -> Tensor:
        ctx.save_for_backward(x, alpha, (qmin - zero_point - 0.5) * scale if low is None else low)
        ctx.learns_low = low is not None
        return fake_quantize(x, scale, zero_point, qmin, qmax)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, low = ctx.saved_tensors
        of_x, of_low, of_alpha = clip_gradients(x, gradients[0], low, alpha)
        return of_x, of_alpha, of_low if ctx.learns_low else None, None, None, None, None


class BoundedWeight(Quantizer):
    """DoReFa's weights: w -> tanh(w) / (max|tanh(w)| + 1e-5), on a grid that covers all of it.

    Args:
        spec: the grid.
        role: only `weight`.
        keeps_scale: multiply by max|w|, without a gradient. Without it a batch normalisation that is folded into the
            weight feeds its statistics back into themselves, because the map forgets the weight's scale.
    """

    floor: Tensor

    def __init__(self, spec: QuantSpec, role: Role, *, keeps_scale: bool = True) -> None:
        super().__init__(spec, role)
        self.keeps_scale = keeps_scale

    def allocate(self, shape: tuple[int, ...]) -> None:
        """Makes room for the grid and for the least step size that was set."""
        super().allocate(shape)
        self.register_buffer("floor", torch.full(shape, LEAST_SCALE), persistent=False)

    @torch.no_grad()
    def set_grid(self, scale: Float32[Tensor, "*c"], zero_point: Int32[Tensor, "*c"]) -> None:
        """Takes step sizes below which those that follow from the weight do not go."""
        super().set_grid(scale, zero_point)
        self.floor = scale.detach().clone()

    def take(self, observer: Observer) -> None:
        """Takes the grid of the weight that was seen; it follows the weight at every use until it is frozen."""
        self.qmin, self.qmax = self.spec.grid(signed=True)
        self.floor = torch.full_like(self.scale, LEAST_SCALE)
        self._cover(self.bounded(torch.stack(observer.extremes())))  # the map keeps order

    def quantize(self, x: Tensor) -> Tensor:
        """The bounded weight on its grid."""
        bounded = self.bounded(x)
        self._follow(bounded)
        return fake_quantize(bounded, self.scale.clone(), self.zero_point.clone(), self.qmin, self.qmax, self.axis)

    def codes(self, x: Tensor) -> Tensor:
        """The codes of the bounded weight."""
        bounded = self.bounded(x.detach())
        self._follow(bounded)
        return super().codes(bounded)

    def bounded(self, x: Tensor) -> Tensor:
        """tanh(w) over its greatest magnitude; the gradient passes through that as well."""
        t = torch.tanh(x)
        bounded = t / (t.abs().max() + 1e-5)
        return bounded * x.detach().abs().max() if self.keeps_scale else bounded

    def _follow(self, bounded: Tensor) -> None:
        if self.state == "frozen":
            return
        rows = bounded.detach().movedim(self.axis, 0).flatten(1) if self.spec.per_channel else bounded.reshape(1, -1)
        self._cover(torch.stack(torch.aminmax(rows.detach(), dim=1)))

    @torch.no_grad()
    def _cover(self, ends: Tensor) -> None:
        """Takes the grid of the extremes, its step size at least the floor."""
        low, high = (end.reshape(self.scale.shape) for end in ends)
        rule = {"symmetric": self.spec.symmetric, "power_of_two": self.spec.pot_scale}
        scale, zero_point = grid_of_range(low, high, self.qmin, self.qmax, **rule)
        if not self.spec.symmetric:
            raised = (self.qmin - (low.clamp(max=0) / self.floor).round()).clamp(self.qmin, self.qmax)
            zero_point = torch.where(scale < self.floor, raised, zero_point).to(torch.int32)
        self.scale.copy_(torch.maximum(scale, self.floor))
        self.zero_point.copy_(zero_point)


class UnitRange(Quantizer):
    """DoReFa's activations: clipped to [0, 1], or to [-1, 1] where there are negative values.

    At 8 bit the released code takes the range of the data instead, and so does this.
    """

    def take(self, observer: Observer) -> None:
        """Decides the sign, and the range at 8 bit."""
        super().take(observer)
        if self.spec.bits == 8:
            return
        low, _ = observer.extremes()
        low, high = low.new_tensor(-1.0 if low.min() < 0 else 0.0), low.new_tensor(1.0)
        self.set_grid(
            *grid_of_range(
                low, high, self.qmin, self.qmax, symmetric=self.spec.symmetric, power_of_two=self.spec.pot_scale
            )
        )
