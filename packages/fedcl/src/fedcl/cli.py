"""The program `fedcl`."""

from __future__ import annotations

from core_utils import cli


def main() -> int:
    """Runs the program `fedcl`."""
    return cli.main("fedcl", cli.shared(claims="fedcl.claims:CLAIMS", benchmarks="fedcl"))
