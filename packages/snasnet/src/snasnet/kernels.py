"""How differently samples spike: kernels of binary codes, summed over layers and steps, and their score.

With codes c in {0, 1}^(B x N), k_i the spikes of sample i and r_i = k_i / N its rate:

    HD_ij   = k_i + k_j - 2 (c c^T)_ij
    E_ij    = N (r_i (1 - r_j) + (1 - r_i) r_j)            the HD of independent codes of these rates
    SAHD_ij = alpha HD_ij / (E_ij + eps)
    K       = mean over layers and steps of (N - SAHD)     score = log |det K|

HD is counted in integers. N is near 1e5 where the differences between samples are near 0.5, so N and SAHD are summed
apart, SAHD as multiples of 2^-44 in 64-bit integers: no order of summation changes the result by a bit. HD / E never
exceeds 2, so 2^18 layers and steps fit.

Reference: arXiv 2201.10355; released code for alpha = 0.5 and eps = 1e-3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from core_utils.errors import UserError

EPS = 1e-3
ALPHAS = ("code", "half-n")
METRICS = ("sahd", "hd")
Metric = Callable[[Tensor], Any]
"""From codes [B, N] to their part of the kernel, [B, B]."""

_EXACT_NEURONS = 2**24
"""Sums of as many ones are exact in float32."""
_SCALE = 2.0**44
_COARSE_SCALE = 2.0**24
"""With alpha = N / 2, entries grow with N, and so does the step."""


class KernelError(UserError):
    """Codes or a kernel that cannot be scored."""


def sahd_kernel(
    codes: Shaped[Tensor, "B N"] | Shaped[np.ndarray, "B N"], alpha: float | int | str = 0.5, eps: float | int = EPS
) -> Float[np.ndarray, "B B"]:
    """N - SAHD of one layer's codes.

    Args:
        codes: spikes, 0 or 1, of any dtype, shape [B, N].
        alpha: a number; "code" for the released 0.5, or "half-n" for N / 2.
        eps: added to the expected distance.

    Returns:
        Symmetric, float64.

    Raises:
        KernelError: fewer than 2 samples, no neuron, or codes that are not binary.
    """
    spikes, gram = _gram(_binary(codes))
    neurons = codes.shape[1]
    return neurons - _alpha(alpha, neurons) * _ratio(spikes, gram, neurons, float(eps)).numpy()


def hd_kernel(codes: Shaped[Tensor, "B N"] | Shaped[np.ndarray, "B N"]) -> Float[np.ndarray, "B B"]:
    """N - HD of one layer's codes; arguments and errors as of `sahd_kernel`."""
    return codes.shape[1] - _distance(*_gram(_binary(codes))).numpy()


def logdet_score(kernel: Float[np.ndarray, "B B"]) -> tuple[float, float]:
    """Log |det K| and the sign of det K; (-inf, 0) where K is singular or not finite.

    Two equal rows make K singular whatever rounding leaves of its determinant.
    """
    if not np.isfinite(kernel).all() or len(np.unique(kernel, axis=0)) < len(kernel):
        return -math.inf, 0.0
    sign, value = np.linalg.slogdet(kernel)
    return (float(value), float(sign)) if sign != 0 and math.isfinite(value) else (-math.inf, 0.0)


@dataclass(frozen=True, eq=False)
class Part:
    """What one layer's codes of one step add to a kernel: entries, spikes of every sample, N, and pairs with E = 0."""

    entries: Shaped[Tensor, "B B"]
    spikes: Float[Tensor, " B"]
    neurons: int
    silent_pairs: int


