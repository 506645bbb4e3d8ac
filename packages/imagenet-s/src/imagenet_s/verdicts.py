"""What a diagnosis says: each stage's effect, what it is called, and the pictures that show it."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from core_utils.files import write_atomically
from core_utils.jsonable import jsonable
from imagenet_s.findings import Finding
from imagenet_s.pipelines import Pipeline
from imagenet_s.shards import BadImage

NO_EFFECT = "not distinguishable from no effect"


@dataclass(frozen=True)
class Effect:
    """What changing something does. Shares are fractions; what needs labels is None without them.

    Attributes:
        n: images.
        pixel_mean: mean absolute difference of what the model sees, in levels of a's normalisation.
        pixel_max: the largest.
        flips: predictions that change.
        total_variation: between the softmax distributions, mean over images.
        logit_mean: mean absolute difference of the logits.
        logit_max: the largest.
        drop: accuracy lost.
        interval: of the drop, 95 %, by the paired bootstrap.
        p_value: McNemar's exact test.
    """

    n: int
    pixel_mean: float
    pixel_max: float
    flips: int
    total_variation: float
    logit_mean: float
    logit_max: float
    drop: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None

    @property
    def verdict(self) -> str:
        """One sentence; no effect is called so."""
        changed = f"{self.flips} of {self.n} predictions change"
        if self.pixel_max == 0:
            return f"{NO_EFFECT}: the tensors are equal"
        if self.flips == 0:
            return f"{NO_EFFECT}: no prediction changes (logits by {self.logit_max:.2g} at most)"
        if self.drop is None or self.interval is None:
            return f"{changed}; without labels that is agreement, {100 * (1 - self.flips / self.n):.1f} %"
        low, high = (100 * end for end in self.interval)
        points = f"{100 * self.drop:+.2f} points ({low:+.2f} to {high:+.2f})"
        if low <= 0 <= high:
            return f"{changed}; the drop of {points} is {NO_EFFECT}"
        return f"costs {points}; {changed}" if self.drop > 0 else f"gains accuracy, a drop of {points}; {changed}"


@dataclass(frozen=True)
class StageEffect:
    """One stage in which the two pipelines differ.

    Attributes:
        stage: its name.
        change: the fields that differ, from a's to b's value.
        forward: a with this stage of b, against a.
        backward: b, against b with this stage of a.
        share: Shapley share of the mean total variation between a and b; the stages are ranked by it.
        share_drop: Shapley share of the drop, a fraction; None without labels.
        findings: what the tensors show.
    """

    stage: str
    change: str
    forward: Effect
    backward: Effect
    share: float
    share_drop: float | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True, eq=False)
class Worst:
    """An image that suffers most.

    Attributes:
        name: of the sample.
        total_variation: between the two softmax distributions.
        class_a: predicted under a.
        class_b: predicted under b.
        a: what the model sees under a, as pixels.
        b: the same under b, undone with a's normalisation.
    """

    name: str
    total_variation: float
    class_a: int
    class_b: int
    a: UInt8[np.ndarray, "S S 3"]
    b: UInt8[np.ndarray, "S2 S2 3"]

    def png(self) -> bytes:
        """a, b and their difference (grey is none, four times enlarged) side by side."""
        from PIL import Image

        tiles = [self.a, self.b]
        if self.a.shape == self.b.shape:
            difference = 128 + 4.0 * (self.b.astype(np.float64) - self.a)
            tiles.append(np.clip(np.rint(difference), 0, 255).astype(np.uint8))
        height = max(tile.shape[0] for tile in tiles)
        sheet = np.full((height, sum(tile.shape[1] + 4 for tile in tiles) - 4, 3), 255, np.uint8)
        left = 0
        for tile in tiles:
            sheet[: tile.shape[0], left : left + tile.shape[1]] = tile
            left += tile.shape[1] + 4
        content = io.BytesIO()
        Image.fromarray(sheet).save(content, "PNG")
        return content.getvalue()


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Which stage does it; as text, what people read.

    Attributes:
        a: the first pipeline.
        b: the second, or the one that reproduces the tensors best.
        n: images.
        labelled: whether there are labels; without them all is agreement.
        total: b against a; with tensors, the tensors against a.
        stages: those that differ, the one with the largest share first.
        findings: of all stages, and of the whole.
        unexplained: tensors against the pipeline that reproduces them best; None for a pipeline, or if it is exact.
        worst: images with the largest change first.
        notes: what else there is to say about the tensors.
        errors: images left out.
    """

    a: Pipeline
    b: Pipeline
    n: int
    labelled: bool
    total: Effect
    stages: tuple[StageEffect, ...]
    findings: tuple[Finding, ...]
    unexplained: Effect | None
    worst: tuple[Worst, ...]
    notes: tuple[str, ...]
    errors: tuple[BadImage, ...]

    def __str__(self) -> str:
        lines = [f"n = {self.n} images; b against a: {self.total.verdict}"]
        whole = sum(stage.share for stage in self.stages)
        for rank, each in enumerate(self.stages, start=1):
            part = f"{100 * each.share / whole:.0f} % of the change" if whole > 0 else "no change"
            drop = "" if each.share_drop is None else f", {100 * each.share_drop:+.2f} points"
            lines.append(f"{rank}. {each.stage} ({each.change}): {part}{drop}")
            lines.append(f"   a with it: {each.forward.verdict}")
            lines.append(f"   b without it: {each.backward.verdict}")
            lines += [f"   {finding}" for finding in each.findings]
        if not self.stages:
            lines.append("the two pipelines are the same")
        told = {id(finding) for stage in self.stages for finding in stage.findings}
        lines += [str(finding) for finding in self.findings if id(finding) not in told]
        if self.unexplained is not None:
            lines.append(f"what no known pipeline reproduces: {self.unexplained.verdict}")
        if self.worst:
            lines.append("worst images: " + ", ".join(f"{w.name} ({w.class_a} to {w.class_b})" for w in self.worst[:5]))
        if self.errors:
            lines.append(f"{len(self.errors)} images could not be read and are left out")
        return "\n".join([*lines, *self.notes])

    def to_json(self, path: str | Path | None = None) -> str:
        """Everything but the pictures as JSON text; also written to `path`."""
        facts: Mapping[str, object] = {
            "a": json.loads(self.a.to_json()),
            "b": json.loads(self.b.to_json()),
            "n": self.n,
            "labelled": self.labelled,
            "total": _with_verdict(self.total),
            "stages": [
                dataclasses.asdict(s) | {"forward": _with_verdict(s.forward), "backward": _with_verdict(s.backward)}
                for s in self.stages
            ],
            "findings": self.findings,
            "unexplained": None if self.unexplained is None else _with_verdict(self.unexplained),
            "worst": [
                {"name": w.name, "total_variation": w.total_variation, "a": w.class_a, "b": w.class_b}
                for w in self.worst
            ],
            "notes": self.notes,
            "errors": self.errors,
        }
        text = json.dumps(jsonable(facts), indent=1) + "\n"
        if path is not None:
            write_atomically(Path(path), text)
        return text

    def plot(self, path: str | Path | None = None) -> str:
        """The stages' shares as a waterfall, SVG; also written to `path`."""
        from imagenet_s.plots import waterfall_figure

        if self.labelled:
            shares = [100 * (stage.share_drop or 0.0) for stage in self.stages]
            quantity = "accuracy lost (points)"
        else:
            shares = [100 * stage.share for stage in self.stages]
            quantity = "change of the softmax distribution (total variation, %)"
        first = self.stages[0].stage if self.stages else "nothing"
        svg = waterfall_figure(
            [stage.stage for stage in self.stages],
            shares,
            quantity=quantity,
            title=f"ImageNet-S (systematic noise): {first} changes most, n = {self.n}",
        )
        if path is not None:
            write_atomically(Path(path), svg)
        return svg


def _with_verdict(effect: Effect) -> dict[str, object]:
    return dataclasses.asdict(effect) | {"verdict": effect.verdict}
