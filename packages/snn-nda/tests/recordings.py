"""Recordings as the published data sets hold them, written byte by byte."""

import struct

import numpy as np

from core_utils.spiking.events import EVENT


def recording(n=50, seed=0, width=34, height=34, duration=20_000):
    rng = np.random.default_rng(seed)
    events = np.empty(n, EVENT)
    events["t"] = np.sort(rng.integers(duration, size=n))
    events["x"], events["y"] = rng.integers(width, size=n), rng.integers(height, size=n)
    events["p"] = rng.integers(2, size=n)
    return events


def bin_bytes(events):
    """N-MNIST and N-Caltech101; times above 2**13 by overflow markers, which are rows of 240."""
    content, overflows = b"", 0
    for t, x, y, p in events.tolist():
        while t >> 13 > overflows:
            overflows += 1
            content += bytes([0, 240, 0, 0, 0])
        content += bytes([x, y, p << 7]) + struct.pack(">H", t & 0x1FFF)
    return content


def dat_bytes(events):
    """Prophesee, version 2."""
    words = b"".join(struct.pack("<II", t, p << 28 | y << 14 | x) for t, x, y, p in events.tolist())
    return b"% Version 2\n\x0c\x08" + words


def aedat2_bytes(events):
    """CIFAR10-DVS."""
    words = b"".join(struct.pack(">II", (127 - x) << 8 | (127 - y) << 1 | 1 - p, t) for t, x, y, p in events.tolist())
    return b"#!AER-DAT2.0\r\n# comment\r\n" + words


def aedat31_bytes(events):
    """DVS-Gesture."""
    header = struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, len(events), len(events), len(events))
    words = b"".join(struct.pack("<II", x << 17 | y << 2 | p << 1 | 1, t) for t, x, y, p in events.tolist())
    return b"#!AER-DAT3.1\r\n#!END-HEADER\r\n" + header + words


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
