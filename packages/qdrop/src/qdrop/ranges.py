"""The range in which a tensor is quantised: a search over step sizes and zero points for the least L_p error.

Every candidate of the grid search counts, but few are scored on the data. The error |x_q - x| as a function of x changes
no faster than x, so a histogram gives a bound below and one above for each candidate's score; only candidates that these
bounds leave in the race are scored exactly.

Reference: Wei et al., QDrop, arXiv:2203.05740, whose code searches p = 2.4, 100 widths and, for data on both sides of 0,
every zero point.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qdrop.errors import CalibrationError, ConfigError
from qdrop.fake_quant import widest

LEAST_SCALE = 1e-8
"""Step size of a tensor that is zero throughout."""

TIE = 1e-9
"""Relative difference below which scores are equal and the first wins; above what the order of a sum can change."""

LEVELS, MOST_BINS = (16, 64, 256, 1024), 65536
VALUES_PER_BIN = 4
"""More bins cost more than the candidates that they exclude; most are excluded by few. Short rows need no bounds."""

SIMPLE_FROM = 8
"""Bits from which trying every zero point costs 256 times as much and gains nothing."""

Reduce = Callable[[Tensor], Tensor]


def search_range(
    x: Float[Tensor, "*_"] | Sequence[Float[Tensor, "*_"]],
    bits: int,
    symmetric: bool,
    axis: int | None = None,
    p: float = 2.4,
    steps: int = 100,
    exact: bool | None = None,
    *,
    reduce_max: Reduce | None = None,
    reduce_sum: Reduce | None = None,
) -> tuple[Float[Tensor, "*channels"], Int[Tensor, "*channels"]]:
    """Finds the step size and zero point of least mean |x_q - x|^p.

    Tries `steps` widths up to that of the data, and its full range. Data on one side of 0, decided for the whole of x, and symmetric grids
    keep their zero point; otherwise every zero point is tried with every width. The first of equally good ones wins.

    Args:
        x: values, of any magnitude and finite; or several tensors that are parts of one, alike but for their lengths
            along axes other than `axis`.
        bits: width of a code, 2 to 8.
        symmetric: codes from -2^(bits-1) around z = 0, instead of from 0.
        axis: axis along which each index has its own range; None for one range.
        p: exponent of the error.
        steps: number of widths.
        exact: try every zero point whatever the bits, as the paper's code does; None below 8 bits only; False never, and
            take that of the full range.
        reduce_max: element-wise maximum over ranks, where each holds a part of x.
        reduce_sum: sum over ranks. With both, all ranks find the same range.

    Returns:
        Step size in float32, at least 1e-8, and zero point in int32: of shape [C], or [] without an axis.

    Raises:
        ConfigError: bits out of range.
        CalibrationError: no values, or some that are not finite or whose difference exceeds float32.
    """
    if not 2 <= bits <= 8:
        raise ConfigError(f"bits must lie in 2 to 8, got {bits}")
    qmin, qmax = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    tensors = [x] if isinstance(x, Tensor) else list(x) or [torch.empty(0)]  # a rank may hold none
    parts = [_rows(tensor, axis) for tensor in tensors]
    low, high = _extremes(parts, reduce_max or _same)
    every_zero_point = bits < SIMPLE_FROM if exact is None else exact
    scales, zero_points = _candidates(low, high, qmin, qmax, steps, symmetric, every_zero_point)
    grid = scales, zero_points, qmin, qmax, p
    best = _best(parts, low, high, grid, reduce_sum or _same)
    found = (each.gather(1, best[:, None]).to(tensors[0].device) for each in (scales, zero_points.int()))
    scale, zero_point = (each.reshape(() if axis is None else -1) for each in found)
    return scale, zero_point


def _rows(part: Tensor, axis: int | None) -> Tensor:
    part = part.detach().float()
    part = part if widest(part) is torch.float64 else part.cpu()
    return part.reshape(1, -1) if axis is None else part.movedim(axis, 0).flatten(1).contiguous()


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _extremes(parts: list[Tensor], reduce_max: Reduce) -> tuple[Tensor, Tensor]:
    """Least and greatest value of each row; NaN becomes infinite, so that every rank learns of it."""
    parts = [part for part in parts if part.numel()]
    if parts:
        found = torch.stack([torch.stack([-part.amin(1), part.amax(1)]) for part in parts]).amax(0)
        found = torch.where(found.isfinite(), found, math.inf)
    else:
        found = torch.full((2, 1), -math.inf)
    low_high = reduce_max(found).cpu()
    if (low_high == -math.inf).any():
        raise CalibrationError("there are no values to find a range of")
    if not (low_high[0] + low_high[1]).isfinite().all():
        raise CalibrationError("values to find a range of must be finite and their differences below 3.4e38")
    return -low_high[0], low_high[1]


def _candidates(
    low: Tensor, high: Tensor, qmin: int, qmax: int, steps: int, symmetric: bool, every_zero_point: bool
) -> tuple[Tensor, Tensor]:
    """Step sizes and zero points to try, [rows, candidates], in the order in which ties are decided.

    The last is the full range, which the greatest width misses by float32's rounding: no found range is worse than it.
    """
    step = torch.arange(1, steps + 1, dtype=torch.float32)
    one_sided = 1 if low.amin() >= 0 else -1 if high.amax() <= 0 else 0
    low, high = low.clamp(max=0)[:, None], high.clamp(min=0)[:, None]
    full = _grid(low, high, qmin, qmax, symmetric)
    if symmetric or one_sided:
        threshold = torch.maximum(-low, high) / steps * step
        zero = torch.zeros_like(threshold)
        tried = zero if one_sided > 0 else -threshold, zero if one_sided < 0 else threshold
    elif every_zero_point:
        width = ((high - low) / steps * step)[:, :, None]
        shift = width / (qmax - qmin) * torch.arange(qmin, qmax + 1, dtype=torch.float32)
        tried = -shift.flatten(1), (width - shift).flatten(1)
    else:
        tried = low / steps * step, high / steps * step
    scales, zero_points = _grid(*tried, qmin, qmax, symmetric)
    if not (symmetric or one_sided or every_zero_point):
        zero_points = full[1].expand_as(scales)
    return torch.cat([scales, full[0]], 1), torch.cat([zero_points, full[1]], 1)


def _grid(low: Tensor, high: Tensor, qmin: int, qmax: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Step size and zero point that cover a range and 0."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    if symmetric:
        scale = (torch.maximum(-low, high) / ((qmax - qmin) / 2)).clamp(min=LEAST_SCALE)
        return scale, torch.zeros_like(scale)
    scale = ((high - low) / (qmax - qmin)).clamp(min=LEAST_SCALE)
    return scale, (qmin - (low / scale).round()).clamp(qmin, qmax)


Grid = tuple[Tensor, Tensor, int, int, float]


def _best(parts: list[Tensor], low: Tensor, high: Tensor, grid: Grid, reduce_sum: Reduce) -> Tensor:
    """Index of the first candidate of each row whose score is the least."""
    scoring = _scoring()
    alive = torch.ones(grid[0].shape, dtype=torch.bool)
    longest = int(reduce_sum(torch.tensor([float(sum(part.shape[1] for part in parts))])))
    bins = min(MOST_BINS, 2 ** int(math.log2(longest / VALUES_PER_BIN + 1)))
    levels = sorted({*(level for level in LEVELS if level <= bins), bins}) if bins >= LEVELS[0] else []
    if levels:
        counts = reduce_sum(sum(scoring.histogram(part, low, high, bins) for part in parts)).cpu()
    for level in levels:
        merged = counts.unflatten(1, (level, -1)).sum(2)
        least, most = scoring.bounds(merged, low, high, alive, *grid)
        alive &= least <= most.amin(1, keepdim=True)
    scores = reduce_sum(sum(scoring.errors(part, alive, *grid) for part in parts)).cpu()
    scores = torch.where(alive, scores, math.inf)
    return (scores <= scores.amin(1, keepdim=True) * (1 + TIE)).int().argmax(1)


@functools.cache
def _scoring() -> ModuleType:
    """Loads numba when the first range is searched."""
    from qdrop import scoring

    return scoring
