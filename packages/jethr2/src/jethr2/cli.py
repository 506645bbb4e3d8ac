"""The job: look at the robot, let it take off, break it, compare controllers, export and cross-check it from the shell."""

from __future__ import annotations

from core_utils import cli
from jethr2.commands import flights, robot, studies


def main() -> int:
    """Runs the program `jethr2`."""
    jobs: dict[str, type[cli.Command]] = {
        "info": robot.Info,
        "simulate": flights.Simulate,
        "ablate": studies.Ablate,
        "monte-carlo": studies.MonteCarlo,
        "sweep": studies.Sweep,
        "allocate": robot.Allocate,
        "ik": robot.Ik,
        "export": robot.Export,
        "crosscheck": robot.Crosscheck,
        "render": flights.Render,
        "replay": flights.Replay,
    }
    return cli.main("jethr2", {**jobs, **cli.shared(claims="jethr2.claims:CLAIMS", benchmarks="jethr2")})
