"""What commands leave in a run's folder and read back from it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core_utils.errors import UserError

if TYPE_CHECKING:
    from core_utils.runs import Run
    from fedcl.federation import FederatedRun
    from fedcl.job import JobConfig
    from fedcl.records import RunResult


def finish(run: Run, result: RunResult, title: str) -> None:
    """Writes the accuracy matrix, its picture, the curves, and the result."""
    from fedcl.plots import history_figure, matrix_figure

    table = io.StringIO()
    np.savetxt(
        table, result.accuracy, fmt="%.6f", delimiter=",", header=",".join(map(str, range(len(result.accuracy))))
    )
    run.write("accuracy.csv", table.getvalue())
    run.write("figures/accuracy-matrix.svg", matrix_figure(result.accuracy, result.seen, title))
    run.write("figures/history.svg", history_figure(result.history, title))
    run.finish(
        {
            **result.figures,
            "accuracy_matrix": result.accuracy,
            "seen": result.seen,
            "untrained": result.untrained,
            "rounds": len(result.history),
            "versions": result.versions,
        }
    )


def finished(folder: Path) -> tuple[JobConfig, dict[str, Any]]:
    """Configuration and result of a finished `fedcl run`.

    Raises:
        UserError: the folder holds no such run.
    """
    from fedcl.job import read_config

    try:
        asked, result = (json.loads((folder / name).read_bytes()) for name in ("config.json", "result.json"))
        known = (
            isinstance(asked, dict) and {"scenario", "server", "run"} <= asked.keys() and "accuracy_matrix" in result
        )
    except (OSError, ValueError):
        known = False
    if not known:
        raise UserError(f"{folder} is no folder of a finished `fedcl run`")
    return read_config(asked, str(folder / "config.json")), result


def records(folder: Path) -> list[Any]:
    """The rounds of a run.

    Raises:
        UserError: the log is missing or damaged.
    """
    from fedcl.records import record_from

    try:
        lines = (folder / "log.jsonl").read_text().splitlines()
        return [record_from(json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / 'log.jsonl'} is missing or damaged: {error}") from None


def restored(folder: Path) -> FederatedRun:
    """The federation of a finished run with its last tensors in it."""
    from core_utils.runs import Run
    from fedcl.job import make_run

    config, _ = finished(folder)
    federation = make_run(config)
    with Run.open(folder, config.asked()) as run:
        federation.restore(run)
    return federation
