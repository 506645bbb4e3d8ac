"""The command `core-utils`: the report over every installed package's claims."""

import sys
from dataclasses import dataclass
from pathlib import Path

from core_utils import cli
from core_utils.report import read_benchmarks, report


@dataclass(frozen=True, kw_only=True)
class Report(cli.Command):
    """Run the claims of every installed package and write one page, index.html, with their verdicts."""

    only: tuple[str, ...] = ()  # distributions; all installed ones when none is named
    seeds: int | None = None  # how many seeds, from 0; by default what each claim asks for
    workers: int = 2  # processes
    cluster: str | None = None  # address of a Dask scheduler instead
    out: Path = Path("report")  # the report's folder; finished trials in it are not repeated
    benchmarks: Path | None = None  # a folder that holds the folders of `bench --out`, to show their ratios as well
    readme: Path | None = None  # a Markdown file whose table of verdicts is rewritten between its markers

    def __call__(self) -> int:
        """Writes the report; exit code 1 only when a claim crashed or a package is broken, whatever the verdicts."""
        found = report(
            only=self.only,
            seeds=self.seeds,
            workers=self.workers,
            cluster=self.cluster,
            out=self.out,
            readme=self.readme,
            benchmarks=read_benchmarks(self.benchmarks) if self.benchmarks else (),
            progress=not self.quiet,
        )
        counts = {outcome: count for outcome, count in found.counts.items() if count}
        self.show({**counts, "page": self.out / "index.html"})
        for package in found.packages:
            errors = [package.error, *(str(result.error) for result in package.results if result.error)]
            for error in filter(None, errors):
                self.say(f"{package.name}: {error}")
        return cli.CHECK_FAILED if found.crashed else cli.DONE


def main() -> int:
    """The console script."""
    return cli.main("core-utils", {"report": Report})


if __name__ == "__main__":
    sys.exit(main())
