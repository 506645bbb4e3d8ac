"""Learnable thresholds: what a weight is compared with, and what is left of it.

q = m(W) - tau is a weight's margin, and the mask is M = 1[q > 0]. With a mask of its own for each kernel, m = |W|; with
one that all K kernels share, m = sqrt(mean_k W_k^2). Three parameterisations:

- raw: tau itself (Dynamic Sparse Training);
- scaled: m is divided by sigma, the root mean square of W at the start, so that tau and its gradient have the same scale
  in every layer;
- sigmoid: the threshold is sigmoid(tau), and kept weights shrink by it (STR).

Margins are computed in float32 at least, from the parameters themselves: no operation here is one that autocast lowers.

References: Liu et al., DST, ICLR 2020, arXiv:2005.06870; Kusupati et al., STR, ICML 2020, arXiv:2002.03231.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dynsparse.errors import check_choice
from dynsparse.surrogates import SURROGATES, step

GRANULARITIES = ("layer", "kernel", "filter")
SHARINGS = ("independent", "shared")


class Threshold(nn.Module):
    """Raw thresholds: M = 1[|W| > tau].

    Attributes:
        tau: [1], [K] or [K, C_o] by granularity; [1], [1] or [C_o] for a shared mask.
    """

    default_init = 0.0
    """Prunes nothing but exact zeros."""

    def __init__(
        self,
        weight: Float[Tensor, "k c_o *rest"],
        *,
        granularity: str = "kernel",
        sharing: str = "independent",
        surrogate: str = "long_tail",
        init: float | int | None = None,
    ) -> None:
        """Thresholds for a weight.

        Args:
            weight: static kernels [K, C_o, C_i/G, *k].
            granularity: one threshold a layer, a kernel or a filter.
            sharing: masks of each kernel's own, or one for all.
            surrogate: derivative of the step.
            init: start value of tau; by default such that nothing is pruned.

        Raises:
            ConfigError: no such granularity, sharing or surrogate.
        """
        super().__init__()
        self.granularity = check_choice("granularity", granularity, GRANULARITIES)
        self.sharing = check_choice("mask_sharing", sharing, SHARINGS)
        self.surrogate = check_choice("surrogate", surrogate, SURROGATES)
        self.init = self.default_init if init is None else float(init)
        self.tau = nn.Parameter(weight.new_full(self._groups(weight.shape), self.init))

    def forward(self, weight: Float[Tensor, "k c_o *rest"]) -> Float[Tensor, " ..."]:
        """Margins q in float32 at least: [K, C_o, C_i/G, *k], without K for a shared mask."""
        return self.magnitude(weight) - self.level(weight.dim())

    def gate(self, weight: Float[Tensor, "k c_o *rest"]) -> Float[Tensor, "k c_o *rest"]:
        """The effective kernels M W, differentiable in W and tau by the surrogate."""
        return (step(self(weight), self.surrogate) * weight).to(weight.dtype)

    def mask(self, weight: Float[Tensor, "k c_o *rest"]) -> Float[Tensor, " ..."]:
        """The mask as floats, shaped like the margins, differentiable by the surrogate."""
        return step(self(weight), self.surrogate)

    def magnitude(self, weight: Float[Tensor, "k c_o *rest"]) -> Float[Tensor, " ..."]:
        """m(W), which tau is compared with."""
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return wide.abs() if self.sharing == "independent" else torch.linalg.vector_norm(wide, dim=0) / len(wide) ** 0.5

    def level(self, dims: int) -> Float[Tensor, " ..."]:
        """Thresholds in a shape that meets magnitudes of a weight of so many axes."""
        tau = self.value()
        axes = dims if self.sharing == "independent" else dims - 1
        return tau.reshape(*tau.shape, *[1] * (axes - tau.dim()))

    def value(self) -> Float[Tensor, " ..."]:
        """Thresholds in units of the magnitudes."""
        return self.tau.to(torch.promote_types(self.tau.dtype, torch.float32))

    @torch.no_grad()
    def shift(self, delta: float | int) -> None:
        """Raises all thresholds by delta, in units of the magnitudes."""
        self.tau.add_(delta)

    @torch.no_grad()
    def set(self, level: float | int) -> None:
        """Sets all thresholds, in units of the magnitudes."""
        self.tau.zero_()
        self.shift(level - self.value().flatten()[0].item())

    @torch.no_grad()
    def clamp(self, highest: Float[Tensor, ""]) -> None:
        """Keeps thresholds between 0 and the greatest magnitude."""
        self.tau.clamp_(min=0).clamp_(max=highest)

    @torch.no_grad()
    def fold(self, weight: Float[Tensor, "k c_o *rest"], mask: Bool[Tensor, " ..."]) -> Float[Tensor, "k c_o *rest"]:
        """The weights that a frozen mask leaves: exactly 0 outside it."""
        return weight * mask

    def rescale(self, weight: Float[Tensor, "k c_o *rest"]) -> None:
        """Takes new start values of the weight into account."""

    def extra_repr(self) -> str:
        """Granularity, sharing and surrogate."""
        return f"granularity={self.granularity}, sharing={self.sharing}, surrogate={self.surrogate}"

    def _groups(self, shape: Sequence[int]) -> tuple[int, ...]:
        shared = self.sharing == "shared"
        sizes = {"layer": (1,), "kernel": (1,) if shared else (shape[0],), "filter": tuple(shape[shared:2])}
        return sizes[self.granularity]


class ScaledThreshold(Threshold):
    """Thresholds in units of the weight's start values: M = 1[|W| / sigma > tau].

    Attributes:
        sigma: root mean square of the weight at the start, a saved buffer [].
    """

    sigma: Tensor

    def __init__(self, weight: Float[Tensor, "k c_o *rest"], **settings: str | float | int | None) -> None:
        """As `Threshold`."""
        super().__init__(weight, **settings)  # type: ignore[arg-type]
        self.register_buffer("sigma", weight.new_ones((), dtype=self.value().dtype))
        self.rescale(weight)

    def magnitude(self, weight: Float[Tensor, "k c_o *rest"]) -> Float[Tensor, " ..."]:
        """m(W) / sigma."""
        return super().magnitude(weight) / self.sigma

    @torch.no_grad()
    def rescale(self, weight: Float[Tensor, "k c_o *rest"]) -> None:
        """Measures sigma; 1 if all weights are 0."""
        sigma = weight.to(self.sigma.dtype).square().mean().sqrt()
        self.sigma.copy_(torch.where(sigma > 0, sigma, 1))


class SigmoidThreshold(Threshold):
    """Soft thresholding: sign(W) relu(|W| - sigmoid(tau)).

    With a shared mask, all kernels of a kept position shrink by the same factor, so that m(W) falls by the threshold.
    """

    default_init = -7.0
    """sigmoid(-7) = 9e-4: next to nothing is pruned, and tau still has a gradient."""

    def gate(self, weight: Float[Tensor, "k c_o *rest"]) -> Float[Tensor, "k c_o *rest"]:
        """The shrunk kernels, differentiable as they stand; no surrogate."""
        return self._shrink(weight, self(weight)).to(weight.dtype)

    def value(self) -> Float[Tensor, " ..."]:
        """sigmoid(tau)."""
        return torch.sigmoid(super().value())

    @torch.no_grad()
    def shift(self, delta: float | int) -> None:
        """Raises all thresholds by delta, within (0, 1)."""
        tiny = torch.finfo(self.tau.dtype).tiny
        self.tau.copy_(torch.logit((self.value() + delta).clamp(tiny, 1 - 1e-7)))

    @torch.no_grad()
    def clamp(self, highest: Float[Tensor, ""]) -> None:
        """A sigmoid is above 0 as it is; keeps it below the greatest magnitude."""
        self.tau.clamp_(max=torch.logit(highest.clamp(max=1 - 1e-7)))

    @torch.no_grad()
    def fold(self, weight: Float[Tensor, "k c_o *rest"], mask: Bool[Tensor, " ..."]) -> Float[Tensor, "k c_o *rest"]:
        """The shrunk weights, so that nothing changes when the threshold goes."""
        return self.gate(weight) * mask

    def _shrink(self, weight: Tensor, margin: Tensor) -> Tensor:
        if self.sharing == "independent":
            return weight.sign() * margin.relu()
        return weight * (margin.relu() / self.magnitude(weight).clamp(min=torch.finfo(margin.dtype).tiny))


THRESHOLDS: dict[str, type[Threshold]] = {"raw": Threshold, "scaled": ScaledThreshold, "sigmoid": SigmoidThreshold}
"""Parameterisations by name."""
