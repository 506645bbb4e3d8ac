"""Commands that run federations and look at what came out: run, compare, drift, sweep."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from core_utils import cli
from core_utils.errors import UserError
from core_utils.files import write_atomically
from fedcl.commands.folders import finish, finished, records

SWEPT = {
    "clients": "scenario.clients",
    "alpha": "scenario.alpha",
    "tasks": "scenario.tasks",
    "straggler": "run.straggler_fraction",
    "dropout": "run.dropout",
    "rounds": "run.rounds",
    "local_steps": "client.local_steps",
    "client_lr": "client.lr",
    "server_lr": "server.lr",
    "optimizer": "server.optimizer",
    "scope": "server.scope",
    "order": "scenario.order",
}
"""Short names of settings that a sweep may vary."""


@dataclass(frozen=True, kw_only=True)
class Run(cli.Configured, cli.RunCommand):
    """Run a federation; goes on bit for bit where it was stopped."""

    engine: Literal["local", "stacked", "flwr"] | None = None  # where clients train
    rounds: int | None = None  # of each phase
    seed: int | None = None  # decides everything random
    data: Path | None = None  # folder of the data
    device: str | None = None  # cpu, cuda, cuda:1, mps or auto
    out: Path = Path("runs/federation")  # the run's folder

    def __call__(self) -> None:
        """Prints the figures; leaves accuracy matrix, curves and checkpoint in `--out`."""
        from torch import set_num_threads

        from fedcl.job import JobConfig, make_run

        loop = {"engine": self.engine, "rounds": self.rounds, "seed": self.seed, "device": self.device}
        typed: dict[str, Any] = {"run": {name: value for name, value in loop.items() if value is not None}}
        if self.data is not None:
            typed["scenario"] = {"data": str(self.data)}
        config = self.settings(JobConfig, **typed)
        with self.open_run(config.asked()) as run:
            if not run.finished:
                if config.model.backbone == "mlp":
                    set_num_threads(1)  # threads would wait for one another longer than they work
                federation = make_run(config)
                total = federation.scenario.num_tasks * config.run.rounds

                def told(record: Any) -> None:
                    rejected = f", {len(record.rejected)} not used" if record.rejected else ""
                    self.say(
                        f"round {record.round + 1}/{total}: loss {record.loss:.3f}, drift {record.drift:.2f}{rejected}"
                    )

                finish(run, federation.run([told], run=run), title_of(config))
            result = run.result()
        self.show(result if self.json else {k: v for k, v in result.items() if isinstance(v, int | float)})


@dataclass(frozen=True, kw_only=True)
class Compare(cli.Command):
    """Compare runs: those that differ in their seed alone are one line, with 95 % intervals."""

    runs: tyro.conf.Positional[tuple[Path, ...]]  # folders of `fedcl run`
    out: Path | None = None  # folder for the table (CSV) and the curves (SVG and PNG)

    def __call__(self) -> None:
        """Prints a table."""
        from fedcl.comparison import compared, table_of
        from fedcl.plots import curves_figure, curves_png

        groups = compared([(path, *finished(path)) for path in self.runs])
        rows = table_of(groups)
        if self.out is not None:
            names = list(rows[0])
            lines = [",".join(names), *(",".join(_cell(row[name]) for name in names) for row in rows)]
            write_atomically(self.out / "comparison.csv", "\n".join(lines) + "\n")
            write_atomically(self.out / "curves.svg", curves_figure(groups))
            write_atomically(self.out / "curves.png", curves_png(groups))
        names = [name for name in rows[0] if f"{name} low" in rows[0]]
        shown = [
            {"runs": row["runs"], "n": row["n"]}
            | {name: _shown({part: row[key] for part, key in _keys(name)}) for name in names}
            for row in rows
        ]
        self.show(rows, None if self.json else lambda: _table(shown))


@dataclass(frozen=True, kw_only=True)
class Drift(cli.Command):
    """Show how far a run's clients pulled apart, round by round."""

    run: tyro.conf.Positional[Path]  # folder of `fedcl run`, finished or not
    out: Path | None = None  # picture to write, SVG

    def __call__(self) -> None:
        """Prints drift, cosine, and accuracy before and after merging."""
        from fedcl.plots import history_figure

        rounds = records(self.run)
        if not rounds:
            raise UserError(f"{self.run} has no finished round")
        if self.out is not None:
            write_atomically(self.out, history_figure(rounds, str(self.run)))
        names = ("phase", "round", "drift", "cosine", "update_norm", "local_accuracy", "merged_accuracy")
        rows = [{name: getattr(record, name) for name in names} for record in rounds]
        self.show(rows, None if self.json else lambda: _table(rows))


