import io
import pickle
import tarfile
import warnings

import photographs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core_utils.errors import UserError
from imagenet_s import Sample, SampleError, open_samples
from imagenet_s.samples import AlreadyResizedWarning, as_samples

FILES = list(photographs.small(5))


def tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def hugging_face(path, rows, row_group_size=2):
    """The layout that `datasets` writes for Image(decode=False) and ClassLabel."""
    image = pa.array([row[:2] for row in rows], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    image = pa.StructArray.from_arrays(
        [pa.array([row[0] for row in rows], pa.binary()), pa.array([row[1] for row in rows])], ["bytes", "path"]
    )
    table = pa.table({"image": image, "label": pa.array([row[2] for row in rows], pa.int64())})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


@pytest.fixture(params=["folder", "meta", "parquet", "plain parquet", "tar", "tars"])
def data_set(request, tmp_path):
    """The same five files and labels in every layout."""
    labels = [0, 0, 0, 1, 1]
    names = [f"{'ab'[label]}/photo {number}.jpg" for number, label in enumerate(labels)]
    rows = list(zip(FILES, names, labels, strict=True))
    if request.param in ("folder", "meta"):
        for data, name, _ in rows:
            (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "images" / name).write_bytes(data)
        if request.param == "folder":
            return tmp_path / "images"
        (tmp_path / "images" / "meta.txt").write_text("".join(f"{name} {label}\n" for _, name, label in rows))
        return tmp_path / "images" / "meta.txt"
    if request.param == "parquet":
        return hugging_face(tmp_path / "train.parquet", rows)
    if request.param == "plain parquet":
        pq.write_table(pa.table({"label": labels, "jpg": pa.array(FILES, pa.binary())}), tmp_path / "train.parquet")
        return tmp_path / "train.parquet"
    members = [
        member
        for data, name, label in rows
        for member in ((name.replace(".jpg", ".JPG"), data), (name.replace(".jpg", ".cls"), str(label).encode()))
    ]
    if request.param == "tar":
        return tar(tmp_path / "a.tar", members)
    tar(tmp_path / "0.tar", members[:4])
    tar(tmp_path / "1.tar", members[4:])
    return tmp_path


def test_every_layout_gives_the_same_bytes_and_labels(data_set):
    samples = open_samples(data_set, classes=2)
    assert len(samples) == 5
    assert [sample.data for sample in samples] == FILES
    assert samples.labels == (0, 0, 0, 1, 1)
    assert [sample.label for sample in samples] == [0, 0, 0, 1, 1]
    assert len(set(samples.names)) == 5
    assert samples[-1].data == FILES[-1]


def test_a_slice_travels_and_still_reads(data_set):
    part = pickle.loads(pickle.dumps(open_samples(data_set)[1:4]))
    assert [sample.data for sample in part] == FILES[1:4]
    assert part.labels == (0, 0, 1)


def test_labels_outside_the_classes_are_refused(data_set):
    with pytest.raises(SampleError, match=r"4: label 1 of .* is not from 0 to 0"):
        open_samples(data_set, classes=1)


def test_bytes_are_read_when_asked_for(tmp_path):
    photographs.class_folder(tmp_path, 4)
    samples = open_samples(tmp_path)
    gone = tmp_path / samples.names[2]
    gone.unlink()
    assert samples[1].data
    with pytest.raises(SampleError, match=f"cannot read {gone}"):
        samples[2]


def test_names_keep_folders_and_blanks(tmp_path):
    photographs.class_folder(tmp_path, 2)
    assert open_samples(tmp_path).names == ("cat/photo 000.JPEG", "dog/photo 001.JPEG")


def test_a_flat_folder_has_no_labels(tmp_path):
    photographs.write_files(tmp_path, (("b.jpg", FILES[0]), ("a.png", FILES[1]), ("notes.txt", b"")))
    samples = open_samples(tmp_path)
    assert samples.names == ("a.png", "b.jpg")
    assert samples.labels == (None, None)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a.jpg 0\nb.jpg\n", "line 2 has no label"),
        ("a.jpg 0\n\nb.jpg 1\n", "line 2 is blank"),
        ("a.jpg 0\nb.jpg one\n", "line 2 has no label"),
        ("a.jpg 0\nb.jpg 0\nc.jpg -1\n", "line 3: label -1 of c.jpg is not at least 0"),
        ("/etc/passwd 0\n", "line 1: path '/etc/passwd' leads out"),
        ("a.jpg 0\na/../../b.jpg 0\n", "line 2: path 'a/../../b.jpg' leads out"),
        ("C:\\b.jpg 0\n", "line 1: path .* leads out"),
        ("..\\b.jpg 0\n", "line 1: path .* leads out"),
        ("", "holds no images"),
    ],
)
def test_meta_files_name_the_line_that_is_wrong(tmp_path, lines, message):
    (tmp_path / "meta.txt").write_text(lines)
    with pytest.raises(SampleError, match=message):
        open_samples(tmp_path / "meta.txt")


