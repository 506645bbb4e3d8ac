"""Small JPEGs made at run time that tell decoders apart: every chroma sampling, odd sizes, progressive, grey."""

from __future__ import annotations

import importlib.util
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

_SAMPLING = {"444": 0, "422": 1, "420": 2}  # Pillow's numbers


@cache
def probe_files() -> dict[str, bytes]:
    """JPEGs by name; from a synthetic picture, and from a photograph where scikit-learn is installed."""
    pictures = {"synthetic": synthetic_picture(96, 128), **_photograph()}
    return {
        f"{name}-{variant}.jpg": data
        for name, picture in pictures.items()
        for variant, data in _variants(picture).items()
    }


def synthetic_picture(height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Coloured gratings from coarse to fine, sharp coloured edges and noise; the same on every call."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    chirp = x * x / (3.0 * width)
    channels = [128 + 100 * np.sin(chirp + phase) * np.cos(y * (0.1 + 0.15 * phase)) for phase in (0.0, 1.0, 2.0)]
    picture = np.stack(channels, axis=-1)
    picture[(x // 8 + y // 8) % 4 == 0] = (230, 30, 60)
    picture[(x // 8 - y // 8) % 7 == 0] = (20, 60, 220)
    picture += np.random.default_rng(0).normal(0, 12, picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def encode_jpeg(picture: np.ndarray, *, quality: int = 90, sampling: str = "420", progressive: bool = False) -> bytes:
    """Encodes with the installed Pillow; (h, w) becomes a grey JPEG."""
    from PIL import Image

    file = BytesIO()
    options = {} if picture.ndim == 2 else {"subsampling": _SAMPLING[sampling]}
    Image.fromarray(picture).save(file, "JPEG", quality=quality, progressive=progressive, **options)
    return file.getvalue()


def _variants(picture: UInt8[np.ndarray, "h w 3"]) -> dict[str, bytes]:
    odd = picture[:-5, :-7]
    return {
        **{sampling: encode_jpeg(picture, sampling=sampling) for sampling in _SAMPLING},
        **{f"{sampling}-odd": encode_jpeg(odd, sampling=sampling) for sampling in _SAMPLING},
        "420-progressive": encode_jpeg(picture, progressive=True),
        "420-odd-progressive": encode_jpeg(odd, progressive=True),
        "420-quality-40": encode_jpeg(picture, quality=40),
        "grey": encode_jpeg(picture[:, :, 1]),
    }


def _photograph() -> dict[str, UInt8[np.ndarray, "h w 3"]]:
    """A cut of scikit-learn's flower, if it is installed."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        return {}
    file = Path(found.origin).parent / "datasets" / "images" / "flower.jpg"
    if not file.is_file():
        return {}
    from PIL import Image

    with Image.open(file) as image:
        return {"flower": np.array(image.convert("RGB"))[120:248, 240:400]}
