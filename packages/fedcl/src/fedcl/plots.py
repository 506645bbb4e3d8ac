"""Pictures: accuracy matrices, curves with intervals, drift over rounds, heat maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from core_utils.figures import rendered, svg
from fedcl.comparison import Group, half_width

STYLES = (
    ("#0072b2", "-", "o"),
    ("#d55e00", "--", "^"),
    ("#009e73", "-.", "s"),
    ("#cc79a7", ":", "D"),
    ("#555555", "-", "v"),
)
"""Colour (safe for colour-blind readers), line and marker, so that series differ in black and white, too."""


def matrix_figure(accuracy: np.ndarray, seen: np.ndarray, title: str) -> str:
    """Accuracy of each task after each phase, in percent; tasks that nobody had trained yet are in brackets. SVG."""
    count = len(accuracy)
    figure, axes = _figure((1.8 + 0.6 * count, 1.6 + 0.5 * count))
    image = axes.imshow(100 * accuracy, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for phase in range(count):
        for task in range(count):
            text = f"{100 * accuracy[phase, task]:.0f}"
            axes.text(
                task,
                phase,
                text if seen[phase, task] else f"({text})",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if accuracy[phase, task] < 0.5 else "black",
            )
    axes.set(xlabel="task", ylabel="after phase", xticks=range(count), yticks=range(count))
    axes.set_title(f"Accuracy (%)\n{_wrapped(title, 8 * count)}", fontsize="small")
    figure.colorbar(image, ax=axes, shrink=0.8)
    return svg(figure)


def history_figure(history: Sequence[Any], title: str) -> str:
    """Drift and cosine of updates, and accuracy before and after merging, over rounds; SVG."""
    figure, (top, bottom) = _figure((6.4, 4.6), (2, 1))
    rounds = [record.round + 1 for record in history]
    drifts = [record.drift if record.drift is not None else math.nan for record in history]
    if np.isfinite(drifts).any():
        top.semilogy(rounds, drifts, color=STYLES[0][0], marker="o", markersize=3, label="drift")
    top.set_ylabel("drift of updates")
    side = top.twinx()
    side.plot(rounds, [record.cosine for record in history], color=STYLES[1][0], linestyle="--", label="cosine")
    side.set_ylabel("mean pairwise cosine")
    lines = [*top.get_lines(), *side.get_lines()]
    top.legend(lines, [line.get_label() for line in lines], frameon=False, fontsize="small")
    measured = [record for record in history if record.local_accuracy is not None]
    pairs = (("local", "local_accuracy"), ("merged", "merged_accuracy"))
    for (label, name), (colour, line, marker) in zip(pairs, STYLES, strict=False):
        points = [100 * getattr(record, name) for record in measured]
        bottom.plot([r.round + 1 for r in measured], points, color=colour, linestyle=line, marker=marker, label=label)
    bottom.set(xlabel="round", ylabel="accuracy on own task (%)")
    bottom.legend(frameon=False, fontsize="small")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.set_xlim(0.5, len(history) + 0.5)
    figure.suptitle(_wrapped(title, 80), fontsize="medium")
    return svg(figure)


def curves_figure(groups: Sequence[Group]) -> str:
    """Average accuracy over the tasks seen so far with 95 % intervals over seeds; SVG."""
    return svg(_curves(groups))


def curves_png(groups: Sequence[Group]) -> bytes:
    """The same as PNG."""
    return rendered(_curves(groups), "png")


def heat_figure(axes_: Sequence[tuple[str, Sequence[str]]], rows: Sequence[dict[str, Any]], figure_name: str) -> str:
    """Means of a sweep over two settings, with the half-width of their intervals; SVG.

    Args:
        axes_: name and values of the two settings: rows, then columns.
        rows: one a cell, in the order of the product of both.
        figure_name: what is shown.
    """
    (down, down_values), (across, across_values) = axes_
    means = np.array([math.nan if row[figure_name]["mean"] is None else row[figure_name]["mean"] for row in rows])
    grid = means.reshape(len(down_values), len(across_values))
    figure, axes = _figure((2.4 + 0.9 * len(across_values), 1.6 + 0.6 * len(down_values)))
    image = axes.imshow(grid, cmap="cividis", aspect="auto")
    middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
    for place, row in enumerate(rows):
        i, j = divmod(place, len(across_values))
        value = row[figure_name]
        if value["mean"] is None:
            continue
        spread = "" if value["low"] is None else f"\n±{(value['high'] - value['low']) / 2:.2g}"
        colour = "white" if grid[i, j] < middle else "black"
        axes.text(j, i, f"{value['mean']:.3g}{spread}", ha="center", va="center", fontsize=8, color=colour)
    axes.set(xlabel=across.replace("_", " "), ylabel=down.replace("_", " "))
    axes.set_xticks(range(len(across_values)), across_values)
    axes.set_yticks(range(len(down_values)), down_values)
    axes.set_title(f"{figure_name.replace('_', ' ')}, mean and half of its 95 % interval", fontsize="small")
    figure.colorbar(image, ax=axes, shrink=0.8)
    return svg(figure)


def partition_figure(counts: np.ndarray, title: str) -> str:
    """Images of each class that the clients hold of each task, as bars; counts int [K, T, classes]. SVG."""
    clients, tasks, classes = counts.shape
    figure, panels = _figure((1.4 + 1.7 * tasks, 1.4 + 0.18 * clients), (1, tasks))
    shades = [str(0.15 + 0.7 * index / max(classes - 1, 1)) for index in range(classes)]
    for task, axes in enumerate(np.atleast_1d(panels)):
        left = np.zeros(clients)
        for label in range(classes):
            bars = counts[:, task, label]
            axes.barh(range(clients), bars, left=left, color=shades[label], edgecolor="white", linewidth=0.4)
            left += bars
        axes.set_title(f"task {task}", fontsize="small")
        axes.set_xlabel("images", fontsize="small")
        axes.set_yticks(range(clients) if clients <= 20 else [])
        axes.invert_yaxis()
        if task == 0:
            axes.set_ylabel("client")
    figure.suptitle(f"{_wrapped(title, 22 * tasks)} (a shade is a class of its task)", fontsize="medium")
    return svg(figure)


def _curves(groups: Sequence[Group]) -> Any:
    figure, axes = _figure((6.4, 4.0))
    for number, group in enumerate(groups):
        colour, line, marker = STYLES[number % len(STYLES)]
        mean = 100 * group.curves.mean(0)
        axes.plot(
            group.rounds,
            mean,
            color=colour,
            linestyle=line,
            marker=marker,
            label=f"{group.label} (n={len(group.curves)})",
        )
        if len(group.curves) > 1:
            half = 100 * np.array([half_width(column) for column in group.curves.T])
            axes.fill_between(group.rounds, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.0), min(high, 100.0))  # intervals of few seeds reach beyond what an accuracy can be
    axes.set(xlabel="round", ylabel="accuracy over tasks seen so far (%)")
    axes.set_title("Mean and 95 % interval over seeds", fontsize="medium")
    axes.legend(frameon=False, fontsize="small")
    axes.grid(alpha=0.3)
    return figure


def _figure(size: tuple[float, float], panels: tuple[int, int] = (1, 1)) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(*panels)


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, max(width, 24)))
