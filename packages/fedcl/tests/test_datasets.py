"""Published layouts, written small by these tests; damaged files are named."""

import gzip
import json
import struct

import numpy as np
import pytest
from PIL import Image

from core_utils.data import DataError
from fedcl.datasets import load_data
from fedcl.job import ScenarioTable, make_scenario


def picture(file, shade, size=(9, 7)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(file, quality=95)


def test_embedded_data_need_no_folder():
    garments = load_data("garments")
    assert garments.x.shape == (8000, 1, 14, 14)
    assert abs(garments.x.mean()) < 0.05
    digits = load_data("digits")
    assert digits.x.shape == (1437, 1, 8, 8)
    assert digits.x.dtype == np.float32
    assert abs(digits.x.mean()) < 0.05
    assert digits.x.std() == pytest.approx(1, abs=0.05)


@pytest.fixture
def cifar(tmp_path):
    """CIFAR-100's binary version: coarse label, fine label, 3072 pixels."""
    for name, per_class in (("train.bin", 3), ("test.bin", 1)):
        rows = [bytes([label % 20, label]) + bytes([label]) * 3072 for label in range(100) for _ in range(per_class)]
        (tmp_path / name).write_bytes(b"".join(rows))
    return tmp_path


def test_cifar_100_is_read_scaled_and_split_into_ten_tasks(cifar):
    data = load_data("cifar100", cifar, image_size=64)
    assert data.x.shape == (300, 3, 64, 64)
    assert (data.x[data.y == 7] == 7).all()
    table = ScenarioTable(dataset="cifar100", data=cifar, tasks=10, clients=3)
    made = make_scenario(table, 0)
    assert [len(task) for task in made.tasks] == [10] * 10
    assert made.client(0, 0).x.shape == (10, 3, 32, 32)
    assert made.client(0, 0).x.dtype == np.float32
    (cifar / "train.bin").write_bytes((cifar / "train.bin").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train.bin has 922199 bytes, not a multiple of 3074"):
        load_data("cifar100", cifar)


@pytest.mark.parametrize("layout", ["folders", "csv"])
def test_mini_imagenet_is_split_anew_within_each_class(tmp_path, layout):
    names = [f"n{label:08d}" for label in range(4)]
    tables = {part: ["filename,label"] for part in ("train", "val", "test")}
    for label, name in enumerate(names):
        for number in range(12):
            file = f"{name}{number:04d}.jpg"
            picture(tmp_path / ("images" if layout == "csv" else name) / file, 60 * label)
            tables[("train", "train", "val", "test")[label]].append(f"{file},{name}")
    if layout == "csv":
        for part, lines in tables.items():
            (tmp_path / f"{part}.csv").write_text("\n".join(lines) + "\n")
    data = load_data("miniimagenet", tmp_path, image_size=8)
    assert data.x.shape == (40, 3, 8, 8)
    assert (np.bincount(data.y) == 10).all()
    assert (np.bincount(data.y_test) == 2).all()
    assert all(
        abs(int(image[0].mean()) - 60 * label) < 4 for image, label in zip(data.x_test, data.y_test, strict=True)
    )
    again = load_data("miniimagenet", tmp_path, image_size=8)
    assert (again.y == data.y).all()


def test_a_csv_that_leaves_its_folder_or_lacks_a_column_is_refused(tmp_path):
    for part in ("train", "val", "test"):
        (tmp_path / f"{part}.csv").write_text("filename,label\n../../etc/passwd,a\n")
    with pytest.raises(ValueError, match="lies outside"):
        load_data("miniimagenet", tmp_path)
    (tmp_path / "val.csv").write_text("filename,label\nx.jpg,\n")
    with pytest.raises(DataError, match=r"val.csv line 2 lacks filename or label"):
        load_data("miniimagenet", tmp_path)


def annotate(root, name, part, categories, per_category):
    images, annotations = [], []
    for category in categories:
        for number in range(per_category):
            identity = 1000 * category + number
            file = f"data/{name}/{part}/{category:04d}/{number:06d}.jpg"
            picture(root / file, category % 256, (12, 10))
            images.append({"id": identity, "file_name": file})
            annotations.append({"id": identity, "image_id": identity, "category_id": category})
    file = root / "annotations" / f"{name}_{part}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": [{"id": c} for c in categories]}
    file.write_text(json.dumps(content))


def test_the_decathlon_is_a_task_a_data_set_tested_on_its_validation_part(tmp_path):
    for name, categories in (("aircraft", [10001, 10002]), ("svhn", [20001, 20002, 20003])):
        annotate(tmp_path, name, "train", categories, 3)
        annotate(tmp_path, name, "val", categories, 2)
    data = load_data("decathlon", tmp_path, image_size=16)
    assert data.tasks == ((0, 1), (2, 3, 4))
    assert data.x.shape == (15, 3, 16, 16)
    assert (np.bincount(data.y_test) == 2).all()
    assert "hidden" in data.note
    made = make_scenario(ScenarioTable(dataset="decathlon", data=tmp_path, clients=2, allow_uneven=True), 0)
    assert [made.classes(task) for task in range(2)] == [2, 3]
    annotate(tmp_path, "svhn", "val", [20001, 20009], 1)
    with pytest.raises(DataError, match=r"svhn_val.json has category 20009, which train.json lacks"):
        load_data("decathlon", tmp_path)
    (tmp_path / "annotations/svhn_val.json").write_text("{}")
    with pytest.raises(DataError, match=r"svhn_val.json is missing or no COCO annotation file"):
        load_data("decathlon", tmp_path)


def test_your_own_folders_may_define_tasks(tmp_path):
    for part in ("train", "test"):
        for shade, name in enumerate(("cat", "dog", "owl", "yak")):
            for number in range(3):
                picture(tmp_path / part / name / f"{number}.png", 50 * shade)
    assert load_data("folder", tmp_path, image_size=8).tasks is None
    (tmp_path / "tasks.csv").write_text("class,task\ncat,pets\ndog,pets\nowl,wild\nyak,wild\n")
    data = load_data("folder", tmp_path, image_size=8)
    assert data.tasks == ((0, 1), (2, 3))
    (tmp_path / "tasks.csv").write_text("class,task\ncat,pets\ndog,pets\nowl,wild\n")
    with pytest.raises(DataError, match=r"tasks.csv and the class folders differ in yak"):
        load_data("folder", tmp_path)
    (tmp_path / "test/yak").rename(tmp_path / "test/zebra")
    with pytest.raises(DataError, match=r"class yak of .* lies in one of train and test alone"):
        load_data("folder", tmp_path)


@pytest.mark.parametrize("damage", ["magic", "truncated", "gzip"])
def test_damaged_idx_files_are_named(tmp_path, damage):
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 1, 28, 28) + bytes(784))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 1) + bytes(1))
    file = tmp_path / "train-images-idx3-ubyte"
    content = file.read_bytes()
    changed = {"magic": b"\1" + content[1:], "truncated": content[:-5], "gzip": gzip.compress(content)[:-9]}[damage]
    message = {
        "magic": "is not an IDX file",
        "truncated": "has 795 bytes, its header asks for 800",
        "gzip": "cannot be read",
    }
    file.write_bytes(changed)
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte {message[damage]}"):
        load_data("garments", tmp_path)


def test_an_unknown_name_or_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="dataset must be one of garments, digits, cifar100"):
        load_data("imagenet")
    with pytest.raises(DataError, match="dataset cifar100 needs --data"):
        load_data("cifar100")
    with pytest.raises(DataError, match="does not exist"):
        load_data("miniimagenet", tmp_path / "none")
