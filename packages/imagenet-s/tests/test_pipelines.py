import dataclasses
import io
import json

import numpy as np
import photographs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from imagenet_s import Nv12, Pipeline, PipelineError
from imagenet_s.decoding import decoders
from imagenet_s.orientation import exif_orientation, orient
from imagenet_s.pipelines import STAGES, replace_stage, stages_that_differ
from imagenet_s.presets import PRESETS
from imagenet_s.resizing import resizers

LANDSCAPE = photographs.jpeg(photographs.photograph("china.jpg"))
ODD = {
    "decoder": "opencv",
    "resizer": "opencv-area",
    "size": 64,
    "resize_size": 80,
    "geometry": "shorter-side",
    "crop": "center-floor",
    "orientation": "apply",
    "colour": Nv12(matrix="bt709"),
    "mean": (0.5, 0.25, 0.125),
    "std": (0.5, 0.5, 0.25),
    "scale": 1 / 128,
    "channels": "bgr",
    "layout": "NHWC",
    "dtype": "float16",
    "fill": (1, 2, 3),
}


def test_the_default_is_the_authors_reference_to_the_last_bit():
    with Image.open(io.BytesIO(LANDSCAPE)) as image:
        expected = np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR))[16:240, 16:240]
    assert np.array_equal(Pipeline().pixels(LANDSCAPE), expected)
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    tensor = (expected.astype(np.float32) / np.float32(255) - mean) / std
    assert np.array_equal(Pipeline()(LANDSCAPE), tensor.transpose(2, 0, 1))


@pytest.mark.parametrize(("size", "resized"), [(224, 256), (28, 32), (225, 257), (20, 23), (1, 1), (4, 5)])
def test_the_resize_size_is_a_recorded_whole_number(size, resized):
    assert Pipeline(size=size).resize_to == resized
    assert json.loads(Pipeline(size=size).to_json())["resize_size"] == resized


@pytest.mark.parametrize("size", [0, -3, True])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(PipelineError, match="size must be a whole number of at least 1"):
        Pipeline(size=size)


def test_a_size_with_a_fraction_is_refused():
    with pytest.raises(PipelineError, match=r"resize_size must be a whole number of at least 1, got 256\.0"):
        Pipeline.from_json('{"resize_size": 256.0}')


@pytest.mark.parametrize(
    ("field", "value"),
    [("geometry", "stretch"), ("crop", "left"), ("dtype", "int8"), ("std", (0.0, 1.0, 1.0)), ("colour", "nv12")],
)
def test_a_wrong_value_is_named(field, value):
    with pytest.raises(PipelineError, match=field):
        Pipeline.from_json(json.dumps({field: value}))


