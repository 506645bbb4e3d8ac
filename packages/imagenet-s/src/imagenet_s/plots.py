"""Pictures of what the package measures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from core_utils.figures import svg


def grid_figure(
    table: Float64[np.ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    quantity: str,
    title: str,
    marked: tuple[int, int] | None = None,
) -> str:
    """A heat map with the figure in each cell.

    Args:
        table: one value a cell.
        rows: their names, decoders.
        columns: their names, resizers.
        quantity: what the cells hold, with its unit.
        title: what the picture shows.
        marked: row and column of the reference, framed.

    Returns:
        SVG.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(2.2 + 0.62 * len(columns), 2.0 + 0.38 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    low, high = min(0.0, float(table.min())), max(float(table.max()), float(table.min()) + 1e-9, 1e-9)
    image = axes.imshow(table, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        dark = (value - low) < 0.55 * (high - low)
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    if marked is not None:
        axes.add_patch(Rectangle((marked[1] - 0.5, marked[0] - 0.5), 1, 1, fill=False, edgecolor="white", linewidth=2))
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set(xlabel="resizer", ylabel="decoder", title=title)
    axes.title.set_fontsize("medium")
    figure.colorbar(image, ax=axes, label=quantity)
    return svg(figure)


def waterfall_figure(names: Sequence[str], shares: Sequence[float], *, quantity: str, title: str) -> str:
    """Bars that add up from nothing to the whole effect, one a stage.

    Args:
        names: of the stages, in the order shown.
        shares: each stage's part of the effect.
        quantity: what the axis shows, with its unit.
        title: what the picture shows.

    Returns:
        SVG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 1.4 + 0.38 * (len(names) + 1)), layout="constrained")
    axes = figure.add_subplot()
    starts = np.concatenate([[0.0], np.cumsum(shares)])
    places = np.arange(len(names) + 1)
    colours = ["#d55e00" if share > 0 else "#0072b2" for share in shares]
    axes.barh(places[:-1], shares, left=starts[:-1], color=colours, edgecolor="black", linewidth=0.5)
    axes.barh(places[-1:], starts[-1:], color="0.6", edgecolor="black", linewidth=0.5, hatch="//")
    for place, (start, share) in enumerate(zip(starts, [*shares, starts[-1]], strict=True)):
        end = start + share if place < len(names) else share
        axes.annotate(f"{share:+.2f}", (max(end, start if place < len(names) else 0), place), (3, 0), va="center",
                      textcoords="offset points", fontsize=8)  # fmt: skip
    axes.set_yticks(places, [*names, "all together"])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.margins(x=0.15)
    axes.set(xlabel=quantity, title=title)
    axes.title.set_fontsize("medium")
    axes.grid(axis="x", alpha=0.3)
    return svg(figure)
