"""The search: draw cells, score each once without training, rank them.

Every strategy is decided by its seed alone: which cells are asked for never depends on who scores them, or in what order
they are done. What was scored is in the run's log; a search that goes on looks there first.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from core_utils import interrupts
from core_utils.errors import UserError
from core_utils.files import write_atomically
from core_utils.jobs import map_jobs
from core_utils.runs import Run
from snasnet.cells import Cell
from snasnet.costs import Constraints, most_sops, parameters
from snasnet.scoring import score_cell
from snasnet.spaces import MOST_REJECTED, SearchSpace
from snasnet.specs import DatasetSpec

STRATEGIES = ("random", "exhaustive", "evolution")
SYNC_SECONDS = 10.0
Scores = Mapping[str, Mapping[str, Any]]
"""What was scored, by the cell's id."""


@dataclass(frozen=True)
class SearchResult:
    """A ranking of cells.

    Attributes:
        table: one row a cell, best first: `id`, `matrix`, `status` ("ok", "degenerate", "failed"), `score`, `sign`,
            `rates`, `rate`, `params`, `sops` (if every neuron fired), `convs`, `backward`, `seconds`, `seed`, `draws` (how often it was asked for), and
            `error` of those that failed. Degenerate cells come after all others, failed ones last.
        draws: how many cells were asked for, repeats included.
    """

    table: tuple[Mapping[str, Any], ...]
    draws: int = 0

    @property
    def best(self) -> Cell:
        """The cell with the highest score.

        Raises:
            UserError: no cell has one.
        """
        if not self.table or self.table[0]["status"] != "ok":
            raise UserError("no cell has a score", "all are degenerate or failed")
        return Cell(self.table[0]["matrix"])

    def top(self, k: int) -> list[Cell]:
        """The best so many cells that have a score."""
        return [Cell(row["matrix"]) for row in self.table[:k] if row["status"] == "ok"]

    @property
    def front(self) -> list[str]:
        """Ids of the cells that no other beats: none has a score as high, and parameters and operations as few."""
        rows = [row for row in self.table if row["status"] == "ok"]
        if not rows:
            return []
        # Smaller is better in all columns.
        costs = np.array([[-row["score"], row["params"], row["sops"]] for row in rows])
        beaten = [(np.all(costs <= own, 1) & np.any(costs < own, 1)).any() for own in costs]
        return [row["id"] for row, lost in zip(rows, beaten, strict=True) if not lost]

    def count(self, status: str) -> int:
        """How many cells have a status."""
        return sum(row["status"] == status for row in self.table)


