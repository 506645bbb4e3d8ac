"""Spiking architectures with feedback, found without training them (arXiv 2201.10355)."""

from __future__ import annotations

import core_utils
from snasnet.cells import Cell
from snasnet.spaces import SearchSpace

if core_utils.CONTRACT != 1:
    raise ImportError("snasnet needs core-utils with contract 1")

__all__ = ["Cell", "SearchSpace"]
