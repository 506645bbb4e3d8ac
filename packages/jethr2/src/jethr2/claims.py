"""What the paper says, measured: the same 128 robots with errors take off with and without turning their feet.

Spin, dive and lift are judged apart. The model's masses, lags and errors are assumed, and it has no other yaw actuator
than the feet, so that the yaw criterion decides most of the success share by construction; the dive, which differential
thrust can stop as well, is therefore judged with yaw ignored, and against differential thrust at its best too.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from core_utils.claims import Claim, Trial

if TYPE_CHECKING:
    from jethr2.metrics import Metrics
    from jethr2.params import ControllerParams
    from jethr2.results import StudyResult

PAPER = "Li et al., arXiv 2108.11557 (2021)"
N, FULL_N = 128, 1024
"""Paired trials of each seed, in the demo and with `--full`."""
MODES = ("none", "differential", "pitch_only", "full")
"""`yaw_only` dives as `none` does and enters no claim; `jethr2 ablate` flies it."""
TUNED_FREQUENCY, TUNED_THROTTLE = 10.0, 1.0
"""What `tune_baseline` chooses for differential thrust, on 64 trials of seed 100, which no claim uses: rad/s, share."""
FALL = 5.0
"""By how much the median peak yaw must fall at least."""
RELIABLE = 0.90
"""What the share of successes must exceed."""


def take_offs(trial: Trial) -> dict[str, float]:
    """One seed: the same errors and noise in every mode, and the robot without errors.

    Shares are of the trials; peaks until 1 m or the end of 3 s, in degrees; heights in m. Of every case: successes,
    Wilson's 95 % bounds of their share, and the same with yaw ignored (`upright`). Of every comparison with full
    vectoring: trials that only one of both survives, and the exact p-value of McNemar's test.
    """
    import numpy as np

    from core_utils.files import write_atomically
    from jethr2.plots import outcomes_figure
    from jethr2.studies import BASELINE, monte_carlo

    n = FULL_N if trial.full else N
    # One thread: the claims' own processes are the parallelism.
    cases, folder = {BASELINE: tuned_baseline()}, trial.workdir / "study"
    result = monte_carlo(n, MODES, seed=trial.seed, nthread=1, out=folder, cases=cases)
    write_atomically(trial.workdir / "figures" / "outcomes.svg", outcomes_figure(result))
    figures: dict[str, float] = {"n": float(n)}
    for row in result.table():
        facts = dataclasses.asdict(row)
        # A median time is NaN where no trial reaches the goal.
        figures |= {
            f"{row.case}_{k}": float(v) for k, v in facts.items() if k not in ("case", "n") and math.isfinite(v)
        }
    for other in ("differential", BASELINE, "none"):
        figures |= _comparison(result, "full", other)
    yaw = {case: float(np.median(metrics.peak_yaw)) for case, metrics in result.metrics.items()}
    figures["spin"] = math.log(yaw["differential"] / yaw["full"])
    figures["success"] = figures["full_over_differential"]
    figures["dive"] = figures["full_over_differential_upright"]
    figures["dive_tuned"] = figures[f"full_over_{BASELINE}_upright"]
    figures["lift"] = _median_height(result.metrics["full"]) - _median_height(result.metrics["differential"])
    figures["reliable"] = figures["full_success_low"]
    return figures | _nominal()


def tuned_baseline() -> ControllerParams:
    """Differential thrust at its best: the choice of `studies.tune_baseline`, which a slow test repeats."""
    from jethr2.params import ControllerParams

    yaw = ControllerParams().natural_frequency[2]
    return ControllerParams(
        mode="differential", natural_frequency=(TUNED_FREQUENCY, TUNED_FREQUENCY, yaw), u0=TUNED_THROTTLE
    )


def _comparison(result: StudyResult, one: str, other: str) -> dict[str, float]:
    """Differences of the shares, with all criteria and with yaw ignored, and what they rest on."""
    figures: dict[str, float] = {}
    for suffix, ignore_yaw in (("", False), ("_upright", True)):
        found, name = result.mcnemar(one, other, ignore_yaw=ignore_yaw), f"{one}_over_{other}{suffix}"
        figures |= {
            name: found.difference,
            f"{name}_low": found.low,
            f"{name}_high": found.high,
            f"{name}_only_first": float(found.only_first),
            f"{name}_only_second": float(found.only_second),
            f"{name}_p": found.p_value,
        }
    return figures


def _median_height(metrics: Metrics) -> float:
    import numpy as np

    return float(np.median(metrics.max_height))


def _nominal() -> dict[str, float]:
    """Peaks and height of the robot without errors, vectoring in full."""
    from jethr2.params import RobotParams
    from jethr2.robot import load_model
    from jethr2.simulation import simulate

    flight = simulate(load_model(RobotParams())).metrics()
    return {
        "nominal_peak_tilt": math.degrees(flight["peak_tilt"]),
        "nominal_peak_yaw": math.degrees(flight["peak_yaw"]),
        "nominal_max_height": flight["max_height"],
    }


def _claim(name: str, statement: str, effect: str, unit: str, **more: Any) -> Claim:
    source = f"{PAPER}, abstract; tables not read"
    return Claim(
        id=name,
        statement=statement,
        source=source,
        measure=take_offs,
        effect=effect,
        unit=unit,
        **{"paper_value": None, **more},
    )


_SUPPRESSED = "suppressed, at a thrust of 1.17 times the weight (flights of the real robot)"

CLAIMS = (
    _claim(
        "spin",
        f"Turning the feet lowers the median peak yaw to less than a {FALL:g}th of that under differential thrust, which "
        "has no actuator for yaw in this model.",
        "spin",
        "log ratio",
        margin=math.log(FALL),
        paper_value=_SUPPRESSED,
    ),
    _claim(
        "spin-success",
        "More take-offs succeed (1 m within 3 s, tilt below 15 and yaw below 20 degrees) with full vectoring than with "
        "differential thrust.",
        "success",
        "difference of shares",
        paper_value=_SUPPRESSED,
    ),
    _claim(
        "dive",
        "With yaw ignored, too, more take-offs succeed with full vectoring than with differential thrust of the same gains.",
        "dive",
        "difference of shares",
        paper_value=_SUPPRESSED,
    ),
    _claim(
        "dive-tuned",
        "With yaw ignored, more take-offs succeed with full vectoring than with differential thrust whose gains and "
        "collective were chosen on other trials.",
        "dive_tuned",
        "difference of shares",
    ),
    _claim(
        "lift",
        "Differential thrust pays for its moments with lift: the median greatest height within 3 s is lower than with "
        "full vectoring.",
        "lift",
        "m",
    ),
    _claim(
        "reliable",
        f"Full vectoring succeeds in more than {100 * RELIABLE:g} % of take-offs, by the lower end of Wilson's 95 % "
        "interval.",
        "reliable",
        "share",
        margin=RELIABLE,
        paper_value="stable attitude, above 1000 mm (flights of the real robot)",
    ),
)
