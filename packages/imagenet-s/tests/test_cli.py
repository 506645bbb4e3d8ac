import json
import sys

import numpy as np
import photographs
import pytest

from imagenet_s import Pipeline, cli

MODEL = """
import torch


def make():
    generator = torch.Generator().manual_seed(3)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 5, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.LazyLinear(3)
    )
    net(torch.zeros(1, 3, 28, 28))
    for each in net.parameters():
        each.data = torch.randn(each.shape, generator=generator)
    return net.eval()
"""
SMALL = "paper,size=28"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the program in a folder with a model and nine labelled images; gives code, output and error text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    files = list(enumerate(photographs.small(9, 40, 48)))
    for label in range(3):
        photographs.write_files(tmp_path / "val" / str(label), [(f"{n}.jpg", d) for n, d in files if n % 3 == label])

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["imagenet-s", *map(str, words)])
        code = cli.main()
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_decoders_are_listed_with_versions_and_equals(run):
    code, out, _ = run("list", "--json")
    facts = json.loads(out)
    assert code == 0
    assert all(row["version"] or row["missing"] for row in [*facts["decoders"], *facts["resizers"]])
    (group,) = (group for group in facts["identical"] if "pillow" in group)
    assert "turbo" in group
    assert "turbo-fastdct" not in group


def test_two_pipelines_are_compared_without_a_model(run):
    code, out, _ = run(
        "compare", SMALL, f"{SMALL},resizer=opencv-nearest", *(f"val/0/{n}.jpg" for n in (0, 3)), "--json"
    )
    facts = json.loads(out)
    assert (code, facts["n"]) == (0, 2)
    means = {each["stage"]: each["mean"] for each in facts["stages"]}
    assert means["decoded"] == 0 < means["resized"]
    assert run("compare", SMALL, SMALL, "none.jpg") == (2, "", "imagenet-s: none.jpg is no file (name image files)\n")


def test_an_evaluation_is_kept_with_its_page_and_not_repeated(run, tmp_path):
    words = (
        "evaluate",
        "--model",
        "model.py:make",
        "--data",
        "val",
        "--pipeline",
        SMALL,
        "--decoders",
        "pillow,ffmpeg",
    )
    words += ("--resizers", "pillow-bilinear,opencv-nearest", "--factors", "float16,ceil-mode", "--quiet")
    code, out, err = run(*words)
    assert code == 0, err
    assert "n = 9 images" in out
    folder = tmp_path / "runs/evaluate"
    page = (folder / "report.html").read_text()
    assert "what model.py:make sees" in page
    assert "pillow/opencv-nearest" in page
    facts = json.loads((folder / "predictions.json").read_text())
    assert len(facts["predictions"]["ceil-mode"]) == 9
    assert (folder / "figures/grid.svg").is_file()
    assert run(*words)[1] == out
    code, _, err = run(*words, "--seed", "1")
    assert code == 2
    assert "runs/evaluate" in err
    assert run("report", "runs/evaluate", "--out", "page.html")[0] == 0
    assert (tmp_path / "page.html").read_text() == page


def test_a_diagnosis_names_the_stage_and_gates(run, tmp_path):
    words = ("diagnose", "--model", "model.py:make", "--data", "val", "--a", SMALL, "--b", f"{SMALL},channels=bgr")
    code, out, _ = run(*words, "--fail-above", "-100", "--quiet")
    assert code == 1
    assert "1. normalise (channels rgb to bgr): 100 % of the change" in out
    assert "channel swap" in (tmp_path / "runs/diagnose/report.html").read_text()
    assert run(*words, "--fail-above", "100", "--quiet")[0] == 0


def test_dumped_tensors_are_identified_and_diagnosed(run, tmp_path):
    made = Pipeline(size=28, resizer="pillow-lanczos")
    for file in (tmp_path / "val").rglob("*.jpg"):
        target = tmp_path / "dump" / file.relative_to(tmp_path / "val").with_suffix(".npy")
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, made(file.read_bytes()))
    code, out, _ = run("identify", "dump", "--data", "val", "--start", SMALL, "--json")
    best = json.loads(out)[0]
    assert (code, best["exact"], best["pipeline"]["resizer"]) == (0, True, "pillow-lanczos")
    code, out, _ = run("diagnose", "--model", "model.py:make", "--data", "val", "--a", SMALL, "--b", "dump", "--quiet")
    assert code == 0
    assert "1. resize (resizer pillow-bilinear to pillow-lanczos)" in out


def test_views_are_generated_once(run, tmp_path):
    words = (
        "generate",
        "--data",
        "val",
        "--pipeline",
        SMALL,
        "--decoders",
        "pillow",
        "--resizers",
        "pillow-box",
        "--quiet",
    )
    code, out, err = run(*words, "--json")
    assert code == 0, err
    assert json.loads(out) == {"out": "runs/views", "images": 9, "shards": 1, "resumed": 0, "unreadable": 0}
    code, _, err = run(*words)
    assert code == 2
    assert "runs/views holds shards already" in err
    assert json.loads(run(*words, "--resume", "--json")[1])["resumed"] == 1


def test_a_model_is_trained_on_a_mix_and_evaluated_with_its_weights(run, tmp_path):
    words = ("train", "--model", "model.py:make", "--data", "val", "--pipeline", SMALL, "--epochs", "1", "--quiet")
    code, _, err = run(*words, "--set", "batch_size=4", "--set", "lr=0.001", "--set", "crop=eval")
    assert code == 0, err
    words = ("evaluate", "--model", "model.py:make", "--data", "val", "--pipeline", SMALL, "--decoders", "pillow")
    code, _, err = run(*words, "--weights", "runs/train/model.safetensors", "--quiet")
    assert code == 0, err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate", "--model", "model.py:make", "--data", "nowhere"), "nowhere does not exist"),
        (("evaluate", "--model", "nonsense", "--data", "val"), "no model 'nonsense'"),
        (("evaluate", "--model", "model.py:make", "--data", "val", "--decoders", "pilow"), "unknown decoder 'pilow'; near: pillow"),
        (("evaluate", "--model", "model.py:make", "--data", "val", "--reference", "a/b"), "reference 'a/b' is not in the grid"),
        (("evaluate", "--model", "model.py:make", "--data", "val", "--factors", "int4"), "factor 'int4' is unknown"),
        (("diagnose", "--model", "model.py:make", "--data", "val", "--a", "papr", "--b", "paper"), "no pipeline is called 'papr'"),
        (("identify", "nowhere", "--data", "val"), "nowhere is no folder of .npy files"),
        (("generate", "--data", "val", "--shard", "npy", "--codec", "png"), "codec 'png' does not go with npy shards"),
        (("train", "--model", "lite0", "--data", "photographs", "--set", "lr=-1"), "lr positive"),
        (("report", "nowhere"), "nowhere holds no report.html"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)  # fmt: skip
def test_bad_input_is_one_line_and_code_2(run, words, message):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
