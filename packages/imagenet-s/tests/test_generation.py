import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import photographs
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagenet_s import Grid, ImagenetSError, Pipeline, Sample, SampleError, generate, open_samples, shards
from imagenet_s.decoding import decoders, register_decoder

GRID = Grid(("pillow", "opencv", "turbo-boxup"), ("pillow-box", "opencv-linear"), Pipeline(size=28))
PHOTOS = [
    Sample(data, number % 3, f"{number % 3}/photo {number}.jpg") for number, data in enumerate(photographs.small(7))
]


def contents(folder):
    """Relative path and bytes of every file."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "shards"
    return folder, generate(PHOTOS, GRID, folder, shard_size=3)


@pytest.fixture
def finished(made, tmp_path):
    """A folder of three finished tars, of a test's own."""
    return Path(shutil.copytree(made[0], tmp_path / "finished"))


def test_tars_hold_each_view_as_webdataset_groups_them(made):
    import webdataset

    folder, done = made
    assert (done.images, done.errors, done.resumed) == (7, (), 0)
    assert [path.name for path in sorted(folder.iterdir())] == [
        "errors.jsonl",
        "manifest.json",
        *(f"shard-00000{number}.tar" for number in range(3)),
    ]
    rows = []
    for record in done.shards:
        with (folder / record.shard).open("rb") as file:
            members = ({**each, "__url__": ""} for each in webdataset.tariterators.tar_file_iterator(file))
            rows += webdataset.tariterators.group_by_keys(members)
    assert len(rows) == 7
    for row, photo in zip(rows, PHOTOS, strict=True):
        assert int(row["cls"]) == photo.label
        assert json.loads(row["json"])["name"] == photo.name
        for name, pipeline in GRID:
            stored = np.asarray(Image.open(io.BytesIO(row[f"{name.replace('/', '.')}.webp"])))
            assert np.array_equal(stored, pipeline.pixels(photo.data)), name


def test_the_manifest_tells_what_lies_there(finished):
    facts = manifest(finished)
    assert facts["complete"] is True
    assert facts["images"] == 7
    assert [each["count"] for each in facts["shards"]] == [3, 3, 1]
    for each in facts["shards"]:
        assert hashlib.sha256((finished / each["shard"]).read_bytes()).hexdigest() == each["sha256"]
    assert {*GRID.decoders, *GRID.resizers, "numpy", "pillow", "python"} <= facts["versions"].keys()
    assert Pipeline.from_json(json.dumps(facts["pipeline"])) == GRID.pipeline


@pytest.mark.parametrize("codec", ["png", "npy"])
def test_tables_have_a_column_for_each_view(tmp_path, codec):
    generate(PHOTOS, GRID, tmp_path, "parquet", codec=codec, shard_size=4)
    table = pq.read_table(tmp_path / "shard-000000.parquet").to_pydict()
    assert list(table) == ["index", "name", "label", *GRID.names]
    assert table["label"] == [0, 1, 2, 0]
    for name, pipeline in GRID:
        file = io.BytesIO(table[name][3])
        stored = np.load(file) if codec == "npy" else np.asarray(Image.open(file))
        assert np.array_equal(stored, pipeline.pixels(PHOTOS[3].data))


def test_the_authors_layout_has_a_file_for_each_view_and_a_text_file_of_labels(tmp_path):
    generate(PHOTOS, GRID, tmp_path, "npy", shard_size=3)
    for name, pipeline in GRID:
        lines = (tmp_path / f"{name.replace('/', '_')}.txt").read_text().splitlines()
        assert lines == [f"{photo.name}.npy {photo.label}" for photo in PHOTOS]
        for photo in PHOTOS:
            stored = np.load(tmp_path / name / f"{photo.name}.npy")
            assert np.array_equal(stored, pipeline.pixels(photo.data))
    assert len(list(tmp_path.rglob("*.npy"))) == 7 * 6
    assert generate(PHOTOS, GRID, tmp_path, "npy", shard_size=3).resumed == 3


@pytest.fixture(scope="module")
def cluster():
    import distributed

    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None, silence_logs=50
    ) as cluster:
        yield cluster.scheduler_address


