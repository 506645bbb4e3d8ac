"""The command on scenarios: make one to share between runs, or look at one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from core_utils import cli
from core_utils.errors import UserError
from core_utils.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class ScenarioCommand(cli.Configured, cli.Command):
    """Make a scenario's folder, which `--set scenario.made=DIR` uses; or show one, with who holds what."""

    action: tyro.conf.Positional[Literal["make", "show"]]  # make needs --out
    folder: tyro.conf.Positional[Path | None] = None  # show: a scenario's folder; by default that of the configuration
    data: Path | None = None  # folder of the data
    seed: int | None = None  # decides classes of tasks, orders and parts
    out: Path | None = None  # make: folder to write; show: picture to write, SVG

    def __call__(self) -> None:
        """Prints tasks, orders and how many images every client holds."""
        from fedcl.job import JobConfig, make_scenario
        from fedcl.plots import partition_figure
        from fedcl.scenario import Scenario

        if self.action == "make" and (self.out is None or self.folder is not None):
            raise UserError("scenario make takes --out DIR and no folder")
        typed: dict[str, Any] = {}
        if self.data is not None:
            typed["scenario"] = {"data": str(self.data)}
        if self.seed is not None:
            typed["run"] = {"seed": self.seed}
        if self.folder is not None:
            scenario = Scenario.load(self.folder)
        else:
            config = self.settings(JobConfig, **typed)
            scenario = make_scenario(config.scenario, config.run.seed)
        counts = scenario.counts()
        if self.out is not None and self.action == "make":
            if self.out.exists() and any(self.out.iterdir()):
                raise UserError(f"--out {self.out} is not empty", "name a new folder")
            scenario.save(self.out)
            write_atomically(self.out / "parts.svg", partition_figure(counts, "Images by client, task and class"))
        elif self.out is not None:
            write_atomically(self.out, partition_figure(counts, "Images by client, task and class"))
        facts = {
            "tasks": scenario.tasks,
            "orders": scenario.orders.tolist(),
            "images": counts.sum(2).tolist(),
            "seed": scenario.seed,
            "digest": scenario.digest(),
        }
        self.show(facts, None if self.json else lambda: _tables(facts))


def _tables(facts: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table

    tasks = Table("task", "classes")
    for number, classes in enumerate(facts["tasks"]):
        tasks.add_row(str(number), " ".join(map(str, classes)))
    clients = Table("client", "order of tasks", *(f"images of {task}" for task in range(len(facts["tasks"]))))
    for number, (order, images) in enumerate(zip(facts["orders"], facts["images"], strict=True)):
        clients.add_row(str(number), " ".join(map(str, order)), *map(str, images))
    return Group(tasks, clients, f"seed {facts['seed']}, digest {facts['digest'][:16]}")
