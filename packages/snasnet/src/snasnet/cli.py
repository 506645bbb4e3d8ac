"""The program `snasnet`: draw, score, search, train, export and draw cells."""

from __future__ import annotations

from core_utils import cli
from snasnet.commands import cells, searches, trainings


def main() -> int:
    """Runs the program `snasnet`."""
    jobs: dict[str, type[cli.Command]] = {
        "sample": cells.Sample,
        "score": cells.Score,
        "search": searches.Search,
        "train": trainings.Train,
        "evaluate": trainings.Evaluate,
        "profile": trainings.Profile,
        "compare": searches.Compare,
        "export": trainings.Export,
        "plot": cells.Plot,
    }
    return cli.main("snasnet", {**jobs, **cli.shared(claims="snasnet.claims:CLAIMS", benchmarks="snasnet")})