@dataclass(frozen=True, kw_only=True)
class Sweep(cli.Configured, cli.RunCommand):
    """Run a grid of settings over seeds; two settings also give a heat map."""

    over: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()  # name=value,value,...; may be repeated
    seeds: int = 3  # the first so many, from 0
    workers: int = 2  # processes
    cluster: str | None = None  # address of a Dask scheduler instead
    figure: str = "accuracy"  # the figure of the heat map
    out: Path = Path("runs/sweep")  # the sweep's folder

    def __call__(self) -> int:
        """Writes table and heat map; exit code 1 if a run failed."""
        from core_utils.jobs import map_jobs
        from fedcl.comparison import FIGURES, interval
        from fedcl.job import JobConfig
        from fedcl.plots import heat_figure
        from fedcl.sweeping import run_cell

        if self.seeds < 1:
            raise UserError(f"--seeds must be at least 1, got {self.seeds}")
        if self.figure not in FIGURES:
            raise UserError(f"--figure must be one of {', '.join(FIGURES)}, got {self.figure!r}")
        axes = [_axis(text) for text in self.over]
        if not axes:
            raise UserError("--over names nothing", f"such as --over server_lr=0.1,1; known: {', '.join(SWEPT)}")
        base = self.settings(JobConfig)
        cells = {cell: dict(zip((name for name, _ in axes), cell, strict=True)) for cell in _cells(axes)}
        jobs = {}
        for cell, given in cells.items():
            pairs = [f"{SWEPT[name]}={text}" for name, text in given.items()]
            for seed in range(self.seeds):
                settings = {**_overlaid(self, pairs, seed)}
                jobs["/".join([*cell, str(seed)])] = settings
        asked = {"sweep": base.asked(), "over": axes, "seeds": self.seeds}
        with self.open_run(asked) as run:
            if not run.finished:
                done = {key for key in jobs if (run.path / f"cells/{key}.json").is_file()}
                failed = 0
                for job in map_jobs(
                    run_cell,
                    jobs,
                    workers=self.workers,
                    cluster=self.cluster,
                    done=done,
                    progress=not self.quiet,
                    threads=1,
                ):
                    if job.error is None:
                        run.write(f"cells/{job.key}.json", job.value)
                    else:
                        failed += 1
                        self.say(f"{job.key} failed: {job.error}")
                if failed:
                    self.say(f"{failed} of {len(jobs)} runs failed; the same command with --resume tries them again")
                    return cli.CHECK_FAILED
                rows = []
                for cell, given in cells.items():
                    found = [run.read(f"cells/{'/'.join([*cell, str(seed)])}.json") for seed in range(self.seeds)]
                    rows.append({**given, **{name: interval([each[name] for each in found]) for name in FIGURES}})
                if len(axes) == 2:
                    run.write("figures/heat.svg", heat_figure(axes, rows, self.figure))
                run.finish({"rows": rows, "seeds": self.seeds})
            rows = run.result()["rows"]
        shown = [{name: _shown(value) for name, value in row.items()} for row in rows]
        self.show(rows, None if self.json else lambda: _table(shown))
        return cli.DONE


def title_of(config: Any) -> str:
    """A run in a few words."""
    server, scenario = config.server, config.scenario
    return f"{server.optimizer}, scope {server.scope}, {scenario.order} orders, {scenario.clients} clients, seed {config.run.seed}"


def _axis(text: str) -> tuple[str, list[str]]:
    name, equals, values = text.partition("=")
    given = [value.strip() for value in values.split(",") if value.strip()]
    if name not in SWEPT or not equals or not given:
        raise UserError(f"--over {text}: expected name=value,value with a name of {', '.join(SWEPT)}")
    if len(set(given)) < len(given):
        raise UserError(f"--over {text} names a value twice")
    return name, given


def _cells(axes: list[tuple[str, list[str]]]) -> list[tuple[str, ...]]:
    if len({name for name, _ in axes}) < len(axes):
        raise UserError("--over names a setting twice")
    return list(itertools.product(*(values for _, values in axes)))


def _overlaid(command: Sweep, pairs: list[str], seed: int) -> dict[str, Any]:
    """The settings of one cell and seed as JSON data; bad values end the command before anything runs."""
    from core_utils.settings import settings
    from fedcl.job import JobConfig

    config = settings(JobConfig, file=command.config, pairs=[*command.set, *pairs, f"run.seed={seed}"])
    return json.loads(json.dumps(config.asked(), default=str))  # type: ignore[no-any-return]


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _keys(name: str) -> tuple[tuple[str, str], ...]:
    return ("mean", name), ("low", f"{name} low"), ("high", f"{name} high")


def _shown(value: Any) -> str:
    if isinstance(value, dict) and value["mean"] is None:
        return ""
    if isinstance(value, dict):
        low, high = value["low"], value["high"]
        return f"{value['mean']:.4g}" + ("" if low is None else f" [{low:.4g}, {high:.4g}]")
    return str(value)
