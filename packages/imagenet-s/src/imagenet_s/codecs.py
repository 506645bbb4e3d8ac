"""One function for each library that turns a file's bytes into pixels, with the settings that its deployments use."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from imagenet_s import swscale
from imagenet_s.headers import is_jpeg, open_with_pillow, read_header
from imagenet_s.threads import one_thread

# jpeglib switches one global library; whoever decodes holds this.
_JPEGLIB = threading.Lock()
_FFMPEG_CODECS = {"JPEG": "mjpeg", "PNG": "png", "BMP": "bmp", "WEBP": "webp", "TIFF": "tiff", "GIF": "gif"}


def pillow(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Pillow at full scale (no `draft`), its conversion to RGB; alpha is dropped, not blended."""
    with open_with_pillow(data) as image:
        if image.mode in {"P", "PA"} or "transparency" in image.info:
            # Straight to RGB, Pillow would warn that the transparency is lost.
            return np.array(image.convert("RGBA").convert("RGB"))
        return np.array(image.convert("RGB"))


def opencv(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """cv2.imdecode as colour, the orientation tag ignored, BGR turned to RGB."""
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ValueError("imdecode returns None")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def ffmpeg(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """FFmpeg's own decoder and swscale's bicubic chroma, as `ffmpeg -i FILE -f rawvideo -pix_fmt rgb24` has them."""
    import av

    codec = "mjpeg" if is_jpeg(data) else _FFMPEG_CODECS[read_header(data).format]
    context: Any = av.CodecContext.create(codec, "r")
    context.thread_count = 1
    frames = [*context.decode(av.Packet(data)), *context.decode(None)]
    if not frames:
        raise ValueError("FFmpeg gives no frame")
    return swscale.to_rgb(frames[0], "BICUBIC")


def turbo(data: bytes, *, fast_dct: bool = False, box_upsampling: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """libjpeg-turbo by simplejpeg; warnings are no errors, as in the other libraries."""
    import simplejpeg

    return simplejpeg.decode_jpeg(data, "RGB", fastdct=fast_dct, fastupsample=box_upsampling, strict=False)


def jpeglib(data: bytes, *, version: str) -> UInt8[np.ndarray, "h w *c"]:
    """One of the libjpegs that jpeglib carries; it reads files only, so the bytes go into one that lives in memory."""
    import jpeglib

    with _JPEGLIB, _InMemory(data) as path, jpeglib.version(version):
        return jpeglib.read_spatial(path).spatial


def torchvision(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """The operator under torchvision.io's decode_image, on the CPU, the orientation tag ignored."""
    import torch
    import torchvision.io

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    # torchvision 0.29 deprecates the function above this operator, and warns at each call.
    decoded = torch.ops.image.decode_image(encoded, torchvision.io.ImageReadMode.RGB.value, False)
    return decoded.permute(1, 2, 0).contiguous().numpy()


def vips(data: bytes) -> UInt8[np.ndarray, "h w *c"]:
    """Libvips in sRGB; alpha is dropped."""
    import pyvips

    with one_thread("vips"):
        image = pyvips.Image.new_from_buffer(data, "")
        if image.interpretation not in {"srgb", "b-w"}:
            image = image.colourspace("srgb")
        if image.hasalpha():
            image = image.extract_band(0, n=image.bands - 1)
        return image.cast("uchar").numpy()


def kornia_rs(data: bytes) -> UInt8[np.ndarray, "h w *c"]:
    """kornia-rs, whose JPEG decoder is zune-jpeg."""
    import kornia_rs

    return kornia_rs.io.decode_image_jpeg(data)


class _InMemory:
    """A path whose file lives in memory: a descriptor on Linux, elsewhere a temporary file."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __enter__(self) -> str:
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("imagenet-s", os.MFD_CLOEXEC)
            self.path = f"/proc/self/fd/{self.descriptor}"
        else:
            self.descriptor, self.path = tempfile.mkstemp(suffix=".jpg")
        with os.fdopen(os.dup(self.descriptor), "wb") as file:
            file.write(self.data)
        return self.path

    def __exit__(self, *_: Any) -> None:
        os.close(self.descriptor)
        if not hasattr(os, "memfd_create"):
            Path(self.path).unlink()
