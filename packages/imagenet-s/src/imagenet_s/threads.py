"""Keeps image libraries on one thread during a call, so that workers do not fight over cores."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

_LOCK = threading.Lock()
_INSIDE: Counter[str] = Counter()
_BEFORE: dict[str, int] = {}


@contextmanager
def one_thread(library: Literal["opencv", "torch", "vips"]) -> Iterator[None]:
    """Runs the block with one thread of `library`; the last block to leave restores what the user had set.

    torch counts its threads for each Python thread, the others for the process.
    """
    key = f"{library} {threading.get_ident()}" if library == "torch" else library
    with _LOCK:
        if not _INSIDE[key]:
            _BEFORE[key] = _count(library)
            if _BEFORE[key] != 1:
                _set(library, 1)
        _INSIDE[key] += 1
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE[key] -= 1
            if not _INSIDE[key]:
                del _INSIDE[key]
                before = _BEFORE.pop(key)
                if before != 1:
                    _set(library, before)


def _count(library: str) -> int:
    if library == "opencv":
        import cv2

        return cv2.getNumThreads()
    if library == "torch":
        import torch

        return torch.get_num_threads()
    import pyvips

    return pyvips.concurrency_get()


def _set(library: str, threads: int) -> None:
    if library == "opencv":
        import cv2

        cv2.setNumThreads(threads)
    elif library == "torch":
        import torch

        torch.set_num_threads(threads)
    else:
        import pyvips

        pyvips.concurrency_set(threads)
