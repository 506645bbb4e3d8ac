import importlib.util
import struct
import sys
import warnings

import numpy as np
import pytest
import recordings
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import AEDAT2_HEADER, AEDAT31_HEADER, DAT_HEADER, recording

from core_utils.data import DataError
from core_utils.spiking.events import EVENT, event_folder, events_to_frames, read_events
from core_utils.spiking.events.readers import read_aedat2, read_aedat31

WRITERS = {
    "digit.bin": recordings.bin_bytes,
    "car.dat": recordings.dat_bytes,
    "ship.aedat": recordings.aedat2_bytes,
    "gesture.aedat": recordings.aedat31_bytes,
}
HEADER_BYTES = {
    "digit.bin": 0,
    "car.dat": len(DAT_HEADER),
    "ship.aedat": len(AEDAT2_HEADER),
    "gesture.aedat": len(AEDAT31_HEADER),
}
needs_aedat = pytest.mark.skipif(importlib.util.find_spec("aedat") is None, reason="needs core-utils[aedat]")


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("name", WRITERS)
def test_what_was_written_is_read(write, name):
    events = recording(500)
    path = write(name, WRITERS[name](events))
    read = read_events(path)
    assert read.dtype == EVENT
    np.testing.assert_array_equal(read, events)
    np.testing.assert_array_equal(read_events(str(path)), events)


@pytest.mark.parametrize("name", WRITERS)
def test_frames_conserve_the_events_of_a_file(write, name):
    frames = events_to_frames(read_events(write(name, WRITERS[name](recording(501)))), 10, (128, 128), by="number")
    assert frames.sum() == 501


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        # x, y, then bit 7 is polarity and 23 bits are time: 0x012345 = 74565 us
        ("digit.bin", bytes([7, 9, 0x81, 0x23, 0x45]), (74565, 7, 9, 1)),
        # an overflow, then 5 us
        ("digit.bin", bytes([0, 240, 0, 0, 0, 7, 9, 0, 0, 5]), (8197, 7, 9, 0)),
        # time, then x in 14 bits, y in 14 bits, polarity in bit 28: 1 << 28 | 2 << 14 | 3
        ("car.dat", DAT_HEADER + bytes([4, 0, 0, 0, 3, 0x80, 0, 0x10]), (4, 3, 2, 1)),
        # row 2 and column 3 of the sensor, darker: x = 127 - 2, y = 127 - 3
        ("ship.aedat", AEDAT2_HEADER + bytes([0, 0, 2, 3 << 1 | 1, 0, 0, 1, 0]), (256, 125, 124, 0)),
    ],
)
def test_bytes_mean_what_the_format_says(write, name, content, expected):
    assert read_events(write(name, content)).tolist() == [expected]


def test_aedat31_times_count_the_overflows_of_the_clock(write):
    events = recording(4, start=(5 << 31) + 7)
    path = write("gesture.aedat", AEDAT31_HEADER + recordings.aedat31_packet(events, overflow=5))
    np.testing.assert_array_equal(read_events(path), events)


def test_aedat31_events_marked_invalid_are_left_out(write):
    events = recording(6)
    packets = recordings.aedat31_packet(events[:2], valid=0) + recordings.aedat31_packet(events[2:])
    np.testing.assert_array_equal(read_events(write("gesture.aedat", AEDAT31_HEADER + packets)), events[2:])


def test_synchronisation_addresses_of_aedat2_are_left_out(write):
    events = recording(3)
    path = write("ship.aedat", recordings.aedat2_bytes(events) + struct.pack(">II", 1 << 15, 200_000))
    np.testing.assert_array_equal(read_events(path), events)


def test_another_sensor_in_aedat2_is_refused(write):
    content = AEDAT2_HEADER + struct.pack(">IIII", 90 << 22 | 120 << 12, 1, 91 << 22 | 120 << 12, 2)
    with pytest.raises(DataError, match=r"davis\.aedat holds addresses that are not a DVS128's"):
        read_events(write("davis.aedat", content))


@pytest.mark.parametrize(
    ("name", "writer", "bits"),
    [
        ("digit.bin", recordings.plain_bin_bytes, 23),
        ("car.dat", recordings.dat_bytes, 32),
        ("ship.aedat", recordings.aedat2_bytes, 32),
    ],
)
def test_a_clock_that_wraps_goes_on(write, name, writer, bits):
    events = recording(100, start=2**bits - 50_000)
    assert events["t"][0] < 2**bits < events["t"][-1]
    np.testing.assert_array_equal(read_events(write(name, writer(events))), events)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("cut", [1, 3])
def test_a_file_that_was_cut_is_read_as_far_as_its_events_are_whole(write, name, cut):
    events = recording(20)
    size = 5 if name == "digit.bin" else 8
    path = write(name, WRITERS[name](events)[:-cut])
    missing = rf"{path.name} was cut: ({cut} bytes of its last packet are missing|its last {size - cut} bytes)"
    with pytest.warns(UserWarning, match=missing):
        read = read_events(path)
    np.testing.assert_array_equal(read, events[:-1])


def test_a_packet_header_that_was_cut_is_left_out(write):
    content = recordings.aedat31_bytes(recording(20))
    with pytest.warns(UserWarning, match=r"gesture\.aedat was cut: its last 27 bytes are no whole packet"):
        read = read_events(write("gesture.aedat", content + bytes(27)))
    np.testing.assert_array_equal(read, recording(20))


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_without_events_is_named(write, name):
    content = WRITERS[name](recording(0))
    with pytest.raises(DataError, match=rf"{name} holds no event"):
        read_events(write(name, content[: HEADER_BYTES[name]]))


