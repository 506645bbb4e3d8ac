"""Pictures of what the package measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core_utils.figures import svg

STYLES = (("#0072b2", "o", "-"), ("#d55e00", "s", "--"), ("#009e73", "^", ":"))
"""Colour (safe for colour-blind readers), marker and line, so that arms differ in black and white, too."""


def accuracy_vs_steps_figure(arms: Mapping[str, Sequence[float]], title: str) -> str:
    """Accuracy over the number of time steps that the network runs, one line an arm.

    Args:
        arms: accuracies as fractions, for 1, 2, ... steps, by the arm's name.
        title: what the picture shows.

    Returns:
        SVG.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure()
    for (name, accuracies), (colour, marker, line) in zip(arms.items(), STYLES, strict=False):
        steps = range(1, len(accuracies) + 1)
        axes.plot(steps, [100 * value for value in accuracies], line, color=colour, marker=marker, label=name)
    axes.set(xlabel="time steps run", ylabel="accuracy (%)", title=title)
    axes.title.set_fontsize("medium")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if len(arms) > 1:
        axes.legend(frameon=False)
    return svg(figure)


def landscape_figure(grid: np.ndarray, span: float, title: str) -> str:
    """The loss on a plane through the weights, as contours.

    Args:
        grid: losses, [n, n], as `loss_landscape` gives them.
        span: where the plane ends, in norms of each filter.
        title: what the picture shows.

    Returns:
        SVG.
    """
    figure, axes = _figure()
    places = np.linspace(-span, span, len(grid)) if len(grid) > 1 else np.zeros(1)
    if len(grid) > 1:
        filled = axes.contourf(places, places, grid.T, levels=20, cmap="cividis")
        lines = axes.contour(places, places, grid.T, levels=10, colors="white", linewidths=0.5)
        axes.clabel(lines, fontsize=7)
        figure.colorbar(filled, ax=axes, label="training loss (nats)")
    axes.plot(0, 0, "w+", markersize=10)
    axes.set(xlabel="first direction (filter norms)", ylabel="second direction (filter norms)", title=title)
    axes.title.set_fontsize("medium")
    axes.set_aspect("equal")
    return svg(figure)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    return figure, figure.add_subplot()
