"""Commands on many cells: search them, and hold a search against trained cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core_utils import cli
from core_utils.files import write_atomically
from snasnet.commands.cells import Kind, OnData
from snasnet.commands.folders import finished, search_result

if TYPE_CHECKING:
    from core_utils.runs import Run
    from snasnet.searching import SearchResult


@dataclass(frozen=True, kw_only=True)
class Search(OnData, cli.RunCommand):
    """Score many cells and rank them; goes on where it was stopped."""

    kind: Kind = "backward"  # backward may have feedback
    n: int = 5000  # draws, repeats included; each cell is scored once
    strategy: Literal["random", "exhaustive", "evolution"] = "random"  # how cells are chosen
    max_backward: int | None = None  # most edges with feedback
    max_params: int | None = None  # of the whole network
    max_sops: float | None = None  # of an inference in which every neuron fires at every step
    min_convs: int | None = None  # in the cell
    workers: int = 1  # processes
    cluster: str | None = None  # address of a Dask scheduler instead
    top: int = 10  # cells to print
    out: Path = Path("runs/search")  # the search's folder

    def __call__(self) -> int:
        """Writes the ranking; exit code 1 if a cell failed."""
        from snasnet import Constraints, SearchSpace

        space = SearchSpace(self.kind, max_backward=self.max_backward)
        constraints = Constraints(self.max_params, self.max_sops, self.min_convs)
        asked = {"space": space, "constraints": constraints, "options": self.options, "data": self.data, **self.scoring}
        names = ("dataset", "image_size", "sensor", "batch", "n", "strategy", "device")
        with self.open_run({**asked, **{name: getattr(self, name) for name in names}}) as run:
            if not run.finished:
                self._finish(run, self._searched(run, space, constraints))
            found = run.result()
        best = found["table"][: self.top]
        self.show({**found, "table": best}, None if self.json else lambda: _ranking(found, best))
        return cli.CHECK_FAILED if found["failed"] else cli.DONE

    def _searched(self, run: Run, space: Any, constraints: Any) -> SearchResult:
        from snasnet import search

        return search(
            space,
            **self.given(),
            strategy=self.strategy,
            n=self.n,
            constraints=constraints,
            workers=self.workers,
            cluster=self.cluster,
            run=run,
            options=self.options,
            progress=not self.quiet,
            **self.scoring,
        )

    def _finish(self, run: Run, result: SearchResult) -> None:
        from snasnet.plots import cell_figure, histogram_figure

        scores = [row["score"] for row in result.table if row["status"] == "ok"]
        if scores:
            run.write("figures/score_hist.svg", histogram_figure(scores, f"{len(scores)} cells, {self.strategy}"))
            run.write("figures/cell.svg", cell_figure(result.best))
        counts = {status: result.count(status) for status in ("ok", "degenerate", "failed")}
        run.finish({"draws": result.draws, **counts, "front": result.front, "table": result.table})


@dataclass(frozen=True, kw_only=True)
class Compare(cli.Command):
    """Rank correlation of a search's scores with the accuracies of cells that were trained."""

    search: Path  # folder of `snasnet search`
    runs: tuple[Path, ...] = field(default=())  # folders of `snasnet train`, at least 3
    out: Path | None = None  # picture to write, SVG

    def __call__(self) -> None:
        """Prints Kendall's tau with its 95 % bootstrap interval for the score and for trivial baselines."""
        from snasnet import Cell, correlate
        from snasnet.plots import accuracy_figure

        table = search_result(self.search)["table"]
        accuracies = {}
        for run in self.runs:
            result = finished(run, "train")
            accuracies[Cell(result["cell"]).id] = result["test_accuracy"]
        found = correlate(table, accuracies)
        if self.out is not None:
            rows = [row for row in table if row["id"] in accuracies and row["status"] == "ok"]
            shown = [100 * accuracies[row["id"]] for row in rows]
            picture = accuracy_figure([row["score"] for row in rows], shown, f"{len(rows)} trained cells")
            write_atomically(self.out, picture)
        self.show({name: {"tau": tau, "low": low, "high": high} for name, (tau, low, high) in found.items()})


def _ranking(found: Any, best: Any) -> Any:
    from rich.console import Group
    from rich.table import Column, Table

    table = Table(Column("cell", no_wrap=True, min_width=19), "score", "rate", "parameters", "SOPs", "drawn", "front")
    for row in best:
        score = f"{row['score']:.2f}" if row["status"] == "ok" else row["status"]
        costs = f"{row['params']}", f"{row['sops']:.3g}"
        front = "yes" if row["id"] in found["front"] else ""
        table.add_row(row["id"], score, f"{row.get('rate') or 0:.3f}", *costs, str(row["draws"]), front)
    kinds = f"{found['ok']} scored, {found['degenerate']} degenerate, {found['failed']} failed"
    return Group(
        table,
        f"{found['draws']} draws, {len(found['table'])} different cells: {kinds}",
        "rate: spikes a neuron and step; SOPs: synaptic operations of an inference if every neuron fired at every step",
        f"front: {len(found['front'])} cells that no other beats in score, parameters and synaptic operations together",
    )
