import gzip
import importlib.util
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_utils.data import (
    DataError,
    Split,
    cifar_folder,
    digits,
    fashion_mnist_small,
    idx_folder,
    image_folder,
    read_image,
    stratified,
)

SOURCE = Path("/usr/share/datasets/fashion-mnist")
SUBSET_TOOL = Path(__file__).parents[3] / "tools" / "make_subset.py"


def test_the_embedded_subset_is_stratified():
    split = fashion_mnist_small()
    assert split.x_train.shape == (8000, 28, 28)
    assert split.x_test.shape == (2000, 28, 28)
    assert split.x_train.dtype == np.uint8
    assert split.y_train.dtype == np.int64
    assert np.bincount(split.y_train).tolist() == [800] * 10
    assert np.bincount(split.y_test).tolist() == [200] * 10


def test_the_embedded_subset_is_debians():
    if not SOURCE.is_dir() and os.environ.get("CORE_UTILS_REQUIRE_FASHION_MNIST") != "1":
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    subprocess.run([sys.executable, str(SUBSET_TOOL), "--check"], check=True)
    full, small = idx_folder(SOURCE), fashion_mnist_small()
    assert full.x_train.shape == (60000, 28, 28)
    first_shirts = np.flatnonzero(full.y_test == 6)[:200]
    assert np.array_equal(small.x_test[small.y_test == 6], full.x_test[first_shirts])


def test_the_licence_notice_travels_with_the_subset():
    import core_utils

    notice = Path(core_utils.__file__).parent / "embedded" / "LICENSE-fashion-mnist"
    assert "Zalando" in notice.read_text()
    assert (notice.parent / "fashion_mnist_small.npy.xz").stat().st_size < 4_000_000


def test_digits_are_scikit_learns():
    if importlib.util.find_spec("sklearn") is None:
        with pytest.raises(DataError, match=r"install core-utils\[data\]"):
            digits()
        return
    split = digits()
    assert (len(split.x_train), len(split.x_test)) == (1437, 360)
    assert split.x_train[0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]  # the first row of the data set's first image
    code = "import sys; from core_utils.data import digits; digits(); assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    np.testing.assert_array_equal(np.concatenate([split.x_train, split.x_test]), bunch.images)
    np.testing.assert_array_equal(np.concatenate([split.y_train, split.y_test]), bunch.target)


