"""Which pre-processing stage does it: walks from one pipeline to another, stage by stage and in every combination."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from imagenet_s import statistics
from imagenet_s.aliasing import antialias_findings
from imagenet_s.errors import ImagenetSError, PipelineError, SampleError
from imagenet_s.findings import Finding, findings
from imagenet_s.identification import Candidate, identify
from imagenet_s.models import Model, serving
from imagenet_s.orientation import exif_orientation
from imagenet_s.pipelines import STAGES, Pipeline, replace_stage, stages_that_differ
from imagenet_s.rendering import Renderer
from imagenet_s.samples import Sample, Samples, as_samples
from imagenet_s.shards import BadImage
from imagenet_s.tensors import Dumped, read_tensors
from imagenet_s.verdicts import NO_EFFECT, Diagnosis, Effect, StageEffect, Worst

__all__ = ["NO_EFFECT", "Diagnosis", "diagnose"]

MOST_STAGES = 6
"""Stages whose every subset is tried; with a seventh, precision counts as part of normalising."""
_LOOKED_AT = 24  # images whose tensors the rules of findings see
_IN_FLIGHT = 256  # tensors, 0.6 MB each
_MODEL = "model"  # what the actual tensors are called among the subsets

Subset = frozenset[str]


def diagnose(
    model: Model,
    samples: Samples | Iterable[Sample | tuple[bytes, int | None]],
    a: Pipeline,
    b: Pipeline | str | Path | Mapping[str, np.ndarray],
    *,
    batch_size: int = 16,
    device: str = "cpu",
    seed: int = 0,
    worst: int = 8,
    max_errors: float = 0.01,
) -> Diagnosis:
    """Says which stage between two pipelines changes what a classifier predicts, and what is wrong with it.

    Every stage is changed alone from a's side and from b's, and every subset of the stages that differ gives each its
    Shapley share. When b is a folder of tensors, the pipeline that reproduces them best takes its place, and what it
    does not explain is reported on its own.

    Args:
        model: any callable on a float batch that returns (N, C) logits, in the layout of `a`.
        samples: image files; without labels all is agreement.
        a: the pipeline that is right, in training or a notebook.
        b: another, or a folder of .npy tensors of the same images, matched by file stem; or such arrays by name.
        batch_size: tensors at a time.
        device: where a torch model runs.
        seed: of the bootstrap.
        worst: how many of the worst images to keep.
        max_errors: share of files that may be unreadable.

    Raises:
        PipelineError: a decoder or resizer is not installed.
        SampleError: no samples, too many unreadable files, or tensors of none of them.
        ModelError: the model fails, or returns NaN or another shape.
    """
    samples = as_samples(samples)
    if not len(samples):
        raise SampleError("there are no samples")
    notes: list[str] = []
    extra: list[Finding] = []
    dumped: Dumped | None = None
    exact = True
    if isinstance(b, Pipeline):
        target = b
    else:
        dumped = read_tensors(b, samples)
        best = identify(dumped, samples, start=a)[0]
        target, exact = best.pipeline, best.exact
        notes, extra = _about(dumped, best, a)
        samples = type(samples)([samples.entries[at] for at in dumped.index], samples.source)
    walk = _Walk(a, dataclasses.replace(target, layout=a.layout, resize_size=target.resize_to), dumped, exact)
    with serving(model, device) as predict:
        walk.run(samples, predict, batch_size, max_errors)
    return walk.diagnosis(target, notes, extra, seed, worst)


def _about(dumped: Dumped, best: Candidate, a: Pipeline) -> tuple[list[str], list[Finding]]:
    """What there is to say about dumped tensors before any model sees them."""
    low, high = float(dumped.values.min()), float(dumped.values.max())
    notes = [f"tensors: {dumped.layout}, {dumped.dtype}, values {low:.3g} to {high:.3g}"]
    if dumped.missing:
        notes.append(f"{dumped.missing} samples have no tensor and are left out")
    if dumped.unknown:
        notes.append(f"{len(dumped.unknown)} tensors belong to no sample, such as {dumped.unknown[0]}")
    likeness = "exactly" if best.exact else f"within {best.error:.2f} levels (root mean square)"
    alike = f"; so do {', '.join(best.alike[:6])}" if best.alike else ""
    notes.append(f"{best.pipeline.decoder}/{best.pipeline.resizer} reproduces them {likeness}{alike}")
    if dumped.layout == a.layout:
        return notes, []
    evidence = f"b is {dumped.layout}, a is {a.layout}; b was turned for this diagnosis"
    return notes, [Finding("layout", "normalise", evidence)]


@dataclass
class _Walk:
    """All subsets of changed stages, and what each does to every image against a and against b."""

    a: Pipeline
    b: Pipeline
    dumped: Dumped | None
    exact: bool
    names: list[str] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    shapes: list[tuple[int, int]] = field(default_factory=list)
    tags: list[int] = field(default_factory=list)
    errors: list[BadImage] = field(default_factory=list)
    predictions: dict[Subset, list[np.ndarray]] = field(default_factory=dict)
    figures: dict[tuple[Subset, Subset], list[np.ndarray]] = field(default_factory=dict)
    looked_at: dict[Subset, list[np.ndarray]] = field(default_factory=dict)
    suffered: list[tuple[float, int, int, int, np.ndarray, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        differ = list(stages_that_differ(self.a, self.b))
        self.joined = len(differ) > MOST_STAGES
        self.stages = differ[:MOST_STAGES] if self.joined else differ  # precision is the last
        subsets = itertools.chain.from_iterable(
            itertools.combinations(self.stages, size) for size in range(len(self.stages) + 1)
        )
        self.pipelines = {frozenset(subset): self._changed(subset) for subset in subsets}
        self.none, self.all = frozenset[str](), frozenset(self.stages)
        # the actual tensors take b's place where there are some that no pipeline gives
        self.end = frozenset({_MODEL}) if self.dumped is not None and not self.exact else self.all
        self.pairs = {(subset, self.none) for subset in self.pipelines}
        self.pairs |= {(self.all, self.all - {stage}) for stage in self.stages}
        self.pairs |= {(self.end, self.none), (self.end, self.all)}

    def run(self, samples: Samples, predict: Callable, batch_size: int, max_errors: float) -> None:
        """Renders and predicts every subset, some images at a time."""
        waiting: list[dict[Subset, np.ndarray]] = []
        at_once = max(1, _IN_FLIGHT // (len(self.pipelines) + 1))
        for number in range(len(samples)):
            try:
                waiting.append(self._rendered(samples[number], number))
            except (ImportError, PipelineError):
                raise
            except Exception as error:  # one bad file never costs the run
                self.errors.append(BadImage(number, samples.names[number], type(error).__name__, str(error)))
                if len(self.errors) > max_errors * len(samples):
                    raise SampleError(
                        f"{len(self.errors)} of {len(samples)} images cannot be read, more than the share of "
                        f"{max_errors:g} that may; {samples.names[number]}: {error}",
                        "raise max_errors",
                    ) from None
                continue
            if len(waiting) == at_once:
                self._predict(waiting, predict, batch_size)
                waiting = []
        if waiting:
            self._predict(waiting, predict, batch_size)
        if not self.names:
            raise SampleError(f"none of the {len(samples)} images can be read")

    def diagnosis(self, target: Pipeline, notes: list[str], extra: list[Finding], seed: int, worst: int) -> Diagnosis:
        """Everything that the figures say."""
        labelled = None not in self.labels
        stages = self._stage_effects(seed, labelled)
        found = [finding for stage in stages for finding in stage.findings] + extra
        if self.end != self.all:  # what the tensors show that no known pipeline does
            told = {finding.kind for finding in found}
            found += [finding for finding in self._findings(self.end) if finding.kind not in told]
        if self.a.size != self.b.size:
            found.append(Finding("input size", "crop", f"{self.a.size} pixels against {self.b.size}"))
        if self.joined:
            notes = [*notes, "all seven stages differ: precision counts as part of normalising"]
        return Diagnosis(
            a=self.a,
            b=target,
            n=len(self.names),
            labelled=labelled,
            total=self._effect(self.end, self.none, seed, labelled),
            stages=tuple(stages),
            findings=tuple(found),
            unexplained=None if self.end == self.all else self._effect(self.end, self.all, seed, labelled),
            worst=tuple(
                Worst(self.names[at], tv, first, second, one, two)
                for tv, at, first, second, one, two in self.suffered[:worst]
            ),
            notes=tuple(notes),
            errors=tuple(self.errors),
        )

    def _changed(self, subset: Sequence[str]) -> Pipeline:
        pipeline = self.a
        for stage in STAGES:
            if stage in subset or (self.joined and stage == "precision" and "normalise" in subset):
                pipeline = replace_stage(pipeline, stage, self.b)
        return pipeline

    def _rendered(self, sample: Sample, number: int) -> dict[Subset, np.ndarray]:
        renderer = Renderer(sample.data)
        tensors = {subset: renderer.tensor(pipeline) for subset, pipeline in self.pipelines.items()}
        if self.dumped is not None and self.end != self.all:
            tensors[self.end] = self.dumped.values[number]
        source = renderer.source(self.a)
        self.names.append(sample.name)
        self.labels.append(sample.label)
        self.shapes.append((source.shape[0], source.shape[1]))
        self.tags.append(exif_orientation(sample.data))
        return tensors

    def _predict(self, waiting: list[dict[Subset, np.ndarray]], predict: Callable, batch_size: int) -> None:
        first = len(self.names) - len(waiting)
        tensors = {subset: np.stack([image[subset] for image in waiting]) for subset in waiting[0]}
        logits = {subset: _logits(stack, self.a.layout, predict, batch_size) for subset, stack in tensors.items()}
        for subset, each in logits.items():
            self.predictions.setdefault(subset, []).append(each.argmax(axis=1).astype(np.int64))
        for one, other in self.pairs:
            change = statistics.logit_change(logits[one], logits[other])
            difference = _level_differences(tensors[one], tensors[other], self.a)
            columns = (change.total_variation, change.mean_delta, change.max_delta, *difference)
            self.figures.setdefault((one, other), []).append(np.stack(columns))
        singles = {self.none, self.end, *(frozenset({stage}) for stage in self.stages)}
        for subset in singles:
            kept = self.looked_at.setdefault(subset, [])
            kept.extend(tensors[subset][: max(0, _LOOKED_AT - len(kept))])
        changes = self.figures[self.end, self.none][-1][0]
        tops = logits[self.none].argmax(axis=1), logits[self.end].argmax(axis=1)
        for at in np.argsort(-changes, kind="stable")[:16]:
            left, right = (_as_pixels(tensors[subset][at], self.a) for subset in (self.none, self.end))
            self.suffered.append((float(changes[at]), first + int(at), int(tops[0][at]), int(tops[1][at]), left, right))
        self.suffered = sorted(self.suffered, key=lambda each: (-each[0], each[1]))[:16]

    def _stage_effects(self, seed: int, labelled: bool) -> list[StageEffect]:
        variation = statistics.shapley(self.stages, lambda subset: self._mean(subset, 0))
        dropped = statistics.shapley(self.stages, self._drop) if labelled else {}
        effects = [
            StageEffect(
                stage=stage,
                change=_change(self.a, self.b, stage),
                forward=self._effect(frozenset({stage}), self.none, seed, labelled),
                backward=self._effect(self.all, self.all - {stage}, seed, labelled),
                share=variation[stage],
                share_drop=dropped.get(stage),
                findings=tuple(self._findings(frozenset({stage}), stage)),
            )
            for stage in self.stages
        ]
        return sorted(map(self._renamed, effects), key=lambda effect: -abs(effect.share))

    def _renamed(self, effect: StageEffect) -> StageEffect:
        """A dumped tensor of limited range looks as if it had another mean and std, and is a matter of colour."""
        ranges = [finding for finding in effect.findings if finding.kind in ("limited range", "expanded range")]
        if self.dumped is None or effect.stage != "normalise" or not ranges or "colour" in self.stages:
            return effect
        found = tuple(dataclasses.replace(finding, stage="colour") for finding in effect.findings)
        return dataclasses.replace(effect, stage="colour", findings=found)

    def _mean(self, subset: Subset, row: int) -> float:
        return float(np.concatenate(self.figures[subset, self.none], axis=1)[row].mean())

    def _drop(self, subset: Subset) -> float:
        rows = self._rows(self.none, subset)
        return float(statistics.drop(rows, np.array(self.labels, np.int64), 0)[1])

    def _rows(self, *subsets: Subset) -> np.ndarray:
        return np.stack([np.concatenate(self.predictions[subset]) for subset in subsets])

    def _effect(self, one: Subset, other: Subset, seed: int, labelled: bool) -> Effect:
        variation, mean, largest, pixel_mean, pixel_max = np.concatenate(self.figures[one, other], axis=1)
        rows = self._rows(other, one)
        effect = Effect(
            n=rows.shape[1],
            pixel_mean=float(pixel_mean.mean()),
            pixel_max=float(pixel_max.max()),
            flips=int((rows[0] != rows[1]).sum()),
            total_variation=float(variation.mean()),
            logit_mean=float(mean.mean()),
            logit_max=float(largest.max()),
        )
        if not labelled:
            return effect
        labels = np.array(self.labels, np.int64)
        churn = statistics.churn(rows, labels, 0)[1]
        return dataclasses.replace(
            effect,
            drop=float(statistics.drop(rows, labels, 0)[1]),
            interval=statistics.drop_interval(churn.fixed, churn.broken, effect.n, seed=seed),
            p_value=churn.p_value,
        )

    def _findings(self, subset: Subset, stage: str | None = None) -> list[Finding]:
        first, second = np.stack(self.looked_at[self.none]), np.stack(self.looked_at[subset])
        if first.shape != second.shape:
            return []
        count = len(first)
        found = findings(first, second, self.a, self.shapes[:count], self.tags[:count])
        if stage is None:
            return found
        if stage == "resize":  # two known resizers can be asked, which is surer than what pictures happen to show
            known = antialias_findings(self.a.resizer, self.b.resizer)
            found = [finding for finding in found if finding.kind not in ("no antialias", "antialias")] + known
        # one stage alone was changed: whatever is seen is its doing
        return [dataclasses.replace(finding, stage=stage) for finding in found]


def _logits(stack: Float[np.ndarray, "n S S 3"], layout: str, predict: Callable, batch_size: int) -> np.ndarray:
    images = np.ascontiguousarray(stack.transpose(0, 3, 1, 2) if layout == "NCHW" else stack, np.float32)
    parts = [predict(torch.from_numpy(images[at : at + batch_size])) for at in range(0, len(images), batch_size)]
    classes = {part.shape[1] for part in parts}
    if len(classes) != 1:
        raise ImagenetSError(f"the model returns {sorted(classes)} classes")
    return np.concatenate(parts)


def _level_differences(
    one: Float[np.ndarray, "n S S 3"], other: Float[np.ndarray, "n S2 S2 3"], a: Pipeline
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and largest difference of each image in levels; NaN where the sizes differ."""
    if one.shape != other.shape:
        return np.full(len(one), np.nan), np.full(len(one), np.nan)
    levels = np.abs(one.astype(np.float64) - other) * a.std / a.scale
    return levels.mean(axis=(1, 2, 3)), levels.max(axis=(1, 2, 3))


def _as_pixels(tensor: Float[np.ndarray, "S S 3"], a: Pipeline) -> UInt8[np.ndarray, "S S 3"]:
    levels = (tensor.astype(np.float64) * a.std + a.mean) / a.scale
    image = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return image if a.channels == "rgb" else np.ascontiguousarray(image[..., ::-1])


def _change(a: Pipeline, b: Pipeline, stage: str) -> str:
    """The stage's fields that differ, as people would write them."""
    changed = replace_stage(a, stage, b)
    parts = []
    for name in (each.name for each in dataclasses.fields(a)):
        before, after = getattr(a, name), getattr(changed, name)
        if name == "resize_size":
            before, after = a.resize_to, changed.resize_to
        if before != after:
            parts.append(f"{name} {before} to {after}")
    return ", ".join(parts)
