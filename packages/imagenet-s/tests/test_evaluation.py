import copy
import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mirrors
import numpy as np
import photographs
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from imagenet_s import (
    Grid,
    ImagenetSError,
    ModelError,
    Nv12,
    Pipeline,
    PipelineError,
    Sample,
    SampleError,
    evaluate,
    factors,
)
from imagenet_s import evaluation as evaluation_module
from imagenet_s.decoding import decoders, register_decoder
from imagenet_s.evaluation import to_batch
from imagenet_s.samples import as_samples

SMALL = Pipeline(size=28)
GRID = Grid(("pillow", "opencv", "turbo-fast"), ("pillow-bilinear", "opencv-nearest"), SMALL)
REFERENCE = "pillow/pillow-bilinear"


@pytest.fixture(scope="module")
def samples():
    return as_samples(Sample(data, n % 4, f"{n}.jpg") for n, data in enumerate(photographs.small(36, 64, 96)))


def model(batch):
    """Classes by signs and sizes of differences between pixels, so that a changed pixel can change them."""
    x = batch.mean(1)
    edges = (x[:, 3:27:5, 2:26:5] - x[:, 2:26:5, 3:27:5]).sum((1, 2))
    return torch.stack([edges * s + x[:, k, k] for k, s in enumerate((1, -1, 0.5, -0.5))], 1)


@pytest.fixture(scope="module")
def result(samples):
    return evaluate(model, samples, GRID, reference=REFERENCE, batch_size=7)


def test_predictions_are_those_of_each_pipeline_by_itself(samples, result):
    assert result.predictions.shape == (6, 36)
    for row, (name, pipeline) in zip(result.predictions, GRID, strict=True):
        batch = torch.from_numpy(np.stack([pipeline(sample.data) for sample in samples]))
        assert row.tolist() == model(batch).argmax(1).tolist(), name
    np.testing.assert_array_equal(result.labels, [n % 4 for n in range(36)])
    assert 0 < result.disagreement["turbo-fast/opencv-nearest"] < 1


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pixels_normalised_on_the_device_have_the_pipelines_bits(samples, layout, dtype):
    for options in ({}, {"channels": "bgr", "scale": 1.0, "mean": (123.68, 116.78, 103.94), "std": (58.0, 57.0, 57.5)}):
        pipeline = Pipeline(size=28, layout=layout, dtype=dtype, **options)
        pixels = pipeline.pixels(samples[0].data)
        batch = to_batch(torch.from_numpy(pixels.copy())[None], pipeline)
        np.testing.assert_array_equal(batch[0].numpy(), pipeline.tensor(pixels).astype(np.float32))


def test_decoders_with_the_same_pixels_count_once(result):
    summary = result.summary()
    rows = {row.name: row for row in summary.rows}
    assert rows["opencv/opencv-nearest"].same_as == "pillow/opencv-nearest"
    assert rows["opencv/pillow-bilinear"].same_as == REFERENCE
    assert rows["opencv/pillow-bilinear"].drop == 0
    assert rows["opencv/pillow-bilinear"].p_value == 1
    assert summary.distinct == summary.spread.n == 4
    assert summary.factors["decoder"].loss.n == 1  # turbo-fast alone
    measured = [result.accuracy[name] for name in rows if rows[name].same_as is None]
    assert summary.spread.mean == pytest.approx(np.mean(measured))
    assert summary.spread.std == pytest.approx(np.std(measured))


def test_the_text_says_n_and_the_smallest_detectable_drop(result):
    text = str(result.summary())
    flips = max(result.disagreement.values()) * 36
    assert f"n = 36 images; smallest detectable drop {100 * 1.96 * flips**0.5 / 36:.2f} points" in text
    assert "accuracy over 4 distinct of 6 combinations" in text


