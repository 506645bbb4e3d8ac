"""Engines that run exported files, found by the entry-point group `mqbench_lite.engines`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Which of a network's operations run on integers.

    Attributes:
        integer: operation by name.
        floating: likewise, of those in float.
    """

    integer: Mapping[str, str] = field(default_factory=dict)
    floating: Mapping[str, str] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share of integer operations; 1 for a network without any."""
        total = len(self.integer) + len(self.floating)
        return len(self.integer) / total if total else 1.0
