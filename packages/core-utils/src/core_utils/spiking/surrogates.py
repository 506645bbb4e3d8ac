"""Surrogate derivatives: what stands for ds/du of a spike, as a function of the distance d = u - threshold.

Every one has area 1 over d, as the step it replaces rises by 1.
"""
# ruff: noqa: N801 -- functions with parameters, named and read as such

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from core_utils.errors import UserError

Surrogate = Callable[[Tensor], Tensor]
"""ds/du of the distance d = u - threshold, elementwise; the parameters are Python floats, never tensors."""


@dataclass(frozen=True)
class triangle:
    """max(0, gamma - |d|) / gamma^2: peak 1/gamma, zero from |d| = gamma on.

    Args:
        gamma: half width of the base, in units of the membrane potential; positive.

    Reference: Deng et al., "Temporal Efficient Training" (arXiv 2202.11946).
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("gamma", self.gamma)

    def __call__(self, distance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """ds/du at every distance."""
        return distance.abs().neg_().add_(self.gamma).clamp_(min=0.0).mul_(1 / self.gamma**2)


@dataclass(frozen=True)
class rectangle:
    """1 / width where |d| < width / 2, else 0.

    Args:
        width: of the window, in units of the membrane potential; positive.

    Reference: Li et al., "Neuromorphic Data Augmentation" (arXiv 2203.06145), released code.
    """

    width: float = 1.0

    def __post_init__(self) -> None:
        _require_positive("width", self.width)

    def __call__(self, distance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """ds/du at every distance."""
        return distance.abs().lt_(self.width / 2).mul_(1 / self.width)


@dataclass(frozen=True)
class atan:
    """(alpha / 2) / (1 + (pi alpha d / 2)^2): peak alpha / 2.

    Args:
        alpha: sharpness, per unit of the membrane potential; positive. As spikingjelly's `ATan`.
    """

    alpha: float = 2.0

    def __post_init__(self) -> None:
        _require_positive("alpha", self.alpha)

    def __call__(self, distance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """ds/du at every distance."""
        return distance.mul(math.pi / 2 * self.alpha).square_().add_(1).reciprocal_().mul_(self.alpha / 2)


@dataclass(frozen=True)
class sigmoid:
    """alpha * p * (1 - p) with p = 1 / (1 + exp(-alpha d)): peak alpha / 4.

    Args:
        alpha: sharpness, per unit of the membrane potential; positive. As spikingjelly's `Sigmoid`.
    """

    alpha: float = 4.0

    def __post_init__(self) -> None:
        _require_positive("alpha", self.alpha)

    def __call__(self, distance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """ds/du at every distance."""
        p = torch.sigmoid(self.alpha * distance)
        return (1 - p).mul_(p).mul_(self.alpha)


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{name} must be positive, got {value}")
