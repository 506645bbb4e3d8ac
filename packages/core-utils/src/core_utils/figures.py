"""Matplotlib figures as files that do not change from one run to the next."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def svg(figure: Figure) -> str:
    """A figure as the text of an SVG file."""
    return rendered(figure, "svg").decode()


def rendered(figure: Figure, form: Literal["svg", "png"]) -> bytes:
    """A figure as a file, the same bytes for the same picture; in SVG letters are paths, so that it needs no font."""
    from matplotlib import rc_context

    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "core-utils", "svg.fonttype": "path"}):
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(content, format=form, dpi=150, metadata=metadata)
    return content.getvalue()
