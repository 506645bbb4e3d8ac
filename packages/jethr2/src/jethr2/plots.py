"""Curves of a flight, the outcomes of a study, and success against what was varied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from core_utils.figures import rendered
from jethr2.errors import ParameterError
from jethr2.metrics import Criteria
from jethr2.trajectory import Trajectory

if TYPE_CHECKING:
    from jethr2.results import StudyResult

ANGLES = {"roll": ("#0072b2", "-"), "pitch": ("#d55e00", "--"), "yaw": ("#009e73", "-.")}
FAN_STYLES = {
    "front": ("#0072b2", "-"),
    "back": ("#56b4e9", "--"),
    "left": ("#d55e00", "-"),
    "right": ("#e69f00", "--"),
}
CASES = {
    "none": ("#999999", "x"),
    "differential": ("#d55e00", "s"),
    "differential_tuned": ("#e69f00", "v"),
    "pitch_only": ("#56b4e9", "^"),
    "yaw_only": ("#cc79a7", "D"),
    "full": ("#0072b2", "o"),
}
"""Colours that colour-blind readers tell apart, and marks for black and white."""

SWEPT = {
    "error_scale": "scale of all errors",
    "thrust_to_weight": "thrust to weight",
    "fan_time_constant": "time constant of the fans (s)",
}


def flight_figure(flight: Trajectory, *, title: str = "", form: str = "svg") -> bytes:
    """Attitude, rise and fans of a flight over time.

    Args:
        flight: of `simulate`.
        title: of the picture.
        form: `svg` or `png`.

    Returns:
        The picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    attitude, height, fans = figure.subplots(3, sharex=True)
    time, goal = flight["time"], Criteria().height
    for (name, (colour, line)), values in zip(ANGLES.items(), np.degrees(flight.angles).T, strict=True):
        attitude.plot(time, values, line, color=colour, label=name, linewidth=1.2)
    attitude.set(ylabel="attitude (deg)")
    height.plot(time, flight["qpos"][:, 2] - flight["qpos"][0, 2], color="black", linewidth=1.2)
    height.axhline(goal, color="0.5", linestyle=":", linewidth=1)
    height.annotate(f"goal {goal:g} m", (0, goal), (2, 2), textcoords="offset points", fontsize="small", color="0.3")
    height.set(ylabel="rise of the base (m)")
    for (name, (colour, line)), values in zip(FAN_STYLES.items(), flight["fan"].T, strict=True):
        fans.plot(time, 100 * values, line, color=colour, label=name, linewidth=1.2)
    fans.set(ylabel="thrust (% of a fan's)", xlabel="time (s)", ylim=(0, 105))
    for axes in (attitude, height, fans):
        axes.grid(alpha=0.3)
    for axes in (attitude, fans):
        axes.legend(frameon=False, fontsize="small", ncols=2)
    figure.suptitle(title, fontsize="medium")
    return picture(figure, form)


def success_figure(results: Mapping[float, StudyResult], parameter: str, *, form: str = "svg") -> bytes:
    """Shares of success over a varied parameter, with 95 % Wilson intervals; beside them with yaw ignored.

    Args:
        results: of `sweep`.
        parameter: that was varied.
        form: `svg` or `png`.

    Returns:
        The picture.

    Raises:
        ParameterError: no results.
    """
    from matplotlib.figure import Figure

    if not results:
        raise ParameterError("results", "none", "at least one value's study")
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    both, upright = figure.subplots(1, 2, sharey=True)
    values = sorted(results)
    first = results[values[0]]
    span = (values[-1] - values[0]) or 1.0
    cases = list(first.metrics)
    for axes, ignore_yaw in ((both, False), (upright, True)):
        for number, case in enumerate(cases):
            colour, mark = CASES.get(case, (f"C{number}", "."))
            chosen = [results[value].upright(case) if ignore_yaw else results[value].success(case) for value in values]
            share = np.array([row.mean() for row in chosen])
            low, high = np.array([results[value].wilson(ignore_yaw=ignore_yaw)[case] for value in values]).T
            places = np.array(values) + 0.008 * span * (number - 0.5 * (len(cases) - 1))  # so that no bar hides another
            spread = 100 * np.maximum(np.stack([share - low, high - share]), 0)
            axes.errorbar(places, 100 * share, spread, color=colour, marker=mark, markersize=5, capsize=2, label=case)
        axes.set(xlabel=SWEPT.get(parameter, parameter), ylim=(-3, 103))
        axes.grid(alpha=0.3)
    both.set(ylabel="take-offs (%)")
    both.set_title("all criteria", fontsize="medium")
    upright.set_title("1 m reached without a dive, yaw ignored", fontsize="medium")
    upright.legend(frameon=False, fontsize="small")
    figure.suptitle(f"{first.n} take-offs a point, seed {first.seed}; 95 % Wilson intervals", fontsize="small")
    return picture(figure, form)


def outcomes_figure(study: StudyResult) -> bytes:
    """Peak yaw against greatest height, a mark a trial and case, with the criteria as lines, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for number, (case, metrics) in enumerate(study.metrics.items()):
        colour, mark = CASES.get(case, (f"C{number}", "."))
        yaw = np.maximum(np.degrees(metrics.peak_yaw), 0.1)  # so that a flight without any turn has a place
        axes.scatter(yaw, metrics.max_height, s=14, color=colour, marker=mark, linewidths=0.6, alpha=0.7, label=case)
    axes.axvline(np.degrees(study.criteria.yaw), color="black", linewidth=0.8, linestyle="--")
    axes.axhline(study.criteria.height, color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set(xlabel="peak yaw until the goal (deg)", ylabel="greatest height (m)")
    axes.set_title(
        f"{len(study.trials)} take-offs, seed {study.seed}, the same errors in every mode", fontsize="medium"
    )
    axes.legend(frameon=False, fontsize="x-small", ncols=2)
    return picture(figure, "svg")


def picture(figure: Any, form: str) -> bytes:
    """A figure as SVG or PNG; the same bytes for the same figure."""
    if form not in ("svg", "png"):
        raise ParameterError("form", form, "svg or png")
    return rendered(figure, "png" if form == "png" else "svg")