@pytest.mark.parametrize(
    ("geometry", "resize_size", "height", "width", "expected"),
    [
        ("squash", 256, 427, 640, (256, 256)),
        ("shorter-side", 256, 427, 640, (256, 383)),  # 256 * 640 / 427 = 383.7
        ("shorter-side-round", 256, 427, 640, (256, 384)),
        ("shorter-side", 256, 640, 427, (383, 256)),
        ("longer-side-pad", 224, 427, 640, (149, 224)),  # 224 * 427 / 640 = 149.45
        ("longer-side-pad", 224, 3, 900, (1, 224)),
    ],
)
def test_geometries_resize_as_their_libraries_do(geometry, resize_size, height, width, expected):
    image = np.zeros((height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    stages = Pipeline(geometry=geometry, resize_size=resize_size).stages(file.getvalue())
    assert stages["resized"].shape == (*expected, 3)
    assert stages["cropped"].shape == (224, 224, 3)


@pytest.mark.parametrize(("crop", "expected"), [("center", [0, 2, 2, 2, 4]), ("center-floor", [0, 1, 2, 2, 3])])
def test_offsets_round_as_their_libraries_do(crop, expected):
    found = []
    for surplus in (1, 3, 4, 5, 7):
        side = 8 + surplus
        image = np.repeat(np.arange(side, dtype=np.uint8)[:, None, None], side, 1).repeat(3, 2).copy()
        found.append(int(Pipeline(size=8, resize_size=side, crop=crop).fit(image)[0, 0, 0]))
    assert found == expected  # of 0.5, 1.5, 2, 2.5, 3.5


def test_what_is_smaller_than_the_crop_is_padded_around():
    image = np.full((2, 4, 3), 200, np.uint8)
    pipeline = Pipeline(size=4, geometry="longer-side-pad", resizer="pillow-nearest", fill=(7, 8, 9))
    pixels = pipeline.fit(image)
    assert np.array_equal(pixels[1:3], image)
    assert (pixels[[0, 3]] == (7, 8, 9)).all()


def test_a_needle_does_not_ask_for_all_memory():
    with pytest.raises(PipelineError, match="would resize 1 x 4000 pixels to 256 x 1024000, more than"):
        Pipeline(geometry="shorter-side").fit(np.zeros((1, 4000, 3), np.uint8))


def test_stages_are_named_and_end_in_what_the_call_returns():
    pipeline = Pipeline(**ODD)
    stages = pipeline.stages(LANDSCAPE)
    assert list(stages) == ["decoded", "oriented", "coloured", "resized", "cropped", "normalised"]
    assert np.array_equal(stages["cropped"], pipeline.pixels(LANDSCAPE))
    assert stages["normalised"].dtype == np.float32
    tensor = pipeline(LANDSCAPE)
    assert tensor.dtype == np.float16
    assert tensor.shape == (64, 64, 3)
    assert np.array_equal(stages["normalised"].astype(np.float16), tensor)


def test_bgr_means_are_in_the_order_of_the_tensor():
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = 10, 30
    pipeline = Pipeline(size=2, channels="bgr", mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 1.0), scale=1.0)
    assert pipeline.tensor(pixels)[:, 0, 0].tolist() == [29.0, -2.0, 7.0]


@pytest.mark.parametrize("pipeline", [Pipeline(), Pipeline(**ODD), *PRESETS.values()])
def test_json_brings_back_the_same_pipeline(pipeline):
    again = Pipeline.from_json(pipeline.to_json())
    assert again == pipeline
    assert again.hash == pipeline.hash


def test_the_hash_is_the_same_everywhere_and_tells_pipelines_apart():
    assert Pipeline().hash == "fde5c1da6c47"  # sha256 of its JSON, on the first machine that ran this
    assert Pipeline(resize_size=256).hash == Pipeline().hash
    others = [dataclasses.replace(Pipeline(), **{name: value}) for name, value in ODD.items()]
    assert len({pipeline.hash for pipeline in (Pipeline(), *others)}) == len(ODD) + 1


@pytest.mark.parametrize("text", ["{", "[]", '{"sise": 3}'])
def test_json_that_is_no_pipeline_is_refused(text):
    with pytest.raises(PipelineError):
        Pipeline.from_json(text)


@given(st.permutations(STAGES))
def test_replacing_every_stage_gives_the_other_pipeline(order):
    a, b = Pipeline(), Pipeline(**ODD)
    step = a
    for stage in order:
        step = replace_stage(step, stage, b)
    assert step == b
    assert stages_that_differ(a, b) == STAGES


def test_a_replaced_stage_changes_nothing_else():
    a, b = Pipeline(), Pipeline(**ODD)
    assert replace_stage(a, "crop", b).resize_to == 256
    assert replace_stage(a, "resize", b).size == 224
    assert stages_that_differ(a, replace_stage(a, "colour", b)) == ("colour",)
    with pytest.raises(PipelineError, match="no stage is called 'gamma'"):
        replace_stage(a, "gamma", b)


def test_presets_name_what_exists_here():
    for name, pipeline in PRESETS.items():
        assert Pipeline.preset(name) is pipeline
        assert pipeline.decoder in decoders()
        assert pipeline.resizer in resizers()
    with pytest.raises(PipelineError, match="did you mean torchvision"):
        Pipeline.preset("torchvison")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["II", "MM"])