def test_one_worker_two_workers_and_a_cluster_write_the_same_bytes(tmp_path, cluster):
    photos = [*PHOTOS, Sample(b"no image", 1, "bad.jpg")]
    root = tmp_path / "data"
    for photo in photos:
        photographs.write_files((root / photo.name).parent, [(Path(photo.name).name, photo.data)])
    lines = (f"{photo.name} {photo.label}\n" for photo in photos)
    (root / "meta.txt").write_text("".join(lines))
    samples = open_samples(root / "meta.txt")
    for layout in ("webdataset", "parquet", "npy"):
        runs = {"one": {}, "two": {"workers": 2}, "cluster": {"cluster": cluster}}
        for name, where in runs.items():
            done = generate(samples, GRID, tmp_path / layout / name, layout, shard_size=3, max_errors=0.2, **where)
            assert [(error.index, error.name, error.kind) for error in done.errors] == [(7, "bad.jpg", "DecodeError")]
        one, two, many = (contents(tmp_path / layout / name) for name in runs)
        assert len(one) >= 5
        assert one == two == many


def test_bad_images_are_in_no_view_and_named(tmp_path):
    bad = [Sample(data, 1, name) for name, data in photographs.broken_files()]
    odd = [Sample(data, 0, name) for name, data in photographs.odd_files()]
    grid = Grid(("pillow", "opencv"), ("pillow-box",), Pipeline(size=28))
    done = generate([*bad, *odd, *PHOTOS], grid, tmp_path, "npy", shard_size=4, max_errors=0.5)
    assert done.images == len(odd) + 7
    assert [error.name for error in done.errors] == [sample.name for sample in bad]
    lines = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(len(bad)))
    assert all(line["message"] and "\n" not in line["message"] for line in lines)
    names = {path.name for path in tmp_path.rglob("*.npy")}
    assert not {f"{sample.name}.npy" for sample in bad} & names
    assert {f"{sample.name}.npy" for sample in odd} <= names


def test_more_bad_images_than_may_be_end_the_run(tmp_path):
    photos = [*PHOTOS, Sample(b"", 1, "empty.jpg")]
    with pytest.raises(SampleError, match=r"1 of 8 images cannot be read, more than the share of 0\.01.*empty\.jpg"):
        generate(photos, GRID, tmp_path, shard_size=4)
    assert manifest(tmp_path)["complete"] is False
    assert json.loads((tmp_path / "errors.jsonl").read_text())["name"] == "empty.jpg"
    assert generate(photos, GRID, tmp_path, shard_size=4, max_errors=0.125).images == 7


def test_an_image_that_ends_its_process_costs_only_itself(tmp_path):
    def decode(data):
        if data == b"deadly":
            os._exit(3)
        return decoders()["pillow"].decode(data)

    if "fragile" not in decoders():
        register_decoder("fragile", decode, version="1")
    grid = Grid(("fragile",), ("pillow-box",), Pipeline(size=28))
    photos = [*PHOTOS[:3], Sample(b"deadly", 1, "deadly.jpg"), *PHOTOS[3:5]]
    done = generate(photos, grid, tmp_path, shard_size=3, max_errors=0.5)
    assert [(error.index, error.name, error.kind) for error in done.errors] == [(3, "deadly.jpg", "died")]
    assert [record.count for record in done.shards] == [3, 2]


SLOW = """
import sys
sys.path.insert(0, {tests!r})
from test_generation import GRID
from imagenet_s import generate, open_samples
generate(open_samples({data!r}), GRID, {out!r}, shard_size=2, workers=2)
"""


def test_a_killed_run_goes_on_and_leaves_finished_shards_untouched(tmp_path):
    photographs.class_folder(tmp_path / "data", 40, height=300, width=400)
    code = SLOW.format(tests=str(Path(__file__).parent), data=str(tmp_path / "data"), out=str(tmp_path / "killed"))
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        deadline = time.time() + 60
        while len(list((tmp_path / "killed" / ".shards").glob("*.json"))) < 3 and time.time() < deadline:
            time.sleep(0.002)
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    killed = tmp_path / "killed"
    finished = {json.loads(path.read_text())["shard"] for path in (killed / ".shards").glob("*.json")}
    before = {name: (killed / name).stat() for name in finished}
    assert 3 <= len(finished) < 20
    assert manifest(killed)["complete"] is False

    samples = open_samples(tmp_path / "data")
    done = generate(samples, GRID, killed, shard_size=2)
    assert done.resumed == len(finished)
    for name, stat in before.items():
        after = (killed / name).stat()
        assert (after.st_mtime_ns, after.st_ino) == (stat.st_mtime_ns, stat.st_ino)
    generate(samples, GRID, tmp_path / "whole", shard_size=2, workers=2)
    left = {name: data for name, data in contents(killed).items() if not name.endswith(".tmp")}
    assert left == contents(tmp_path / "whole")