class Stem(torch.nn.Module):
    """A convolution, a pool of stride 2 and a head, with fixed random weights."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first, self.pool = torch.nn.Conv2d(3, 8, 3, 2), torch.nn.MaxPool2d(3, 2, 1)
        self.head = torch.nn.Linear(8, 4)
        for each in self.parameters():
            each.data = torch.randn(each.shape, generator=generator)
        self.eval()

    def forward(self, batch):
        return self.head(self.pool(torch.relu(self.first(batch))).std((2, 3)))


def test_factors_change_one_thing_each_and_are_kept_apart_from_the_grid(samples, tmp_path):
    grid = dataclasses.replace(GRID, factors=("int8", "nv12", "ceil-mode", "float16"))
    stem = Stem()
    weights = [each.clone() for each in stem.parameters()]
    found = evaluate(stem, samples, grid, reference=REFERENCE, cache_dir=tmp_path / "run")
    plain = evaluate(stem, samples, GRID, reference=REFERENCE)
    assert found.names == (*GRID.names, "nv12", "int8", "ceil-mode", "float16")
    np.testing.assert_array_equal(found.predictions[:6], plain.predictions)
    assert found.summary().spread == plain.summary().spread
    assert found.summary().fooled == plain.summary().fooled
    pixels = dataclasses.replace(SMALL, colour=Nv12())
    batch = torch.from_numpy(np.stack([pixels(sample.data) for sample in samples]))
    assert found.predictions[6].tolist() == stem(batch).argmax(1).tolist()
    batch = torch.from_numpy(np.stack([SMALL(sample.data) for sample in samples]))
    with factors.int8(copy.deepcopy(stem), [batch]) as changed:
        assert found.predictions[7].tolist() == changed(batch).argmax(1).tolist()
    ceiled = Stem()
    ceiled.pool.ceil_mode = True
    assert found.predictions[8].tolist() == ceiled(batch).argmax(1).tolist()
    assert 0 < found.changes["max_delta"][9].max() < 0.1  # float16 is near, and not the same
    assert all(torch.equal(a, b) for a, b in zip(weights, stem.parameters(), strict=True))
    again = evaluate(stem, samples, grid, reference=REFERENCE, cache_dir=tmp_path / "run")
    assert again.to_json() == found.to_json()


def test_a_factor_without_a_place_is_not_called_an_effect_of_zero(samples):
    grid = dataclasses.replace(GRID, factors=("ceil-mode", "nv12"))
    found = evaluate(model, samples, grid, reference=REFERENCE)
    assert found.factors == ("nv12",)
    assert "ceil-mode is not applicable: function is no torch module" in str(found.summary())
    with pytest.raises(PipelineError, match="factor 'int4' is unknown or named twice"):
        dataclasses.replace(GRID, factors=("int4",))


def test_without_labels_agreement_is_all_that_is_spoken_of(samples, result):
    bare = [Sample(sample.data, None, sample.name) for sample in samples]
    unlabelled = evaluate(model, bare, GRID, reference=REFERENCE)
    with pytest.raises(ImagenetSError, match="needs a label"):
        _ = unlabelled.accuracy
    assert unlabelled.disagreement == result.disagreement
    text = str(unlabelled.summary()).replace("no labels, so no accuracy", "")
    assert "accuracy" not in text
    assert "agreement over 4 distinct" in text
    assert unlabelled.summary().rows[1].drop is None
    assert "accuracy" not in unlabelled.to_csv().splitlines()[1]
    assert 0 < unlabelled.summary().consistent < 1


def test_bad_files_are_named_counted_and_in_no_combination(samples, result):
    bad = [Sample(data, 0, name) for name, data in photographs.broken_files()]
    mixed = [*samples[:20], *bad, *samples[20:]]
    found = evaluate(model, mixed, GRID, reference=REFERENCE, max_errors=0.5)
    np.testing.assert_array_equal(found.predictions, result.predictions)
    assert [error.name for error in found.errors] == [each.name for each in bad]
    assert {error.index for error in found.errors} == set(range(20, 20 + len(bad)))
    assert f"{len(bad)} images could not be read" in str(found.summary())
    with pytest.raises(SampleError, match=r"of 43 images cannot be read, more than the share of 0.01"):
        evaluate(model, mixed, GRID, reference=REFERENCE)
    with pytest.raises(SampleError, match="none of the 7 images"):
        evaluate(model, bad, GRID, reference=REFERENCE, max_errors=1.0)


def test_images_that_are_not_plain_are_counted_and_truncated_ones_read_if_asked(samples):
    cmyk = photographs.jpeg(Image.new("CMYK", (40, 30), (10, 20, 30, 40)))
    cut = samples[0].data[:-40]
    mixed = [*samples, Sample(cmyk, 0, "cmyk.jpg"), Sample(cut, 0, "cut.jpg")]
    allowed = dataclasses.replace(GRID, pipeline=dataclasses.replace(SMALL, truncated="allow"))
    found = evaluate(model, mixed, allowed, reference=REFERENCE)
    assert (len(found.images), found.errors) == (38, ())
    assert found.flags == (("cmyk.jpg", "CMYK"), ("cut.jpg", "truncated"))
    assert "images: 1 CMYK, 1 truncated" in str(found.summary())
    refused = evaluate(model, mixed, GRID, reference=REFERENCE, max_errors=0.1)
    assert [(error.name, error.kind) for error in refused.errors] == [("cut.jpg", "TruncatedImageError")]
    small = dataclasses.replace(GRID, pipeline=dataclasses.replace(SMALL, max_pixels=2000))
    with pytest.raises(SampleError, match="are more than max_pixels=2000"):
        evaluate(model, mixed, small, reference=REFERENCE)


def test_what_makes_no_sense_is_refused(samples):
    with pytest.raises(PipelineError, match="'pillow/none' is not in the grid"):
        evaluate(model, samples, GRID, reference="pillow/none")
    with pytest.raises(PipelineError, match="twice"):
        evaluate(model, samples, Grid(("pillow", "pillow"), ("pillow-box",)), reference="pillow/pillow-box")
    with pytest.raises(PipelineError, match="without decoders"):
        evaluate(model, samples, Grid((), ("pillow-box",)), reference="pillow/pillow-box")
    with pytest.raises(SampleError, match="no samples"):
        evaluate(model, [], GRID, reference=REFERENCE)
    with pytest.raises(ModelError, match="NaN"):
        evaluate(lambda batch: model(batch) * float("nan"), samples, GRID, reference=REFERENCE)
    with pytest.raises(SampleError, match=r"label 9 of x.jpg: the model has 4 classes"):
        evaluate(model, [Sample(samples[0].data, 9, "x.jpg")], GRID, reference=REFERENCE)


def test_a_stopped_evaluation_goes_on_where_it_was(samples, result, tmp_path):
    seen = []

    def stopping(batch):
        seen.append(len(batch))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return model(batch)

    with pytest.raises(KeyboardInterrupt):
        evaluate(stopping, samples, GRID, reference=REFERENCE, batch_size=64, cache_dir=tmp_path / "run")
    partial = json.loads((tmp_path / "run" / "partial.json").read_text())
    assert (partial["summary"]["complete"], partial["summary"]["n"]) == (False, 16)
    resumed = evaluate(stopping, samples, GRID, reference=REFERENCE, batch_size=64, cache_dir=tmp_path / "run")
    assert sum(seen) == (36 + 16) * 4  # the second chunk twice, the first one once; four distinct views an image
    np.testing.assert_array_equal(resumed.predictions, result.predictions)
    again = evaluate(stopping, samples, GRID, reference=REFERENCE, cache_dir=tmp_path / "run")
    assert sum(seen) == (36 + 16) * 4
    assert again.to_json() == resumed.to_json()


def test_other_versions_or_models_are_not_mixed(samples, tmp_path, monkeypatch):
    few = samples[:3]
    evaluate(model, few, GRID, reference=REFERENCE, cache_dir=tmp_path / "run")
    with pytest.raises(ValueError, match="another configuration: model"):
        evaluate(lambda batch: model(batch), few, GRID, reference=REFERENCE, cache_dir=tmp_path / "run")
    known = evaluation_module.versions(GRID)
    monkeypatch.setattr(evaluation_module, "versions", lambda grid: known | {"pillow": "99 (turbo 9)"})
    with pytest.raises(ValueError, match=r"versions.pillow is .* there, \"99 \(turbo 9\)\" here"):
        evaluate(model, few, GRID, reference=REFERENCE, cache_dir=tmp_path / "run")
    evaluate(model, few, GRID, reference=REFERENCE, cache_dir=tmp_path / "run", overwrite=True)


def test_processes_give_what_a_thread_gives_and_outlive_a_decoder_that_kills(samples, monkeypatch):
    sizes = [len(sample.data) for sample in samples]
    victim = next(n for n in range(17, 36) if sizes.count(sizes[n]) == 1)
    monkeypatch.setenv("IMAGENET_S_DEADLY", str(sizes[victim]))
    for name, function in (("test-mirror", mirrors.mirror), ("test-deadly", mirrors.deadly)):
        if name not in decoders():
            register_decoder(name, function)
    safe = Grid(("pillow", "test-mirror"), ("opencv-linear",), SMALL)
    deadly = dataclasses.replace(safe, decoders=("pillow", "test-deadly"))
    whole = evaluate(model, samples, safe, reference="pillow/opencv-linear")
    found = evaluate(model, samples, deadly, reference="pillow/opencv-linear", workers=2, max_errors=0.1)
    assert [(error.name, error.kind) for error in found.errors] == [(f"{victim}.jpg", "died")]
    np.testing.assert_array_equal(found.predictions, np.delete(whole.predictions, victim, axis=1))


RUN = """
import sys, time, mirrors, numpy as np
from imagenet_s import Grid, Pipeline, evaluate, open_samples
def model(batch):
    time.sleep(0.2)
    return batch.mean((2, 3))