class KernelAccumulator:
    """A kernel that grows layer by layer and step by step; parts made apart merge to the same bits.

    Args:
        alpha: as of `sahd_kernel`.
        metric: "sahd", "hd", or a function of codes [B, N] that gives its part of the kernel, [B, B]; only sums of the
            latter depend on their order.

    Attributes:
        updates: layers and steps so far, M.
        silent_pairs: of all pairs of samples in all updates, how many had E = 0: both without a spike, or both with all.

    Raises:
        KernelError: an unknown alpha or metric.
    """

    def __init__(self, alpha: float | int | str = 0.5, metric: str | Metric = "sahd") -> None:
        if isinstance(metric, str) and metric not in METRICS:
            raise KernelError(f"metric must be one of {', '.join(METRICS)} or a function, got {metric!r}")
        _alpha(alpha, 1)
        self.alpha, self.metric = alpha, metric
        self.updates, self.silent_pairs, self._neurons = 0, 0, 0
        self._sum: Tensor | None = None

    def update(self, codes: Shaped[Tensor, "B N"], *, checked: bool = False) -> Int[Tensor, " B"]:
        """Adds one layer's codes of one step.

        Args:
            codes: spikes, 0 or 1.
            checked: the caller knows that they are.

        Returns:
            Spikes of every sample.

        Raises:
            KernelError: codes that are not binary, or of another number of samples than before.
        """
        part = self.part(codes, checked=checked)
        self.add(part)
        return part.spikes.long()

    def part(self, codes: Shaped[Tensor, "B N"], *, checked: bool = False) -> Part:
        """What an update with these codes adds; arguments and errors as of `update`."""
        return self._part(codes if checked else _binary(codes))

    def add(self, part: Part) -> None:
        """Adds a part, as often as other layers have the same codes.

        Raises:
            KernelError: another number of samples than before.
        """
        if self._sum is not None and self._sum.shape != part.entries.shape:
            raise KernelError(f"the kernel has {len(self._sum)} samples, the codes {len(part.entries)}")
        self._sum = part.entries.clone() if self._sum is None else self._sum.add_(part.entries)
        self._neurons += part.neurons
        self.updates += 1
        self.silent_pairs += part.silent_pairs

    def _part(self, codes: Float[Tensor, "B N"]) -> Part:
        neurons = codes.shape[1]
        spikes, gram = _gram(codes)
        if callable(self.metric):
            entries = torch.as_tensor(self.metric(codes)).cpu().double()
        elif self.metric == "hd":
            entries = _distance(spikes, gram).long()
        else:
            scale = _alpha(self.alpha, neurons) * self._scale
            entries = _ratio(spikes, gram, neurons, EPS).mul_(scale).round_().long()
        counts = [int((spikes == equal).sum()) for equal in (0, neurons)]
        return Part(entries, spikes, neurons, sum(count * (count - 1) // 2 for count in counts))

    def merge(self, other: KernelAccumulator) -> KernelAccumulator:
        """Adds what another accumulator of the same samples has seen, and returns this one.

        Raises:
            KernelError: another alpha, metric or number of samples.
        """
        if (self.alpha, self.metric) != (other.alpha, other.metric):
            raise KernelError("only accumulators of the same alpha and metric merge")
        if other._sum is None:
            return self
        if self._sum is not None and self._sum.shape != other._sum.shape:
            raise KernelError(f"the kernels have {len(self._sum)} and {len(other._sum)} samples")
        self._sum = other._sum.clone() if self._sum is None else self._sum.add_(other._sum)
        self.updates += other.updates
        self.silent_pairs += other.silent_pairs
        self._neurons += other._neurons
        return self

    @property
    def kernel(self) -> Float[np.ndarray, "B B"]:
        """K, float64."""
        if self._sum is None:
            raise KernelError("the kernel has seen no codes")
        if callable(self.metric):
            return self._sum.numpy() / self.updates
        scale = 1.0 if self.metric == "hd" else self._scale
        return (self._neurons - self._sum.numpy() / scale) / self.updates

    @property
    def dead_fraction(self) -> float:
        """Share of pairs, over layers and steps, in which nothing can be told apart."""
        if self._sum is None:
            return 0.0
        samples = len(self._sum)
        return self.silent_pairs / max(1, self.updates * (samples * (samples - 1) // 2))

    def score(self) -> tuple[float, float]:
        """Log |det K| and the sign of det K, as `logdet_score`."""
        return logdet_score(self.kernel)

    @property
    def _scale(self) -> float:
        return _COARSE_SCALE if self.alpha == "half-n" else _SCALE


def _binary(codes: Any) -> Tensor:
    tensor = torch.as_tensor(codes)
    if tensor.ndim != 2 or tensor.shape[0] < 2 or tensor.shape[1] < 1:
        raise KernelError(f"codes have shape [B, N] with B >= 2 and N >= 1, got {list(tensor.shape)}")
    if tensor.dtype != torch.bool and not ((tensor == 0) | (tensor == 1)).all():
        raise KernelError("codes are spikes, 0 or 1; these hold other values")
    return tensor.float()


def _gram(codes: Float[Tensor, "B N"]) -> tuple[Float[Tensor, " B"], Float[Tensor, "B B"]]:
    """Spikes of every sample, and spikes that two have in common: integers in float64, on the CPU."""
    parts = [(part @ part.T).cpu().double() for part in codes.split(_EXACT_NEURONS, dim=1)]
    common = sum(parts[1:], parts[0])
    return common.diagonal().clone(), common


def _distance(spikes: Float[Tensor, " B"], gram: Float[Tensor, "B B"]) -> Float[Tensor, "B B"]:
    return (spikes[:, None] + spikes[None, :]).sub_(gram, alpha=2)


def _ratio(spikes: Float[Tensor, " B"], gram: Float[Tensor, "B B"], neurons: int, eps: float) -> Float[Tensor, "B B"]:
    """HD / (E + eps); N E is an integer, exact below 2^53."""
    sums = spikes[:, None] + spikes[None, :]
    expected = (neurons * sums).sub_(torch.outer(spikes, spikes), alpha=2).div_(neurons).add_(eps)
    return sums.sub_(gram, alpha=2).div_(expected)


def _alpha(alpha: float | int | str, neurons: int) -> float:
    if isinstance(alpha, str):
        if alpha not in ALPHAS:
            raise KernelError(f"alpha must be a number or one of {', '.join(ALPHAS)}, got {alpha!r}")
        return 0.5 if alpha == "code" else 0.5 * neurons
    if not 0 < alpha <= 16:
        raise KernelError(f"alpha must lie in (0, 16], got {alpha}")
    return float(alpha)
