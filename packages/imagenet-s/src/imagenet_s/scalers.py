"""One function for each library that resizes pixels, with what it takes to have one thread and one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from imagenet_s.swscale import to_rgb
from imagenet_s.threads import one_thread

if TYPE_CHECKING:
    from PIL.Image import Image
else:
    Image = Any  # the tests' shape checks read the annotations below, Pillow is loaded late


def pillow(
    image: UInt8[np.ndarray, "h w 3"] | Image, size: tuple[int, int], *, resample: str
) -> UInt8[np.ndarray, "p q 3"]:
    """Pillow's resize, without `reducing_gap`."""
    from PIL import Image

    source = as_pillow(image) if isinstance(image, np.ndarray) else image
    return np.array(source.resize((size[1], size[0]), Image.Resampling[resample]))


def as_pillow(image: UInt8[np.ndarray, "h w 3"]) -> Image:
    """Pillow's copy of the pixels, which several resizes may share."""
    from PIL import Image

    return Image.fromarray(image)


def pillow12(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], *, filter_name: str
) -> UInt8[np.ndarray, "p q 3"]:
    """Pillow's resize before version 13: the horizontal pass first, whatever the shape."""
    from imagenet_s.kernels import pillow

    return pillow.resize(image, size, filter_name)


def opencv(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], *, interpolation: str
) -> UInt8[np.ndarray, "p q 3"]:
    """OpenCV's resize."""
    import cv2

    with one_thread("opencv"):
        return cv2.resize(image, (size[1], size[0]), interpolation=getattr(cv2, interpolation))


def torch(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], *, mode: str, antialias: bool = False
) -> UInt8[np.ndarray, "p q 3"]:
    """torch.nn.functional.interpolate on uint8, channels last, as torchvision's resize of tensors."""
    import torch

    with one_thread("torch"), torch.inference_mode():
        planes = torch.from_numpy(np.require(image, requirements="W")).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(planes, size, mode=mode, antialias=antialias)
        return resized[0].permute(1, 2, 0).contiguous().numpy()


def tf1(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "p q 3"]:
    """TensorFlow 1's legacy bilinear, our own."""
    from imagenet_s.kernels import tf1

    return tf1.resize(image, size)


def swscale(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], *, interpolation: str
) -> UInt8[np.ndarray, "p q 3"]:
    """FFmpeg's swscale on packed RGB."""
    import av

    return to_rgb(av.VideoFrame.from_ndarray(image, "rgb24"), interpolation, size)


def vips(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], *, kernel: str) -> UInt8[np.ndarray, "p q 3"]:
    """Libvips' resize.

    It shrinks about the centre. Enlarging, libvips 8.18 is half an output pixel off, and half an input pixel along a
    side that does not grow while the other does.
    """
    import pyvips

    height, width = image.shape[:2]
    with one_thread("vips"):
        source = pyvips.Image.new_from_array(image)
        return source.resize(size[1] / width, vscale=size[0] / height, kernel=kernel).numpy()


def kornia_rs(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], *, interpolation: str
) -> UInt8[np.ndarray, "p q 3"]:
    """kornia-rs' resize at its defaults."""
    import kornia_rs

    if interpolation == "bilinear":  # which wants two pixels at least; two alike interpolate to the one
        for side in (0, 1):
            image = image.repeat(2, axis=side) if image.shape[side] == 1 else image
    return np.asarray(kornia_rs.imgproc.resize(image, size, interpolation))
