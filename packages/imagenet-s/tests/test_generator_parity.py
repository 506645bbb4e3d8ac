"""The decoders and resizers against the authors' generator at size 28, written out in plain library calls.

The generator resizes to 8/7 of the size without keeping the aspect ratio, then crops the centre.
"""

import shutil
import subprocess
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from imagenet_s.decoding import decoder
from imagenet_s.probes import encode_jpeg
from imagenet_s.resizing import PAPER, resizer

FILES = {
    "160x120 4:2:0": encode_jpeg(load_sample_image("china.jpg")[100:220, 200:360], sampling="420"),
    "131x121 4:4:4": encode_jpeg(load_sample_image("flower.jpg")[150:271, 260:391], sampling="444"),
}
EVERY_FILE = pytest.mark.parametrize("file", FILES)
PLAIN_OPENCV = {
    "opencv-nearest": cv2.INTER_NEAREST,
    "opencv-linear": cv2.INTER_LINEAR,
    "opencv-area": cv2.INTER_AREA,
    "opencv-cubic": cv2.INTER_CUBIC,
    "opencv-lanczos4": cv2.INTER_LANCZOS4,
}
PLAIN_PILLOW = {
    "pillow-nearest": Image.Resampling.NEAREST,
    "pillow-box": Image.Resampling.BOX,
    "pillow-bilinear": Image.Resampling.BILINEAR,
    "pillow-hamming": Image.Resampling.HAMMING,
    "pillow-bicubic": Image.Resampling.BICUBIC,
    "pillow-lanczos": Image.Resampling.LANCZOS,
}
SIZE, RESIZED, OFFSET = 28, 32, 2


def plain_decode(name, data, path):
    if name == "pillow":
        return np.array(Image.open(BytesIO(data)).convert("RGB"))
    if name == "opencv":
        return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    height, width = plain_decode("opencv", data, path).shape[:2]
    path.write_bytes(data)
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    return np.frombuffer(raw, np.uint8).reshape(height, width, 3)


def plain_view(pixels, name):
    if name in PLAIN_PILLOW:
        resized = np.array(Image.fromarray(pixels).resize((RESIZED, RESIZED), PLAIN_PILLOW[name]))
    else:
        resized = cv2.resize(pixels, (RESIZED, RESIZED), interpolation=PLAIN_OPENCV[name])
    return resized[OFFSET : OFFSET + SIZE, OFFSET : OFFSET + SIZE]


def our_view(data, decoder_name, resizer_name):
    resized = resizer(resizer_name).resize(decoder(decoder_name).decode(data), (RESIZED, RESIZED))
    return resized[OFFSET : OFFSET + SIZE, OFFSET : OFFSET + SIZE]


@EVERY_FILE
@pytest.mark.parametrize("name", ["pillow", "opencv"])
def test_the_views_of_pillow_and_opencv_are_the_generators_to_the_bit(file, name, tmp_path):
    pixels = plain_decode(name, FILES[file], tmp_path / "image.jpg")
    assert f"{pixels.shape[1]}x{pixels.shape[0]}" == file.split()[0]
    assert set(PLAIN_PILLOW) | set(PLAIN_OPENCV) == set(PAPER)
    for resizer_name in PAPER:
        assert np.array_equal(our_view(FILES[file], name, resizer_name), plain_view(pixels, resizer_name)), resizer_name


@EVERY_FILE
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg command line is not installed")
def test_the_views_of_ffmpeg_are_its_command_lines_to_the_bit(file, tmp_path):
    pixels = plain_decode("ffmpeg", FILES[file], tmp_path / "image.jpg")
    assert np.array_equal(decoder("ffmpeg").decode(FILES[file]), pixels)
    for resizer_name in PAPER:
        assert np.array_equal(our_view(FILES[file], "ffmpeg", resizer_name), plain_view(pixels, resizer_name)), (
            resizer_name
        )


def test_the_33_views_hold_as_many_different_images_as_decoders_and_operators_differ():
    data = FILES["160x120 4:2:0"]
    views = {(d, r): our_view(data, d, r).tobytes() for d in ("pillow", "opencv", "ffmpeg") for r in PAPER}
    assert len(views) == 33
    # Pillow and OpenCV decode alike today, so 22 remain where their wheels carry libjpeg-turbo
    alike = np.array_equal(decoder("pillow").decode(data), decoder("opencv").decode(data))
    assert len(set(views.values())) == (22 if alike else 33)