@pytest.mark.parametrize("name", WRITERS)
def test_times_that_decrease_are_named_or_sorted(write, name):
    events = recording(20)
    events["t"][7] = events["t"][8] + 1
    path = write(name, WRITERS[name](events) if name != "digit.bin" else recordings.plain_bin_bytes(events))
    with pytest.raises(DataError, match=rf"{name}: time decreases from event 7 to 8 \(sort the events by time\)"):
        read_events(path)
    in_order = events[np.argsort(events["t"], kind="stable")]
    np.testing.assert_array_equal(read_events(path, sort=True), in_order)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("old.aedat", b"#!AER-DAT1.0\r\n" + bytes(16), "is of no known format"),
        ("text.aedat", b"hello", r"is of no known format: it starts with b'hello'"),
        ("events.npy", bytes(16), "is of no known format"),
        ("empty.dat", b"", "is not a Prophesee recording"),
        ("none.dat", bytes(16), "is not a Prophesee recording"),
        ("first.dat", b"% Version 1\n\x00\x08" + bytes(8), "is not a Prophesee recording of version 2"),
        ("wide.dat", b"% Version 2\n\x00\x10" + bytes(16), "does not hold events of 8 bytes"),
        ("header.dat", b"% Version 2", "does not hold events of 8 bytes"),
        ("packet.aedat", AEDAT31_HEADER + bytes(28), rf"is damaged at byte {len(AEDAT31_HEADER)}"),
        ("wide.aedat", AEDAT31_HEADER + struct.pack("<hhiiiiii", 1, 1, 16, 4, 0, 1, 1, 1), "is damaged at byte"),
    ],
)
def test_a_wrong_header_is_named(write, name, content, message):
    with pytest.raises(DataError, match=rf"{name} {message}"):
        read_events(write(name, content))


@pytest.mark.parametrize("reader", [read_aedat2, read_aedat31])
def test_a_reader_refuses_another_format(write, reader):
    with pytest.raises(DataError, match=r"digit\.bin is not AEDAT"):
        reader(write("digit.bin", bytes(10)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.bin cannot be read: No such file"):
        read_events(tmp_path / "none.bin")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_events(tmp_path)


@needs_aedat
def test_aedat4_is_known_by_its_first_line(write):
    events = recording(300)
    for name in ("ship.aedat", "ship.aedat4"):
        np.testing.assert_array_equal(read_events(write(name, recordings.aedat4_bytes(events))), events)


@needs_aedat
def test_aedat4_of_two_cameras_is_refused(write):
    with pytest.raises(DataError, match=r"stereo\.aedat4 holds 2 streams of events"):
        read_events(write("stereo.aedat4", recordings.aedat4_bytes(recording(3), streams=(0, 1))))


@needs_aedat
def test_aedat4_that_was_cut(write):
    events = recording(300)
    content = recordings.aedat4_bytes(events)
    with pytest.warns(UserWarning, match=r"a\.aedat4 is cut or damaged"):
        read = read_events(write("a.aedat4", content + content[-100:]))
    np.testing.assert_array_equal(read, events)
    with pytest.raises(DataError, match=r"b\.aedat4 is damaged"):
        read_events(write("b.aedat4", content[:-100]))
    with pytest.raises(DataError, match=r"c\.aedat4 holds no event"):
        read_events(write("c.aedat4", recordings.aedat4_bytes(recording(0))))


def test_aedat4_without_its_package_says_what_to_install(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "aedat", None)
    with pytest.raises(DataError, match=r"ship\.aedat is AEDAT 4.*install core-utils\[aedat\]"):
        read_events(write("ship.aedat", recordings.aedat4_bytes(recording(3))))


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from([*WRITERS, "ship.aedat4"]),
    header=st.booleans(),
    cut=st.integers(0, 80),
    change=st.binary(max_size=60),
    at=st.integers(0, 200),
    sort=st.booleans(),
)
def test_damage_never_crashes(tmp_path_factory, name, header, cut, change, at, sort):
    writer = WRITERS.get(name, recordings.aedat4_bytes)
    content = writer(recording(6)) if header else b""
    content = content[:at] + change + content[at + len(change) :]
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content[: len(content) - cut])
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        try:
            events = read_events(path, sort=sort)
        except DataError as error:
            sound = name in str(error)
        else:
            sound = len(events) > 0 and (np.diff(events["t"]) >= 0).all() and set(events["p"].tolist()) <= {0, 1}
    assert sound


def test_a_folder_of_recordings_is_sorted_by_the_numbers_in_its_names(tmp_path):
    for name in ("ship", "frog", ".cache"):
        (tmp_path / name).mkdir()
        for number in (10, 9, 100, 1):
            (tmp_path / name / f"cifar10_{name}_{number}.aedat").write_bytes(recordings.aedat2_bytes(recording(number)))
        (tmp_path / name / "notes.txt").touch()
    folder = event_folder(tmp_path)
    assert folder.classes == ("frog", "ship")
    assert [path.name for path in folder.paths[:4]] == [f"cifar10_frog_{number}.aedat" for number in (1, 9, 10, 100)]
    assert folder.labels.tolist() == [0] * 4 + [1] * 4
    assert [len(folder.read(index)) for index in range(len(folder))] == [1, 9, 10, 100] * 2


def test_a_class_without_recordings_is_named(tmp_path):
    (tmp_path / "ship").mkdir()
    with pytest.raises(DataError, match=r"ship holds no recording"):
        event_folder(tmp_path)
