"""The job: train to a sparsity, count what remains, time it, hand it on."""

from __future__ import annotations

from core_utils import cli
from dynsparse.commands.costs import Count, Export, Profile
from dynsparse.commands.trainings import Diagnose, Evaluate, Train


def main() -> int:
    """Runs the program `dynsparse`."""
    jobs = {
        "train": Train,
        "evaluate": Evaluate,
        "diagnose": Diagnose,
        "count": Count,
        "profile": Profile,
        "export": Export,
    }
    return cli.main("dynsparse", {**jobs, **cli.shared(claims="dynsparse.claims:CLAIMS", benchmarks="dynsparse")})
