"""The program `diffract`: check, train, evaluate and make diffractive networks, and reproduce what is claimed of them."""

from __future__ import annotations

from core_utils import cli
from diffract.commands import designing, making, trainings


def main() -> int:
    """Runs the program `diffract`."""
    jobs: dict[str, type[cli.Command]] = {
        "check": designing.Check,
        "train": trainings.Train,
        "evaluate": trainings.Evaluate,
        "sweep": trainings.Sweep,
        "tolerance": making.Tolerance,
        "diffuser": designing.Diffuser,
        "export": making.Export,
    }
    return cli.main("diffract", {**jobs, **cli.shared(claims="diffract.claims:CLAIMS", benchmarks="diffract")})
