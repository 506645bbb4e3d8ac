"""Commands for real machines: write a Flower app, run one on loopback, see whether all is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from core_utils import cli
from core_utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Deploy(cli.Configured, cli.Command):
    """Write a Flower app (`app`), or run a SuperLink and SuperNodes on this machine and stop them (`local`)."""

    action: tyro.conf.Positional[Literal["app", "local"]]
    nodes: int = 2  # local: SuperNodes, one client each
    insecure: bool = False  # local: neither TLS nor node keys; loopback only
    limit: float = 600.0  # local: seconds for the whole
    out: Path = Path("runs/deployment")  # a new folder: the app, or everything of the deployment

    def __call__(self) -> None:
        """Prints where things are, or the deployed run's result."""
        try:
            from fedcl.deploy.app import write_app
            from fedcl.deploy.local import deploy_local
        except ImportError as error:
            raise UserError(f"deploy needs {error.name}", "install fedcl[flwr]") from None
        from fedcl.job import JobConfig

        config = self.settings(JobConfig)
        if self.action == "app":
            write_app(self.out, config, out=Path("fedcl-run"))
            self.show({"app": self.out, "run": f"flwr run {self.out} <superlink> --stream"})
            return
        if self.nodes < 1:
            raise UserError(f"--nodes must be at least 1, got {self.nodes}")
        found = deploy_local(self.out, config, nodes=self.nodes, tls=not self.insecure, limit=self.limit, say=self.say)
        figures = {name: value for name, value in found.result.items() if isinstance(value, int | float)}
        self.show(found if self.json else {**figures, **found.seconds, "killed": found.killed or "none"})


@dataclass(frozen=True, kw_only=True)
class Doctor(cli.Command):
    """See what is installed, and whether the engines agree on a small federation."""

    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto

    def __call__(self) -> int:
        """Prints versions and the largest difference between engines; exit code 1 if they disagree."""
        from fedcl.diagnosis import TOLERANCE, agreement, installed

        facts = {**installed()}
        differences = agreement(self.device)
        right = all(value is None or value <= TOLERANCE for value in differences.values())
        told = {
            f"local against {name}": "not installed" if v is None else f"{v:.1e}" for name, v in differences.items()
        }
        self.show({**facts, **(differences if self.json else told), "agree": right})
        return cli.DONE if right else cli.CHECK_FAILED
