"""How well a score ranks cells: rank correlation with the accuracies that training gave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core_utils.errors import UserError


def correlate(
    table: Sequence[Mapping[str, Any]],
    accuracies: Mapping[str, float],
    *,
    columns: Sequence[str] = ("score", "params", "convs", "rate"),
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """Kendall's tau between accuracies and what the table says of the cells, with a 95 % bootstrap interval.

    Args:
        table: rows of a `SearchResult`; other tables may have other columns.
        accuracies: of trained cells, by id.
        columns: which; trivial ones stand beside the score to compare it with.
        resamples: of the cells.
        seed: decides them.

    Returns:
        (tau, low, high) by column; of columns that the table has.

    Raises:
        UserError: fewer than 3 trained cells in the table.
    """
    rows = [row for row in table if row["id"] in accuracies and row.get("status", "ok") == "ok"]
    if len(rows) < 3:
        raise UserError(f"a rank correlation needs at least 3 trained cells, the table holds {len(rows)}")
    accuracy = _order([accuracies[row["id"]] for row in rows])
    draws = np.random.default_rng(seed).integers(len(rows), size=(resamples, len(rows)))
    found = {}
    for column in columns:
        if any(row.get(column) is None for row in rows):
            continue
        values = _order([row[column] for row in rows])
        taus = np.array([_tau(values[draw][:, draw], accuracy[draw][:, draw]) for draw in draws])
        low, high = np.nanquantile(taus, (0.025, 0.975)) if np.isfinite(taus).any() else (math.nan, math.nan)
        found[column] = (_tau(values, accuracy), float(low), float(high))
    return found


def _order(values: Sequence[float | int]) -> np.ndarray:
    """Of every pair, which is larger: 1, 0 or -1, shape [n, n]."""
    array = np.array(values, np.float64)
    return np.sign(array[:, None] - array[None, :])


def _tau(first: np.ndarray, second: np.ndarray) -> float:
    """Kendall's tau-b of two orders; nan where one knows no difference."""
    untied = float((first * first).sum() * (second * second).sum())
    return float((first * second).sum()) / math.sqrt(untied) if untied else math.nan
