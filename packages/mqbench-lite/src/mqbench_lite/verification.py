"""Whether engines give the integer model's numbers, and where they first do not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from core_utils.errors import CheckFailed
from mqbench_lite.engines import Coverage, Engine, get
from mqbench_lite.errors import AgreementError, ExportError
from mqbench_lite.exporting import Artifact, Freezable
from mqbench_lite.fusion import Clips
from mqbench_lite.graph import QuantizedGraph
from mqbench_lite.integers import IntegerModel

LEAST_COVERAGE = 1.0
"""Share of the layers that must run on integers; a graph that runs in float verifies nothing."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first quantiser, in order of execution, whose codes differ.

    Attributes:
        layer: its name.
        differing: share of the codes.
        max_lsb: largest difference, in steps.
    """

    layer: str
    differing: float
    max_lsb: int


@dataclass(frozen=True, kw_only=True)
class EngineAgreement:
    """One engine against the integer model.

    Attributes:
        engine: name.
        versions: of its distributions.
        samples: how many inputs were run.
        logits: how many outputs were compared.
        differing: how many of them are not equal to the bit.
        max_difference: the largest absolute difference.
        mean_difference: its mean.
        top1: share of samples with the same largest output.
        max_lsb: largest difference of a code in the first batch; None where the engine shows none.
        first: the first quantiser that differs there, or None.
        coverage: what the engine runs on integers.
        layers: share of the layers that it runs on integers.
        warnings: what makes the comparison doubtful.
        skipped: why the engine was not run, or empty.
    """

    engine: str
    versions: dict[str, str]
    samples: int = 0
    logits: int = 0
    differing: int = 0
    max_difference: float = 0.0
    mean_difference: float = 0.0
    top1: float = 1.0
    max_lsb: int | None = None
    first: Divergence | None = None
    coverage: Coverage | None = None
    layers: float = 0.0
    warnings: tuple[str, ...] = ()
    skipped: str = ""


@dataclass(frozen=True, kw_only=True)
class AgreementReport:
    """All engines against the integer model.

    Attributes:
        profile: that the file was made for.
        sha256: of the file.
        engines: in the order asked for.
    """

    profile: str
    sha256: str
    engines: tuple[EngineAgreement, ...]

    def check(self, max_difference: float = 0.0, top1: float = 1.0, coverage: float = LEAST_COVERAGE) -> None:
        """Fails where an engine was run and left a bound.

        Args:
            max_difference: largest difference of outputs that is accepted.
            top1: least share of samples with the same largest output.
            coverage: least share of layers on integers.

        Raises:
            AgreementError: outputs differ by more.
            CheckFailed: too few layers run on integers, or no engine was run.
        """
        run = [each for each in self.engines if not each.skipped]
        if not run:
            raise CheckFailed("no engine was run")
        for each in run:
            if each.layers < coverage:
                raise CheckFailed(f"{each.engine} runs {each.layers:.0%} of the layers on integers, not {coverage:.0%}")
            if each.max_difference > max_difference or each.top1 < top1:
                first = each.first.layer if each.first is not None else "the outputs"
                raise AgreementError(float(each.max_lsb or 0), first)


def verify(
    model: QuantizedGraph | Freezable,
    artifact: Artifact,
    engines: Sequence[str | Engine] = ("onnxruntime",),
    data: Iterable[Any] = (),
    *,
    clips: Clips | None = None,
) -> AgreementReport:
    """Runs a file in engines and compares every output with the integer model's.

    Args:
        model: what was exported.
        artifact: what `export` gave.
        engines: names, or engines themselves; one that is not installed is reported as skipped.
        data: batches of inputs, or of inputs and targets.
        clips: the file's style; read from the file by default.

    Raises:
        ExportError: the file is not what was exported, or there are no data.
    """
    frozen = model if isinstance(model, QuantizedGraph) else model.freeze()
    batches = [_inputs(batch) for batch in data]
    if not batches:
        raise ExportError("there are no data to verify on", "give at least one batch")
    described = json.loads(artifact.qparams.read_text(encoding="utf-8")) if artifact.qparams.exists() else {}
    style: Clips = clips or described.get("clips", "codes")
    integer = IntegerModel(frozen, clips=style)
    expected = [_first(integer(torch.tensor(x))) for x in batches]
    found = tuple(_agreement(engine, artifact, integer, batches, expected) for engine in engines)
    return AgreementReport(profile=artifact.profile, sha256=artifact.sha256, engines=found)


def _agreement(
    named: str | Engine,
    artifact: Artifact,
    integer: IntegerModel,
    batches: list[np.ndarray],
    expected: list[np.ndarray],
) -> EngineAgreement:
    engine = get(named) if isinstance(named, str) else named
    if not engine.available():
        return EngineAgreement(engine=engine.name, versions={}, skipped="not installed")
    outputs = [engine.run(artifact, x) for x in batches]
    difference = np.concatenate([np.abs(y - z).ravel() for y, z in zip(outputs, expected, strict=True)])
    same = np.concatenate(
        [
            y.reshape(len(y), -1).argmax(1) == z.reshape(len(z), -1).argmax(1)
            for y, z in zip(outputs, expected, strict=True)
        ]
    )
    differing = sum(int((y != z).sum()) for y, z in zip(outputs, expected, strict=True))
    coverage = engine.integer_coverage(artifact)
    max_lsb, first = _divergence(engine, artifact, integer, batches[0])
    return EngineAgreement(
        engine=engine.name,
        versions=engine.versions(),
        samples=len(same),
        logits=len(difference),
        differing=differing,
        max_difference=float(difference.max(initial=0.0)),
        mean_difference=float(difference.mean()),
        top1=float(same.mean()),
        max_lsb=max_lsb,
        first=first,
        coverage=coverage,
        layers=_share_of_layers(coverage),
        warnings=_warnings(engine, artifact),
    )


def _divergence(
    engine: Engine, artifact: Artifact, integer: IntegerModel, x: Float32[np.ndarray, " ..."]
) -> tuple[int | None, Divergence | None]:
    """The largest difference of codes, and the first quantiser in order of execution with one."""
    ours, theirs = integer.codes(torch.tensor(x)), engine.layer_codes(artifact, x)
    largest, first = 0, None
    shared = [name for name in ours if name in theirs]
    for name in shared:
        steps = np.abs(ours[name].reshape(-1) - theirs[name].reshape(-1))
        largest = max(largest, int(steps.max(initial=0)))
        if first is None and steps.any():
            first = Divergence(layer=name, differing=float((steps > 0).mean()), max_lsb=int(steps.max()))
    return (largest if shared else None), first


LAYER_KINDS = ("conv", "gemm", "matmul", "linear", "fullyconnected", "deconvolution")


def _share_of_layers(coverage: Coverage) -> float:
    """Of convolutions and matrix products alone."""
    integer, floating = (
        sum(any(part in kind.lower() for part in LAYER_KINDS) for kind in kinds.values())
        for kinds in (coverage.integer, coverage.floating)
    )
    return integer / (integer + floating) if integer + floating else 1.0


def _warnings(engine: Engine, artifact: Artifact) -> tuple[str, ...]:
    """A file follows the graph rules of one engine, and is exact there alone."""
    made_for = artifact.profile.removesuffix("-avx2")
    if made_for and made_for != engine.name:
        return (f"the file was made for the profile {artifact.profile}, not for {engine.name}",)
    return ()


def _inputs(batch: Any) -> np.ndarray:
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    array = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    return np.ascontiguousarray(array, np.float32)


def _first(outputs: Any) -> np.ndarray:
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    return first.numpy()  # type: ignore[no-any-return]