def test_a_meta_file_may_have_its_images_elsewhere(tmp_path):
    (tmp_path / "x y").mkdir()
    (tmp_path / "x y" / "b c.jpg").write_bytes(FILES[0])
    (tmp_path / "meta.txt").write_text("b c.jpg\t7\n")
    (sample,) = open_samples(tmp_path / "meta.txt", root=tmp_path / "x y")
    assert sample == Sample(FILES[0], 7, "b c.jpg")


def test_secret_labels_are_no_labels(tmp_path):
    path = hugging_face(tmp_path / "test.parquet", [(FILES[0], "a.jpg", -1), (FILES[1], "b.jpg", -1)])
    assert open_samples(path).labels == (None, None)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(FILES[0], "a.jpg", None)], "row 1: label None"),
        ([(FILES[0], "a.jpg", 0), (FILES[0], "../a.jpg", 0)], "row 2: path '../a.jpg' leads out"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
    with pytest.raises(SampleError, match=message):
        open_samples(hugging_face(tmp_path / "a.parquet", rows))


def test_a_row_without_bytes_is_named_when_read(tmp_path):
    samples = open_samples(hugging_face(tmp_path / "a.parquet", [(FILES[0], "a.jpg", 0), (None, "b.jpg", 1)]))
    assert samples[0].data == FILES[0]
    with pytest.raises(SampleError, match="row group 0, row 1 holds no bytes"):
        samples[1]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"x"), ("b.jpg", b"x"), ("a.cls", b"0")], "b.jpg has no label"),
        ([("a.jpg", b"x"), ("a.cls", b"cat")], "a.cls holds b'cat'"),
        ([("../a.jpg", b"x")], "leads out"),
        ([("a.jpg", b"x"), ("a.png", b"x")], "a has two images"),
        ([("a.txt", b"x")], "holds no images"),
    ],
)
def test_bad_members_are_named(tmp_path, members, message):
    with pytest.raises(SampleError, match=message):
        open_samples(tar(tmp_path / "a.tar", members))


def test_a_tar_is_read_in_place(tmp_path):
    path = tar(tmp_path / "a.tar", [("a.jpg", FILES[0]), ("a.cls", b"3\n"), ("a.json", b"{}")])
    samples = open_samples(path)
    assert samples[0] == Sample(FILES[0], 3, "a.jpg")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar"]
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(SampleError, match="ends in the middle"):
        samples[0]


@pytest.mark.parametrize("name", ["a.tar", "a.parquet", "a.txt"])
def test_garbage_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff\xfe garbage" * 100)
    with pytest.raises(SampleError, match=name):
        open_samples(tmp_path / name)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(SampleError, match="nowhere does not exist"):
        open_samples(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is empty"):
        open_samples(tmp_path)
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(SampleError, match="compressed"):
        open_samples(tmp_path / "a.tar.gz")


def test_images_that_were_resized_before_are_called_out(tmp_path):
    same = list(photographs.small(1))
    for number in range(20):
        photographs.write_files(tmp_path / "x", [(f"{number}.jpg", same[0])])
    photographs.write_files(tmp_path / "x", [("20.jpg", b"no image")])
    with pytest.warns(AlreadyResizedWarning, match="20 of 20 images are 80 x 60"):
        open_samples(tmp_path)
    for number in range(3):
        photographs.write_files(tmp_path / "x", [(f"o{number}.jpg", next(photographs.small(1, 50, 50)))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_samples(tmp_path)  # 20 of 23 share a size
        open_samples(tmp_path, check_sizes=False)


def test_pairs_and_samples_from_memory():
    samples = as_samples([(FILES[0], 3), Sample(FILES[1], None, "b.jpg")])
    assert list(samples) == [Sample(FILES[0], 3, "00000000"), Sample(FILES[1], None, "b.jpg")]
    assert as_samples(samples) is samples
    with pytest.raises(SampleError, match="sample 1 holds a str"):
        as_samples([(FILES[0], 3), ("path.jpg", 3)])
