"""The job from the shell's side."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from core_utils.data import fashion_mnist_small
from dynsparse import cli

QUICK = ("--set", "batch_size=500", "--epochs", "1", "--quiet")


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["dynsparse", *map(str, words)])
        code = cli.main()
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def idx(tmp_path_factory):
    """300 + 100 images as IDX files."""
    folder, images = tmp_path_factory.mktemp("idx"), fashion_mnist_small()
    for part, x, y in (
        ("train", images.x_train[:300], images.y_train[:300]),
        ("t10k", images.x_test[:100], images.y_test[:100]),
    ):
        for name, array in ((f"{part}-images-idx3-ubyte", x), (f"{part}-labels-idx1-ubyte", y.astype(np.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (folder / name).write_bytes(head + array.tobytes())
    return folder


@pytest.fixture
def trained(program, idx):
    code, out, _ = program("train", *QUICK, "--data", idx, "--out", "run", "--json")
    assert code == 0
    return json.loads(out)


def test_a_training_leaves_what_it_says(program, trained, tmp_path):
    assert trained["sparsity"] == 0.75
    assert trained["parameters"] == 7438
    assert trained["nonzero"] == 7438 - 3 * 3 * 576
    assert 0 <= trained["test_accuracy"] <= 1
    run = tmp_path / "run"
    assert (run / "figures/training.svg").read_text().count("<svg") == 1
    assert "| 0.7500 | 0.2500 |" in (run / "sparsity.md").read_text()
    assert "Stored:" in (run / "costs.md").read_text()
    code, _, _ = program("train", *QUICK, "--data", "moved", "--out", "run", "--json")
    assert code == 2  # another configuration wants another folder


def test_a_training_on_a_folder_like_imagenets_is_evaluated(program, tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3)):
        for name in ("n01440764", "n01443537"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(256, size=(40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{name}_{index}.JPEG")
    more = ("--set", "dataset=imagenet", "--set", "image_size=32", "--set", "batch_size=4")
    words = ("train", *more, "--epochs", "2", "--data", "data", "--out", "run")
    code, out, err = program(*words, "--quiet", "--json")
    assert code == 0, err
    trained = json.loads(out)
    assert trained["sparsity"] == 0.75
    assert round(trained["test_accuracy"] * 6) == pytest.approx(trained["test_accuracy"] * 6)  # of six images
    code, out, _ = program("evaluate", "--run", "run", "--json")
    assert code == 0
    assert json.loads(out)["accuracy"] == trained["test_accuracy"]


def test_a_trained_network_is_evaluated_dense_and_sparse_alike(program, trained):
    code, out, _ = program("evaluate", "--run", "run", "--json")
    assert code == 0
    dense = json.loads(out)
    assert dense["accuracy"] == trained["test_accuracy"]
    code, out, _ = program("evaluate", "--run", "run", "--compiled", "--json")
    assert code == 0
    assert json.loads(out)["loss"] == pytest.approx(dense["loss"], rel=1e-4)


def test_a_trained_network_is_diagnosed(program, trained):
    code, out, _ = program("diagnose", "--run", "run", "--samples", "50", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["density"] for row in rows] == pytest.approx([0.25] * 3)
    assert all(0 <= row["entropy"] <= np.log(4) + 1e-6 for row in rows)


def test_a_trained_network_is_exported(program, trained, tmp_path):
    code, out, _ = program("export", "--run", "run", "--out", "small.safetensors", "--json")
    assert code == 0
    assert json.loads(out)["bytes"] == (tmp_path / "small.safetensors").stat().st_size
    before = (tmp_path / "small.safetensors").read_bytes()
    code, _, err = program("export", "--run", "run", "--out", "small.safetensors")
    assert code == 2
    assert "--out small.safetensors exists" in err
    assert (tmp_path / "small.safetensors").read_bytes() == before


def test_costs_of_the_zoo_are_those_of_the_budget_table(program):
    code, out, _ = program("count", "--model", "sd_resnet18", "--reduction", "4", "--json")
    costs = json.loads(out)
    assert code == 0
    assert round(costs["nonzero"] / 1e6, 2) == 5.30
    assert round(costs["total"] / 1e6, 2) == 45.47
    code, out, _ = program("count", "--model", "sd_resnet18", "--variant", "static")
    assert code == 0
    assert "| all | 11689512 | 11689512 |" in out


def test_a_network_is_timed_beside_itself_dense(program):
    words = ("--model", "sd_tiny", "--input", "1", "14", "14", "--batch", "1", "2", "--repeats", "6", "--json")
    code, out, _ = program("profile", *words)
    found = json.loads(out)
    assert code == 0
    assert [row["batch"] for row in found["batches"]] == [1, 2]
    assert all(0 < row["low"] <= row["ratio"] <= row["high"] for row in found["batches"])
    assert len(found["layers"]) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--target-sparsity", "90"], "sparsity is a fraction in [0, 1); got 90 (did you mean 0.9?)"),
        (
            ["train", "--variant", "sparse"],
            "--variant: variant must be one of static, masked, dy, condconv, odconv, sd",
        ),
        (["train", "--model", "vgg"], "--model: model must be one of sd_tiny, sd_mobilenet_v1"),
        (["train", "--dataset", "cifar10"], "dataset cifar10 needs its folder (add --data DIR)"),
        (["train", "--preset", "cifar10"], "dataset cifar10 needs its folder"),
        (["train", "--preset", "imagenet-mobilenet-v1"], "dataset imagenet needs its folder"),
        (["train", "--preset", "imagenet-resnet18"], "dataset imagenet needs its folder"),
        (["train", "--preset", "cifar10", "--config", "c.toml"], "--preset and --config are two configurations"),
        (["train", "--set", "validation=0.1"], "the miniature holds nothing out"),
        (["train", "--set", "width=0.5", "--model", "sd_resnet18"], "sd_resnet18 must have one"),
        (["train", "--data", "nowhere"], "nowhere"),
        (["train", "--device", "quantum"], "--device quantum"),
        (["evaluate", "--run", "nowhere"], "nowhere is no folder of `dynsparse train`"),
        (["diagnose", "--run", "nowhere"], "nowhere is no folder"),
        (["export", "--run", "nowhere", "--out", "x"], "nowhere is no folder"),
        (["count"], "--model NAME or --run DIR must be given"),
        (["count", "--model", "vgg"], "--model vgg is none of sd_mobilenet_v1"),
        (["count", "--model", "sd_tiny", "--sparsity", "1"], "sparsity is a fraction in [0, 1); got 1"),
        (["profile", "--model", "sd_tiny", "--variant", "static", "--input", "1", "14", "14"], "no dynamic layer"),
        (["profile", "--model", "sd_tiny", "--batch", "0"], "--batch must be at least 1"),
        (["reproduce", "everything"], "everything"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(program, words, message):
    code, out, err = program(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