def test_orientation_turns_as_pillow_does(orientation, order):
    image = photographs.photograph("chelsea")[:40, :60].copy()
    data = photographs.jpeg(image, orientation=orientation)
    if order == "II":  # Pillow writes MM
        start = data.index(b"MM\0*")
        tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0]) + bytes(4)
        data = data[:start] + tiff + data[start + len(tiff) :] if orientation > 1 else data
    assert exif_orientation(data) == orientation
    with Image.open(io.BytesIO(photographs.jpeg(image, orientation=orientation))) as tagged:
        expected = np.asarray(ImageOps.exif_transpose(tagged))
    assert np.array_equal(Pipeline(orientation="apply").stages(data)["oriented"], expected)
    assert Pipeline(orientation="ignore").stages(data)["oriented"].shape == (40, 60, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_orientation_is_found_in_other_formats(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (5, 3)).save(file, kind, exif=exif)
    assert exif_orientation(file.getvalue()) == 6


@given(st.binary(max_size=200), st.integers(0, 400))
def test_damaged_tags_mean_upright(noise, cut):
    assert 1 <= exif_orientation(b"\xff\xd8" + noise) <= 8
    whole = photographs.jpeg(np.zeros((8, 8, 3), np.uint8), orientation=6)
    assert exif_orientation(whole[:cut]) in (1, 6)


@given(st.integers(1, 8))
def test_turning_keeps_every_pixel(orientation):
    image = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    assert sorted(orient(image, orientation).ravel().tolist()) == list(range(30))


def test_timm_configurations_become_pipelines():
    timm = pytest.importorskip("timm")
    model = timm.create_model("tf_efficientnet_lite0")
    pipeline = Pipeline.from_timm(model)
    assert pipeline == Pipeline.from_timm(model.pretrained_cfg)
    assert (pipeline.size, pipeline.resize_to, pipeline.geometry) == (224, 256, "shorter-side")
    assert (pipeline.resizer, pipeline.mean, pipeline.std) == ("pillow-bicubic", (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_timm_pipelines_give_what_timm_gives(mode):
    data = pytest.importorskip("timm.data")
    config = {"input_size": (3, 200, 200), "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": mode}
    config |= {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7)}
    theirs = data.create_transform(**config, is_training=False)
    for image in (photographs.photograph("china.jpg"), photographs.photograph("coffee")[:, :300].copy()):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        expected = np.asarray(theirs(Image.fromarray(image)))
        assert np.abs(Pipeline.from_timm(config)(file.getvalue()) - expected).max() < 1e-6


def test_timm_configurations_that_cannot_be_are_refused():
    for config in ({"input_size": (3, 224, 192)}, {"interpolation": "random"}, {"crop_mode": "left"}):
        with pytest.raises(PipelineError):
            Pipeline.from_timm(config)


VIT = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "ViTImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}
CLIP = VIT | {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "image_processor_type": "CLIPImageProcessor",
    "resample": 3,
    "size": {"shortest_edge": 224},
}
CONVNEXT = VIT | {"feature_extractor_type": "ConvNextFeatureExtractor", "image_processor_type": None, "crop_pct": 0.875}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (VIT, ("pillow-bilinear", 224, 224, "squash")),
        (VIT | {"size": 224}, ("pillow-bilinear", 224, 224, "squash")),
        (VIT | {"image_processor_type": "ViTImageProcessorFast"}, ("torch-bilinear-aa", 224, 224, "squash")),
        (CLIP, ("pillow-bicubic", 224, 224, "shorter-side")),
        (CLIP | {"size": 256, "crop_size": 224}, ("pillow-bicubic", 224, 256, "shorter-side")),
        (CONVNEXT | {"size": {"shortest_edge": 224}}, ("pillow-bilinear", 224, 256, "shorter-side")),
        (CONVNEXT | {"size": {"shortest_edge": 384}}, ("pillow-bilinear", 384, 384, "squash")),
    ],
)
def test_hugging_face_configurations_become_pipelines(tmp_path, config, expected):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    pipeline = Pipeline.from_hf(tmp_path)
    assert (pipeline.resizer, pipeline.size, pipeline.resize_to, pipeline.geometry) == expected
    assert pipeline == Pipeline.from_hf(config) == Pipeline.from_hf(tmp_path / "preprocessor_config.json")
    assert (pipeline.mean, pipeline.std, pipeline.crop) == ((0.5,) * 3, (0.5,) * 3, "center-floor")
    assert pipeline.scale == pytest.approx(1 / 255)


def test_hugging_face_switches_are_followed():
    raw = Pipeline.from_hf(VIT | {"do_rescale": False, "do_normalize": False, "do_flip_channel_order": True})
    assert (raw.scale, raw.mean, raw.std, raw.channels) == (1.0, (0.0,) * 3, (1.0,) * 3, "bgr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"do_pad": True}, "do_pad"),
        ({"size": {"shortest_edge": 224}}, "without do_center_crop"),
        ({"size": {"height": 224, "width": 192}}, "only squares"),
        ({"size": {"longest_edge": 224}}, "longest_edge"),
        ({"resample": 9}, "resample"),
    ],
)
def test_what_a_pipeline_cannot_do_is_refused(change, message):
    with pytest.raises(PipelineError, match=message):
        Pipeline.from_hf(VIT | change)


def test_a_missing_configuration_is_named(tmp_path):
    with pytest.raises(PipelineError, match=r"preprocessor_config\.json"):
        Pipeline.from_hf(tmp_path)


def test_small_and_odd_images_go_through():
    for name, data in photographs.odd_files():
        pixels = Pipeline(size=28).pixels(data)
        assert pixels.shape == (28, 28, 3), name
        assert pixels.dtype == np.uint8
