"""The program `fedcl`: run federations, look at them, hand their students on, deploy them."""

from __future__ import annotations

from core_utils import cli
from fedcl.commands import deployments, federations, scenarios, students


def main() -> int:
    """Runs the program `fedcl`."""
    jobs: dict[str, type[cli.Command]] = {
        "run": federations.Run,
        "scenario": scenarios.ScenarioCommand,
        "compare": federations.Compare,
        "drift": federations.Drift,
        "sweep": federations.Sweep,
        "prune": students.Prune,
        "export": students.Export,
        "deploy": deployments.Deploy,
        "doctor": deployments.Doctor,
    }
    return cli.main("fedcl", {**jobs, **cli.shared(claims="fedcl.claims:CLAIMS", benchmarks="fedcl")})
