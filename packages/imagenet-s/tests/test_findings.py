import dataclasses
import io

import numpy as np
import photographs
import pytest
from PIL import Image

from imagenet_s import Nv12, Pipeline
from imagenet_s.alignment import detail, shift, turn, turns, zoom
from imagenet_s.findings import findings
from imagenet_s.orientation import orient

NAMES = ("china.jpg", "flower.jpg", "astronaut", "coffee", "chelsea", "rocket")
A = Pipeline(size=112)


@pytest.fixture(scope="module")
def files():
    """Photographs in three aspect ratios, one of them upright."""
    pictures = [photographs.photograph(name) for name in NAMES]
    pictures[1] = np.ascontiguousarray(pictures[1].transpose(1, 0, 2))
    return [photographs.jpeg(picture) for picture in pictures]


@pytest.fixture(scope="module")
def shapes(files):
    return [Image.open(io.BytesIO(data)).size[::-1] for data in files]


def render(pipeline, files):
    tensors = np.stack([pipeline(data) for data in files])
    return tensors.transpose(0, 2, 3, 1) if pipeline.layout == "NCHW" else tensors


@pytest.fixture(scope="module")
def reference(files):
    return render(A, files)


def kinds(reference, files, shapes, **change):
    found = findings(reference, render(dataclasses.replace(A, **change), files), A, shapes)
    return {finding.kind: finding for finding in found}


def test_equal_tensors_have_nothing_to_find(reference, shapes):
    assert findings(reference, reference.copy(), A, shapes) == []


@pytest.mark.parametrize(
    ("change", "kind", "stage"),
    [
        ({"channels": "bgr"}, "channel swap", "normalise"),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, "mean/std", "normalise"),
        ({"mean": (0.4, 0.5, 0.45)}, "mean/std", "normalise"),
        ({"scale": 1.0}, "scale 255", "normalise"),
        ({"scale": 1 / 255**2}, "scale 255", "normalise"),
        ({"dtype": "float16"}, "float16 precision", "precision"),
        ({"resizer": "opencv-linear"}, "no antialias", "resize"),
        ({"resizer": "pillow-lanczos"}, "sharper filter", "resize"),
        ({"geometry": "shorter-side"}, "aspect ratio", "resize"),
        ({"geometry": "longer-side-pad"}, "aspect ratio", "resize"),
        ({"resize_size": 112}, "zoom", "resize"),
        ({"colour": Nv12()}, "chroma", "decode"),
        ({"decoder": "turbo-boxup"}, "chroma", "decode"),
        ({"decoder": "turbo-fastdct"}, "level offset", "decode"),
        ({"mean": (0.495, 0.456, 0.406)}, "mean/std", "normalise"),
    ],
    ids=str,
)
def test_a_single_change_gives_the_one_finding_that_names_it(reference, files, shapes, change, kind, stage):
    found = kinds(reference, files, shapes, **change)
    assert {name: each.stage for name, each in found.items()} == {kind: stage}


def test_the_evidence_holds_the_figures(reference, files, shapes):
    assert (
        "-1..1 (mean and std 0.5)"
        in kinds(reference, files, shapes, mean=(0.5,) * 3, std=(0.5,) * 3)["mean/std"].evidence
    )
    own = kinds(reference, files, shapes, mean=(0.4, 0.5, 0.45))["mean/std"].evidence
    assert "mean 0.400, 0.500, 0.450 and std 0.229, 0.224, 0.225" in own
    assert "divided by 255 twice" in kinds(reference, files, shapes, scale=1 / 255**2)["scale 255"].evidence
    assert "not divided by 255" in kinds(reference, files, shapes, scale=1.0)["scale 255"].evidence
    assert (
        "a squashes, b keeps the ratio"
        in kinds(reference, files, shapes, geometry="shorter-side")["aspect ratio"].evidence
    )


def test_changes_are_found_from_the_other_side_too(files, shapes):
    for change, kind in (({"geometry": "shorter-side"}, "aspect ratio"), ({"resizer": "opencv-linear"}, "antialias")):
        other = dataclasses.replace(A, **change)
        (found,) = findings(render(other, files), render(A, files), other, shapes)
        assert found.kind == kind
    assert "b squashes" in findings(
        render(dataclasses.replace(A, geometry="shorter-side"), files), render(A, files), A, shapes
    )[0].evidence  # fmt: skip


