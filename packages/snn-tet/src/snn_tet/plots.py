"""Pictures of what the package measures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

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
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context({"svg.hashsalt": "snn-tet", "svg.fonttype": "path"}):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for (name, accuracies), (colour, marker, line) in zip(arms.items(), STYLES, strict=False):
            steps = range(1, len(accuracies) + 1)
            axes.plot(steps, [100 * value for value in accuracies], line, color=colour, marker=marker, label=name)
        axes.set(xlabel="time steps run", ylabel="accuracy (%)", title=title)
        axes.title.set_fontsize("medium")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if len(arms) > 1:
            axes.legend(frameon=False)
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()
