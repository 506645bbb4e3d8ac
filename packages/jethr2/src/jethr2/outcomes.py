"""A picture of a study: how far every trial turned, and how high it came."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jethr2.results import StudyResult

STYLES = {
    "none": ("#999999", "x"),
    "differential": ("#d55e00", "s"),
    "differential_tuned": ("#e69f00", "v"),
    "pitch_only": ("#56b4e9", "^"),
    "yaw_only": ("#cc79a7", "D"),
    "full": ("#0072b2", "o"),
}
"""Colour (safe for colour-blind readers) and mark, so that cases differ in black and white, too."""


def outcomes_figure(study: StudyResult) -> bytes:
    """Peak yaw against greatest height, a mark a trial and case, with the criteria as lines, as SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for number, (case, metrics) in enumerate(study.metrics.items()):
        colour, mark = STYLES.get(case, (f"C{number}", "."))
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
    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "jethr2"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
