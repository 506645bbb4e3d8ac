"""All views of photographs beside the bare library calls, and beside a loop that decodes anew for each view.

The photographs are those of scikit-learn and scikit-image at 500 x 375, quality 92 and 4:2:0, as most of ImageNet is. The
bare calls make every decode and every resize once, in the order of the grid, and keep nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from core_utils.bench import Benchmark

PAPER = ("pillow", "opencv", "ffmpeg")
DIFFERENT = ("pillow", "turbo-boxup", "ffmpeg")  # no two give the same, so that no view can be shared
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
INTERPOLATIONS = {"nearest": 0, "linear": 1, "area": 3, "cubic": 2, "lanczos4": 4}  # OpenCV's numbers
NAMES = ("china.jpg", "flower.jpg", "astronaut", "coffee", "chelsea", "rocket")


@functools.cache
def photographs() -> tuple[bytes, ...]:
    """JPEG files."""
    import skimage.data
    import sklearn.datasets
    from PIL import Image

    files = []
    for name in NAMES:
        image = sklearn.datasets.load_sample_image(name) if "." in name else getattr(skimage.data, name)()
        file = io.BytesIO()
        picture = Image.fromarray(image).resize((500, 375), Image.Resampling.LANCZOS)
        picture.save(file, "JPEG", quality=92, subsampling="4:2:0")
        files.append(file.getvalue())
    return tuple(files)


def views(names: tuple[str, ...]) -> Callable[[], object]:
    """`Grid.views` of each photograph."""
    from imagenet_s.grids import Grid
    from imagenet_s.shards import get_ready

    grid = dataclasses.replace(Grid.paper(), decoders=names)
    get_ready(grid, ())
    return timed(lambda data: [pixels for _, pixels in grid.views(data)])


def loop(names: tuple[str, ...]) -> Callable[[], object]:
    """A loop over the grid's pipelines, each from the file on."""
    from imagenet_s.grids import Grid
    from imagenet_s.shards import get_ready

    pipelines = [pipeline for _, pipeline in dataclasses.replace(Grid.paper(), decoders=names)]
    get_ready(Grid.paper(), ())
    return timed(lambda data: [pipeline.pixels(data) for pipeline in pipelines])


def bare(names: tuple[str, ...]) -> Callable[[], object]:
    """The libraries' own calls: each decode once, each resize of each, and the crop."""
    import cv2

    cv2.setNumThreads(1)
    decodes = [DECODES[name] for name in names]
    resizes = [*map(pillow_resize, FILTERS), *map(opencv_resize, INTERPOLATIONS.values())]

    def call(data: bytes) -> list[np.ndarray]:
        images = (decode(data) for decode in decodes)
        return [np.ascontiguousarray(resize(image)[16:240, 16:240]) for image in images for resize in resizes]

    return timed(call)


def authors() -> Callable[[], object]:
    """As the authors' generator works: every view decodes anew, and FFmpeg is a process for each."""
    import cv2

    if shutil.which("ffmpeg") is None:
        raise ImportError("no ffmpeg on the PATH")
    cv2.setNumThreads(1)
    resizes = [*map(pillow_resize, FILTERS), *map(opencv_resize, INTERPOLATIONS.values())]
    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name) / "image.jpg"

    def by_command(data: bytes) -> np.ndarray:
        file.write_bytes(data)
        height, width = opencv_decode(data).shape[:2]  # where the authors take the size from
        words = ["ffmpeg", "-loglevel", "quiet", "-i", str(file), "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
        raw = subprocess.run(words, capture_output=True, check=True, timeout=60, cwd=folder.name).stdout
        return np.frombuffer(raw, np.uint8).reshape(height, width, 3)

    def call(data: bytes) -> list[np.ndarray]:
        decodes = (pillow_decode, opencv_decode, by_command)
        return [resize(decode(data))[16:240, 16:240].copy() for decode in decodes for resize in resizes]

    return timed(call)


def timed(call: Callable[[bytes], Any]) -> Callable[[], object]:
    """The call on every photograph, after one that loads what is loaded late."""
    files = photographs()
    call(files[0])

    def run() -> None:
        for data in files:
            call(data)

    return run


def pillow_decode(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def opencv_decode(data: bytes) -> np.ndarray:
    import cv2

    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def turbo_decode(data: bytes) -> np.ndarray:
    import simplejpeg

    return simplejpeg.decode_jpeg(data, fastupsample=True)


def ffmpeg_decode(data: bytes) -> np.ndarray:
    import av

    av.logging.set_level(av.logging.PANIC)
    (frame,) = av.CodecContext.create("mjpeg", "r").decode(av.Packet(data))
    return frame.reformat(format="rgb24", interpolation="BICUBIC").to_ndarray()


DECODES = {"pillow": pillow_decode, "opencv": opencv_decode, "turbo-boxup": turbo_decode, "ffmpeg": ffmpeg_decode}


def pillow_resize(name: str) -> Callable[[np.ndarray], np.ndarray]:
    from PIL import Image

    kind = Image.Resampling[name.upper()]
    return lambda image: np.asarray(Image.fromarray(image).resize((256, 256), kind))


def opencv_resize(interpolation: int) -> Callable[[np.ndarray], np.ndarray]:
    import cv2

    return lambda image: cv2.resize(image, (256, 256), interpolation=interpolation)


def generated(workers: int) -> Callable[[], object]:
    """`generate` of 240 photographs into tars of 8, in a new folder each time."""
    from imagenet_s.generation import generate
    from imagenet_s.grids import Grid

    samples = [(data, 0) for data in itertools.islice(itertools.cycle(photographs()), 240)]
    grid = Grid.paper()

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            generate(samples, grid, Path(folder) / "shards", shard_size=8, workers=workers)

    return run


def of(function: Callable[[tuple[str, ...]], Callable[[], object]], names: Iterable[str]) -> functools.partial:
    """A set-up that other processes can be sent."""
    return functools.partial(function, tuple(names))


BENCHMARKS = (
    Benchmark(
        id="views-bare",
        statement="All 33 views, with decoders that differ, take at most 1.10 times as long as the bare library calls.",
        ours=of(views, DIFFERENT),
        peer=of(bare, DIFFERENT),
        target=1 / 1.10,
    ),
    Benchmark(
        id="paper-bare",
        statement="The paper's 33 views, of which OpenCV's are Pillow's here, take at most 1.10 times as long as the bare "
        "library calls.",
        ours=of(views, PAPER),
        peer=of(bare, PAPER),
        target=1 / 1.10,
    ),
    Benchmark(
        id="views-loop",
        statement="All 33 views, with decoders that differ, are at least 1.9 times as fast as decoding anew for each view.",
        ours=of(views, DIFFERENT),
        peer=of(loop, DIFFERENT),
        target=1.9,
    ),
    Benchmark(
        id="paper-loop",
        statement="The paper's 33 views are at least 1.9 times as fast as decoding anew for each view.",
        ours=of(views, PAPER),
        peer=of(loop, PAPER),
        target=1.9,
    ),
    Benchmark(
        id="authors",
        statement="The paper's 33 views are at least 7 times as fast as the authors' way: every view decodes anew, and "
        "FFmpeg is a process for each.",
        ours=of(views, PAPER),
        peer=authors,
        target=7.0,
    ),
    Benchmark(
        id="two-workers",
        statement="Generating the paper's views of 240 photographs is at least 1.8 times as fast on two workers as on one.",
        ours=functools.partial(generated, 2),
        peer=functools.partial(generated, 1),
        target=1.8,
    ),
)
