"""The program `snasnet`: draw, score, search, train, export and draw cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from core_utils import cli
from core_utils.errors import UserError
from core_utils.files import write_atomically

Kind = Literal["forward", "backward"]


@dataclass(frozen=True, kw_only=True)
class OnData(cli.Command):
    """What commands that look at data have."""

    dataset: str = "digits"  # digits, fashion (embedded, or IDX files in --data) or cifar (in --data)
    data: Path | None = None  # folder of the data
    batch: int = 256  # training images that cells are scored on
    width: int = 16  # channels of the first cell
    time_steps: int = 5  # for which an image is shown
    hidden: int = 128  # neurons of the classifier
    head: Literal["paper", "gap"] = "paper"  # classifier
    metric: Literal["sahd", "hd"] = "sahd"  # distance of the score
    alpha: Literal["code", "half-n"] = "code"  # 0.5 as released, or half the neurons
    repeats: int = 1  # initial weights to average over
    seed: int = 0  # decides everything random

    def scored(self) -> dict[str, Any]:
        """Arguments of the scoring functions, the batch among them."""
        from snasnet.datasets import load_data

        data = load_data(self.dataset, self.data, seed=self.seed)
        return {"spec": data.spec, "batch": data.batch(self.batch, self.seed)}

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `SNASNet`."""
        return {"width": self.width, "T": self.time_steps, "hidden": self.hidden, "head": self.head}

    def valid_cell(self, text: str) -> Any:
        """The cell of a text, if it makes a network."""
        return _valid_cell(text)


@dataclass(frozen=True, kw_only=True)
class Sample(cli.Command):
    """Draw cells by lot, as the paper does."""

    kind: Kind = "backward"  # backward may have feedback
    n: int = 1  # draws
    max_backward: int | None = None  # most edges with feedback
    seed: int = 0  # decides the draws

    def __call__(self) -> None:
        """Prints one cell a line."""
        import numpy as np

        from snasnet.spaces import SearchSpace

        if self.n < 1:
            raise UserError(f"--n must be at least 1, got {self.n}")
        space, rng = SearchSpace(self.kind, max_backward=self.max_backward), np.random.default_rng([self.seed, 0])
        cells = [space.sample(rng) for _ in range(self.n)]
        self.show([cell.to_json() for cell in cells] if self.json else "\n".join(map(str, cells)))


@dataclass(frozen=True, kw_only=True)
class Score(OnData):
    """Score one cell without training it."""

    cell: tyro.conf.Positional[str]  # such as "0302 0030 3003 0000"

    def __call__(self) -> None:
        """Prints score, sign, firing rates and costs."""
        cell = self.valid_cell(self.cell)
        from snasnet import most_sops, parameters, score_cell

        given = self.scored()
        spec, more = given["spec"], self.options
        result = score_cell(
            cell,
            spec,
            given["batch"],
            metric=self.metric,
            alpha=self.alpha,
            repeats=self.repeats,
            seed=self.seed,
            **more,
        )
        self.show(
            {
                "cell": str(cell.pruned()),
                "score": result.score,
                "sign": result.sign,
                "degenerate": result.degenerate,
                "mean_firing_rate": result.rate,
                "dead_fraction": result.dead_fraction,
                "parameters": parameters(cell.pruned(), spec, **more),
                "most_synaptic_operations": most_sops(cell.pruned(), spec, **more),
                "seconds": result.seconds,
                "rates": dict(result.rates),
            }
        )


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
        from snasnet import Constraints, SearchSpace, search
        from snasnet.plots import cell_figure, histogram_figure

        space = SearchSpace(self.kind, max_backward=self.max_backward)
        constraints = Constraints(self.max_params, self.max_sops, self.min_convs)
        given = self.scored()
        asked = {"space": space, "constraints": constraints, "options": self.options, "data": self.data}
        names = ("dataset", "batch", "metric", "alpha", "repeats", "seed", "n", "strategy")
        with self.open_run({**asked, **{name: getattr(self, name) for name in names}}) as run:
            if not run.finished:
                result = search(
                    space,
                    given["spec"],
                    given["batch"],
                    self.strategy,
                    self.n,
                    constraints,
                    self.workers,
                    self.cluster,
                    self.seed,
                    run,
                    metric=self.metric,
                    alpha=self.alpha,
                    repeats=self.repeats,
                    options=self.options,
                    progress=not self.quiet,
                )
                scores = [row["score"] for row in result.table if row["status"] == "ok"]
                if scores:
                    run.write(
                        "figures/score_hist.svg", histogram_figure(scores, f"{len(scores)} cells, {self.strategy}")
                    )
                    run.write("figures/cell.svg", cell_figure(result.best))
                counts = {status: result.count(status) for status in ("ok", "degenerate", "failed")}
                run.finish({"draws": result.draws, **counts, "table": result.table})
            found = run.result()
        best = found["table"][: self.top]
        self.show(
            {**found, "table": best} if self.json else found, None if self.json else lambda: _ranking(found, best)
        )
        return cli.CHECK_FAILED if found["failed"] else cli.DONE


