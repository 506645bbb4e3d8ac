"""A frozen quantised model as a file that devices read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from core_utils.files import write_atomically
from mqbench_lite.encodings import clip_ranges, qnn_encodings, tensorrt_cache
from mqbench_lite.errors import ExportError
from mqbench_lite.fusion import Clips
from mqbench_lite.graph import QParams, QuantizedGraph

FORMATS = ("qdq", "tensorrt", "snpe", "qnn")


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An exported model.

    Attributes:
        path: the ONNX file.
        qparams: a JSON file beside it with every grid.
        sha256: of the ONNX file.
        profile: name of the profile it was made for.
        others: further files of the format: calibration tables, encodings.
    """

    path: Path
    qparams: Path
    sha256: str
    profile: str = ""
    others: tuple[Path, ...] = ()


@runtime_checkable
class Freezable(Protocol):
    """A model that is still in training form."""

    def freeze(self) -> QuantizedGraph:
        """Its numbers on grids."""
        ...


def export(
    model: QuantizedGraph | Freezable,
    path: Path | str,
    format: str = "qdq",  # noqa: A002 -- the word for it
    *,
    clips: Clips | None = None,
    opset: int = 17,
) -> Artifact:
    """Writes a model for a device.

    Args:
        model: a frozen model, or one that can be frozen.
        path: the ONNX file; other files of the format are put beside it.
        format: `qdq` is ONNX with QuantizeLinear and DequantizeLinear; `tensorrt` adds a calibration cache and clip
            ranges; `snpe` and `qnn` add encodings.
        clips: `codes` clips after QuantizeLinear and keeps every layer on integers in ONNX Runtime; `values` is what
            other engines expect; by default the first for files that ONNX Runtime will run.
        opset: ONNX operator set, 17 to 23.

    Raises:
        ExportError: the format is unknown or the model has no place in it.
        UnsupportedOpError: an operation has none.
    """
    from mqbench_lite.onnx_files import to_onnx

    if format not in FORMATS:
        raise ExportError(f"format {format!r} is unknown", f"choose one of {', '.join(FORMATS)}")
    frozen = model if isinstance(model, QuantizedGraph) else model.freeze()
    target = Path(path)
    style = clips or (
        "codes" if format == "qdq" and frozen.profile.startswith(("onnxruntime", "academic")) else "values"
    )
    content = to_onnx(frozen, style, opset).SerializeToString()
    write_atomically(target, content)
    qparams = target.with_suffix(".qparams.json")
    write_atomically(qparams, json.dumps(_described(frozen, style), indent=1))
    return Artifact(
        path=target,
        qparams=qparams,
        sha256=hashlib.sha256(content).hexdigest(),
        profile=frozen.profile,
        others=_others(frozen, target, format),
    )


def _others(model: QuantizedGraph, target: Path, kind: str) -> tuple[Path, ...]:
    texts: dict[str, str] = {}
    if kind == "tensorrt":
        texts = {".cache": tensorrt_cache(model), ".ranges.json": json.dumps(clip_ranges(model), indent=1)}
    elif kind in ("snpe", "qnn"):
        texts = {".encodings": json.dumps(qnn_encodings(model), indent=1)}
    for suffix, text in texts.items():
        write_atomically(target.with_suffix(suffix), text)
    return tuple(target.with_suffix(suffix) for suffix in texts)


def _described(model: QuantizedGraph, clips: Clips) -> dict[str, Any]:
    weights = {name: layer.grid for name, layer in model.layers.items() if layer.grid is not None}
    return {
        "format": 1,
        "profile": model.profile,
        "storage": model.storage,
        "clips": clips,
        "activations": {name: _numbers(grid) for name, grid in model.grids.items()},
        "weights": {name: _numbers(grid) for name, grid in weights.items()},
    }


def _numbers(grid: QParams) -> dict[str, Any]:
    return {
        "scale": grid.scale.astype(float).tolist(),
        "zero_point": grid.zero_point.tolist(),
        "qmin": grid.qmin,
        "qmax": grid.qmax,
        "axis": grid.axis if grid.scale.ndim else None,
    }
