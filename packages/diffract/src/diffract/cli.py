"""The program `diffract`."""

from __future__ import annotations

from core_utils import cli


def main() -> int:
    """Runs the program `diffract`."""
    return cli.main("diffract", {**cli.shared(claims="diffract.claims:CLAIMS", benchmarks="diffract")})
