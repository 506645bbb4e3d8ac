"""Pictures of a training, and of what sparsity buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core_utils.figures import svg

STYLES = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#56b4e9", "v"), ("#000000", "x"))
"""Colour (safe for colour-blind readers) and marker, so that arms differ in black and white, too."""


def training_figure(records: Sequence[Mapping[str, Any]], target: float | None, title: str) -> str:
    """Loss, accuracy where it was measured, and density over the epochs.

    Args:
        records: of a training's history.
        target: sparsity asked for; None for a network without masks.
        title: what the picture shows.

    Returns:
        SVG.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    wanted = [("loss", "training loss (nats)")]
    wanted += [("validation_accuracy", "validation accuracy")] if "validation_accuracy" in records[0] else []
    wanted += [("density", "density of the masks")] if "density" in records[0] else []
    figure = Figure(figsize=(6.0, 1.0 + 1.7 * len(wanted)), layout="constrained")
    epochs = [1 + record["epoch"] for record in records]
    for axes, (name, label) in zip(figure.subplots(len(wanted), sharex=True, squeeze=False)[:, 0], wanted, strict=True):
        axes.plot(epochs, [record[name] for record in records], color=STYLES[0][0], marker=STYLES[0][1], ms=3)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if name == "density" and target is not None:
            axes.axhline(1 - target, color="black", linestyle="--", linewidth=0.8, label="asked for")
            axes.set_ylim(0, None)
            axes.legend(frameon=False)
        if axes.get_subplotspec().is_last_row():
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.get_subplotspec().is_first_row():
            axes.set_title(title, fontsize="medium")
    return svg(figure)


def pareto_figure(arms: Mapping[str, Sequence[tuple[float, float]]], title: str) -> str:
    """Accuracy over nonzero parameters, a mark for each seed.

    Args:
        arms: (nonzero parameters, accuracy in percent) of each seed, by the arm's name.
        title: what the picture shows.

    Returns:
        SVG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for (name, points), (colour, marker) in zip(arms.items(), STYLES * 2, strict=False):
        nonzero, accuracies = zip(*points, strict=True)
        axes.plot(nonzero, accuracies, linestyle="none", color=colour, marker=marker, label=name)
    axes.set(xlabel="nonzero parameters", ylabel="accuracy (%)", xscale="log")
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    return svg(figure)
