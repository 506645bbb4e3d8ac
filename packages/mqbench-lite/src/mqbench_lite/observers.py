"""What is kept of the tensors that pass while ranges are looked for, and the range that follows.

Every observer takes all batches into account: either their extremes, sums or counts, or an exponential average of what
each batch gave (`ema_...`). Under torchrun the processes join what they saw.

References: MQBench, arXiv:2111.03759, section 2; DSQ, arXiv:1908.05033; LSQ, arXiv:1902.08153; LSQ+, arXiv:2004.09576.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor, distributed

from mqbench_lite.errors import MQBenchError
from mqbench_lite.range_search import STEPS, Histogram, search_histogram, search_rows
from mqbench_lite.ranges import LEAST_SCALE, grid_of_range, nearest_power_of_two
from mqbench_lite.specs import QuantSpec

MOMENTUM = 0.9
"""Weight of the batches before in an exponential average."""

Ends = tuple[Tensor, Tensor]


class Batch(NamedTuple):
    """One tensor that passed: as it is, as rows of channels [C, n], and its extremes [C]."""

    x: Tensor
    rows: Tensor
    low: Tensor
    high: Tensor


class BadValuesError(ValueError):
    """Values that have no range; whoever knows the tensor's name says which."""


def make_observer(name: str, spec: QuantSpec, axis: int | None = None) -> Observer:
    """An observer by name.

    Args:
        name: a key of `OBSERVERS`.
        spec: the grid that the range is for.
        axis: axis of the channels; None for one range.

    Raises:
        MQBenchError: no observer of that name.
    """
    if name not in OBSERVERS:
        raise MQBenchError(f"there is no observer {name!r}", f"use one of {', '.join(OBSERVERS)}")
    return OBSERVERS[name](spec, axis)


class Observer:
    """Keeps the extremes of all values; the others also keep what they need beside.

    Attributes:
        low: least values so far, [C], C = 1 without channels; None before the first batch.
        high: greatest values so far.
    """

    def __init__(self, spec: QuantSpec, axis: int | None = None) -> None:
        self.spec, self.axis = spec, axis
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    @torch.no_grad()
    def update(self, x: Float[Tensor, " ..."]) -> None:
        """Takes a batch into account.

        Raises:
            BadValuesError: it is empty, or holds NaN or infinite values.
        """
        x = x.detach().float()
        rows = x.reshape(1, -1) if self.axis is None else x.movedim(self.axis, 0).flatten(1)
        if rows.numel() == 0:
            raise BadValuesError("the tensor is empty")
        low, high = torch.aminmax(rows, dim=1)
        if not (low.isfinite() & high.isfinite()).all():
            raise BadValuesError("the tensor holds NaN or infinite values")
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        self.collect(Batch(x, rows, low, high))

    @torch.no_grad()
    def grid(self, qmin: int, qmax: int) -> tuple[Float32[Tensor, " c"], Int32[Tensor, " c"]]:
        """Step sizes and zero points for codes from `qmin` to `qmax`."""
        low, high = self.ends()
        return grid_of_range(low, high, qmin, qmax, symmetric=self.spec.symmetric, power_of_two=self.spec.pot_scale)

    def collect(self, batch: Batch) -> None:
        """Keeps of a batch what the range needs beside the extremes."""

    def ends(self) -> Ends:
        """Ends of the range after all batches."""
        return self.extremes()

    def extremes(self) -> Ends:
        """The least and the greatest of all values.

        Raises:
            BadValuesError: no tensor passed.
        """
        if self.low is None or self.high is None:
            raise BadValuesError("no tensor passed here")
        return self.low, self.high

    def join(self) -> None:
        """Joins what the processes of a torchrun group saw; alone it does nothing."""
        low, high = self.extremes()
        ends = _over_ranks(torch.stack([-low, high]), "max")
        self.low, self.high = -ends[0], ends[1]


