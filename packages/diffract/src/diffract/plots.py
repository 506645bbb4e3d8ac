"""Pictures: objects and images, phases, training curves, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from core_utils.figures import rendered, svg
from diffract.grids import Grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SATURATED = 1.0
"""Percent of pixels that are cut at either end of an image's grey scale (Luo et al. 2022)."""


def montage_figure(
    rows: Mapping[str, np.ndarray], grid: Grid, *, title: str, scores: Mapping[str, Sequence[float]] | None = None
) -> Figure:
    """Rows of images, one column an object.

    Args:
        rows: images [columns, H, W] by name.
        grid: of the images.
        title: what they show.
        scores: a number under each image of a row.
    """
    from matplotlib.figure import Figure

    columns = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.5 * columns + 1.2, 1.65 * len(rows) + 0.7), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    height, width = (1e3 * side / 2 for side in grid.extent)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for column, (axis, image) in enumerate(zip(line, images, strict=True)):
            low, high = np.percentile(image, [SATURATED, 100 - SATURATED])
            axis.imshow(
                image, cmap="gray", vmin=low, vmax=max(high, low + 1e-30), extent=(-width, width, height, -height)
            )
            axis.set_xticks([])
            axis.set_yticks([])
            if scores is not None and name in scores:
                axis.set_xlabel(f"{scores[name][column]:.2f}", fontsize=8)
        line[0].set_ylabel(name, fontsize=9)
    figure.suptitle(f"{title}\n{2 * width:.3g} x {2 * height:.3g} mm, each scaled by itself", fontsize=10)
    return figure


def phases_figure(phases: np.ndarray, grid: Grid) -> Figure:
    """Layers as phase wrapped to 0..2 pi; the colours join at the ends."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.4 * len(phases) + 0.8, 2.9), layout="constrained")
    axes = figure.subplots(1, len(phases), squeeze=False)[0]
    height, width = (1e3 * side / 2 for side in grid.extent)
    for m, (axis, phase) in enumerate(zip(axes, phases, strict=True)):
        shown = axis.imshow(
            np.mod(phase, 2 * np.pi), cmap="twilight", vmin=0, vmax=2 * np.pi, extent=(-width, width, height, -height)
        )
        axis.set_title(f"layer {m + 1}", fontsize=9)
        axis.set_xlabel("x, mm", fontsize=8)
    axes[0].set_ylabel("y, mm", fontsize=8)
    figure.colorbar(shown, ax=list(axes), label="phase, rad", ticks=[0, np.pi, 2 * np.pi], format="%.2f")
    return figure


def curves_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Correlation and loss by epoch, with what validation found."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [record["epoch"] + 1 for record in history]
    left.plot(epochs, [record["pcc"] for record in history], "k-", label="training pairs")
    for name, style, label in (
        ("pcc_known", "b--", "validation, known diffusers"),
        ("pcc_new", "r-.", "validation, new diffusers"),
        ("pcc_none", "g:", "validation, no diffuser"),
    ):
        points = [(record["epoch"] + 1, record[name]) for record in history if name in record]
        if points:
            left.plot(*zip(*points, strict=True), style, label=label)
    right.plot(epochs, [record["loss"] for record in history], "k-")
    left.set(xlabel="epoch", ylabel="Pearson correlation")
    right.set(xlabel="epoch", ylabel="loss")
    left.legend(fontsize=7)
    return figure


def lines_figure(
    lines: Mapping[str, tuple[Sequence[Any], Sequence[Any], Sequence[Any]]], *, x: str, y: str, title: str
) -> Figure:
    """Means with deviations: name to places, means, deviations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.subplots()
    for (name, (places, means, deviations)), style in zip(lines.items(), "os^dvx*+" * 4, strict=False):
        axis.errorbar(places, means, deviations, marker=style, capsize=3, label=name)
    axis.set(xlabel=x, ylabel=y, title=title)
    axis.title.set_fontsize(10)
    if len(lines) > 1:
        axis.legend(fontsize=8)
    return figure


def picture(figure: Figure, suffix: str) -> bytes | str:
    """A figure as a file's content, SVG or PNG by its suffix."""
    return svg(figure) if suffix == ".svg" else rendered(figure, "png")
