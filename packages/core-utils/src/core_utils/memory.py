"""Memory that large arrays leave behind is kept for the next ones.

glibc maps every block above 32 MB anew and gives it back when it is freed, and the kernel clears its pages each time. The
activations of a network on a CPU are such blocks: on EfficientNet-Lite0 that was two thirds of the time.
"""

from __future__ import annotations

import ctypes
import sys

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # of malloc.h
_NEVER = 2**31 - 1


def reuse_freed_memory() -> bool:
    """Lets this process keep what it frees; for programs and workers, not for libraries: it cannot be undone.

    Returns:
        Whether the C library knows how; without glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))