class Averaged(Observer):
    """An exponential average of each batch's range; by default that of its extremes."""

    average: Tensor | None = None

    def collect(self, batch: Batch) -> None:
        """Averages the ends that the batch has."""
        ends = torch.stack(self.range_of_batch(batch))
        self.average = ends if self.average is None else MOMENTUM * self.average + (1 - MOMENTUM) * ends

    def ends(self) -> Ends:
        """The average."""
        self.extremes()
        assert self.average is not None  # noqa: S101 -- collected with the extremes
        return self.average[0], self.average[1]

    def range_of_batch(self, batch: Batch) -> Ends:
        """Ends for one batch."""
        return batch.low, batch.high

    def join(self) -> None:
        """The mean of the processes' averages."""
        super().join()
        self.average = _over_ranks(torch.stack(self.ends()), "mean")


class AveragedQuantile(Averaged):
    """Ends beyond which, by a histogram of |x|, one value in a hundred thousand lies."""

    threshold, bins = 0.99999, 2048

    def range_of_batch(self, batch: Batch) -> Ends:
        """The extremes, limited to the quantile of the magnitudes."""
        tops = torch.maximum(-batch.low, batch.high)
        limits = torch.stack([self._limit(row, top) for row, top in zip(batch.rows, tops, strict=True)])
        return torch.maximum(batch.low, -limits), torch.minimum(batch.high, limits)

    def _limit(self, row: Tensor, top: Tensor) -> Tensor:
        if top == 0:
            return top
        counts = torch.histc(row.abs(), self.bins, 0, top.item())
        reached = (counts.cumsum(0, dtype=torch.float64) >= self.threshold * row.numel()).int().argmax()
        return (reached + 0.5) * (top / self.bins)


class AveragedPerSample(Averaged):
    """The mean over the samples of each one's extremes, averaged over batches (DSQ's activations)."""

    def range_of_batch(self, batch: Batch) -> Ends:
        """Mean of the samples' extremes."""
        if self.axis is not None:
            raise MQBenchError("an average over samples has no channels", "use another observer for weights")
        samples = batch.x.reshape(len(batch.x) if batch.x.dim() else 1, -1)
        least, most = torch.aminmax(samples, dim=1)
        return least.mean()[None], most.mean()[None]


class BestRange(Observer):
    """The shrunken range of least mean |x_hat - x|^p: of a weight by its values, of a stream by its histogram."""

    p, steps = 2.0, STEPS

    def __init__(self, spec: QuantSpec, axis: int | None = None) -> None:
        super().__init__(spec, axis)
        self.histogram = Histogram()
        self.rows: Tensor | None = None

    def collect(self, batch: Batch) -> None:
        """Counts the values; those of a weight with channels, which does not change, are kept."""
        if self.axis is None:
            self.histogram.add(batch.rows[0], max(-batch.low.item(), batch.high.item(), 0.0))
        else:
            self.rows = batch.rows.clone()

    @torch.no_grad()
    def grid(self, qmin: int, qmax: int) -> tuple[Float32[Tensor, " c"], Int32[Tensor, " c"]]:
        """The best of the candidates."""
        low, high = self.extremes()
        if self.rows is not None:
            found = search_rows(self.rows, self.spec, qmin, qmax, p=self.p, steps=self.steps)
        else:
            ends = low.cpu(), high.cpu()
            found = search_histogram(self.histogram, *ends, self.spec, qmin, qmax, p=self.p, steps=self.steps)
        return found[0].to(low.device), found[1].to(low.device)

    def join(self) -> None:
        """The sum of the histograms, in bins of the widest."""
        super().join()
        if self.axis is not None or _alone():
            return
        exponent = self.histogram.exponent
        widest = int(_over_ranks(torch.tensor(-(2.0**20) if exponent is None else float(exponent)), "max"))
        joined = Histogram()
        joined.merge(self.histogram.counts, widest if exponent is None else exponent)
        joined._widen(widest)
        joined.counts = _over_ranks(torch.from_numpy(joined.counts), "sum").numpy()
        self.histogram = joined


class BestRange24(BestRange):
    """The same with p = 2.4, as the released configurations have it for weights."""

    p = 2.4


