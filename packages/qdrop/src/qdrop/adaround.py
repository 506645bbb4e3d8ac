"""AdaRound: whether each weight is rounded down or up is learned, through a variable that ends at 0 or 1.

h(alpha) = clamp(1.2 sigmoid(alpha) - 0.1, 0, 1) is the share of the step that is added to floor(w / s); the regulariser
1 - |2 h - 1|^beta pushes it to an end.

Reference: Nagel et al., "Up or Down?", arXiv:2004.10568, eqs. (21) to (24).
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from qdrop.fake_quant import widest

GAMMA, ZETA = -0.1, 1.1
"""How far the sigmoid is stretched beyond 0 and 1, so that h reaches them at a finite alpha."""

UNDECIDED = (0.05, 0.95)
"""Values of h that count as not converged between these ends."""


class AdaRound:
    """The learned rounding of one weight, in float32 whatever the weight's precision.

    Starts at h = the fractional part of w / s, where the soft weight is w itself, clipped to the grid.

    Args:
        weight: floating-point weight w.
        scale: step sizes s, one per channel, or one.
        zero_point: codes of 0, likewise.
        qmin: least code n.
        qmax: greatest code m.
        axis: axis of the channels.

    Attributes:
        alpha: rounding variables, a leaf that requires a gradient, of the weight's shape.
    """

    def __init__(
        self,
        weight: Float[Tensor, "*shape"],
        scale: Float[Tensor, "*channels"],
        zero_point: Int[Tensor, "*channels"],
        qmin: int,
        qmax: int,
        axis: int = 0,
    ) -> None:
        shape = [1] * weight.dim()
        if scale.dim():
            shape[axis] = -1
        weight = weight.detach().float().contiguous()
        self.scale = scale.detach().float().reshape(shape)
        self.zero_point = zero_point.detach().reshape(shape).to(weight)
        self.qmin, self.qmax = qmin, qmax
        steps = weight / self.scale
        self.base = steps.floor().add_(self.zero_point)
        """Code of the weight rounded down."""
        fraction = steps - steps.floor()
        self.alpha = -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1)
        self.alpha.requires_grad_()

    def soft(self) -> Float[Tensor, "*shape"]:
        """Weight with each element h(alpha) of a step above the value below it; differentiable."""
        return self.soft_and_regulariser(None)[0]

    def regulariser(self, beta: float) -> Float[Tensor, ""]:
        """Sum over the weights of 1 - |2 h - 1|^beta; 0 where every h is 0 or 1.

        Args:
            beta: exponent; the greater, the less it is felt by an h far from both ends.
        """
        return self._soft_and_total(beta)[1]

    def soft_and_regulariser(self, beta: float | None) -> tuple[Float[Tensor, "*shape"], Float[Tensor, ""] | None]:
        """Both from one sigmoid, as the training loop needs them; without the regulariser where beta is None."""
        soft, regulariser = self._soft_and_total(beta)
        return soft, None if beta is None else regulariser

    @torch.no_grad()
    def hard(self) -> Float[Tensor, "*shape"]:
        """Weight rounded down where alpha < 0 and up elsewhere."""
        return (self._hard_codes() - self.zero_point) * self.scale

    @torch.no_grad()
    def codes(self) -> Int[Tensor, "*shape"]:
        """Codes from qmin to qmax of the hard weight."""
        return self._hard_codes().to(torch.int32)

    @torch.no_grad()
    def share_unconverged(self) -> float:
        """Share of the weights whose h lies between 0.05 and 0.95."""
        h = _rectified_sigmoid(torch.sigmoid(self.alpha))
        return ((h > UNDECIDED[0]) & (h < UNDECIDED[1])).float().mean().item()

    def _soft_and_total(self, beta: float | None) -> tuple[Tensor, Tensor]:
        """The soft weight and the regulariser, which is 0 where beta is None."""
        soft, total = _Soft.apply(self.alpha, self.base, self.scale, self.zero_point, self.qmin, self.qmax, beta)
        return soft, total

    def _hard_codes(self) -> Tensor:
        return (self.base + (self.alpha >= 0)).clamp_(self.qmin, self.qmax)


def beta_schedule(t: int, total: int, warmup: float = 0.2, start: float = 20.0, end: float = 2.0) -> float:
    """Exponent of the regulariser at iteration t: `start` during the warm-up, then linear to `end`.

    Args:
        t: iteration, from 1 to `total`.
        total: iterations in all.
        warmup: share of them in which the regulariser is left out.
        start: exponent until then.
        end: exponent at the last iteration.
    """
    first = warmup * total
    if t < first or total <= first:
        return float(start)
    return end + (start - end) * (1 - (t - first) / (total - first))


def _rectified_sigmoid(sigmoid: Tensor) -> Tensor:
    return (sigmoid * (ZETA - GAMMA) + GAMMA).clamp_(0, 1)


class _Soft(torch.autograd.Function):
    """Soft weight and regulariser. Clamped codes pass no gradient of the weight; both ends of h count as inside."""

    @staticmethod
    def forward(
        ctx: Any,
        alpha: Tensor,
        base: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        qmin: int,
        qmax: int,
        beta: float | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        sigmoid = torch.sigmoid(alpha)
        ctx.save_for_backward(sigmoid, base, scale, zero_point)
        ctx.settings = qmin, qmax, beta
        if _kernels_take(alpha, scale):
            soft, total = _kernels().soften(sigmoid, base, scale, zero_point, qmin, qmax, beta)
            return soft, alpha.new_tensor(total)
        h = _rectified_sigmoid(sigmoid)
        soft = (base + h).clamp_(qmin, qmax).sub_(zero_point).mul_(scale)
        if beta is None:
            return soft, alpha.new_zeros(())
        return soft, (1 - (2 * h - 1).abs_().pow_(beta)).sum(dtype=widest(h)).to(alpha.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        of_soft, of_regulariser = gradients
        sigmoid, base, scale, _ = ctx.saved_tensors
        qmin, qmax, beta = ctx.settings
        of_regulariser = None if beta is None else of_regulariser
        if _kernels_take(sigmoid, scale):
            weight = 0.0 if of_regulariser is None else of_regulariser.item()
            grad = _kernels().harden(sigmoid, base, scale, of_soft, qmin, qmax, beta or 1.0, weight)
            return grad, None, None, None, None, None, None
        unclamped = sigmoid * (ZETA - GAMMA) + GAMMA
        h = unclamped.clamp(0, 1)
        grad = torch.zeros_like(h)
        if of_soft is not None:
            code = base + h
            grad += torch.where((code >= qmin) & (code <= qmax), of_soft * scale, 0)
        if of_regulariser is not None:
            centred = 2 * h - 1
            grad -= of_regulariser * (2 * beta) * centred.sign() * centred.abs().pow_(beta - 1)
        slope = (ZETA - GAMMA) * sigmoid * (1 - sigmoid)
        grad = torch.where((unclamped >= 0) & (unclamped <= 1), grad * slope, 0)
        return grad, None, None, None, None, None, None


def _kernels_take(weight: Tensor, scale: Tensor) -> bool:
    """Whether the weight lies in rows of one step size each."""
    return weight.is_cpu and weight.is_contiguous() and scale.shape[1:].numel() == 1


@functools.cache
def _kernels() -> ModuleType:
    """Loads numba when the first weight asks for it."""
    from qdrop import rounding

    return rounding
