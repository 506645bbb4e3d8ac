"""What a study found: every trial's figures, and the table, intervals and tests made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from jethr2.errors import ParameterError
from jethr2.metrics import Criteria, Metrics
from jethr2.statistics import Comparison, compare, median_interval, wilson


@dataclass(frozen=True)
class Row:
    """One case in the table of section 7; angles in degrees.

    Attributes:
        case: mode or name.
        n: trials.
        success: trials that meet all criteria.
        success_low: lower end of their share's Wilson interval.
        success_high: upper end.
        upright: trials that reach the goal without a dive, yaw ignored.
        upright_low: lower end of their share's Wilson interval.
        upright_high: upper end.
        reached: trials that reach the goal height at all.
        tilt_median: of the peak tilt.
        tilt_p95: likewise.
        yaw_median: of the peak yaw.
        yaw_p95: likewise.
        yaw_rate_median: deg/s.
        height_median: of the greatest height, m.
        time_median: to the goal, of the trials that reach it, s.
        lift_lost_median: N.
        saturation_median: share of control steps.
        diverged: trials that ended in numbers that are not finite.
    """

    case: str
    n: int
    success: int
    success_low: float
    success_high: float
    upright: int
    upright_low: float
    upright_high: float
    reached: int
    tilt_median: float
    tilt_p95: float
    yaw_median: float
    yaw_p95: float
    yaw_rate_median: float
    height_median: float
    time_median: float
    lift_lost_median: float
    saturation_median: float
    diverged: int


@dataclass(frozen=True, eq=False)
class StudyResult:
    """Figures of every trial by case; trial k met the same errors and noise in every case.

    Attributes:
        metrics: by mode or name.
        criteria: of success.
        seed: of errors and noise.
        error_scale: of the errors.
        trials: indices of the trials that are done in every case.
        n: trials that were asked for.
    """

    metrics: Mapping[str, Metrics]
    criteria: Criteria
    seed: int
    error_scale: float
    trials: Int[np.ndarray, " trials"]
    n: int

    @property
    def complete(self) -> bool:
        """Whether all trials are done."""
        return len(self.trials) == self.n

    def success(self, case: str) -> Bool[np.ndarray, " trials"]:
        """Which trials meet all criteria."""
        return self._of(case).success(self.criteria)

    def upright(self, case: str) -> Bool[np.ndarray, " trials"]:
        """Which trials reach the goal without a dive, yaw ignored."""
        return self._of(case).upright(self.criteria)

    def table(self) -> list[Row]:
        """One row per case, with both counts of successes."""
        return [self._row(case) for case in self.metrics]

    def wilson(self, confidence: float = 0.95, *, ignore_yaw: bool = False) -> dict[str, tuple[float, float]]:
        """Interval of each case's share of successes."""
        chosen = self.upright if ignore_yaw else self.success
        return {case: wilson(int(chosen(case).sum()), len(self.trials), confidence) for case in self.metrics}

    def mcnemar(self, a: str, b: str, *, ignore_yaw: bool = False) -> Comparison:
        """Compares two cases on the same trials, by McNemar's exact test and an interval of the difference."""
        chosen = self.upright if ignore_yaw else self.success
        return compare(chosen(a), chosen(b))

    def median_difference(self, a: str, b: str, figure: str) -> tuple[float, float, float]:
        """Median of a figure of case a less that of case b, trial by trial, with its 95 % interval."""
        return median_interval(getattr(self._of(a), figure) - getattr(self._of(b), figure))

    def summary(self) -> dict[str, Any]:
        """The table and what belongs to it, as JSON data."""
        rows = [asdict(row) for row in self.table()] if len(self.trials) else []
        return {"seed": self.seed, "error_scale": self.error_scale, "n": self.n, "done": len(self.trials), "rows": rows}

    def _of(self, case: str) -> Metrics:
        if case not in self.metrics:
            raise ParameterError("case", case, f"one of {', '.join(self.metrics)}")
        return self.metrics[case]

    def _row(self, case: str) -> Row:
        metrics, n = self.metrics[case], len(self.trials)
        success, upright = int(self.success(case).sum()), int(self.upright(case).sum())
        tilt, yaw = np.degrees(metrics.peak_tilt), np.degrees(metrics.peak_yaw)
        times = metrics.time_to_goal[~np.isnan(metrics.time_to_goal)]
        return Row(
            case,
            n,
            success,
            *wilson(success, n),
            upright,
            *wilson(upright, n),
            len(times),
            float(np.median(tilt)),
            float(np.percentile(tilt, 95)),
            float(np.median(yaw)),
            float(np.percentile(yaw, 95)),
            float(np.degrees(np.median(metrics.peak_yaw_rate))),
            float(np.median(metrics.max_height)),
            float(np.median(times)) if len(times) else math.nan,
            float(np.median(metrics.lift_lost)),
            float(np.median(metrics.saturation)),
            int(metrics.diverged.sum()),
        )
