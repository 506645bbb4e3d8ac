"""The figures of an evaluation, one row a combination, and the table that people read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imagenet_s.statistics import Spread


@dataclass(frozen=True)
class Row:
    """One combination, or factor, against the reference. Shares are fractions; what needs labels is None without them.

    Attributes:
        name: "decoder/resizer", or the factor's.
        same_as: another combination that gave every image the same pixels, or None.
        accuracy: share of images that are right.
        drop: accuracy of the reference less this one's.
        interval: of the drop, 95 %, by the paired bootstrap.
        fixed: images wrong under the reference and right here.
        broken: the reverse.
        p_value: McNemar's exact test of fixed against broken.
        p_holm: the same, corrected for all distinct combinations tested.
        disagreement: share of predictions that are not the reference's.
        smallest_drop: what this many images and changed predictions can tell from none.
        changes: means over images of the changes of logits; the maximum of `max_delta`.
    """

    name: str
    same_as: str | None
    accuracy: float | None
    drop: float | None
    interval: tuple[float, float] | None
    fixed: int | None
    broken: int | None
    p_value: float | None
    p_holm: float | None
    disagreement: float
    smallest_drop: float
    changes: Mapping[str, float]


@dataclass(frozen=True)
class Factor:
    """One axis of the grid while the other stays at the reference's, as the authors report it.

    Attributes:
        values: accuracy by name, or agreement with the reference without labels.
        loss: spread over the distinct alternatives of what they lose against the reference; None if there is none.
    """

    values: Mapping[str, float]
    loss: Spread | None


@dataclass(frozen=True)
class Summary:
    """All figures of an evaluation; as text, the table that people read.

    Attributes:
        n: images.
        errors: images left out of every combination.
        reference: name of the reference.
        measure: "accuracy", or "agreement" without labels.
        rows: one a combination, in the grid's order, and one a factor after them.
        combinations: of the grid.
        distinct: how many combinations differ in their pixels; means and spreads count each once.
        spread: of the measure over the distinct combinations.
        factors: by "decoder" and "resizer".
        consistent: share of images right under all; without labels, share on which all agree.
        fooled: share right under the reference and wrong somewhere; None without labels.
        smallest_drop: the largest of the rows'.
        complete: whether every image was evaluated.
        inapplicable: factors that the model has no place for, and why; they are no effect of 0.
        flags: how many images are CMYK, 16-bit, truncated, ...
    """

    n: int
    errors: int
    reference: str
    measure: str
    rows: tuple[Row, ...]
    combinations: int
    distinct: int
    spread: Spread
    factors: Mapping[str, Factor]
    consistent: float
    fooled: float | None
    smallest_drop: float
    complete: bool
    inapplicable: Mapping[str, str]
    flags: Mapping[str, int]

    def __str__(self) -> str:
        return _text(self)


def _text(summary: Summary) -> str:
    """The table; percent and points for people."""
    labelled = summary.measure == "accuracy"
    heads: tuple[str, ...] = (
        "combination",
        "accuracy %",
        "drop",
        "95 % interval",
        "fixed",
        "broken",
        "p (Holm)",
        "changed %",
        "logit",
    )
    if not labelled:
        heads = ("combination", "agreement %", "changed %", "logit")
    lines: list[tuple[str, ...]] = [heads]
    for row in summary.rows:
        name = f"{row.name} (reference)" if row.name == summary.reference else row.name
        if row.same_as is not None:
            lines.append((name, f"same pixels as {row.same_as}"))
            continue
        changed, logit = f"{100 * row.disagreement:.2f}", f"{row.changes['mean_delta']:.3f}"
        if row.accuracy is None or row.drop is None or row.interval is None or row.p_holm is None:
            lines.append((name, f"{100 * (1 - row.disagreement):.2f}", changed, logit))
            continue
        low, high = (100 * end for end in row.interval)
        figures = (f"{100 * row.accuracy:.2f}", f"{100 * row.drop:+.2f}", f"{low:+.2f} to {high:+.2f}")
        lines.append((name, *figures, str(row.fixed), str(row.broken), f"{row.p_holm:.2g}", changed, logit))
    widths = [max((len(line[i]) for line in lines if len(line) == len(heads)), default=0) for i in range(len(heads))]
    widths[0] = max(len(line[0]) for line in lines)
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in lines]
    return "\n".join([*table, "", *_sentences(summary)])


def _sentences(summary: Summary) -> list[str]:
    spread, measure = summary.spread, summary.measure
    smallest = f"{100 * summary.smallest_drop:.2f} points (for the combination that changes most)"
    mean = f"mean {100 * spread.mean:.2f} %, std {100 * spread.std:.2f}, worst {100 * spread.worst:.2f}"
    width = f"{100 * spread.range:.2f}"
    lines = [
        f"n = {summary.n} images; smallest detectable drop {smallest}",
        f"{measure} over {summary.distinct} distinct of {summary.combinations} combinations: {mean}, range {width} points",
    ]
    for axis, factor in summary.factors.items():
        if factor.loss is None:
            lines.append(f"{axis}: no distinct alternative to the reference's")
        else:
            loss = factor.loss
            lines.append(
                f"{axis}: {loss.n} distinct alternatives lose {100 * loss.mean:.2f} +- {100 * loss.std:.2f} points of "
                f"{measure}, at most {100 * loss.best:.2f}"
            )
    if summary.fooled is None:
        lines.append(f"all combinations agree on {100 * summary.consistent:.2f} % of images; no labels, so no accuracy")
    else:
        lines.append(
            f"right under all {100 * summary.consistent:.2f} %, fooled by at least one {100 * summary.fooled:.2f} %"
        )
    lines += list(summary.inapplicable.values())
    if summary.flags:
        lines.append("images: " + ", ".join(f"{count} {what}" for what, count in summary.flags.items()))
    if summary.errors:
        lines.append(f"{summary.errors} images could not be read and are in no combination")
    if not summary.complete:
        lines.append("incomplete: not every image was evaluated")
    return lines
