"""Frame caches: what is in them, when they are made anew, what an interruption leaves."""

import json
import pickle
from functools import partial

import numpy as np
import pytest

from core_utils.data import DataError
from core_utils.files import FileError
from core_utils.spiking.events import CachedFrames, cache, cache_frames, cache_key

pytestmark = pytest.mark.bare

SHAPE = (3, 2, 4, 4)


def frames_of(path, bad=None):
    """Frames that a text file names by their value; `bad` is a file that cannot be used."""
    if path.name == bad:
        raise DataError(f"{path} is damaged")
    return np.full(SHAPE, float(path.read_text()))


@pytest.fixture
def paths(tmp_path):
    files = [tmp_path / "data" / f"class{index % 2}" / f"{index}.txt" for index in range(5)]
    for index, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(index + 1))
    return files


@pytest.fixture
def made(paths, tmp_path):
    def make(function=frames_of, name="frames.npy", **options):
        return cache_frames(
            function, paths, tmp_path / "cache" / name, shape=SHAPE, facts={"size": 4}, progress=False, **options
        )

    return make


@pytest.mark.parametrize("dtype", ["<f4", "<u2"])
def test_frames_are_those_of_the_recordings_in_their_order(made, dtype):
    rows = np.load(made(dtype=dtype), allow_pickle=False)
    assert rows.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(rows, np.broadcast_to(np.arange(1, 6).reshape(5, 1, 1, 1, 1), (5, *SHAPE)))


def test_a_part_reads_its_rows_as_floats_and_travels_without_the_map(made):
    part = CachedFrames(made(dtype="<u2"), np.array([0, 0, 0, 1, 1]), np.array([4, 1]))
    frames, label = part[0]
    assert (frames.dtype, label, len(part)) == (np.float32, 1, 2)
    np.testing.assert_array_equal(frames, np.full(SHAPE, 5))
    sent = pickle.dumps(part)
    assert len(sent) < 2000
    np.testing.assert_array_equal(pickle.loads(sent)[1][0], part[1][0])


def test_a_finished_cache_is_not_made_again(made, monkeypatch):
    path = made()
    monkeypatch.setattr(cache, "map_jobs", None)
    assert made() == path


def test_the_key_changes_with_recordings_and_facts(paths):
    keys = [cache_key(paths, {}), cache_key(paths[:4], {}), cache_key(paths, {"sort": True})]
    paths[0].write_text("12345")
    keys.append(cache_key(paths, {}))
    assert len(set(keys)) == 4
    assert keys[-1] == cache_key(paths, {})


@pytest.mark.parametrize("damage", ["cut", "flipped", "no checksum"])
def test_a_damaged_cache_is_made_anew(made, damage, caplog):
    path = made()
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-10])
    elif damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.with_suffix(".json").unlink()
    assert made().read_bytes() == content
    assert "is cut or damaged; its frames are made anew" in caplog.text


def test_an_interruption_loses_no_finished_job(made, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 2)
    with pytest.raises(DataError, match=r"4\.txt is damaged"):
        made(partial(frames_of, bad="4.txt"))  # of the last job, when the others have finished
    shards = sorted((tmp_path / "cache" / "frames").glob("*.npy"))
    assert [shard.name for shard in shards] == ["0000000.npy", "0000002.npy"]
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    (shards[0].parent / ".0000004.npy.abc.tmp").write_bytes(b"half")
    seen = []
    original = cache.map_jobs
    monkeypatch.setattr(cache, "map_jobs", lambda *args, **more: seen.append(more["done"]) or original(*args, **more))
    path = made()
    assert seen == [{"recordings from 0"}]
    assert not shards[0].parent.exists()
    assert path.read_bytes() == made(name="other.npy").read_bytes()


def test_processes_make_the_same_file(made, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 2)
    one, two = (made(name=f"{count}.npy", workers=count) for count in (1, 2))
    assert one.read_bytes() == two.read_bytes()
    assert json.loads(one.with_suffix(".json").read_text())["size"] == 4
    assert not list(tmp_path.glob("*/.*.tmp"))


def test_a_cache_that_cannot_be_written_is_named(paths, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"cannot write .*file/frames"):
        cache_frames(frames_of, paths, tmp_path / "file" / "frames.npy", shape=SHAPE, facts={})
