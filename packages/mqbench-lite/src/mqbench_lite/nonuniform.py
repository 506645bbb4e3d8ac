"""Quantisers for the academic setting alone: QIL's learned interval and APoT's sums of powers of two.

Neither is a uniform grid of its input: QIL maps an interval onto [0, 1] before it rounds, APoT's levels are not
equidistant. So no engine's QuantizeLinear does what they do, and they are not exported.

References: Jung et al., QIL, arXiv:1808.05779; Li et al., APoT, arXiv:1909.13144.
"""

from __future__ import annotations

from itertools import product
from typing import Any, ClassVar

import torch
from jaxtyping import Float32, Int32
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mqbench_lite.errors import ExportError, ProfileError
from mqbench_lite.observers import Observer
from mqbench_lite.quantizers import Quantizer, Role
from mqbench_lite.ranges import LEAST_SCALE
from mqbench_lite.specs import QuantSpec


class AcademicQuantizer(Quantizer):
    """What both have in common: one grid for a tensor, and no codes."""

    exportable: ClassVar[bool] = False
    algorithm: ClassVar[str]

    def __init__(self, spec: QuantSpec, role: Role, *, observer: str = "minmax") -> None:
        if spec.per_channel or spec.pot_scale or not spec.symmetric:
            hint = "use the academic profile, or another algorithm"
            raise ProfileError(f"{self.algorithm} is for one symmetric grid per tensor, with a free step size", hint)
        super().__init__(spec, role, observer=observer)

    def codes(self, x: Tensor) -> Int32[Tensor, " ..."]:
        """Refused: there are none.

        Raises:
            ExportError: always.
        """
        raise ExportError(f"{self.algorithm} puts no uniform grid on its input of shape {tuple(x.shape)}")


class IntervalQuantizer(AcademicQuantizer):
    """QIL: |x| from c - d to c + d is mapped onto [0, 1] and rounded there; what lies outside is pruned or clipped.

    The result lies in [-1, 1]: the scale of x is lost, as in the paper, whose gamma is 1 here. The gradients of c and d
    have LSQ's gain, 1 / sqrt(N qmax): they are sums over all elements, and the rate is that of the weights.

    Attributes:
        center: c, learned; starts at half of max|x|.
        half_width: d, learned; likewise.
    """

    algorithm = "qil"

    def allocate(self, shape: tuple[int, ...]) -> None:
        """Makes room for the interval."""
        super().allocate(shape)
        self.center = nn.Parameter(torch.full(shape, 0.5))
        self.half_width = nn.Parameter(torch.full(shape, 0.5))

    @torch.no_grad()
    def take(self, observer: Observer) -> None:
        """Starts from the magnitude of what was seen."""
        low, high = observer.extremes()
        self.qmin, self.qmax = self.spec.grid(signed=bool((low < 0).any()))
        half = torch.maximum(-low, high).clamp(min=LEAST_SCALE).reshape(()) / 2
        self.center.copy_(half)
        self.half_width.copy_(half)
        self.scale.fill_(1 / self.qmax)

    def quantize(self, x: Tensor) -> Tensor:
        """The sign of x times the rounded place of |x| in the interval."""
        magnitude, sign = (x.abs(), x.sign()) if self.qmin < 0 else (x, torch.ones_like(x))
        gain = (max(x.numel(), 1) * self.qmax) ** -0.5
        center, half_width = _Gained.apply(self.center, gain), _Gained.apply(self.half_width, gain)
        width = half_width.abs().clamp(min=LEAST_SCALE)
        place = 0.5 * magnitude / width - 0.5 * center / width + 0.5
        place = torch.where(place > 1, 1, torch.where(place < 0, 0, place))
        levels = (place * self.qmax).detach().round() / self.qmax
        return (place + (levels - place).detach()) * sign


class PowersOfTwo(AcademicQuantizer):
    """APoT: levels are sums of powers of two, times a learned clip alpha; a signed grid has them on both sides of 0.

    Attributes:
        alpha: greatest magnitude, learned; starts at that of the calibrated range.
        levels: of the magnitudes, from 0 to 1.
    """

    algorithm = "apot"
    levels: Tensor

    def allocate(self, shape: tuple[int, ...]) -> None:
        """Makes room for the clip."""
        super().allocate(shape)
        self.alpha = nn.Parameter(torch.ones(shape))
        self.register_buffer("levels", torch.zeros(0), persistent=False)
        self._choose_levels()

    def take(self, observer: Observer) -> None:
        """Starts from the range that the observer found."""
        super().take(observer)
        self._choose_levels()

    @torch.no_grad()
    def set_grid(self, scale: Float32[Tensor, "*c"], zero_point: Int32[Tensor, "*c"]) -> None:
        """Takes the end of a uniform grid as the clip."""
        super().set_grid(scale, zero_point)
        self.alpha.copy_(scale * ((self.qmax - self.qmin) / 2 if self.qmin < 0 else self.qmax))

    def set_extra_state(self, state: Any) -> None:
        """Takes over the saved sign, which decides the levels."""
        super().set_extra_state(state)
        self._choose_levels()

    def quantize(self, x: Tensor) -> Tensor:
        """The nearest level, times alpha."""
        alpha = self.alpha.abs().clamp(min=LEAST_SCALE)
        return _Projected.apply(x, alpha, self.levels, self.qmin < 0)  # type: ignore[no-any-return]

    def _choose_levels(self) -> None:
        width = self.spec.bits - self.spec.reduce_range
        self.levels = additive_powers(width - 1 if self.qmin < 0 else width).to(self.alpha.device)


def additive_powers(bits: int) -> Float32[Tensor, " n"]:
    """The 2^bits levels of magnitudes, from 0 to 1.

    A term of two bits is 0 or one of three powers of two, one term of one bit is 0 or a single power, and no power is
    used twice: with terms of two bits alone the powers are dealt out in turn, and a term of one bit takes its own after
    two rounds.

    Args:
        bits: of a magnitude, 1 to 8.

    Reference: APoT, eq. (5), with the base 2 of its released code.
    """
    if bits == 1:
        return torch.tensor([0.0, 1.0])
    pairs, single = divmod(bits, 2)
    terms: list[list[float]] = [[0.0] for _ in range(pairs + single)]
    exponent = 0
    for turn in range(3):
        takers = range(pairs) if turn < 2 or not single else (pairs, *range(pairs))
        for term in takers:
            exponent += 1
            terms[term].append(2.0**-exponent)
    sums = torch.tensor(sorted({sum(choice) for choice in product(*terms)}), dtype=torch.float64)
    return (sums / sums.max()).float()


class _Gained(torch.autograd.Function):
    """The value itself, with a gradient times a gain."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gain: float) -> Tensor:
        ctx.gain = gain
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] * ctx.gain, None


class _Projected(torch.autograd.Function):
    """Rounds x / alpha to the nearest level; alpha's slope is level - x / alpha within the range and +-1 beyond it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, levels: Tensor, signed: bool) -> Tensor:
        place = x / alpha
        inside = (place <= 1) & (place >= (-1 if signed else 0))
        magnitude = place.abs() if signed else place.clamp(min=0)
        upper = torch.bucketize(magnitude, (levels[1:] + levels[:-1]) / 2)
        level = levels[upper] * (place.sign() if signed else 1)
        ctx.save_for_backward(inside, torch.where(inside, level - place, level))
        return level * alpha

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,), (inside, by_alpha) = gradients, ctx.saved_tensors
        return torch.where(inside, upstream, 0), (by_alpha * upstream).sum(), None, None
