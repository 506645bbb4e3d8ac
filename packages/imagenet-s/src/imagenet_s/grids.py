"""Every decoder with every resizer, and the views of one image under all of them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from imagenet_s.decoding import decoder, decoders
from imagenet_s.errors import PipelineError, ShapeMismatchError
from imagenet_s.orientation import exif_orientation
from imagenet_s.pipelines import PAPER, Pipeline
from imagenet_s.resizing import resizer, resizers

FACTORS = ("nv12", "float16", "bfloat16", "int8", "ceil-mode")
"""What SysNoise (arXiv 2307.00280) changes beside decoder and resizer, for classifiers."""

PAPER_DECODERS = ("pillow", "opencv", "ffmpeg")
PAPER_RESIZERS = (
    *(f"pillow-{name}" for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")),
    *(f"opencv-{name}" for name in ("nearest", "linear", "area", "cubic", "lanczos4")),
)


@dataclass(frozen=True)
class Grid:
    """Decoders and resizers, all combined, with the rest of a pipeline held fixed.

    Attributes:
        decoders: names.
        resizers: names.
        pipeline: everything else; its own decoder and resizer do not count.
        factors: what else deployment changes, each alone and at the reference: names of `FACTORS`.
        duplicates: (name, its stand-in) of the decoders and resizers that were left out because they give the same.
    """

    decoders: tuple[str, ...]
    resizers: tuple[str, ...]
    pipeline: Pipeline = PAPER
    factors: tuple[str, ...] = ()
    duplicates: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for what, names, lookup in (("decoders", self.decoders, decoder), ("resizers", self.resizers, resizer)):
            if not names:
                raise PipelineError(f"a grid without {what}")
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise PipelineError(f"{what} name {twice[0]!r} twice")
            for name in names:
                lookup(name)  # an unknown name is refused with those that are near
        for name in self.factors:
            if name not in FACTORS or self.factors.count(name) > 1:
                raise PipelineError(f"factor {name!r} is unknown or named twice", f"factors are {', '.join(FACTORS)}")

    @classmethod
    def paper(cls, pipeline: Pipeline = PAPER) -> Grid:
        """The authors' three decoders with their eleven resizers, 33 combinations."""
        return cls(PAPER_DECODERS, PAPER_RESIZERS, pipeline)

    @classmethod
    def modern(cls, pipeline: Pipeline = PAPER) -> Grid:
        """All decoders and resizers that are installed here and differ, the duplicates named."""
        here = tuple(name for name, entry in decoders().items() if entry.available)
        ways = tuple(name for name, entry in resizers().items() if entry.available)
        return cls(here, ways, pipeline).distinct()

    def __len__(self) -> int:
        return len(self.decoders) * len(self.resizers)

    def __iter__(self) -> Iterator[tuple[str, Pipeline]]:
        """Name "decoder/resizer" and pipeline of each combination, resizers innermost."""
        for left, right in itertools.product(self.decoders, self.resizers):
            yield f"{left}/{right}", dataclasses.replace(self.pipeline, decoder=left, resizer=right)

    @property
    def names(self) -> tuple[str, ...]:
        """The combinations' names, in the grid's order."""
        return tuple(f"{left}/{right}" for left, right in itertools.product(self.decoders, self.resizers))

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that name what the grid does."""
        text = json.dumps([self.decoders, self.resizers, self.pipeline.hash, *([self.factors] if self.factors else [])])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def views(self, data: bytes) -> Iterator[tuple[str, UInt8[np.ndarray, "S S 3"]]]:
        """Name and pixels of a file under each combination, in the grid's order.

        Every decoder runs once. Where two give the same image, the second one's views are the first one's arrays.

        Raises:
            DecodeError: a decoder cannot read the bytes.
            ShapeMismatchError: two decoders give the image different sizes.
        """
        seen: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        shapes: dict[str, tuple[int, int]] = {}
        for left in self.decoders:
            decoded = self.pipeline.decoded(data, left)
            shapes[left] = (decoded.shape[0], decoded.shape[1])
            _same_shapes(shapes, data)
            made = next((views for image, views in seen if np.array_equal(image, decoded)), None)
            if made is not None:
                yield from ((f"{left}/{right}", view) for right, view in made.items())
                continue
            made = {}
            seen.append((decoded, made))
            for right, view in self.pipeline.fit_all(self.pipeline.prepare(decoded, data), self.resizers):
                view.flags.writeable = False  # shared
                made[right] = view
                yield f"{left}/{right}", view

    def distinct(self, probes: Iterable[bytes] | None = None) -> Grid:
        """This grid without the decoders and resizers that give every probe the same pixels as an earlier one.

        Args:
            probes: image files; by default small JPEGs with colours, edges and noise, in 4:4:4 and 4:2:0.
        """
        files = list(probe_files() if probes is None else probes)
        images = [[self.pipeline.decoded(data, name) for data in files] for name in self.decoders]
        left, left_out = _first_of_each(self.decoders, [_digest(each) for each in images])
        sources = [self.pipeline.prepare(image, data) for image, data in zip(images[0], files, strict=True)]
        views = [dict(self.pipeline.fit_all(each, self.resizers)) for each in sources]
        digests = [_digest([made[name] for made in views]) for name in self.resizers]
        right, right_out = _first_of_each(self.resizers, digests)
        return dataclasses.replace(self, decoders=left, resizers=right, duplicates=(*left_out, *right_out))


def probe_files() -> Iterator[bytes]:
    """JPEGs that tell decoders and resizers apart: landscape, portrait and odd, baseline and progressive."""
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    for height, width, subsampling, progressive in ((160, 240, 0, False), (240, 160, 2, False), (131, 203, 2, True)):
        y, x = np.mgrid[:height, :width]
        waves = np.stack([np.sin(x / 5.0 + 2 * c) * np.cos(y / (6.0 + c)) for c in range(3)], axis=-1)
        noise = rng.normal(0, 20, (height, width, 3))
        image = np.clip(128 + 90 * waves + 40 * np.sign(waves[..., ::-1]) + noise, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
        yield file.getvalue()


def _same_shapes(shapes: dict[str, tuple[int, int]], data: bytes) -> None:
    (first, expected), *others = shapes.items()
    for name, shape in others:
        if shape != expected:
            raise ShapeMismatchError(
                f"{first} decodes {expected[0]} x {expected[1]} pixels, {name} {shape[0]} x {shape[1]} "
                f"(height x width; orientation tag {exif_orientation(data)})"
            )


def _digest(images: list[np.ndarray]) -> bytes:
    digest = hashlib.sha256()
    for image in images:
        digest.update(repr(image.shape).encode())
        digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def _first_of_each(names: tuple[str, ...], digests: list[bytes]) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The first name of each digest, and (name, first name) of the others."""
    first: dict[bytes, str] = {}
    for name, digest in zip(names, digests, strict=True):
        first.setdefault(digest, name)
    kept = tuple(first.values())
    return kept, tuple((name, first[digest]) for name, digest in zip(names, digests, strict=True) if name not in kept)
