"""Crops of the photographs in scikit-image's and scikit-learn's wheels, as JPEG files."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from imagenet_s.errors import SampleError

FILES = (
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/rocket.jpg"),
    ("skimage", "data/motorcycle_left.png"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
SMALLEST = 280
"""Side of the smallest crop, pixels."""


def crops(count: int, seed: int) -> list[bytes]:
    """Square crops of random place and size, quality 90, 4:2:0; photographs take turns.

    Args:
        count: how many.
        seed: decides place and size.

    Raises:
        SampleError: scikit-image or scikit-learn is not installed.
    """
    from PIL import Image

    rng = np.random.default_rng(seed)
    pictures = [picture(*place) for place in FILES]
    files = []
    for number in range(count):
        pixels = pictures[number % len(pictures)]
        side = int(rng.integers(SMALLEST, min(pixels.shape[:2]) + 1))
        top, left = (int(rng.integers(length - side + 1)) for length in pixels.shape[:2])
        content = io.BytesIO()
        crop = Image.fromarray(pixels[top : top + side, left : left + side])
        crop.save(content, "JPEG", quality=90, subsampling="4:2:0")
        files.append(content.getvalue())
    return files


def picture(package: str, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of an installed package; asking scikit-image itself might download it."""
    from PIL import Image

    spec = find_spec(package)
    file = Path(spec.origin).parent / name if spec is not None and spec.origin is not None else None
    if file is None or not file.is_file():
        raise SampleError(f"the photographs need {name} of {package}", 'pip install "imagenet-s[lite0]"')
    return np.asarray(Image.open(file).convert("RGB"))
