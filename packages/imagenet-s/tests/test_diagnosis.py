import dataclasses
import io
import itertools
import json

import defects
import numpy as np
import photographs
import pytest
from defects import DEFECTS
from PIL import Image

from imagenet_s import Pipeline, Sample, SampleError, diagnose
from imagenet_s.aliasing import antialias_findings, leakage
from imagenet_s.diagnosis import NO_EFFECT
from imagenet_s.models import load_model
from imagenet_s.presets import LITE0_MEAN, LITE0_STD
from imagenet_s.samples import as_samples

A = Pipeline(size=64)
MODEL = defects.TinyNet()


@pytest.fixture(autouse=True, scope="module")
def planted(registries):
    defects.register()


def pictures(orientation=None):
    """Ten photographs of 150 x 200 and 200 x 150, 4:2:0; with a tag, every second one has it."""
    for n, name in enumerate((*photographs.SKLEARN, *photographs.SKIMAGE)):
        size = (200, 150) if n % 3 else (150, 200)
        image = Image.fromarray(photographs.photograph(name)).resize(size, Image.Resampling.LANCZOS)
        yield Sample(photographs.jpeg(image, orientation=orientation if n % 2 else None), None, f"{name[:6]}.jpg")


@pytest.fixture(scope="module")
def samples():
    return as_samples(pictures())


@pytest.fixture(scope="module")
def labelled(samples):
    """The same, labelled with what the model says under A."""
    own = diagnose(MODEL, samples, A, A)
    assert own.stages == ()
    import torch

    with torch.no_grad():
        labels = [int(MODEL(torch.from_numpy(A(sample.data))[None]).argmax()) for sample in samples]
    return as_samples(Sample(s.data, label, s.name) for s, label in zip(samples, labels, strict=True))


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_ranked_first_and_named(samples, defect):
    change, stage, kind = DEFECTS[defect]
    found = diagnose(MODEL, samples, A, dataclasses.replace(A, **change))
    assert [each.stage for each in found.stages] == [stage]
    assert kind in {finding.kind for finding in found.stages[0].findings}
    assert all(finding.stage == stage for finding in found.findings)
    assert f"1. {stage}" in str(found)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_each_exif_orientation_is_ranked_first_and_named(orientation):
    found = diagnose(MODEL, pictures(orientation), A, dataclasses.replace(A, orientation="apply"))
    assert [each.stage for each in found.stages] == ["orientation"]
    (finding,) = found.stages[0].findings
    assert finding.kind == "rotation"
    assert "5 of 10 are" in finding.evidence
    assert "5 of these as their EXIF tag asks" in finding.evidence


PAIRS = [pair for pair in itertools.combinations(DEFECTS, 2) if DEFECTS[pair[0]][1] != DEFECTS[pair[1]][1]]
QUICK = {("bgr", "half pixel"), ("scale 255", "keep ratio"), ("no antialias", "limited range"), ("nv12", "float16")}


@pytest.mark.parametrize("pair", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in PAIRS], ids=str)
def test_of_two_planted_defects_both_are_named(samples, pair):
    changes = DEFECTS[pair[0]][0] | DEFECTS[pair[1]][0]
    found = diagnose(MODEL, samples[:6], A, dataclasses.replace(A, **changes))
    assert {each.stage for each in found.stages} == {DEFECTS[name][1] for name in pair}
    for name in pair:
        _, stage, kind = DEFECTS[name]
        (effect,) = (each for each in found.stages if each.stage == stage)
        assert kind in {finding.kind for finding in effect.findings}
    assert sum(each.share for each in found.stages) == pytest.approx(found.total.total_variation)


def dumped(samples, pipeline):
    return {sample.name: pipeline(sample.data) for sample in samples}


IN_TENSORS = {name: stage for name, (_, stage, _) in DEFECTS.items()} | {"limited range": "colour"}


@pytest.mark.parametrize(
    "defect",
    [name if name in ("bgr", "keep ratio") else pytest.param(name, marks=pytest.mark.slow) for name in DEFECTS],
)
def test_a_defect_in_dumped_tensors_is_ranked_first_and_named(samples, defect, monkeypatch):
    change, _, kind = DEFECTS[defect]
    tensors = dumped(samples, dataclasses.replace(A, **change))
    _hide(monkeypatch)  # a foreign runtime's kernels are in no registry
    found = diagnose(MODEL, samples, A, tensors)
    assert found.stages[0].stage == IN_TENSORS[defect]
    named = {finding.kind: finding.stage for finding in found.findings}
    assert named[kind] == IN_TENSORS[defect]


def _hide(monkeypatch):
    from imagenet_s import decoding, resizing

    monkeypatch.delitem(resizing._RESIZERS, "test-half-pixel")
    monkeypatch.delitem(decoding._DECODERS, "test-limited")


@pytest.mark.slow
@pytest.mark.parametrize("orientation", range(2, 9))
def test_turned_tensors_are_named(orientation):
    tagged = as_samples(pictures(orientation))
    found = diagnose(MODEL, tagged, A, dumped(tagged, dataclasses.replace(A, orientation="apply")))
    assert [each.stage for each in found.stages] == ["orientation"]
    assert "rotation" in {finding.kind for finding in found.findings}