def test_a_shard_that_was_damaged_is_made_again_and_no_other(finished):
    whole = contents(finished)
    (finished / "shard-000001.tar").write_bytes(b"damaged")
    (finished / "shard-000002.tar").unlink()
    assert generate(PHOTOS, GRID, finished, shard_size=3).resumed == 1
    assert contents(finished) == whole


def test_other_library_versions_are_refused(finished):
    facts = manifest(finished)
    now = facts["versions"]["numpy"]
    facts["versions"]["numpy"] = "1.0"
    (finished / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(ImagenetSError, match=re.escape(f"numpy 1.0 then, {now} now")):
        generate(PHOTOS, GRID, finished, shard_size=3)
    assert generate(PHOTOS, GRID, finished, shard_size=3, overwrite=True).resumed == 0


def test_a_worker_with_other_versions_makes_nothing(tmp_path):
    from imagenet_s.samples import as_samples

    job = shards.ShardJob(0, 0, as_samples(PHOTOS), GRID, str(tmp_path), "npy", "npy", {"numpy": "1.0"})
    with pytest.raises(ImagenetSError, match=r"numpy 1\.0 then"):
        shards.write_shard(job)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_size": 2}, "another shard_size: 3, now 2"),
        ({"codec": "png"}, 'another codec: "webp", now "png"'),
        ({"grid": Grid(("pillow",), ("pillow-box",), Pipeline(size=28))}, "another grid"),
        ({"samples": PHOTOS[:4]}, "another samples"),
        ({"resume": False}, "holds shards already"),
    ],
)
def test_a_folder_of_another_run_is_refused(finished, change, message):
    asked = {"samples": PHOTOS, "grid": GRID, "out": finished, "shard_size": 3}
    before = contents(finished)
    with pytest.raises(ImagenetSError, match=message):
        generate(**asked | change)
    assert contents(finished) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(ImagenetSError, match="holds something else"):
            generate(PHOTOS, GRID, tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shard_size": 0}, "shard_size"),
        ({"codec": "png", "shard": "npy"}, "does not go with npy"),
        ({"max_errors": 2.0}, "max_errors"),
        ({"samples": []}, "no samples"),
        ({"samples": [PHOTOS[0], PHOTOS[0]], "shard": "npy"}, "two samples are called"),
        ({"samples": [Sample(PHOTOS[0].data, 0, "../escaped.jpg")], "shard": "npy"}, "leads out of its folder"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises(ImagenetSError, match=message):
        generate(**{"samples": PHOTOS, "grid": GRID, "out": tmp_path} | wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_fails_its_shard_and_no_finished_one(tmp_path):
    code = """
import resource, sys
sys.path.insert(0, {tests!r})
from test_generation import GRID, PHOTOS
from imagenet_s import generate
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
generate([*PHOTOS, *PHOTOS * 5], GRID, {out!r}, shard_size=int(sys.argv[1]))
"""
    code = code.format(tests=str(Path(__file__).parent), out=str(tmp_path / "full"))
    failed = subprocess.run([sys.executable, "-c", code, "35"], capture_output=True, text=True, timeout=60)
    assert failed.returncode == 1
    assert "CheckFailed: 1 of 2 shards failed; shard-000000.tar: FileError: cannot write" in failed.stderr
    assert "File too large" in failed.stderr
    assert [path.name for path in (tmp_path / "full").glob("*.tar")] == ["shard-000001.tar"]
    assert generate([*PHOTOS, *PHOTOS * 5], GRID, tmp_path / "full", shard_size=35).resumed == 1