@dataclass(frozen=True, kw_only=True)
class Train(cli.Configured, cli.RunCommand):
    """Train a cell from scratch, and test it once."""

    cell: tyro.conf.Positional[str | None] = None  # such as "0302 0030 3003 0000"
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None  # a search's folder instead: its best cell
    dataset: str | None = None  # digits, fashion or cifar
    data: Path | None = None  # folder of the data
    epochs: int | None = None  # passes over the training data
    time_steps: int | None = None  # for which an image is shown
    seed: int | None = None  # decides initial weights and order
    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto
    out: Path = Path("runs/train")  # the training's folder

    def __call__(self) -> None:
        """Leaves weights, log and result in the run's folder."""
        from snasnet.job import JobConfig, asked_of, train_job

        if self.cell is not None and self.from_ is not None:
            raise UserError("a cell and --from are two architectures", "give one of them")
        cell = _best_of(self.from_) if self.from_ is not None else self.cell
        names = ("dataset", "epochs", "time_steps", "seed")
        typed = {name: value for name in names if (value := getattr(self, name)) is not None}
        config = self.settings(
            JobConfig, **typed, **({} if cell is None else {"cell": str(_valid_cell(cell).pruned())})
        )
        with self.open_run(asked_of(config, self.data)) as run:
            if not run.finished:
                run.finish(train_job(config, self.data, run=run, device=self.device, progress=not self.quiet))
            self.show(run.result())


