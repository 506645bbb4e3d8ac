"""What an evaluation or a diagnosis found, on one page."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core_utils.document import Picture, Section, document
from core_utils.errors import UserError
from core_utils.runs import Run
from imagenet_s.decoding import decoder
from imagenet_s.pipelines import Pipeline
from imagenet_s.results import Result
from imagenet_s.samples import Samples
from imagenet_s.verdicts import Diagnosis, Worst

PAGE = "report.html"
_TITLE = "ImageNet-S (systematic noise)"


def worst_images(result: Result, samples: Samples, pipeline: Pipeline, count: int = 8) -> list[tuple[str, Worst]]:
    """The images whose prediction a combination changes most, with that combination's name.

    Args:
        result: of an evaluation.
        samples: those that were evaluated.
        pipeline: the grid's.
        count: how many images.
    """
    combinations = len(result.decoders) * len(result.resizers)
    change = np.asarray(result.changes["total_variation"])[:combinations]
    most, row = change.max(axis=0), change.argmax(axis=0)
    left_out = {error.index for error in result.errors}
    places = [index for index in range(len(samples)) if index not in left_out]
    reference = result.names.index(result.reference)
    found = []
    for image in np.argsort(-most, kind="stable")[:count].tolist():
        if most[image] == 0:
            break
        data = samples[places[image]].data
        name = result.names[int(row[image])]
        worst = Worst(
            result.images[image],
            float(most[image]),
            int(result.predictions[reference, image]),
            int(result.predictions[int(row[image]), image]),
            _view(pipeline, result.reference, data),
            _view(pipeline, name, data),
        )
        found.append((name, worst))
    return found


def evaluation_sections(result: Result, worst: Sequence[tuple[str, Worst]]) -> list[Section]:
    """The parts of an evaluation's page."""
    summary = result.summary()
    lines = str(summary).split("\n\n", 1)[1].splitlines()
    grid = Picture(f"{summary.measure} lost by decoder and resizer", result.plot().encode(), ".svg")
    pictures = [
        Picture(f"{w.name}: class {w.class_a} by {result.reference}, {w.class_b} by {name}", w.png(), ".png")
        for name, w in worst
    ]
    told = "left by the reference, middle by the other, right their difference, four times enlarged"
    return [
        Section("Summary", lines),
        Section("Grid", pictures=[grid]),
        Section("Combinations", rows=_rows(summary)),
        Section("Worst images", [told] if pictures else ["No image's prediction moves."], pictures=pictures),
        Section("Files that could not be read", rows=_errors(result.errors), words=True),
        Section("Versions", rows=[("what made the views", "version"), *result.versions.items()], words=True),
    ]


def diagnosis_sections(found: Diagnosis) -> list[Section]:
    """The parts of a diagnosis' page."""
    stages = [("stage", "share of the change", "points lost", "predictions changed alone", "what differs")]
    whole = sum(each.share for each in found.stages)
    for each in found.stages:
        share = f"{100 * each.share / whole:.0f} %" if whole > 0 else "none"
        points = "" if each.share_drop is None else f"{100 * each.share_drop:+.2f}"
        stages.append((each.stage, share, points, f"{each.forward.flips} of {found.n}", each.change))
    findings = [("stage", "finding", "kind", "evidence")]
    for one in found.findings:
        kind = "expected between correct libraries" if one.expected else "looks like a bug"
        findings.append((one.stage, one.kind, kind, one.evidence))
    shown = [
        Picture(f"{w.name}: class {w.class_a} by a, {w.class_b} by b", w.png(), ".png")
        for w in found.worst
        if w.total_variation > 0
    ]
    waterfall = [Picture("share of each stage", found.plot().encode(), ".svg")] if found.stages else []
    return [
        Section("Summary", str(found).splitlines()),
        Section("Stages", rows=stages if found.stages else (), words=True, pictures=waterfall),
        Section("Findings", rows=findings if found.findings else (), words=True),
        Section("Worst images", ["left a, middle b, right their difference, four times enlarged"], pictures=shown),
        Section("Files that could not be read", rows=_errors(found.errors), words=True),
        Section("Pipelines", rows=_pipelines(found.a, found.b), words=True),
    ]


def write_page(run: Run, kind: str, lead: str, sections: Sequence[Section]) -> None:
    """Leaves the page, and its pictures as files of their own, in a run's folder."""
    kept = [each for each in sections if each.texts or each.rows or each.pictures]
    for section in kept:
        for number, picture in enumerate(section.pictures):
            stem = re.sub(r"\W+", "-", section.title.lower())
            run.write(f"figures/{stem}-{number:02d}{picture.suffix}", picture.content)
    title = f"{_TITLE}: {kind}"
    run.write(PAGE, document(title, lead, kept, run.read("environment.json")))


def page_of(run: Path) -> str:
    """The page that lies in a finished run.

    Raises:
        UserError: the folder holds none.
    """
    try:
        return (run / PAGE).read_text(encoding="utf-8")
    except OSError:
        raise UserError(f"{run} holds no {PAGE}", "name the --out of a finished evaluate or diagnose") from None


def _view(pipeline: Pipeline, name: str, data: bytes) -> np.ndarray:
    left, right = name.split("/")
    return dataclasses.replace(pipeline, decoder=decoder(left).name, resizer=right).pixels(data)


def _rows(summary: Any) -> list[tuple[str, ...]]:
    labelled = summary.measure == "accuracy"
    heads = ("accuracy %", "points lost", "95 % interval", "fixed", "broken", "p (Holm)") if labelled else ()
    rows: list[tuple[str, ...]] = [("combination", *heads, "predictions changed %", "mean |logit change|")]
    for row in summary.rows:
        name = row.name if row.same_as is None else f"{row.name} (same pixels as {row.same_as})"
        cells: tuple[str, ...] = ()
        if labelled:
            low, high = row.interval
            cells = (f"{100 * row.accuracy:.2f}", f"{100 * row.drop:+.2f}", f"{100 * low:+.2f} to {100 * high:+.2f}")
            cells += (str(row.fixed), str(row.broken), f"{row.p_holm:.2g}")
        rows.append((name, *cells, f"{100 * row.disagreement:.2f}", f"{row.changes['mean_delta']:.3f}"))
    return rows


def _errors(errors: Sequence[Any]) -> list[tuple[str, str]]:
    return [("file", "reason"), *((each.name, each.message) for each in errors)] if errors else []


def _pipelines(a: Pipeline, b: Pipeline) -> list[tuple[str, str, str]]:
    one, other = (_fields(pipeline) for pipeline in (a, b))
    return [("field", "a", "b"), *((name, str(one[name]), str(other[name])) for name in one)]


def _fields(pipeline: Pipeline) -> Mapping[str, Any]:
    fields = {each.name: getattr(pipeline, each.name) for each in dataclasses.fields(pipeline)}
    return fields | {"resize_size": pipeline.resize_to}
