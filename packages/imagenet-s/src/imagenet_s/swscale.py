"""FFmpeg's scaler and colour converter, kept for each thread: a new one spends a third of its time on its tables."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from jaxtyping import UInt8

_LOCAL = threading.local()


def to_rgb(frame: Any, interpolation: str, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Converts a frame to packed RGB, at `size`, (height, width), or its own."""
    from av.video.reformatter import VideoReformatter

    if not hasattr(_LOCAL, "reformatter"):
        _LOCAL.reformatter = VideoReformatter()
    height, width = size or (frame.height, frame.width)
    return _LOCAL.reformatter.reformat(frame, width, height, "rgb24", interpolation=interpolation).to_ndarray()