def idx(array):
    kinds = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}
    header = bytes([0, 0, kinds[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_idx_folder(folder, packed=False, dtype=np.uint8):
    images, labels = np.arange(2 * 3 * 4).astype(dtype).reshape(2, 3, 4), np.array([7, 9], np.uint8)
    for part in ("train", "t10k"):
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            content = idx(array)
            (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return images


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_idx_files_are_read_plain_or_packed(tmp_path, packed, dtype):
    images = write_idx_folder(tmp_path, packed, dtype)
    split = idx_folder(tmp_path)
    assert np.array_equal(split.x_train, images)
    assert split.x_train.dtype == dtype
    assert split.y_test.tolist() == [7, 9]


@given(st.binary(max_size=40))
def test_no_bytes_break_the_idx_reader_without_a_word(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("idx")
    write_idx_folder(folder)
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError):
        idx_folder(folder)


@pytest.mark.parametrize("packed", [False, True])
def test_a_truncated_idx_file_is_named(tmp_path, packed):
    write_idx_folder(tmp_path, packed)
    file = tmp_path / ("t10k-images-idx3-ubyte" + ".gz" * packed)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.*truncated or damaged"):
        idx_folder(tmp_path)


def test_a_header_that_asks_for_terabytes_allocates_nothing(tmp_path):
    write_idx_folder(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + b"\xff" * 12 + b"x")
    with pytest.raises(DataError, match="its header asks for"):
        idx_folder(tmp_path)


@pytest.mark.parametrize("reader", [idx_folder, cifar_folder, image_folder])
def test_missing_empty_and_foreign_folders_are_named(tmp_path, reader):
    with pytest.raises(DataError, match="does not exist"):
        reader(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is empty"):
        reader(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=str(tmp_path)):
        reader(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        reader(tmp_path / "notes.txt")


def cifar_rows(rng, count, classes):
    return rng.integers(0, classes, count), rng.integers(0, 256, (count, 3072), dtype=np.uint8)


@pytest.mark.parametrize("hundred", [False, True])
def test_cifar_binary_files_are_read(tmp_path, hundred):
    rng = np.random.default_rng(0)
    names = ["train.bin", "test.bin"] if hundred else ["data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"]
    written = []
    for name in names:
        labels, images = cifar_rows(rng, 4, 100 if hundred else 10)
        coarse = [np.zeros_like(labels)] if hundred else []
        (tmp_path / name).write_bytes(np.column_stack([*coarse, labels, images]).astype(np.uint8).tobytes())
        written.append((labels, images))
    split = cifar_folder(tmp_path)
    assert np.array_equal(split.y_train, np.concatenate([labels for labels, _ in written[:-1]]))
    assert np.array_equal(split.x_test.reshape(4, 3072), written[-1][1])
    (tmp_path / names[0]).write_bytes(b"\0" * 3000)
    with pytest.raises(DataError, match=rf"{names[0]} has 3000 bytes"):
        cifar_folder(tmp_path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickled_cifar_is_read(tmp_path, protocol):
    rng = np.random.default_rng(0)
    for name in ("data_batch_1", "test_batch"):
        labels, images = cifar_rows(rng, 3, 10)
        (tmp_path / name).write_bytes(pickle.dumps({b"data": images, b"labels": labels.tolist()}, protocol=protocol))
    split = cifar_folder(tmp_path)
    assert split.y_test.tolist() == labels.tolist()
    assert np.array_equal(split.x_test.reshape(3, 3072), images)


class Evil:
    def __reduce__(self):
        return (os.system, ("touch escaped",))


@pytest.mark.parametrize("evil", [Evil(), {"data": Evil()}, np.array([Evil()], dtype=object)])
def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch, evil):
    monkeypatch.chdir(tmp_path)
    for name in ("data_batch_1", "test_batch"):
        (tmp_path / name).write_bytes(pickle.dumps(evil))
    with pytest.raises(DataError, match=r"data_batch_1 is no CIFAR batch: refuses \w+\.system"):
        cifar_folder(tmp_path)
    assert not (tmp_path / "escaped").exists()


def test_an_image_folder_is_listed_by_class_and_name(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in ("b/2.png", "b/1.png", "a/z.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.fromarray(np.full((2, 3, 3), int(name[0] == "a") * 200, np.uint8)).save(tmp_path / name)
    folder = image_folder(tmp_path)
    assert folder.classes == ("a", "b")
    assert folder.labels.tolist() == [0, 1, 1]
    assert [path.name for path in folder.paths] == ["z.png", "1.png", "2.png"]
    assert folder.read(0).shape == (2, 3, 3)
    assert folder.read(0).max() == 200
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        image_folder(tmp_path)


def test_a_broken_or_huge_image_is_named(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(DataError, match=r"text\.png"):
        read_image(tmp_path / "text.png")
    image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(tmp_path / "big.png")
    monkeypatch.setattr("core_utils.data.LARGEST_IMAGE", 9_999)
    with pytest.raises(DataError, match="100 x 100 pixels, more than 9999"):
        read_image(tmp_path / "big.png")
    content = (tmp_path / "big.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"cut\.png"):
        read_image(tmp_path / "cut.png")


def test_stratified_takes_as_many_of_each():
    labels = np.repeat([3, 1, 2], 10)
    chosen = stratified(labels, 4, np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [0, 4, 4, 4]
    assert np.array_equal(chosen, np.unique(chosen))
    with pytest.raises(DataError, match="class 1 has 10 members, 11"):
        stratified(labels, 11, np.random.default_rng(0))


def test_a_split_needs_a_label_for_each_image():
    with pytest.raises(DataError, match="3 train images have 2 labels"):
        Split(np.zeros((3, 1)), np.zeros(2, np.int64), np.zeros((0, 1)), np.zeros(0, np.int64))
