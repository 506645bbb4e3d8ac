"""Results of a benchmark as tables: algorithms beside each other on every hardware, over seeds.

Reference: MQBench, arXiv:2111.03759: besides accuracy, how much it varies over hardware counts.
"""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mqbench_lite.paper import published

ACADEMIC = "academic"
"""The profile that is no hardware."""


@dataclass(frozen=True)
class Score:
    """Accuracy over seeds, in percent.

    Attributes:
        mean: over seeds.
        std: unbiased standard deviation over seeds; None for one seed.
        n: seeds.
        paper: the published figure, or None.
    """

    mean: float
    std: float | None
    n: int
    paper: float | None = None

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {self.std:.2f}"
        known = "" if self.paper is None else f" (paper {self.paper:.2f})"
        return f"{self.mean:.2f}{spread}{known}"


@dataclass(frozen=True)
class Row:
    """One algorithm in a table.

    Attributes:
        algorithm: its name.
        scores: by profile; a point that failed has none.
        rank: among the table's algorithms by the mean over hardware, 1 is the best; None if it lacks a profile.
        hardware_mean: mean over the hardware profiles, percent; None if one is missing or there is none.
        hardware_std: unbiased standard deviation over them: the less, the more robust; None for fewer than two.
        gap: academic less `hardware_mean`, percent; None if one of both is missing.
    """

    algorithm: str
    scores: Mapping[str, Score]
    rank: int | None
    hardware_mean: float | None
    hardware_std: float | None
    gap: float | None


@dataclass(frozen=True)
class Table:
    """All algorithms on one network at one width.

    Attributes:
        network: its name.
        bits: weights and activations, as `4/4`.
        float_accuracy: of the network before, percent.
        profiles: the columns.
        rows: best first.
    """

    network: str
    bits: str
    float_accuracy: float
    profiles: tuple[str, ...]
    rows: tuple[Row, ...]


def leaderboard(results: Iterable[Mapping[str, Any]]) -> list[Table]:
    """Tables of finished points, one per network and width, in the order in which they first appear.

    Args:
        results: of `cells.measure`: `network`, `bits`, `algorithm`, `profile`, `seed`, `accuracy`, `float_accuracy`.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["network"], result["bits"]), []).append(result)
    return [_table(network, bits, group) for (network, bits), group in groups.items()]


def to_markdown(tables: Sequence[Table]) -> str:
    """The tables for a README."""
    parts = []
    for table in tables:
        heads, rows = cells_of(table)
        lines = [f"### {table.network}, W/A {table.bits}, float {table.float_accuracy:.2f} %", ""]
        lines += [" | ".join(("", *cells, "")).strip() for cells in (heads, ["---"] * len(heads), *rows)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def to_csv(tables: Sequence[Table]) -> str:
    """One line per score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("network", "bits", "algorithm", "profile", "mean", "std", "n", "paper", "rank"))
    for table, row in ((each, row) for each in tables for row in each.rows):
        for profile, score in row.scores.items():
            figures = (score.mean, score.std, score.n, score.paper, row.rank)
            writer.writerow((table.network, table.bits, row.algorithm, profile, *figures))
    return text.getvalue()


def cells_of(table: Table) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table as text; the gap is the academic accuracy less the mean over hardware."""
    heads = ["algorithm", *table.profiles, "hardware mean", "hardware std", "gap", "rank"]
    rows = []
    for row in table.rows:
        scores = [str(row.scores[profile]) if profile in row.scores else "-" for profile in table.profiles]
        figures = ["-" if f is None else f"{f:.2f}" for f in (row.hardware_mean, row.hardware_std, row.gap)]
        rows.append([row.algorithm, *scores, *figures, "-" if row.rank is None else str(row.rank)])
    return heads, rows


def _table(network: str, bits: str, results: list[Mapping[str, Any]]) -> Table:
    profiles = tuple(dict.fromkeys(result["profile"] for result in results))
    rows = []
    for algorithm in dict.fromkeys(result["algorithm"] for result in results):
        own = [result for result in results if result["algorithm"] == algorithm]
        scores = {profile: _score(network, bits, algorithm, profile, own) for profile in profiles}
        rows.append(_row(algorithm, profiles, {name: score for name, score in scores.items() if score is not None}))
    rows.sort(key=lambda row: (row.hardware_mean is None, -(row.hardware_mean or 0.0)))
    places = itertools.count(1)
    ranked = tuple(row if row.hardware_mean is None else replace(row, rank=next(places)) for row in rows)
    return Table(network, bits, float(results[0]["float_accuracy"]), profiles, ranked)


def _score(network: str, bits: str, algorithm: str, profile: str, results: list[Mapping[str, Any]]) -> Score | None:
    values = [float(result["accuracy"]) for result in results if result["profile"] == profile]
    if not values:
        return None
    weight_bits, act_bits = map(int, bits.split("/"))
    known = published(network, algorithm, profile, weight_bits, act_bits)
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Score(statistics.fmean(values), spread, len(values), None if known is None else known.accuracy)


def _row(algorithm: str, profiles: tuple[str, ...], scores: dict[str, Score]) -> Row:
    hardware = [name for name in profiles if name != ACADEMIC]
    means = [scores[name].mean for name in hardware if name in scores]
    mean = statistics.fmean(means) if means and len(means) == len(hardware) else None
    spread = statistics.stdev(means) if mean is not None and len(means) > 1 else None
    academic = scores.get(ACADEMIC)
    gap = academic.mean - mean if academic is not None and mean is not None else None
    return Row(algorithm, scores, None, mean, spread, gap)