@pytest.mark.parametrize("orientation", range(2, 9))
def test_each_exif_orientation_is_recognised(shapes, orientation):
    pictures = [photographs.photograph(name) for name in NAMES]
    files = [photographs.jpeg(each, orientation=orientation if n % 2 else None) for n, each in enumerate(pictures)]
    tags = [orientation if n % 2 else 1 for n in range(len(files))]
    a, b = render(A, files), render(dataclasses.replace(A, orientation="apply"), files)
    sizes = [picture.shape[:2] for picture in pictures]
    (found,) = findings(a, b, A, sizes, tags)
    assert (found.kind, found.stage, found.expected) == ("rotation", "orientation", False)
    assert "3 of these as their EXIF tag asks: b applies the EXIF orientation" in found.evidence
    (back,) = findings(b, a, dataclasses.replace(A, orientation="apply"), sizes, tags)
    assert "a applies it, b not" in back.evidence


def test_a_limited_range_is_told_from_a_wrong_mean(reference, shapes):
    levels = (reference * np.float32(A.std) + np.float32(A.mean)) * 255
    limited = ((np.rint(16 + levels * 219 / 255) / 255 - A.mean) / A.std).astype(np.float32)
    (found,) = findings(reference, limited, A, shapes)
    assert (found.kind, found.stage) == ("limited range", "colour")
    assert "slope 0.85" in found.evidence
    (back,) = findings(limited, reference, A, shapes)
    assert back.kind == "expanded range"


def test_channels_swapped_after_normalising_are_but_a_swap(reference, shapes):
    (found,) = findings(reference, np.ascontiguousarray(reference[..., ::-1]), A, shapes)
    assert found.kind == "channel swap"


def test_two_defects_are_both_found(files, shapes, reference):
    both = {"channels": "bgr", "geometry": "shorter-side"}
    assert set(kinds(reference, files, shapes, **both)) == {"channel swap", "aspect ratio"}
    both = {"channels": "bgr", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    assert set(kinds(reference, files, shapes, **both)) == {"channel swap", "mean/std"}
    assert set(kinds(reference, files, shapes, scale=1.0, resizer="opencv-linear")) == {"scale 255", "no antialias"}


@pytest.mark.parametrize(("down", "right"), [(0.5, 0.5), (0.25, 0.0), (-0.4, 0.3), (2.0, -1.0), (3.3, 1.5)])
def test_a_shift_by_fourier_phases_is_measured_within_two_hundredths_of_a_pixel(down, right):
    grey = np.stack([photographs.photograph(name)[:160, :160].mean(axis=-1) for name in NAMES])
    fy, fx = np.fft.fftfreq(160)[:, None], np.fft.fftfreq(160)
    moved = np.fft.ifft2(np.fft.fft2(grey) * np.exp(-2j * np.pi * (fy * down + fx * right))).real
    found = shift(grey, moved)
    assert found.down == pytest.approx(down, abs=0.02)
    assert found.right == pytest.approx(right, abs=0.02)
    assert found.agreement > 0.98


def test_the_corner_aligned_nearest_is_half_a_pixel_off(reference, files, shapes):
    found = kinds(reference, files, shapes, resizer="opencv-nearest")
    assert found["half-pixel shift"].stage == "resize"
    assert set(found) == {"half-pixel shift", "no antialias"}


def test_turns_are_those_of_exif():
    picture = np.ascontiguousarray(photographs.photograph("coffee")[:200, :200])
    for k in range(1, 9):
        turned = orient(picture, k)
        np.testing.assert_array_equal(turn(picture, k), turned)
        ((best, score),) = turns(picture.mean(axis=-1)[None], turned.mean(axis=-1)[None])
        assert (best, score) == (k, pytest.approx(1.0))


def test_noise_is_neither_zoomed_nor_turned_nor_shifted():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 96, 96))
    assert zoom(a, b, [(300, 400)] * 4).kind == "none"
    assert turns(a, b) == [(1, pytest.approx(0, abs=0.2))] * 4
    assert shift(a, b).agreement < 0.9
    assert abs(detail(a, b).coherence) < 0.1