@dataclass(frozen=True, kw_only=True)
class OnTrained(cli.Command):
    """What commands on a finished training have."""

    run: Path  # folder of `snasnet train`
    data: Path | None = None  # where the data lie now


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnTrained):
    """Accuracy of a trained cell on the test data."""

    def __call__(self) -> None:
        """Prints it."""
        from snasnet import accuracy
        from snasnet.job import evaluation_loader, read_trained

        trained = read_trained(self.run, self.data)
        self.show(
            {
                "cell": trained.config.cell,
                "test_accuracy": accuracy(trained.model, evaluation_loader(trained.data.test)),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Profile(OnTrained):
    """Spikes, synaptic operations and theoretical energy of one inference of a trained cell."""

    samples: int = 256  # of the test data, the first ones

    def __call__(self) -> None:
        """Prints them."""
        from snasnet import profile
        from snasnet.job import evaluation_loader, read_trained

        if self.samples < 1:
            raise UserError(f"--samples must be at least 1, got {self.samples}")
        trained = read_trained(self.run, self.data)
        images, labels = trained.data.test
        self.show(profile(trained.model, evaluation_loader((images[: self.samples], labels[: self.samples]))))


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

        table = _search_result(self.search)["table"]
        accuracies = {}
        for run in self.runs:
            result = _finished(run, "train")
            accuracies[Cell(result["cell"]).id] = result["test_accuracy"]
        found = correlate(table, accuracies)
        if self.out is not None:
            rows = [row for row in table if row["id"] in accuracies and row["status"] == "ok"]
            shown = [100 * accuracies[row["id"]] for row in rows]
            picture = accuracy_figure([row["score"] for row in rows], shown, f"{len(rows)} trained cells")
            write_atomically(self.out, picture)
        self.show({name: {"tau": tau, "low": low, "high": high} for name, (tau, low, high) in found.items()})


@dataclass(frozen=True, kw_only=True)
class Export(OnTrained):
    """Write a trained cell for other programs."""

    out: Path  # file to write
    format: Literal["onnx", "nir", "json"] = "onnx"  # one time step (extra onnx), a graph (extra nir), or the cell

    def __call__(self) -> None:
        """Writes the file."""
        from snasnet.job import read_trained

        trained = read_trained(self.run, self.data)
        if self.format == "json":
            import json

            write_atomically(self.out, json.dumps(trained.model.cell.to_json(), indent=2) + "\n")
        elif self.format == "onnx":
            from snasnet.export import export_onnx

            export_onnx(trained.model, self.out)
        else:
            from snasnet.export import export_nir

            export_nir(trained.model, self.out)
        self.show({"file": self.out})


@dataclass(frozen=True, kw_only=True)
class Plot(cli.Command):
    """Draw a cell."""

    cell: tyro.conf.Positional[str]  # such as "0302 0030 3003 0000"
    out: Path = Path("cell.svg")  # .svg, or .dot for Graphviz

    def __call__(self) -> None:
        """Writes the picture."""
        from snasnet.cells import Cell

        cell = Cell(self.cell)
        if self.out.suffix == ".dot":
            write_atomically(self.out, cell.to_dot())
        elif self.out.suffix == ".svg":
            from snasnet.plots import cell_figure

            write_atomically(self.out, cell_figure(cell))
        else:
            raise UserError(f"--out {self.out} must end in .svg or .dot")
        self.show({"picture": self.out})


def _valid_cell(text: str) -> Any:
    from snasnet.cells import Cell

    cell = Cell(text)
    if not cell.is_valid():
        raise UserError(f"cell {text} has no direct edge from input to output", "set row 0, column 3")
    return cell


def _best_of(folder: Path) -> str:
    from snasnet.cells import Cell

    best = _search_result(folder)["table"][0]
    if best["status"] != "ok":
        raise UserError(f"--from {folder}: no cell of that search has a score")
    return str(Cell(best["matrix"]))


def _search_result(folder: Path) -> Any:
    result = _finished(folder, "search")
    if not result["table"]:
        raise UserError(f"{folder} holds a search without cells")
    return result


def _finished(folder: Path, verb: str) -> Any:
    """The result of a finished run of a command, which its keys tell."""
    import json

    key = {"search": "table", "train": "test_accuracy"}[verb]
    try:
        result = json.loads((folder / "result.json").read_bytes())
    except (OSError, ValueError):
        result = None
    if not isinstance(result, dict) or key not in result:
        raise UserError(f"{folder} is no folder of a finished `snasnet {verb}`")
    return result


def _ranking(found: Any, best: Any) -> Any:
    from rich.console import Group
    from rich.table import Table

    table = Table("cell", "score", "mean firing rate", "parameters", "drawn")
    for row in best:
        score = f"{row['score']:.2f}" if row["status"] == "ok" else row["status"]
        table.add_row(row["id"], score, f"{row.get('rate') or 0:.3f}", str(row["params"]), str(row["draws"]))
    kinds = f"{found['ok']} scored, {found['degenerate']} degenerate, {found['failed']} failed"
    return Group(table, f"{found['draws']} draws, {len(found['table'])} different cells: {kinds}")


def main() -> int:
    """Runs the program `snasnet`."""
    verbs = {
        "sample": Sample,
        "score": Score,
        "search": Search,
        "train": Train,
        "evaluate": Evaluate,
        "profile": Profile,
        "compare": Compare,
        "export": Export,
        "plot": Plot,
    }
    return cli.main("snasnet", {**verbs, **cli.shared(claims="snasnet.claims:CLAIMS", benchmarks="snasnet")})
