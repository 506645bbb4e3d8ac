import concurrent.futures
import dataclasses
import pickle
import sys

import jpeglib
import numpy as np
import pytest
from example_images import PICTURE, declaring, saved, tagged
from PIL import Image

from imagenet_s import decoding as registry
from imagenet_s.decoding import decoder, decoders, identical_decoders, register_decoder
from imagenet_s.errors import DecodeError, PipelineError, ShapeMismatchError, TruncatedImageError
from imagenet_s.probes import encode_jpeg, probe_files, synthetic_picture

NAMES = tuple(decoders())
JPEG = encode_jpeg(PICTURE)
IMAGE = Image.fromarray(PICTURE)
EVERY = pytest.mark.parametrize("name", NAMES)


def far(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@EVERY
def test_a_decoder_gives_contiguous_rgb_near_the_picture(name):
    pixels = decoder(name).decode(encode_jpeg(PICTURE, quality=98, sampling="444"))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert (
        np.abs(pixels.astype(float) - PICTURE).mean() < 3
    )  # 2.5 by the fast inverse DCT, of which the encoder's loss is 2
    assert np.abs(pixels.astype(float) - PICTURE[:, :, ::-1]).mean() > 60


@EVERY
def test_a_flat_block_is_the_same_everywhere(name):
    flat = np.full((8, 8, 3), (90, 120, 150), np.uint8)
    for sampling in ("444", "420"):
        data = encode_jpeg(flat, sampling=sampling)
        assert far(decoder(name).decode(data), decoder("pillow").decode(data)) <= 1


@EVERY
def test_the_orientation_tag_turns_nothing(name):
    data = tagged(6)
    assert decoder(name).decode(data).shape == (40, 56, 3)
    assert np.abs(decoder(name).decode(data).astype(float) - decoder("pillow").decode(data)).mean() < 20


@EVERY
def test_grey_becomes_three_equal_channels(name):
    data = encode_jpeg(PICTURE[:, :, 1])
    pixels = decoder(name).decode(data)
    assert (pixels[:, :, :1] == pixels).all()
    assert far(pixels, decoder("pillow").decode(data)) <= 8


@EVERY
def test_a_single_pixel_and_a_single_row_decode(name):
    assert decoder(name).decode(encode_jpeg(PICTURE[:1, :1])).shape == (1, 1, 3)
    assert decoder(name).decode(encode_jpeg(PICTURE[:1, :9])).shape == (1, 9, 3)


@EVERY
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"garbage" * 20, "not in a format"),
        (JPEG[: JPEG.index(b"\xff\xda")], "header without image data"),
        (declaring(65535, 65535), "more than max_pixels=178956970"),
    ],
    ids=["empty", "garbage", "header only", "bomb"],
)
def test_bad_files_are_refused_naming_file_decoder_and_reason(name, data, reason):
    with pytest.raises(DecodeError, match=rf"^a\.jpg: decoder '{name}': .*{reason}") as caught:
        decoder(name).decode(data, source="a.jpg")
    assert type(caught.value) is DecodeError
    assert "\n" not in str(caught.value)


