"""Pictures of a benchmark: accuracies as a map, academic against hardware, and where an engine parts from the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from core_utils.figures import rendered
from mqbench_lite.leaderboard import ACADEMIC

if TYPE_CHECKING:
    from mqbench_lite.leaderboard import Table

BLUE, ORANGE = "#0072b2", "#d55e00"
"""Colour-blind readers tell them apart; so do circles and squares in black and white."""


def accuracy_map(table: Table) -> bytes:
    """Algorithms by profiles as an SVG, every cell with its mean; the darker, the better."""
    from matplotlib.figure import Figure

    values = np.array(
        [[row.scores[p].mean if p in row.scores else np.nan for p in table.profiles] for row in table.rows]
    )
    height, width = values.shape
    figure = Figure(figsize=(1.6 + 0.85 * width, 1.2 + 0.38 * height), layout="constrained")
    axes = figure.subplots()
    low = np.nanmin(values)
    axes.imshow(values, cmap="Blues", vmin=low - 0.2 * max(np.nanmax(values) - low, 1.0), aspect="auto")
    axes.set_xticks(range(width), table.profiles, rotation=30, ha="right", fontsize="small")
    axes.set_yticks(range(height), [row.algorithm for row in table.rows], fontsize="small")
    middle = (np.nanmax(values) + low) / 2
    for (line, column), value in np.ndenumerate(values):
        text, colour = (
            ("failed", "black") if np.isnan(value) else (f"{value:.1f}", "white" if value > middle else "black")
        )
        axes.text(column, line, text, ha="center", va="center", fontsize="small", color=colour)
    axes.set_title(
        f"{table.network}, W/A {table.bits}: accuracy (%), float {table.float_accuracy:.1f}", fontsize="medium"
    )
    return rendered(figure, "svg")


def dumbbells(table: Table) -> bytes:
    """Academic accuracy against the mean and the range over hardware, a line an algorithm, as an SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 1.2 + 0.4 * len(table.rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(table.rows):
        means = [score.mean for name, score in row.scores.items() if name != ACADEMIC]
        if means:
            axes.plot([min(means), max(means)], [place, place], color=ORANGE, linewidth=5, alpha=0.3)
            axes.plot(
                np.mean(means), place, "s", color=ORANGE, label="hardware: mean and range" if place == 0 else None
            )
        if ACADEMIC in row.scores:
            axes.plot(row.scores[ACADEMIC].mean, place, "o", color=BLUE, label="academic" if place == 0 else None)
    axes.axvline(table.float_accuracy, color="black", linewidth=0.8, linestyle=":", label="float")
    axes.set_yticks(range(len(table.rows)), [row.algorithm for row in table.rows], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("accuracy (%)")
    axes.margins(y=0.6 / max(len(table.rows), 1))
    axes.set_title(f"{table.network}, W/A {table.bits}", fontsize="medium")
    figure.legend(frameon=False, fontsize="small", loc="outside right upper")
    return rendered(figure, "svg")


def agreement_figure(engines: Mapping[str, Mapping[str, int]]) -> bytes:
    """How many steps the codes of an engine are off, as an SVG.

    Args:
        engines: for each engine, how many codes are off by how many steps, `{"0": 5000, "1": 3}`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    steps = sorted({int(step) for counts in engines.values() for step in counts})
    for number, (name, counts) in enumerate(engines.items()):
        total = sum(counts.values()) or 1
        shares = [counts.get(str(step), 0) / total for step in steps]
        places = np.arange(len(steps)) + 0.8 * (number + 0.5) / len(engines) - 0.4
        axes.bar(places, shares, 0.8 / len(engines), label=name)
    axes.set_xticks(range(len(steps)), [str(step) for step in steps])
    axes.set_yscale("log")
    axes.set(xlabel="difference of a code (steps)", ylabel="share of codes")
    axes.legend(frameon=False, fontsize="small")
    return rendered(figure, "svg")


def layers_figure(names: Sequence[str], values: Sequence[float], quantity: str, title: str) -> bytes:
    """One bar a layer, in order of execution, as an SVG.

    Args:
        names: of the layers.
        values: one each.
        quantity: what they are, with its unit.
        title: what the picture shows.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, max(2.0, 0.9 + 0.22 * len(names))), layout="constrained")
    axes = figure.subplots()
    axes.barh(np.arange(len(names)), values, color=BLUE, edgecolor="black", linewidth=0.4)
    axes.set_yticks(range(len(names)), names, fontsize="x-small")
    axes.invert_yaxis()
    axes.set_xlabel(quantity)
    axes.set_title(title, fontsize="medium")
    return rendered(figure, "svg")
