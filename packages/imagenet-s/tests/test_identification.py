import dataclasses

import numpy as np
import photographs
import pytest

from imagenet_s import Nv12, Pipeline, Sample, SampleError, identify
from imagenet_s.samples import as_samples
from imagenet_s.tensors import read_tensors

PAPER = Pipeline(size=64)


@pytest.fixture(scope="module")
def samples():
    """Six photographs of 150 x 200, 4:2:0, two of them with an orientation tag."""
    files = photographs.imagenet_like(150, 200, names=photographs.SKLEARN + photographs.SKIMAGE[:4])
    named = [
        Sample(photographs.jpeg(_decoded(data), orientation=6), None, name) if n % 3 == 2 else Sample(data, None, name)
        for n, (name, data) in enumerate(files)
    ]
    return as_samples(named)


def _decoded(data):
    return Pipeline().source(data)


def dump(folder, samples, pipeline):
    folder.mkdir(exist_ok=True)
    for sample in samples:
        np.save(folder / f"{sample.name.removesuffix('.JPEG')}.npy", pipeline(sample.data))
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {},
        pytest.param({"resizer": "opencv-area"}, marks=pytest.mark.slow),
        {"resizer": "pillow-lanczos", "geometry": "shorter-side"},
        pytest.param(
            {"decoder": "turbo-fastdct", "resizer": "tf1-bilinear", "crop": "center-floor"}, marks=pytest.mark.slow
        ),
        {"orientation": "apply", "geometry": "longer-side-pad"},
        {"channels": "bgr", "scale": 1.0, "mean": (103.53, 116.28, 123.675), "std": (1.0, 1.0, 1.0)},
        pytest.param({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resize_size": 64}, marks=pytest.mark.slow),
        pytest.param({"colour": Nv12(matrix="bt709"), "resizer": "opencv-linear"}, marks=pytest.mark.slow),
        {"dtype": "float16", "layout": "NHWC", "decoder": "ffmpeg"},
        pytest.param(
            {"resize_size": 70, "geometry": "shorter-side", "resizer": "torch-bicubic-aa"}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_the_pipeline_that_made_the_tensors_comes_first(tmp_path, samples, change):
    made = dataclasses.replace(PAPER, **change)
    best, *others = identify(dump(tmp_path / "dump", samples, made), samples)
    assert best.exact
    found = best.pipeline
    for sample in samples:  # another name for the same pixels is as good
        np.testing.assert_allclose(found(sample.data).astype(float), made(sample.data).astype(float), atol=2e-3)
    for field in ("geometry", "orientation", "channels", "layout", "dtype", "resize_to", "colour"):
        assert getattr(found, field) == getattr(made, field), field
    assert all(other.error >= best.error for other in others)


def test_names_for_the_same_pixels_are_listed_with_the_best(tmp_path, samples):
    best, *_ = identify(dump(tmp_path / "dump", samples, PAPER), samples)
    assert best.pipeline == PAPER
    assert "opencv/pillow-bilinear" in best.alike
    assert "ffmpeg/pillow-bilinear" not in best.alike


def test_a_normalisation_that_nobody_knows_is_measured(tmp_path, samples):
    made = dataclasses.replace(PAPER, mean=(0.3, 0.45, 0.6), std=(0.2, 0.3, 0.4))
    best, *_ = identify(dump(tmp_path / "dump", samples, made), samples)
    assert best.pipeline.mean == pytest.approx(made.mean, abs=1e-4)
    assert best.pipeline.std == pytest.approx(made.std, abs=1e-4)


def test_tensors_of_an_unknown_kernel_rank_the_nearest_first_and_say_that_it_is_not_exact(samples):
    def soft(data):
        pixels = dataclasses.replace(PAPER, resizer="opencv-area").pixels(data).astype(np.float32)
        return PAPER.tensor(
            np.clip(pixels + np.random.default_rng(0).normal(0, 1, pixels.shape), 0, 255).astype(np.uint8)
        )

    best, *_ = identify({sample.name: soft(sample.data) for sample in samples}, samples)
    assert best.pipeline.resizer == "opencv-area"
    assert not best.exact
    assert 0.9 < best.error < 1.5


def test_tensors_are_matched_by_stem_whatever_their_order_and_batch(tmp_path, samples):
    for n, sample in enumerate(reversed(list(samples))):
        tensor = np.full((1, 3, 8, 8), n, np.float32)
        np.save(tmp_path / f"{sample.name}{'' if n % 2 else '.npy'}", tensor)
    np.save(tmp_path / "stranger.npy", np.zeros((3, 8, 8), np.float32))
    found = read_tensors(tmp_path, samples)
    assert [int(value[0, 0, 0]) for value in found.values] == [5, 4, 3, 2, 1, 0]
    assert (found.layout, found.missing, found.unknown) == ("NCHW", 0, ("stranger.npy",))
    assert read_tensors({"china": np.zeros((8, 8, 3))}, samples).layout == "NHWC"
    assert read_tensors({"china": np.zeros((8, 8, 3))}, samples).missing == 5


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"nobody": np.zeros((3, 8, 8))}, "none of 1 tensors has the stem of a sample .such as china.npy"),
        ({"china": np.zeros((4, 8, 8))}, r"china has shape \[4, 8, 8\]"),
        ({"china": np.zeros((3, 8, 8)), "coffee": np.zeros((3, 9, 9))}, r"coffee is \[3, 9, 9\], china is \[3, 8, 8\]"),
        ({"china": np.full((3, 8, 8), np.nan)}, "not finite"),
        ({"china": np.zeros((3, 8, 8), np.int64)}, "holds int64"),
        ({"china": np.zeros((3, 8, 8)), "china.JPEG": np.zeros((3, 8, 8))}, "both belong to china.JPEG"),
    ],
)
def test_tensors_that_cannot_be_used_are_refused(samples, tensors, message):
    with pytest.raises(SampleError, match=message):
        read_tensors(tensors, samples)


def test_a_folder_without_tensors_is_refused(tmp_path, samples):
    with pytest.raises(SampleError, match=r"holds no \.npy files"):
        identify(tmp_path, samples)
    (tmp_path / "china.npy").write_bytes(b"\x93NUMPY torn")
    with pytest.raises(SampleError, match=r"is no \.npy file"):
        identify(tmp_path, samples)