class AveragedBestRange(Averaged):
    """An exponential average of each batch's range of least error."""

    def range_of_batch(self, batch: Batch) -> Ends:
        """Ends of the best candidate, by the sign that the grid has after the batches so far."""
        least, _ = self.extremes()
        qmin, qmax = self.spec.grid(signed=bool((least < 0).any()))
        scale, zero_point = search_rows(batch.rows, self.spec, qmin, qmax)
        if not self.spec.symmetric:
            return ((qmin - zero_point) * scale).to(least.device), ((qmax - zero_point) * scale).to(least.device)
        top = (scale * ((qmax - qmin) / 2 if qmin < 0 else qmax - qmin)).to(least.device)
        return torch.zeros_like(top) if qmin == 0 else -top, top


class WithinDeviations(Observer):
    """The mean and some standard deviations to both sides, or the extremes where they lie farther out.

    DSQ's released code takes the wider of the two for weights, and so never clips.
    """

    deviations, clips = 2.6, False

    def __init__(self, spec: QuantSpec, axis: int | None = None) -> None:
        super().__init__(spec, axis)
        self.sums = torch.zeros(())

    def collect(self, batch: Batch) -> None:
        """Adds up count, sum and sum of squares, in double precision."""
        rows = batch.rows.double()
        count = torch.full_like(batch.low, rows.shape[1], dtype=torch.float64)
        self.sums = self.sums.to(count) + torch.stack([count, rows.sum(1), rows.square().sum(1)])

    def ends(self) -> Ends:
        """Mean plus and minus the deviations, by the unbiased variance."""
        low, high = self.extremes()
        count, total, squares = self.sums
        mean = total / count
        spread = self.deviations * ((squares - count * mean**2) / (count - 1).clamp(min=1)).clamp(min=0).sqrt()
        left, right = (mean - spread).float(), (mean + spread).float()
        return (left, right) if self.clips else (torch.minimum(low, left), torch.maximum(high, right))

    def join(self) -> None:
        """The sums over all processes."""
        super().join()
        self.sums = _over_ranks(self.sums, "sum")


class ClippedDeviations(WithinDeviations):
    """The mean and 2.6 standard deviations to both sides, as DSQ's paper has it."""

    clips = True


class ThreeDeviations(ClippedDeviations):
    """The mean and 3 standard deviations to both sides: LSQ+'s start of weights."""

    deviations = 3.0


class MeanMagnitude(WithinDeviations):
    """LSQ's start: s = 2 mean|x| / sqrt(qmax); a zero point where the full range has it."""

    def collect(self, batch: Batch) -> None:
        """Adds up count and magnitudes."""
        count = torch.full_like(batch.low, batch.rows.shape[1], dtype=torch.float64)
        magnitude = batch.rows.abs().sum(1, dtype=torch.float64)
        self.sums = self.sums.to(count) + torch.stack([count, magnitude])

    @torch.no_grad()
    def grid(self, qmin: int, qmax: int) -> tuple[Float32[Tensor, " c"], Int32[Tensor, " c"]]:
        """Step sizes by the formula."""
        _, zero_point = grid_of_range(*self.extremes(), qmin, qmax, symmetric=self.spec.symmetric)
        scale = (2 * self.sums[1] / self.sums[0] / qmax**0.5).float().clamp(min=LEAST_SCALE)
        return nearest_power_of_two(scale) if self.spec.pot_scale else scale, zero_point


OBSERVERS: Mapping[str, type[Observer]] = MappingProxyType(
    {
        "minmax": Observer,
        "ema_minmax": Averaged,
        "ema_quantile": AveragedQuantile,
        "mse": BestRange,
        "mse_2.4": BestRange24,
        "ema_mse": AveragedBestRange,
        "clip_std": WithinDeviations,
        "clip_std_paper": ClippedDeviations,
        "std": ThreeDeviations,
        "batch_mean_max": AveragedPerSample,
        "mean": MeanMagnitude,
    }
)
"""Observers by the names that `calibrate` takes."""


def _alone() -> bool:
    return not (distributed.is_available() and distributed.is_initialized())


def _over_ranks(values: Tensor, how: str) -> Tensor:
    """The maximum, sum or mean over the processes of a torchrun group."""
    if _alone():
        return values
    operation = distributed.ReduceOp.MAX if how == "max" else distributed.ReduceOp.SUM
    values = values.clone()
    distributed.all_reduce(values, op=operation)
    return values / distributed.get_world_size() if how == "mean" else values
