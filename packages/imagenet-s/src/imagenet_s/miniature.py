"""Garments on real textures, saved as JPEG: small pictures with real frequencies and colours, and nets that read them.

The images follow the protocol of the specification: Fashion-MNIST garments over crops of photographs, 96 x 96, quality 85,
4:2:0. Networks see 28 x 28 without a crop.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int64, UInt8

from core_utils.data import fashion_mnist_small, idx_folder, stratified
from core_utils.files import write_atomically
from imagenet_s.errors import SampleError
from imagenet_s.resizing import PAPER

if TYPE_CHECKING:
    from torch import Tensor, nn

SIDE, QUALITY, SIZE = 96, 85, 28
TRAIN, TEST = 3000, 2000
DECODERS = ("pillow", "turbo-fast", "ffmpeg")
"""Three decoders that differ today; the paper's Pillow and OpenCV are bit-identical in current wheels."""
VIEWS = tuple((decoder, resizer) for decoder in DECODERS for resizer in PAPER)
REFERENCE = ("pillow", "pillow-bilinear")
TEXTURES = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "grass.png", "gravel.png", "brick.png")
"""In scikit-image's wheel; its other pictures would be downloaded."""
IMAGE_SEED = 210_900_864
"""Decides the composition of all images: trials share them."""
EPOCHS, BATCH, RATE, DECAY = 6, 64, 0.2, 5e-4


def garments(part: str, data: Path | None = None) -> tuple[list[bytes], Int64[np.ndarray, " n"]]:
    """JPEG files and their classes.

    Args:
        part: `train` (3,000 images) or `test` (2,000).
        data: folder with a full Fashion-MNIST; the embedded subset by default.

    Raises:
        SampleError: scikit-image, whose photographs are the textures, is not installed.
    """
    split = fashion_mnist_small() if data is None else idx_folder(data)
    x, y, count = (split.x_train, split.y_train, TRAIN) if part == "train" else (split.x_test, split.y_test, TEST)
    rng = np.random.default_rng([IMAGE_SEED, part == "train"])
    chosen = stratified(y, count // 10, rng)
    textures = _textures()
    return [_composed(x[index], textures, rng) for index in chosen], y[chosen]


def views(
    part: str, folder: Path, data: Path | None = None
) -> tuple[UInt8[np.ndarray, "v n s s 3"], Int64[np.ndarray, " n"]]:
    """All 33 views of all images, and their classes; made once in a folder, whoever asks first.

    Args:
        part: `train` or `test`.
        folder: where they are kept.
        data: folder with a full Fashion-MNIST.

    Returns:
        [33, n, 28, 28, 3] in the order of `VIEWS`, and [n].
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{part}-{_recipe(data)}.npz"
    with _locked(folder / f".{part}.lock"):
        if not file.is_file():
            made, labels = _made(part, data)
            content = io.BytesIO()
            np.savez(content, views=made, labels=labels)
            write_atomically(file, content.getvalue())
    with np.load(file, allow_pickle=False) as held:
        return held["views"], held["labels"]


def normalised(pixels: UInt8[np.ndarray, "n s s 3"]) -> Float[Tensor, "n 3 s s"]:
    """What the nets see."""
    import torch

    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127.5) / 64


def small_net() -> nn.Module:
    """Three convolutions of 16, 32 and 64 channels, each with batch norm, ReLU and pooling; mean; linear."""
    from torch import nn

    def stage(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    stages = [layer for widths in ((3, 16), (16, 32), (32, 64)) for layer in stage(*widths)]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def trained(seed: int, pixels: UInt8[np.ndarray, "v n s s 3"], labels: Int64[np.ndarray, " n"]) -> nn.Module:
    """A net trained on the given views: one alone, or for every image and epoch one of them at random.

    Args:
        seed: decides initial weights, order and which view is taken.
        pixels: the views to train on.
        labels: classes.
    """
    import torch

    from core_utils.training import Arrays, Loader, fit, seed_everything

    seed_everything(seed)
    net = small_net()

    def draw(item: tuple[Tensor, Tensor], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        index, label = item
        view = pixels[rng.integers(len(pixels)), int(index)]
        return (torch.from_numpy(view).permute(2, 0, 1).float() - 127.5) / 64, label

    fit(
        net,
        lambda model, batch, _: torch.nn.functional.cross_entropy(model(batch[0]), batch[1]),
        Loader(Arrays(np.arange(len(labels)), labels), BATCH, seed=seed, drop_last=True, transform=draw),
        optimizer=torch.optim.SGD(net.parameters(), RATE, momentum=0.9, weight_decay=DECAY, nesterov=True),
        schedule=one_cycle,
        epochs=EPOCHS,
        progress=False,
    )
    return net.eval()


def one_cycle(progress: float) -> float:
    """Factor on the learning rate: up in a straight line for a quarter, then down along half a cosine."""
    from core_utils.training import cosine

    return progress / 0.25 if progress < 0.25 else cosine((progress - 0.25) / 0.75)


def _made(part: str, data: Path | None) -> tuple[np.ndarray, np.ndarray]:
    from imagenet_s.decoding import decoder
    from imagenet_s.resizing import resizer

    files, labels = garments(part, data)
    made = np.empty((len(VIEWS), len(files), SIZE, SIZE, 3), np.uint8)
    resize: dict[str, Callable[..., np.ndarray]] = {name: resizer(name).resize for name in PAPER}
    for number, file in enumerate(files):
        decoded = {name: decoder(name).decode(file) for name in DECODERS}
        for view, (one, two) in enumerate(VIEWS):
            made[view, number] = resize[two](decoded[one], (SIZE, SIZE))
    return made, labels


def _composed(garment: np.ndarray, textures: list[np.ndarray], rng: np.random.Generator) -> bytes:
    """One JPEG: the garment, tinted and a little textured, before another texture."""
    from PIL import Image

    grey = np.asarray(Image.fromarray(garment).resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
    alpha = np.clip(grey / 40, 0, 1)[..., None]
    own, behind = (_crop(textures[rng.integers(len(textures))], rng) for _ in range(2))
    foreground = 0.7 * grey[..., None] * rng.uniform(0.6, 1, 3) + 0.3 * own
    pixels = np.clip(alpha * foreground + (1 - alpha) * 0.6 * behind, 0, 255).round().astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return content.getvalue()


def _crop(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    top, left = (int(rng.integers(length - SIDE + 1)) for length in texture.shape[:2])
    return texture[top : top + SIDE, left : left + SIDE].astype(np.float32)


def _textures() -> list[np.ndarray]:
    from importlib.util import find_spec

    from PIL import Image

    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SampleError("the miniature needs the photographs of scikit-image", 'pip install "imagenet-s[lite0]"')
    return [np.asarray(Image.open(Path(spec.origin).parent / "data" / name).convert("RGB")) for name in TEXTURES]


def _recipe(data: Path | None) -> str:
    """Tells views apart that were made otherwise: by this file, other libraries, or other images."""
    from imagenet_s.decoding import decoder
    from imagenet_s.resizing import resizer

    versions = [decoder(name).version for name in DECODERS] + [resizer(name).version for name in PAPER]
    facts = Path(__file__).read_bytes() + repr((versions, data and data.resolve())).encode()
    return hashlib.sha256(facts).hexdigest()[:12]


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Waits for the file's lock, which ends with the process."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