@EVERY
def test_a_truncated_jpeg_is_refused_by_all_and_decoded_where_allowed(name):
    cut = JPEG[: len(JPEG) * 2 // 3]
    with pytest.raises(TruncatedImageError, match="before its end marker"):
        decoder(name).decode(cut)
    pixels = decoder(name).decode(cut, truncated="allow")
    assert pixels.shape == (40, 56, 3)
    assert far(pixels[:8], decoder(name).decode(JPEG)[:8]) <= 1  # the rows that are there


@EVERY
def test_a_smaller_limit_of_pixels_holds(name):
    with pytest.raises(DecodeError, match="56x40 pixels are more than max_pixels=2239"):
        decoder(name).decode(JPEG, max_pixels=2239)
    assert decoder(name).decode(JPEG, max_pixels=2240).shape == (40, 56, 3)


UNUSUAL = {
    "CMYK": saved(IMAGE.convert("CMYK"), "JPEG"),
    "alpha": saved(IMAGE.convert("RGBA"), "PNG"),
    "grey alpha": saved(IMAGE.convert("LA"), "PNG"),
    "palette": saved(IMAGE.quantize(16), "PNG"),
    "transparent palette": saved(IMAGE.quantize(16), "PNG", transparency=bytes(range(16))),
    "two frames": saved(IMAGE, "GIF", save_all=True, append_images=[IMAGE.rotate(180)]),
    "moving WebP": saved(IMAGE, "WEBP", save_all=True, append_images=[IMAGE.rotate(180)]),
    "moving PNG": saved(IMAGE, "PNG", save_all=True, append_images=[IMAGE.rotate(180)]),
    "PNG": saved(IMAGE, "PNG"),
    "BMP": saved(IMAGE, "BMP"),
}


@EVERY
def test_what_is_no_plain_jpeg_becomes_rgb_by_one_rule(name):
    for kind, data in UNUSUAL.items():
        assert np.array_equal(decoder(name).decode(data), decoder("pillow").decode(data)), kind


@EVERY
def test_sixteen_bits_are_clipped_by_pillow_unless_each_library_has_its_way(name):
    data = saved(Image.fromarray(np.array([[0, 255, 256, 1000, 65535]], np.uint16)), "PNG")
    assert decoder(name).decode(data)[0, :, 0].tolist() == [0, 255, 255, 255, 255]
    own = {"opencv": [0, 0, 1, 3, 255], "vips": [0, 0, 1, 3, 255]}
    if name in own:  # the values of Pillow and OpenCV stand in the specification, trap 11
        assert decoder(name).decode(data, on_nonrgb="native")[0, :, 0].tolist() == own[name]


def test_cmyk_differs_between_libraries_when_each_has_its_way():
    data = saved(IMAGE.convert("CMYK"), "JPEG")
    ours = {name: decoder(name).decode(data, on_nonrgb="native") for name in ("pillow", "opencv", "vips")}
    assert far(ours["pillow"], ours["opencv"]) == 1
    assert far(ours["pillow"], ours["vips"]) > 1
    with pytest.raises(DecodeError, match=r"\(40, 56, 4\)"):
        decoder("ijg-6b").decode(data, on_nonrgb="native")


def test_the_fast_dct_stays_within_eight_levels():
    for data in probe_files().values():
        difference = far(decoder("turbo-fastdct").decode(data), decoder("pillow").decode(data))
        assert 0 < difference <= 8


def test_chroma_upsampling_touches_no_jpeg_with_full_chroma():
    full = encode_jpeg(PICTURE, sampling="444")
    half = encode_jpeg(PICTURE, sampling="420")
    for name, most in {"turbo-boxup": 0, "ijg-9e": 1, "ffmpeg": 4, "kornia-rs": 3}.items():
        assert far(decoder(name).decode(full), decoder("pillow").decode(full)) <= most
        assert far(decoder(name).decode(half), decoder("pillow").decode(half)) > most


def test_identical_decoders_are_grouped_by_what_they_decode():
    groups = identical_decoders()
    assert sorted(name for group in groups for name in group) == sorted(NAMES)
    together = {name: group for group in groups for name in group}
    # one library in one setting: the same on every machine
    assert {"turbo-fastdct", "turbo-boxup", "turbo-fast"}.isdisjoint(together["turbo"])
    assert "ffmpeg" not in together["pillow"]
    assert together["ijg-6b"] == together["turbo"]


def test_files_that_tell_less_apart_give_larger_groups():
    grey = [encode_jpeg(PICTURE[:, :, 0])]
    assert identical_decoders(grey, ["turbo", "turbo-boxup", "turbo-fast"]) == (
        ("turbo", "turbo-boxup"),
        ("turbo-fast",),
    )


def test_the_probes_are_the_same_on_every_call_and_cover_the_samplings():
    names = set(probe_files())
    assert {
        "synthetic-444.jpg",
        "synthetic-422-odd.jpg",
        "synthetic-420-progressive.jpg",
        "synthetic-grey.jpg",
    } <= names
    assert "flower-420.jpg" in names
    assert np.array_equal(synthetic_picture(31, 45), synthetic_picture(31, 45))
    assert sum(map(len, probe_files().values())) < 400_000


def test_the_alias_of_tensorflows_default_is_the_fast_dct():
    assert decoder("tf-default") is decoder("turbo-fastdct")


def test_versions_name_the_codec_where_the_library_tells():
    assert "libjpeg-turbo" in decoder("pillow").version
    assert "turbo" in decoder("opencv").version
    assert "libavcodec" in decoder("ffmpeg").version
    assert decoder("ijg-9e").version.endswith("(libjpeg 9e)")
    assert all(one.version and one.description and one.available for one in decoders().values())


def test_a_missing_library_is_listed_with_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    missing = decoder("ffmpeg")
    assert not missing.available
    assert missing.version == ""
    assert "pip install 'imagenet-s[ffmpeg]'" in missing.why_not
    with pytest.raises(ImportError, match=r"imagenet-s\[ffmpeg\]"):
        missing.decode(JPEG)
    assert "ffmpeg" not in {name for group in identical_decoders([JPEG]) for name in group}


def test_an_unknown_decoder_is_answered_with_near_names():
    with pytest.raises(PipelineError, match="unknown decoder 'pilow'; near: pillow"):
        decoder("pilow")


def test_a_decoder_of_ones_own_joins_the_registry(monkeypatch):
    monkeypatch.setattr(registry, "_DECODERS", dict(registry._DECODERS))
    flat = register_decoder("flat", lambda data: np.full((2, 3), len(data) % 256, np.uint8), "1.0", "all alike")
    assert decoder("flat") is flat
    assert (flat.version, flat.available, flat.description) == ("1.0", True, "all alike")
    assert flat.decode(b"seven b").tolist() == np.full((2, 3, 3), 7).tolist()  # no format that Pillow knows
    with pytest.raises(DecodeError, match="empty"):
        flat.decode(b"")
    with pytest.raises(ShapeMismatchError, match=r"gives 3x2, the file says 56x40 \(orientation tag 6\)"):
        flat.decode(tagged(6))
    register_decoder("floats", lambda data: np.zeros((1, 1, 3)))
    with pytest.raises(DecodeError, match="float64 pixels, not uint8"):
        decoder("floats").decode(b"x")
    for taken in ("flat", "tf-default", "", "a/b"):
        with pytest.raises(PipelineError, match="taken or not usable"):
            register_decoder(taken, lambda data: PICTURE)


def test_decoders_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        decoder("pillow").name = "other"


def test_threads_share_jpeglib_without_mixing_its_versions_and_leave_it_as_it_was():
    before = jpeglib.version.get()
    alone = {name: decoder(name).decode(JPEG) for name in ("ijg-6b", "ijg-9e")}
    names = ["ijg-6b", "ijg-9e"] * 20
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for name, pixels in zip(names, pool.map(lambda name: decoder(name).decode(JPEG), names), strict=True):
            assert np.array_equal(pixels, alone[name])
    assert jpeglib.version.get() == before
    assert not np.array_equal(alone["ijg-6b"], alone["ijg-9e"])


def test_what_ffmpeg_decodes_does_not_depend_on_what_came_before():
    files = [*probe_files().values(), saved(IMAGE, "PNG")]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:  # a thread of its own, so with no scaler yet
        forwards = list(pool.map(decoder("ffmpeg").decode, files))
    backwards = [decoder("ffmpeg").decode(data) for data in reversed(files)]
    for one, other in zip(forwards, reversed(backwards), strict=True):
        assert np.array_equal(one, other)


def test_decoders_travel_to_other_processes():
    for one in decoders().values():
        assert np.array_equal(pickle.loads(pickle.dumps(one)).decode(JPEG), one.decode(JPEG))


@EVERY
def test_a_sound_file_puts_nothing_on_standard_error(name, capfd):
    decoder(name).decode(JPEG)
    assert capfd.readouterr() == ("", "")