grid = Grid(("pillow",), ("pillow-box", "opencv-nearest"), Pipeline(size=28))
evaluate(model, open_samples(sys.argv[1], check_sizes=False), grid, reference="pillow/pillow-box", cache_dir=sys.argv[2])
"""


@pytest.mark.slow
def test_a_killed_evaluation_keeps_its_finished_chunks(tmp_path):
    photographs.class_folder(tmp_path / "images", 80)
    command = [sys.executable, "-c", RUN, str(tmp_path / "images"), str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    kept = tmp_path / "run" / "checkpoint"
    with subprocess.Popen(command, env=environment) as process:
        deadline = time.monotonic() + 60
        while len(list(kept.glob("*.safetensors"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    before = {file.name: file.stat().st_mtime_ns for file in kept.glob("chunk-*")}
    assert 2 <= len(before) < 5
    assert not (tmp_path / "run" / "result.json").exists()
    subprocess.run(command, env=environment, check=True, timeout=60)
    after = {file.name: file.stat().st_mtime_ns for file in kept.glob("chunk-*")}
    assert len(after) == 5
    assert {name: after[name] for name in before} == before
    assert json.loads((tmp_path / "run" / "result.json").read_text())["summary"]["n"] == 80


@pytest.mark.slow
def test_a_cluster_gives_what_a_thread_gives(samples, result):
    import distributed

    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        found = evaluate(model, samples, GRID, reference=REFERENCE, cluster=cluster.scheduler_address)
    np.testing.assert_array_equal(found.predictions, result.predictions)


def test_the_files_hold_the_figures(result, tmp_path):
    facts = json.loads(result.to_json(tmp_path / "result.json"))
    assert json.loads((tmp_path / "result.json").read_text()) == facts
    assert facts["predictions"]["turbo-fast/opencv-nearest"] == result.predictions[5].tolist()
    assert facts["summary"]["rows"][5]["drop"] == pytest.approx(
        result.accuracy[REFERENCE] - result.accuracy["turbo-fast/opencv-nearest"]
    )
    lines = list(csv.DictReader(io.StringIO(result.to_csv(tmp_path / "result.csv"))))
    assert float(lines[5]["disagreement"]) == result.disagreement["turbo-fast/opencv-nearest"]
    result.to_parquet(tmp_path / "result.parquet")
    table = pq.read_table(tmp_path / "result.parquet")
    assert table.column(REFERENCE).to_pylist() == result.predictions[0].tolist()
    assert table.column("image")[7].as_py() == "7.jpg"
    assert json.loads(table.schema.metadata[b"imagenet-s"])["reference"] == REFERENCE


def test_the_picture_frames_the_reference_and_claims_the_worst_loss(result, tmp_path):
    svg = result.plot(tmp_path / "grid.svg")
    assert svg.startswith("<?xml")
    assert svg == result.plot() == (tmp_path / "grid.svg").read_text()
    effects = result.decompose()
    assert sum(effects.decoders.values()) == pytest.approx(0)
    assert effects.decoders["pillow"] == pytest.approx(effects.decoders["opencv"])
