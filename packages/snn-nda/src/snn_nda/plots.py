"""Pictures of what the package measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core_utils.figures import svg

STYLES = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#56b4e9", "v"), ("#000000", "x"))
"""Colour (safe for colour-blind readers) and marker, so that arms differ in black and white, too."""


def gap_figure(arms: Mapping[str, Sequence[Mapping[str, Sequence[float]]]], title: str) -> str:
    """Accuracy on seen and unseen data over the epochs, one pair of lines an arm, the mean over its seeds.

    Args:
        arms: reports of `gap_report`, one a seed, by the arm's name; those of an arm have the same epochs.
        title: what the picture shows.

    Returns:
        SVG.
    """
    figure, axes = _figure()
    for (name, reports), (colour, marker) in zip(arms.items(), STYLES * 5, strict=False):
        for part, line, which in (("train", ":", "seen"), ("test", "-", "unseen")):
            values = 100 * np.array([report[f"{part}_accuracy"] for report in reports])
            epochs = 1 + np.array(reports[0]["epoch"])
            every = max(len(epochs) // 10, 1)
            label = f"{name}, {which}"
            axes.plot(epochs, values.mean(0), line, color=colour, marker=marker, markevery=every, label=label, ms=4)
    axes.set(xlabel="epoch", ylabel="accuracy (%)", title=title)
    axes.title.set_fontsize("medium")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    return svg(figure)


def collapse_figure(records: Sequence[Mapping[str, Any]], dimensions: int, title: str) -> str:
    """How far a pre-training is from collapse: the spread of its projections over the epochs, and what is healthy.

    Args:
        records: of `pretrain`'s history, with `epoch` and `spread`.
        dimensions: d of the projections.
        title: what the picture shows.

    Returns:
        SVG.
    """
    figure, axes = _figure()
    colour, marker = STYLES[0]
    axes.plot(
        [1 + each["epoch"] for each in records], [each["spread"] for each in records], color=colour, marker=marker
    )
    axes.axhline(dimensions**-0.5, color="black", linestyle="--", label="spread in all directions, $1/\\sqrt{d}$")
    axes.axhline(0.1 * dimensions**-0.5, color="black", linestyle=":", label="collapse")
    axes.set(xlabel="epoch", ylabel="standard deviation of a channel", title=title, ylim=(0, None))
    axes.title.set_fontsize("medium")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    return svg(figure)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    return figure, figure.add_subplot()
