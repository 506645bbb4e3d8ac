"""Runs side by side: those that differ in their seed alone are repetitions of one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core_utils.errors import UserError
from core_utils.jsonable import dumps
from fedcl.job import JobConfig
from fedcl.metrics import average_accuracy

FIGURES = ("accuracy", "forgetting", "backward_transfer", "drift", "aggregation_drop", "local_accuracy", "bytes_up")


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of equal settings.

    Attributes:
        label: the settings in which the groups differ.
        figures: of each run.
        curves: average accuracy over the tasks seen by each phase, [runs, T].
        rounds: after which each phase ends, [T].
    """

    label: str
    figures: list[dict[str, float]]
    curves: np.ndarray
    rounds: np.ndarray


def compared(runs: Sequence[tuple[Path, JobConfig, dict[str, Any]]]) -> list[Group]:
    """Groups of finished runs, in the order of their first.

    Raises:
        UserError: no run, runs of unequal numbers of tasks, or two of equal settings and seed.
    """
    if not runs:
        raise UserError("compare needs at least one run")
    counts = {len(result["accuracy_matrix"]) for _, _, result in runs}
    if len(counts) > 1:
        raise UserError(f"the runs have {sorted(counts)} tasks", "compare those of one number")
    flat, seeds = [], []
    for _, config, _ in runs:
        tree = json.loads(dumps(asdict(config)))
        seeds.append(tree["run"].pop("seed"))
        tree["run"].pop("device")
        flat.append(_flat(tree))
    varying = [key for key in flat[0] if len({json.dumps(each[key]) for each in flat}) > 1]
    members: dict[str, list[int]] = {}
    for index, each in enumerate(flat):
        members.setdefault(", ".join(f"{key.partition('.')[2]}={each[key]}" for key in varying) or "all", []).append(
            index
        )
    groups = []
    for label, indices in members.items():
        if len({seeds[index] for index in indices}) < len(indices):
            raise UserError(f"two runs of {label} have one seed", f"see {runs[indices[0]][0]}")
        results = [runs[index][2] for index in indices]
        matrices = [(np.array(each["accuracy_matrix"]), np.array(each["seen"])) for each in results]
        curves = np.stack([average_accuracy(accuracy, seen) for accuracy, seen in matrices])
        each_phase = runs[indices[0]][1].run.rounds
        figures = [{name: _number(each.get(name)) for name in FIGURES} for each in results]
        groups.append(Group(label, figures, curves, each_phase * np.arange(1, curves.shape[1] + 1)))
    return groups


def table_of(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Rows of means and 95 % intervals."""
    rows = []
    for group in groups:
        row: dict[str, Any] = {"runs": group.label, "n": len(group.figures)}
        for name in FIGURES[:-1]:
            found = interval([each[name] for each in group.figures])
            row |= {name: found["mean"], f"{name} low": found["low"], f"{name} high": found["high"]}
        rows.append(row)
    return rows


def interval(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and 95 % Student-t interval; None where there are too few finite values."""
    finite = np.array([value for value in values if value is not None and math.isfinite(value)], np.float64)
    if not len(finite):
        return {"mean": None, "low": None, "high": None}
    mean = float(finite.mean())
    if len(finite) < 2:
        return {"mean": mean, "low": None, "high": None}
    half = half_width(finite)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def half_width(values: np.ndarray) -> float:
    """Half of the 95 % Student-t interval of a mean."""
    from scipy.special import stdtrit

    return float(stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / math.sqrt(len(values)))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
