from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_networks import network
from test_integers import pixels

from core_utils.errors import CheckFailed
from mqbench_lite.engines import Coverage, get
from mqbench_lite.errors import AgreementError, ExportError
from mqbench_lite.exporting import export
from mqbench_lite.integers import IntegerModel
from mqbench_lite.verification import verify

MODEL = network(2, ["conv", "depthwise", "residual"])


class Wrong:
    """ONNX Runtime with one layer's codes one step too high."""

    name = "wrong"
    api_version = 1
    exact = False

    def __init__(self, layer: str, offset: float = 0.5, layers: str = "integer") -> None:
        self.inner, self.layer, self.offset, self.layers = get("onnxruntime"), layer, offset, layers

    def available(self) -> bool:
        return True

    def versions(self) -> dict[str, str]:
        return {"wrong": "0"}

    def run(self, artifact, x):
        outputs = self.inner.run(artifact, x).copy()
        outputs[0, 0] += self.offset
        return outputs

    def integer_coverage(self, artifact) -> Coverage:
        found = {"conv": "Conv"}
        return Coverage(integer=found) if self.layers == "integer" else Coverage(floating=found)

    def layer_codes(self, artifact, x):
        codes = self.inner.layer_codes(artifact, x)
        names = list(codes)
        for name in names[names.index(self.layer) :]:
            codes[name] = codes[name] + (np.arange(codes[name].size).reshape(codes[name].shape) == 0)
        return codes


def test_an_exact_engine_has_no_differing_logit(tmp_path: Path) -> None:
    artifact = export(MODEL, tmp_path / "net.onnx")
    batches = [(torch.tensor(pixels(MODEL)), torch.zeros(3)), torch.tensor(pixels(MODEL, 5))]
    report = verify(MODEL, artifact, ["onnxruntime"], batches)
    (found,) = report.engines
    outputs = IntegerModel(MODEL)(torch.tensor(pixels(MODEL))).shape[1]
    assert (found.samples, found.logits) == (8, 8 * outputs)
    assert (found.differing, found.max_difference, found.top1, found.max_lsb, found.first) == (0, 0.0, 1.0, 0, None)
    assert (found.layers, found.warnings, found.skipped) == (1.0, (), "")
    assert report.sha256 == artifact.sha256
    report.check()


def test_the_first_layer_that_diverges_is_named(tmp_path: Path) -> None:
    artifact = export(MODEL, tmp_path / "net.onnx")
    layer = list(MODEL.grids)[2]
    report = verify(MODEL, artifact, [Wrong(layer)], [pixels(MODEL)])
    (found,) = report.engines
    assert found.first is not None
    assert (found.first.layer, found.first.max_lsb) == (layer, 1)
    assert found.first.differing == pytest.approx(
        1 / IntegerModel(MODEL).codes(torch.tensor(pixels(MODEL)))[layer].size
    )
    assert (found.differing, found.max_lsb) == (1, 1)
    assert found.max_difference == pytest.approx(0.5, rel=1e-3)
    assert found.mean_difference == pytest.approx(0.5 / found.logits, rel=1e-3)
    with pytest.raises(AgreementError, match=f"off by up to 1 steps, first at {layer}"):
        report.check()
    report.check(max_difference=0.51, top1=0.0)


def test_a_graph_that_runs_in_float_fails_even_if_its_numbers_agree(tmp_path: Path) -> None:
    artifact = export(MODEL, tmp_path / "net.onnx")
    engine = Wrong(next(iter(MODEL.grids)), offset=0.0, layers="float")
    with pytest.raises(CheckFailed, match="wrong runs 0% of the layers on integers, not 100%"):
        verify(MODEL, artifact, [engine], [pixels(MODEL)]).check(max_difference=1.0)
    narrow = network(3, ["conv", "conv"], bits=4)
    real = export(narrow, tmp_path / "narrow.onnx", clips="values")
    report = verify(narrow, real, ["onnxruntime"], [pixels(narrow)])
    assert report.engines[0].layers < 1
    with pytest.raises(CheckFailed, match="onnxruntime runs"):
        report.check(max_difference=1.0, top1=0.0)


def test_a_file_made_for_another_engine_is_warned_of(tmp_path: Path) -> None:
    artifact = export(MODEL, tmp_path / "net.onnx")
    assert artifact.profile == "onnxruntime"
    (found,) = verify(MODEL, artifact, ["torch-qnnpack"], [pixels(MODEL)]).engines
    assert found.warnings == ("the file was made for the profile onnxruntime, not for torch-qnnpack",)
    short = export(replace(MODEL, profile="onnxruntime-avx2"), tmp_path / "short.onnx")
    assert verify(MODEL, short, ["onnxruntime"], [pixels(MODEL)]).engines[0].warnings == ()


def test_an_engine_that_is_not_installed_is_skipped_and_does_not_count(tmp_path: Path, monkeypatch) -> None:
    artifact = export(MODEL, tmp_path / "net.onnx")
    absent = Wrong(next(iter(MODEL.grids)))
    monkeypatch.setattr(Wrong, "available", lambda self: False)
    report = verify(MODEL, artifact, [absent, "onnxruntime"], [pixels(MODEL)])
    assert [each.skipped for each in report.engines] == ["not installed", ""]
    report.check()
    with pytest.raises(CheckFailed, match="no engine was run"):
        verify(MODEL, artifact, [absent], [pixels(MODEL)]).check()


def test_without_data_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no data to verify on"):
        verify(MODEL, export(MODEL, tmp_path / "net.onnx"), ["onnxruntime"], [])
