"""What finished commands left in their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core_utils.errors import UserError


def search_result(folder: Path) -> Any:
    """The result of a search with at least one cell.

    Raises:
        UserError: another folder, a search that is not finished, or one without cells.
    """
    result = finished(folder, "search")
    if not result["table"]:
        raise UserError(f"{folder} holds a search without cells")
    return result


def best_of(folder: Path) -> str:
    """The best cell of a search, as text.

    Raises:
        UserError: as `search_result`, or no cell has a score.
    """
    from snasnet.cells import Cell

    best = search_result(folder)["table"][0]
    if best["status"] != "ok":
        raise UserError(f"--from {folder}: no cell of that search has a score")
    return str(Cell(best["matrix"]))


def finished(folder: Path, verb: str) -> Any:
    """The result of a finished run of a command, which its keys tell.

    Raises:
        UserError: the folder is no such run.
    """
    key = {"search": "table", "train": "test_accuracy"}[verb]
    try:
        result = json.loads((folder / "result.json").read_bytes())
    except (OSError, ValueError):
        result = None
    if not isinstance(result, dict) or key not in result:
        raise UserError(f"{folder} is no folder of a finished `snasnet {verb}`")
    return result
