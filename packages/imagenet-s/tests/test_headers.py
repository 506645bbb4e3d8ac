import numpy as np
import pytest
from example_images import PICTURE, declaring, saved, tagged, with_thumbnail
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagenet_s.errors import DecodeError
from imagenet_s.headers import Header, orientation_of, read_header
from imagenet_s.probes import encode_jpeg

JPEG = encode_jpeg(PICTURE)
IMAGE = Image.fromarray(PICTURE)


def test_a_jpeg_tells_its_size_and_colour():
    assert read_header(JPEG) == Header("JPEG", 40, 56, "RGB")
    assert read_header(encode_jpeg(PICTURE, progressive=True)) == Header("JPEG", 40, 56, "RGB", progressive=True)
    assert read_header(encode_jpeg(PICTURE[:, :, 0])) == Header("JPEG", 40, 56, "L")
    assert read_header(saved(IMAGE.convert("CMYK"), "JPEG")) == Header("JPEG", 40, 56, "CMYK")
    assert read_header(declaring(65535, 3)).width == 65535


@pytest.mark.parametrize(
    ("data", "flags"),
    [
        (JPEG, ()),
        (JPEG[:-2], ("truncated",)),
        (encode_jpeg(PICTURE[:, :, 0]), ("grey",)),
        (saved(IMAGE.convert("CMYK"), "JPEG"), ("CMYK",)),
        (saved(IMAGE.convert("RGBA"), "PNG"), ("alpha", "not a JPEG but PNG")),
        (saved(IMAGE.quantize(16), "PNG"), ("palette", "not a JPEG but PNG")),
        (saved(Image.fromarray(np.zeros((2, 3), np.uint16)), "PNG"), ("16-bit", "grey", "not a JPEG but PNG")),
        (saved(IMAGE, "PNG")[:-200], ("truncated", "not a JPEG but PNG")),
        (
            saved(IMAGE, "GIF", save_all=True, append_images=[IMAGE.rotate(90)]),
            ("palette", "2 frames", "not a JPEG but GIF"),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else "",
)
def test_what_a_report_should_mention_is_flagged(data, flags):
    assert read_header(data).flags == flags


def test_the_end_marker_of_a_thumbnail_is_not_the_end_of_the_image():
    data = with_thumbnail()
    assert data.count(b"\xff\xd9") == 2
    assert read_header(data).complete
    assert not read_header(data[:-2]).complete


def test_bytes_after_the_end_marker_do_no_harm():
    assert read_header(JPEG + b"\xff\xd8 a second image, cut off").complete


@given(st.floats(min_value=0, max_value=1, exclude_max=True), st.booleans())
@settings(max_examples=80, deadline=None)
def test_every_cut_of_a_jpeg_is_noticed(share, progressive):
    whole = encode_jpeg(PICTURE, progressive=progressive)
    data = whole[: int(share * len(whole))]
    first_scan = whole.index(b"\xff\xda")
    if len(data) > first_scan + 14:
        assert not read_header(data).complete
    else:
        with pytest.raises(DecodeError):
            read_header(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no image at all", "not in a format that Pillow knows"),
        (b"\xff\xd8\xff", "header without image data"),
        (JPEG[: JPEG.index(b"\xff\xda")], "header without image data"),
        (JPEG[: JPEG.index(b"\xff\xda") + 14], "header without image data"),
        (declaring(0, 40), "declares 0x40"),
    ],
)
def test_what_holds_no_pixels_is_refused_with_a_reason(data, reason):
    with pytest.raises(DecodeError, match=reason):
        read_header(data)


def test_the_orientation_tag_is_read_and_one_where_there_is_none():
    assert [orientation_of(tagged(tag)) for tag in (1, 6, 8)] == [1, 6, 8]
    assert orientation_of(JPEG) == orientation_of(b"no image") == orientation_of(tagged(9)) == 1
