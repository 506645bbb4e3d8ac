"""Pictures of what the package measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from core_utils.figures import rendered

if TYPE_CHECKING:
    from qdrop.evaluation import FlatnessRow
    from qdrop.reconstruction import UnitResult

Kind = Literal["png", "svg"]
STYLES = (
    ("#0072b2", "o", "-"),
    ("#d55e00", "s", "--"),
    ("#009e73", "^", ":"),
    ("#cc79a7", "D", "-."),
    ("#e69f00", "v", (0, (5, 1))),
    ("#56b4e9", "P", (0, (1, 1))),
)
"""Colour (safe for colour-blind readers), marker and line, so that arms differ in black and white, too."""
SMOOTHED = 100
"""Points of a loss curve: each is the mean of its share of the iterations, whose batches differ too much to read."""
LEAST_DB, MOST_DB = -10.0, 80.0
"""What is drawn of signal-to-noise ratios; a unit without any error has an infinite one."""


def loss_figure(report: Sequence[UnitResult], title: str, kind: Kind = "png") -> bytes:
    """The loss of every unit while it was reconstructed, dark to light in order of execution.

    Args:
        report: of a quantised model.
        title: what the picture shows.
        kind: file format.
    """
    import matplotlib as mpl

    figure, axes = _figure()
    drawn = [result for result in report if result.losses]
    colours = mpl.colormaps["cividis"](np.linspace(0, 0.9, max(1, len(drawn))))
    for number, (result, colour) in enumerate(zip(drawn, colours, strict=False)):
        steps, losses = _smooth(result.losses)
        line = STYLES[number % len(STYLES)][2]
        axes.plot(steps, losses, linestyle=line, color=colour, linewidth=1.2, label=result.name)
    if drawn:
        axes.set_yscale("log")
        axes.legend(frameon=False, fontsize="x-small", ncols=1 + len(drawn) // 12)
    _finish(axes, "iteration", "squared error + regulariser", title)
    return rendered(figure, kind)


def sqnr_figure(report: Sequence[UnitResult], title: str, kind: Kind = "png") -> bytes:
    """The signal-to-noise ratio at every unit's output, in order of execution: where a model loses its precision.

    Args:
        report: of a quantised model.
        title: what the picture shows.
        kind: file format.
    """
    figure, axes = _figure(height=max(2.0, 0.9 + 0.22 * len(report)))
    values = np.nan_to_num([result.sqnr_db for result in report], nan=LEAST_DB, posinf=MOST_DB, neginf=LEAST_DB)
    places = np.arange(len(report))
    axes.barh(places, np.clip(values, LEAST_DB, MOST_DB), color=STYLES[0][0], edgecolor="black", linewidth=0.4)
    axes.set_yticks(places, [result.name for result in report], fontsize="x-small")
    axes.invert_yaxis()
    _finish(axes, "signal over quantisation noise at the unit's output (dB)", "unit", title)
    return rendered(figure, kind)


def compare_figure(
    figures: Mapping[str, Mapping[str, Sequence[float]]], quantity: str, title: str, kind: Kind = "png"
) -> bytes:
    """Methods beside each other for each choice of bits: a mark a seed, and a line through the means.

    Args:
        figures: fractions, one a seed, by method and bits (`"qdrop": {"2/2": [...]}`).
        quantity: what they are, for the axis.
        title: what the picture shows.
        kind: file format.
    """
    figure, axes = _figure()
    bits = list(dict.fromkeys(each for of_method in figures.values() for each in of_method))
    for number, (method, of_method) in enumerate(figures.items()):
        colour, marker, line = STYLES[number % len(STYLES)]
        offset = 0.08 * (number - (len(figures) - 1) / 2)
        places = [bits.index(each) + offset for each in of_method]
        axes.plot(
            places,
            [100 * np.mean(v) for v in of_method.values()],
            linestyle=line,
            color=colour,
            linewidth=1,
            label=method,
        )
        for place, values in zip(places, of_method.values(), strict=True):
            axes.plot([place] * len(values), [100 * v for v in values], marker, color=colour, markersize=5, alpha=0.8)
    axes.set_xticks(range(len(bits)), bits)
    if figures:
        axes.legend(frameon=False, fontsize="small")
    _finish(axes, "bits of weights / activations", f"{quantity} (%)", title)
    return rendered(figure, kind)


def flatness_figure(arms: Mapping[str, Sequence[FlatnessRow]], quantity: str, title: str, kind: Kind = "png") -> bytes:
    """The loss over the length of a random displacement: the mean over directions, and their spread as a band.

    Args:
        arms: rows of `flatness` by what was displaced or on what.
        quantity: what the loss is, for the axis, with its unit.
        title: what the picture shows.
        kind: file format.
    """
    figure, axes = _figure()
    for number, (name, rows) in enumerate(arms.items()):
        colour, marker, line = STYLES[number % len(STYLES)]
        places = sorted({row.magnitude for row in rows})
        losses = [np.array([row.loss for row in rows if row.magnitude == place]) for place in places]
        mean = np.array([values.mean() for values in losses])
        spread = np.array([values.std() for values in losses])
        percent = [100 * place for place in places]
        axes.plot(percent, mean, linestyle=line, marker=marker, color=colour, label=name)
        axes.fill_between(percent, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    if len(arms) > 1:
        axes.legend(frameon=False)
    _finish(axes, "displacement of the weights (% of each channel's norm)", quantity, title)
    return rendered(figure, kind)


def _smooth(losses: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Places and means of equal shares of a curve."""
    shares = np.array_split(np.array(losses), min(SMOOTHED, len(losses)))
    ends = np.cumsum([len(share) for share in shares])
    return ends - np.array([len(share) for share in shares]) / 2, np.array([share.mean() for share in shares])


def _figure(height: float = 3.4) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, height), layout="constrained")
    return figure, figure.add_subplot()


def _finish(axes: Any, x: str, y: str, title: str) -> None:
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.title.set_fontsize("medium")
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
