"""The job from the shell. So far: which decoders and resizers this machine has (S = systematic noise)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core_utils import cli


@dataclass(frozen=True, kw_only=True)
class List(cli.Command):
    """List decoders and resizers with their versions, and which decoders give the same pixels here."""

    def __call__(self) -> None:
        """Prints the tables; a library that is missing is listed with how to get it."""
        from imagenet_s.decoding import decoders, identical_decoders
        from imagenet_s.resizing import resizers

        entries: dict[str, Any] = {"decoders": decoders(), "resizers": resizers()}
        facts: dict[str, Any] = {
            kind: [
                {"name": e.name, "version": e.version if e.available else None, "missing": e.why_not}
                for e in of_kind.values()
            ]
            for kind, of_kind in entries.items()
        }
        facts["identical"] = [list(group) for group in identical_decoders()]
        self.show(facts, lambda: _tables(facts))


def _tables(facts: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.table import Table

    tables = []
    for kind in ("decoders", "resizers"):
        table = Table(kind[:-1], "version")
        for row in facts[kind]:
            table.add_row(row["name"], row["version"] or f"missing: {row['missing']}")
        tables.append(table)
    same = "; ".join(" = ".join(group) for group in facts["identical"] if len(group) > 1)
    return Group(*tables, f"decoders that give the same pixels here: {same or 'none'}")


def main() -> int:
    """Runs the program `imagenet-s`."""
    shared = cli.shared(claims="imagenet_s.claims:CLAIMS", benchmarks="imagenet_s")
    return cli.main("imagenet-s", {"list": List, **shared})
