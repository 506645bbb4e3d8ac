"""Pictures: a cell, and scores against what they might stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core_utils.figures import svg
from snasnet.cells import NODES, OPERATIONS, OUTPUT, Cell, Edge

STYLES = (("#0072b2", "o"), ("#d55e00", "^"))
"""Colour (safe for colour-blind readers) and marker, so that series differ in black and white, too."""
COLOURS = ("#999999", "#555555", "#56b4e9", "#0072b2", "#009e73")
"""By operation."""


def cell_figure(cell: Cell, title: str = "") -> str:
    """A cell as a graph: nodes in a row, forward edges above it, feedback below and dashed.

    Args:
        cell: to draw.
        title: what the picture shows; by default the cell as text.

    Returns:
        SVG.
    """
    figure, axes = _figure((6.4, 4.4 if cell.n_backward else 2.8))
    for edge in cell.edges:
        _draw_edge(axes, edge)
    for node in range(NODES):
        name = "input" if node == 0 else "output" if node == OUTPUT else str(node)
        axes.text(
            node,
            0,
            name,
            ha="center",
            va="center",
            fontsize=9,
            zorder=3,
            bbox={"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": "black"},
        )
    axes.set(
        xlim=(-0.5, NODES - 0.5),
        ylim=(-0.3 - max(map(_height, cell.backward_edges)) if cell.n_backward else -0.4, 1.15),
    )
    axes.set_aspect("equal")  # bows are as high in the picture as in its units
    axes.axis("off")
    legend = "solid: same time step" + ("; dashed: feedback, one step later" if cell.n_backward else "")
    axes.set_title(f"{title or f'Cell {cell}'}\n{legend}", fontsize="medium")
    return svg(figure)


def scatter_figure(scores: Mapping[str, Sequence[float] | np.ndarray], rates: np.ndarray, title: str) -> str:
    """Scores against mean firing rates, one panel a metric, each with Spearman's correlation.

    Args:
        scores: by what they are called, one a cell.
        rates: spikes a neuron and step, one a cell.
        title: what the picture shows.

    Returns:
        SVG.
    """
    from scipy.stats import spearmanr

    figure, panels = _figure((5.2 if len(scores) == 1 else 7.2, 3.2), len(scores))
    for axes, (name, values), (colour, marker) in zip(np.atleast_1d(panels), scores.items(), STYLES, strict=False):
        axes.scatter(rates, values, s=14, color=colour, marker=marker, alpha=0.7)
        correlation = float(spearmanr(values, rates).statistic)
        axes.set(
            xlabel="mean firing rate (spikes a neuron and step)",
            ylabel="log |det K|",
            title=f"{name}, Spearman's correlation {correlation:.2f}",
        )
        axes.title.set_fontsize("medium")
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize="medium")
    return svg(figure)


def histogram_figure(scores: Sequence[float], title: str) -> str:
    """How the scores of a search are spread; SVG."""
    figure, axes = _figure((5.2, 3.2))
    axes.hist(scores, bins=min(40, max(5, len(scores) // 5)), color=STYLES[0][0], edgecolor="white")
    axes.axvline(max(scores), color=STYLES[1][0], linestyle="--", label=f"best, {max(scores):.1f}")
    axes.set(xlabel="score, log |det K|", ylabel="cells", title=title)
    axes.title.set_fontsize("medium")
    axes.legend(frameon=False)
    return svg(figure)


def accuracy_figure(scores: Sequence[float], accuracies: Sequence[float], title: str) -> str:
    """Accuracies of trained cells, in percent, against their scores; SVG."""
    figure, axes = _figure((5.2, 3.4))
    axes.scatter(scores, accuracies, s=18, color=STYLES[0][0])
    axes.set(xlabel="score, log |det K|", ylabel="accuracy (%)", title=title)
    axes.title.set_fontsize("medium")
    axes.grid(alpha=0.3)
    return svg(figure)


def _draw_edge(axes: Any, edge: Edge) -> None:
    """A bow from node to node; the longer the edge, the higher its bow."""
    from matplotlib.patches import FancyArrowPatch

    span = abs(edge.target - edge.source)
    colour = COLOURS[edge.operation]
    height = _height(edge)
    # A quadratic bow reaches half the height of its control point, which `rad` gives as a share of the span; both
    # directions bend to the left of their own way, forward edges up and feedback down.
    rad = -2 * height / span
    axes.add_patch(
        FancyArrowPatch(
            (edge.source, 0),
            (edge.target, 0),
            connectionstyle=f"arc3,rad={rad}",
            arrowstyle="-|>",
            mutation_scale=13,
            shrinkA=16,
            shrinkB=16,
            color=colour,
            linewidth=1.8,
            linestyle="--" if edge.backward else "-",
        )
    )
    axes.text(
        (edge.source + edge.target) / 2,
        -height if edge.backward else height,
        OPERATIONS[edge.operation],
        ha="center",
        va="center",
        fontsize=8,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"},
    )


def _height(edge: Edge) -> float:
    """Of a bow, in distances between nodes."""
    return {1: 0.3, 2: 0.62, 3: 0.95}[abs(edge.target - edge.source)]


def _figure(size: tuple[float, float], panels: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, panels)
