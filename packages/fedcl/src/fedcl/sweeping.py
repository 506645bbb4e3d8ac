"""One federation of a sweep, as a job of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedcl.job import make_run, read_config


def run_cell(tree: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a configuration; a module-level function, so that other processes can run it."""
    return make_run(read_config(dict(tree), "the sweep's configuration")).run().figures
