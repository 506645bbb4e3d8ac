"""Many pipelines of one image, each shared step once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from imagenet_s.pipelines import Pipeline


class Renderer:
    """What pipelines make of one file; steps that several have in common run once."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._sources: dict[tuple, np.ndarray] = {}
        self._pixels: dict[tuple, np.ndarray] = {}

    def source(self, pipeline: Pipeline) -> UInt8[np.ndarray, "h w 3"]:
        """Decoded, oriented and coloured."""
        key = _before(pipeline)
        if key not in self._sources:
            self._sources[key] = pipeline.source(self._data)
        return self._sources[key]

    def pixels(self, pipeline: Pipeline) -> UInt8[np.ndarray, "S S 3"]:
        """Resized and cropped, RGB."""
        key = (
            *_before(pipeline),
            pipeline.resizer,
            pipeline.geometry,
            pipeline.resize_to,
            pipeline.size,
            pipeline.crop,
            pipeline.fill,
        )
        if key not in self._pixels:
            self._pixels[key] = pipeline.fit(self.source(pipeline))
        return self._pixels[key]

    def tensor(self, pipeline: Pipeline) -> Float[np.ndarray, "S S 3"]:
        """What the model sees, channels last."""
        tensor = pipeline.tensor(self.pixels(pipeline))
        return tensor.transpose(1, 2, 0) if pipeline.layout == "NCHW" else tensor


def _before(pipeline: Pipeline) -> tuple:
    """What decides the picture before its size changes."""
    policies = (pipeline.on_nonrgb, pipeline.truncated, pipeline.max_pixels)
    return pipeline.decoder, *policies, pipeline.orientation, pipeline.colour