def search(
    space: SearchSpace,
    spec: DatasetSpec,
    batch: Float[Tensor, "B C H W"] | Float[Tensor, "T B C H W"],
    strategy: str = "random",
    n: int = 5000,
    constraints: Constraints | None = None,
    workers: int = 1,
    cluster: str | None = None,
    seed: int = 0,
    run: Run | None = None,
    resume: bool = True,
    *,
    metric: str = "sahd",
    alpha: float | int | str = "code",
    repeats: int = 1,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> SearchResult:
    """Scores cells of a space and ranks them.

    Args:
        space: where cells come from.
        spec: of the data.
        batch: the same for every cell: samples that the network will be trained on. Cells are scored on its device.
        strategy: "random" draws, as the paper does; "exhaustive" takes the whole space, or its first `n` cells in an
            order by lot; "evolution" mutates the better ones of the cells at hand and forgets the oldest (regularised
            evolution, arXiv 1802.01548).
        n: draws, repeats included; each cell is scored once.
        constraints: cells that break one are drawn again, without a score.
        workers: processes on this machine; their number changes nothing but the time.
        cluster: a Dask scheduler's address instead; its workers must see the run's folder.
        seed: decides draws and initial weights.
        run: where scores are logged as they come; None keeps nothing.
        resume: take over the scores in the run's log; else its log must be empty.
        metric: "sahd" or "hd".
        alpha: as of `sahd_kernel`.
        repeats: initial weights to average over.
        options: of `SNASNet`: width, T, ...
        progress: show progress on stderr.

    Returns:
        The ranking; the same for any number of workers and however often the search was interrupted.

    Raises:
        UserError: an unknown strategy, or constraints that no draw of 1000 keeps.
        KeyboardInterrupt: a signal arrived; what is scored is logged, and the best so far in the run's `best.json`.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if n < 1:
        raise UserError(f"n must be at least 1, got {n}")
    options = dict(options or {})
    rows = _logged(run, resume)
    draws: Counter[str] = Counter()
    rules = _Rules(constraints or Constraints(), spec, options)
    rounds = _rounds(strategy, space, rules, n, seed, rows)
    kept = _Kept(run)
    with _shared(batch, run) as file, interrupts.deferred() as signalled:
        unfinished = workers  # candidates that are being scored when a signal comes
        for cells in rounds:
            draws.update(cell.id for cell in cells)
            jobs = {
                cell.id: Job(
                    str(cell),
                    spec,
                    file,
                    str(batch.device),
                    metric,
                    alpha,
                    repeats,
                    seed,
                    tuple(sorted(options.items())),
                )
                for cell in cells
            }
            results = map_jobs(
                score_job, jobs, workers=workers, cluster=cluster, done=set(rows), progress=progress, threads=1
            )
            with contextlib.closing(results):
                for result in results:
                    rows[result.key] = _row(Cell(jobs[result.key].cell), result, rules, seed)
                    kept.add(rows[result.key])
                    unfinished -= signalled()
                    if unfinished <= 0:
                        break
            if signalled():
                break
        found = _ranked(rows, draws)
        if run is not None:
            run.write("best.json", _summary(found))
    return found


@dataclass(frozen=True)
class Job:
    """One cell to score, as it is sent to a process: the batch lies in a file that every process reads once."""

    cell: str
    spec: DatasetSpec
    batch: Path
    device: str
    metric: str
    alpha: float | int | str
    repeats: int
    seed: int
    options: tuple[tuple[str, Any], ...]


def score_job(job: Job) -> dict[str, Any]:
    """What the log keeps of a cell's score."""
    result = score_cell(
        Cell(job.cell),
        job.spec,
        _batch(job.batch, job.device),
        metric=job.metric,
        alpha=job.alpha,
        repeats=job.repeats,
        seed=job.seed,
        **dict(job.options),
    )
    return {
        "status": "degenerate" if result.degenerate else "ok",
        "score": result.score,
        "sign": result.sign,
        "rates": dict(result.rates),
        "rate": result.rate,
        "dead_fraction": result.dead_fraction,
    }


@functools.lru_cache(maxsize=2)
def _batch(file: Path, device: str) -> Tensor:
    return torch.from_numpy(np.load(file, allow_pickle=False)).to(device)


class _Kept:
    """The run's log; what it holds reaches the disk at least every 10 s while cells are scored."""

    def __init__(self, run: Run | None) -> None:
        self._run, self._synced = run, time.monotonic()

    def add(self, row: Mapping[str, Any]) -> None:
        if self._run is None:
            return
        self._run.log(**row)
        if time.monotonic() - self._synced < SYNC_SECONDS:
            return
        with (self._run.path / "log.jsonl").open("rb") as file:
            os.fsync(file.fileno())
        self._synced = time.monotonic()


@dataclass(frozen=True)
class _Rules:
    """The constraints for one kind of network."""

    constraints: Constraints
    spec: DatasetSpec
    options: Mapping[str, Any]

    def violation(self, cell: Cell) -> tuple[float, str] | None:
        """How far a cell breaks the worst constraint, as a factor, and what it breaks; None if it keeps all."""
        return self.constraints.violation(cell, self.spec, **self.options)


def _rounds(strategy: str, space: SearchSpace, rules: _Rules, n: int, seed: int, rows: Scores) -> Iterator[list[Cell]]:
    rng = np.random.default_rng([seed, STRATEGIES.index(strategy)])
    if strategy == "random":
        yield [_kept(lambda: space.sample(rng), rules) for _ in range(n)]
    elif strategy == "exhaustive":
        matrices = space.matrices()
        order = np.arange(len(matrices)) if n >= len(matrices) else rng.permutation(len(matrices))
        cells = (Cell(matrices[index]) for index in order)
        kept = list(itertools.islice((cell for cell in cells if rules.violation(cell) is None), n))
        if not kept:
            raise UserError(f"no cell of {space} keeps the constraints")
        yield kept
    else:
        yield from _evolution(space, rules, n, rng, rows)


def _evolution(
    space: SearchSpace, rules: _Rules, n: int, rng: np.random.Generator, rows: Scores
) -> Iterator[list[Cell]]:
    """A population of random cells; then rounds of children, each of the best of a tournament; the oldest leave."""
    size = min(n, max(10, round(math.sqrt(n))))
    population = [_kept(lambda: space.sample(rng), rules) for _ in range(size)]
    yield population
    done = size
    while done < n:
        children = []
        for _ in range(min(n - done, max(1, size // 2))):
            drawn = rng.choice(len(population), size=max(2, len(population) // 4), replace=False)
            parent = min((population[index] for index in drawn), key=lambda cell: _rank(rows.get(cell.id), cell.id))
            children.append(_kept(functools.partial(space.mutate, parent, rng), rules))
        yield children
        done += len(children)
        population = (population + children)[-size:]


def _kept(draw: Callable[[], Cell], rules: _Rules) -> Cell:
    """The first draw that keeps the constraints."""
    closest: tuple[float, str] | None = None
    for _ in range(MOST_REJECTED):
        cell = draw()
        broken = rules.violation(cell)
        if broken is None:
            return cell
        closest = broken if closest is None else min(closest, broken)
    raise UserError(f"none of {MOST_REJECTED} draws keeps the constraints", f"the closest: {closest and closest[1]}")


def _row(cell: Cell, result: Any, rules: _Rules, seed: int) -> dict[str, Any]:
    facts = {
        "id": cell.id,
        "matrix": [list(row) for row in cell.rows],
        "params": parameters(cell, rules.spec, **rules.options),
        "sops": most_sops(cell, rules.spec, **rules.options),
        "convs": cell.n_convs,
        "backward": cell.n_backward,
        "backward_idle": cell.n_backward_idle,
        "seconds": round(result.seconds, 4),
        "seed": seed,
    }
    if result.error is None:
        return {**facts, **result.value}
    return {**facts, "status": "failed", "score": None, "error": str(result.error)}


def _rank(row: Mapping[str, Any] | None, name: str) -> tuple[int, float, str]:
    """A sorting key: scores fall, then degenerate cells, then failed ones, then unknown ones; equals by name."""
    if row is None:
        return 3, 0.0, name
    place = {"ok": 0, "degenerate": 1, "failed": 2}[row["status"]]
    return place, -float(row["score"]) if place == 0 else 0.0, name


def _ranked(rows: Scores, draws: Counter[str]) -> SearchResult:
    asked = [{**rows[name], "draws": count} for name, count in draws.items() if name in rows]
    return SearchResult(tuple(sorted(asked, key=lambda row: _rank(row, row["id"]))), draws.total())


def _summary(found: SearchResult) -> dict[str, Any]:
    counts = {status: found.count(status) for status in ("ok", "degenerate", "failed")}
    best = found.table[0] if found.table and found.table[0]["status"] == "ok" else None
    return {"best": best, "draws": found.draws, "cells": len(found.table), **counts}


def _logged(run: Run | None, resume: bool) -> dict[str, Mapping[str, Any]]:
    """Scored cells of the run's log; one that failed is tried again."""
    records = [] if run is None else list(run.records())
    if records and not resume:
        raise UserError(f"{run and run.path} holds scores already", "give resume=True or another folder")
    return {record["id"]: record for record in records if record.get("status") in ("ok", "degenerate")}


@contextlib.contextmanager
def _shared(batch: Tensor, run: Run | None) -> Iterator[Path]:
    """The batch as a file for the processes; its name says what it holds."""
    array = np.ascontiguousarray(batch.cpu().numpy())
    name = f"batch-{hashlib.sha256(array.tobytes()).hexdigest()[:12]}.npy"
    with contextlib.ExitStack() as stack:
        folder = run.path.resolve() if run is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = folder / name
        if not file.is_file():
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            write_atomically(file, content.getvalue())
        yield file
