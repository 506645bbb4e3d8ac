"""Writes recordings as cameras and data sets lay them out; the readers' counterparts."""

import struct

import numpy as np

from core_utils.spiking.events import EVENT

AEDAT2_HEADER = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# created Thu Oct 09 2014\r\n"
AEDAT31_HEADER = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"
DAT_HEADER = b"% Data file containing CD events.\n% Version 2\n% Date 2017-06-06 11:16:44\n\x00\x08"


def recording(n, *, size=128, seed=0, start=0, duration=100_000):
    """Random events in order of time."""
    rng = np.random.default_rng(seed)
    events = np.empty(n, EVENT)
    events["t"] = start + np.sort(rng.integers(0, duration, n))
    events["x"], events["y"] = rng.integers(0, size, (2, n))
    events["p"] = rng.integers(0, 2, n)
    return events


def bin_bytes(events):
    """N-MNIST: times above 2**13 through overflow markers."""
    content, overflows = b"", 0
    for t, x, y, p in events.tolist():
        while t >> 13 > overflows:
            overflows += 1
            content += bytes([0, 240, 0, 0, 0])
        content += bytes([x, y, p << 7]) + struct.pack(">H", t & 0x1FFF)
    return content


def plain_bin_bytes(events):
    """N-MNIST: times in 23 bits."""
    return b"".join(
        bytes([x, y, p << 7 | t >> 16 & 0x7F]) + struct.pack(">H", t & 0xFFFF) for t, x, y, p in events.tolist()
    )


def dat_bytes(events):
    return DAT_HEADER + b"".join(
        struct.pack("<II", t & 0xFFFFFFFF, p << 28 | y << 14 | x) for t, x, y, p in events.tolist()
    )


def aedat2_bytes(events):
    return AEDAT2_HEADER + b"".join(
        struct.pack(">II", (127 - x) << 8 | (127 - y) << 1 | 1 - p, t & 0xFFFFFFFF) for t, x, y, p in events.tolist()
    )


def aedat31_packet(events, *, kind=1, overflow=0, valid=1):
    header = struct.pack("<hhiiiiii", kind, 1, 8, 4, overflow, len(events), len(events), len(events))
    return header + b"".join(
        struct.pack("<II", x << 17 | y << 2 | p << 1 | valid, t - (overflow << 31)) for t, x, y, p in events.tolist()
    )


def aedat31_bytes(events):
    """Two packets of polarity events, with one of special events between them."""
    half = len(events) // 2
    return b"".join(
        [
            AEDAT31_HEADER,
            aedat31_packet(events[:half]),
            aedat31_packet(events[:3], kind=0),
            aedat31_packet(events[half:]),
        ]
    )


def aedat4_bytes(events, streams=(0,)):
    """Uncompressed; the flat buffers are laid out by hand after the format's schemas."""
    nodes = "".join(
        f'<node name="{each}" path="/mainloop/Recorder/outInfo/{each}/">'
        '<attr key="compression" type="string">NONE</attr><attr key="typeIdentifier" type="string">EVTS</attr>'
        f'<node name="info" path="/mainloop/Recorder/outInfo/{each}/info/">'
        '<attr key="sizeX" type="int">128</attr><attr key="sizeY" type="int">128</attr></node></node>'
        for each in streams
    )
    info = f'<dv version="2.0"><node name="outInfo" path="/mainloop/Recorder/outInfo/">{nodes}</node></dv>'.encode()
    table = struct.pack("<ii q I", 12, 0, -1, 4)  # its vtable 12 bytes before it, no compression, no index, the string
    header = struct.pack("<I4s4xHHHHH2x", 24, b"IOHE", 10, 20, 4, 8, 16) + table
    header += struct.pack("<I", len(info)) + info + b"\0"
    content = b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(header)) + header
    for stream in streams:
        rows = b"".join(struct.pack("<qhh?3x", t, x, y, bool(p)) for t, x, y, p in events.tolist())
        packet = struct.pack("<I4sHHH2xiI4xI", 16, b"EVTS", 6, 8, 4, 8, 8, len(events)) + rows
        packet = struct.pack("<I", len(packet)) + packet
        content += struct.pack("<ii", stream, len(packet)) + packet
    return content
