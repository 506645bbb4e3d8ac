"""The shrunken range whose grid has the least error, from a histogram instead of the values.

The candidates are the full range times 1/steps, 2/steps ... 1. One pass counts the values in bins whose width is a power
of two, so that a histogram that must grow merges its bins exactly; each candidate is then scored on the bins. A short row
is scored on its values. The first pass costs what one candidate costs the naive search, and the rest hardly anything.

Reference: MQBench, arXiv:2111.03759, section 2 (MSE observer).
"""

from __future__ import annotations

import functools
import math
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from mqbench_lite.ranges import grid_of_range
from mqbench_lite.specs import QuantSpec

BINS = 8192
"""Bins on either side of 0, of which data holds at least half on one side. A quarter of them misses the best candidate
by two in one search of ten at 8 bit, and takes as long: counting is what costs."""
FEW = 4096
"""Values that are scored themselves."""
STEPS = 100


class Histogram:
    """Counts of a stream of values in bins of one power of two, of which one begins at 0.

    Attributes:
        counts: int64 [2 BINS].
        exponent: a bin is 2^exponent wide; None before the first value that is not 0.
        few: the values themselves while they are at most `FEW`, else None.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(2 * BINS, np.int64)
        self.exponent: int | None = None
        self.few: Float32[np.ndarray, " n"] | None = np.empty(0, np.float32)

    def add(self, values: Float32[Tensor, " n"], magnitude: float) -> None:
        """Counts values.

        Args:
            values: finite.
            magnitude: the greatest of their absolute values.
        """
        self._widen(_exponent_for(magnitude))
        values = values.detach().cpu()
        _kernels().count_in_bins(values, self.counts, 2.0**-self.exponent if self.exponent is not None else 1.0)
        if self.few is not None:
            fits = len(self.few) + len(values) <= FEW
            self.few = np.concatenate([self.few, values.numpy()]) if fits else None

    def merge(self, counts: np.ndarray, exponent: int) -> None:
        """Adds the counts of another histogram, none of whose values is kept."""
        self._widen(exponent)
        other = Histogram()
        other.counts, other.exponent = counts, exponent
        other._widen(self.exponent)
        self.counts, self.few = self.counts + other.counts, None

    def points(self) -> tuple[Float32[np.ndarray, " k"], Float32[np.ndarray, " w"]]:
        """What to score on: values without weights, or the middles of the bins that hold any with their counts."""
        if self.few is not None:
            return self.few, np.empty(0, np.float32)
        held = np.flatnonzero(self.counts)
        middles = (held - BINS + 0.5) * 2.0 ** (self.exponent or 0)
        return middles.astype(np.float32), self.counts[held].astype(np.float32)

    def _widen(self, exponent: int | None) -> None:
        """Makes bins wide enough; each takes in its neighbour, once for every power of two."""
        if exponent is None or (self.exponent is not None and exponent <= self.exponent):
            return
        if self.exponent is not None:
            for _ in range(min(exponent - self.exponent, int(math.log2(BINS)) + 1)):
                halves, quarter = self.counts.reshape(-1, 2).sum(1), BINS // 2
                self.counts = np.pad(halves, quarter)
        self.exponent = exponent


def search_rows(
    rows: Float32[Tensor, "c n"], spec: QuantSpec, qmin: int, qmax: int, *, p: float = 2.0, steps: int = STEPS
) -> tuple[Float32[Tensor, " c"], Int32[Tensor, " c"]]:
    """For every row the step size and zero point of least mean |x_hat - x|^p.

    Args:
        rows: finite values.
        spec: whether grids are symmetric and step sizes powers of two.
        qmin: least code.
        qmax: greatest code.
        p: exponent of the error.
        steps: number of candidates.
    """
    rows = rows.detach().float().cpu().contiguous()
    low, high = torch.aminmax(rows, dim=1)
    if rows.shape[1] <= FEW:
        weights = np.empty((len(rows), 0), np.float32)
        return _best(rows.numpy(), weights, low, high, spec, qmin, qmax, p, steps)
    each = zip(rows, low, high, strict=True)
    found = [_search_long(row, least, most, spec, qmin, qmax, p, steps) for row, least, most in each]
    return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])


def search_histogram(
    histogram: Histogram,
    low: Float32[Tensor, " 1"],
    high: Float32[Tensor, " 1"],
    spec: QuantSpec,
    qmin: int,
    qmax: int,
    *,
    p: float = 2.0,
    steps: int = STEPS,
) -> tuple[Float32[Tensor, " 1"], Int32[Tensor, " 1"]]:
    """The same for values that were counted; `low` and `high` are the least and the greatest of them."""
    points, weights = histogram.points()
    return _best(points[None], weights[None], low, high, spec, qmin, qmax, p, steps)


def candidates(
    low: Float32[Tensor, " c"], high: Float32[Tensor, " c"], spec: QuantSpec, qmin: int, qmax: int, steps: int = STEPS
) -> tuple[Float32[Tensor, "c j"], Int32[Tensor, "c j"]]:
    """Step sizes and zero points of the shrunken ranges, narrow ones first."""
    share = torch.arange(1, steps + 1, dtype=torch.float32) / steps
    ends = low.clamp(max=0)[:, None] * share, high.clamp(min=0)[:, None] * share
    return grid_of_range(*ends, qmin, qmax, symmetric=spec.symmetric, power_of_two=spec.pot_scale)


def _search_long(
    row: Tensor, low: Tensor, high: Tensor, spec: QuantSpec, qmin: int, qmax: int, p: float, steps: int
) -> tuple[Tensor, Tensor]:
    histogram = Histogram()
    histogram.add(row, max(-low.item(), high.item()))
    return search_histogram(histogram, low[None], high[None], spec, qmin, qmax, p=p, steps=steps)


def _best(
    points: np.ndarray,
    weights: np.ndarray,
    low: Tensor,
    high: Tensor,
    spec: QuantSpec,
    qmin: int,
    qmax: int,
    p: float,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """The widest of the best candidates of each row."""
    scales, zeros = candidates(low, high, spec, qmin, qmax, steps)
    points, weights = np.ascontiguousarray(points), np.ascontiguousarray(weights)
    errors = _kernels().candidate_errors(points, weights, scales.numpy(), zeros.float().numpy(), qmin, qmax, p)
    best = steps - 1 - torch.from_numpy(errors[:, ::-1].argmin(1))
    return scales.gather(1, best[:, None])[:, 0], zeros.gather(1, best[:, None])[:, 0]


def _exponent_for(magnitude: float) -> int | None:
    """The least width of bins whose range holds the magnitude; None for 0."""
    return None if magnitude == 0 else math.frexp(magnitude)[1] - int(math.log2(BINS))


@functools.cache
def _kernels() -> ModuleType:
    """Loads numba when the first range is searched."""
    from mqbench_lite import search_kernels

    return search_kernels