@pytest.mark.slow
@pytest.mark.parametrize("pair", [("bgr", "keep ratio"), ("scale 255", "no antialias"), ("mean and std", "decoder")])
def test_two_defects_in_dumped_tensors_are_both_named(samples, pair):
    found = diagnose(
        MODEL, samples, A, dumped(samples, dataclasses.replace(A, **DEFECTS[pair[0]][0] | DEFECTS[pair[1]][0]))
    )
    assert {each.stage for each in found.stages} == {DEFECTS[name][1] for name in pair}
    assert {DEFECTS[name][2] for name in pair} <= {finding.kind for finding in found.findings}


def test_layout_and_range_of_tensors_are_reported(samples):
    tensors = {name: each.transpose(1, 2, 0) for name, each in dumped(samples, A).items()} | {
        "stranger": np.zeros((64, 64, 3))
    }
    found = diagnose(MODEL, samples, A, tensors)
    assert found.stages == ()
    assert [finding.kind for finding in found.findings] == ["layout"]
    assert "NHWC, float32, values -2." in str(found)
    assert "1 tensors belong to no sample, such as stranger" in str(found)
    assert found.total.verdict == f"{NO_EFFECT}: the tensors are equal"


def test_what_changes_nothing_is_called_so(labelled):
    found = diagnose(MODEL, labelled, A, dataclasses.replace(A, decoder="opencv", dtype="float16"))
    effects = {each.stage: each for each in found.stages}
    assert effects["decode"].forward.verdict == f"{NO_EFFECT}: the tensors are equal"
    assert effects["decode"].findings == ()
    assert effects["precision"].forward.verdict.startswith(f"{NO_EFFECT}: no prediction changes (logits by")
    assert [each.stage for each in found.stages] == ["precision", "decode"]
    assert str(found).startswith(f"n = 10 images; b against a: {NO_EFFECT}")


def test_the_drop_has_an_interval_and_its_shares_add_up(labelled):
    found = diagnose(MODEL, labelled, A, dataclasses.replace(A, scale=1.0, channels="bgr", resizer="opencv-nearest"))
    total = found.total
    assert total.drop == total.flips / 10 > 0
    assert total.interval[0] <= total.drop <= total.interval[1]
    assert sum(each.share_drop for each in found.stages) == pytest.approx(total.drop)
    assert found.stages[0].stage == "normalise"
    assert "costs" in str(found)


def test_without_labels_only_agreement_is_spoken_of(samples):
    found = diagnose(MODEL, samples, A, dataclasses.replace(A, scale=1.0))
    assert "accuracy" not in str(found)
    assert "agreement" in found.total.verdict
    assert found.total.drop is None


def test_the_worst_image_comes_first_with_its_pictures(samples):
    found = diagnose(MODEL, samples, A, dataclasses.replace(A, channels="bgr"), worst=3)
    changes = [each.total_variation for each in found.worst]
    assert changes == sorted(changes, reverse=True)
    with Image.open(io.BytesIO(found.worst[0].png())) as sheet:
        assert sheet.size == (3 * 64 + 8, 64)
        tiles = np.asarray(sheet)
    np.testing.assert_array_equal(tiles[:, :64, ::-1], tiles[:, 68:132])
    facts = json.loads(found.to_json())
    assert facts["stages"][0]["stage"] == "normalise"
    assert facts["stages"][0]["forward"]["flips"] == found.stages[0].forward.flips
    assert found.plot().startswith("<?xml")


def test_bad_files_and_seven_stages_are_survived(samples):
    other = Pipeline(
        decoder="turbo-fast", orientation="apply", colour=DEFECTS["nv12"][0]["colour"], resizer="opencv-area", size=64,
        resize_size=73, crop="center-floor", scale=1.0, dtype="float16",
    )  # fmt: skip
    mixed = [samples[0], Sample(b"no image", None, "bad.jpg"), samples[1]]
    found = diagnose(MODEL, mixed, A, other, max_errors=0.5)
    assert (found.n, [error.name for error in found.errors]) == (2, ["bad.jpg"])
    assert len(found.stages) == 6
    assert "precision counts as part of normalising" in str(found)
    with pytest.raises(SampleError, match=r"1 of 3 images cannot be read.*bad.jpg"):
        diagnose(MODEL, mixed, A, other)


def test_resizers_are_told_apart_by_what_they_let_pass():
    smooth = ("pillow-box", "pillow-bilinear", "pillow-lanczos", "opencv-area", "torch-bicubic-aa", "pillow12-hamming")
    sampled = ("pillow-nearest", "opencv-linear", "opencv-cubic", "opencv-lanczos4", "torch-bilinear", "tf1-bilinear")
    assert max(map(leakage, smooth)) < 0.3
    assert min(map(leakage, sampled)) > 0.55
    assert leakage("opencv-nearest") == pytest.approx(1, abs=0.05)
    assert antialias_findings("pillow-box", "opencv-area") == []
    (found,) = antialias_findings("opencv-cubic", "pillow-bicubic")
    assert found.kind == "antialias"


@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS)
def test_with_efficientnet_lite0_the_planted_stage_is_ranked_first(defect):
    own = Pipeline(resizer="pillow-bicubic", mean=LITE0_MEAN, std=LITE0_STD)
    change, stage, kind = DEFECTS[defect]
    files = [Sample(data, None, name) for name, data in photographs.imagenet_like()]
    found = diagnose(load_model("lite0"), files, own, dataclasses.replace(own, **change))
    assert [each.stage for each in found.stages] == [stage]
    assert kind in {finding.kind for finding in found.stages[0].findings}
