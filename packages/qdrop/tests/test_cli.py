"""The job from the shell's side."""

import csv
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import safetensors.numpy

from core_utils.jobs import _attempt
from qdrop import cli, comparison, job, miniature

NET = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    )
"""
QUICK = ("net.py:small", "--calib", "calib.npz", "--iters", "6")


@pytest.fixture
def program(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(48, 1, 8, 8)).astype(np.float32), rng.integers(0, 3, 48)
    np.savez("calib.npz", x=x)
    np.savez("test.npz", x=x[:20], y=y[:20])

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["qdrop", *map(str, words)])
        code = cli.main()
        return code, *capfd.readouterr()

    yield run
    sys.modules.pop("net", None)


def table(file):
    return list(csv.DictReader(file.read_text().splitlines()))


def test_a_quantised_model_is_evaluated_exported_and_displaced_from_its_folder(program, tmp_path):
    code, out, err = program("quantize", *QUICK, "--w-bits", 3, "--a-bits", 3, "--out", "a", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["units"] == 3
    assert 0 < result["agreement_with_float"] <= 1
    names = {entry.name for entry in (tmp_path / "a").iterdir()}
    assert names >= {
        "model.safetensors",
        "quant.json",
        "report.csv",
        "loss.png",
        "sqnr.png",
        "log.jsonl",
        "result.json",
    }
    assert job.UNITS not in names
    rows = table(tmp_path / "a/report.csv")
    assert [row["unit"] for row in rows] == ["0", "2", "5"]
    assert float(rows[2]["sqnr_db"]) == pytest.approx(result["sqnr_db"], abs=3)
    quant = json.loads((tmp_path / "a/quant.json").read_text())
    assert [each["bits"] for each in quant["weights"].values()] == [8, 3, 8]
    assert len(quant["weights"]["2"]["scale"]) == 8
    assert quant["config"]["w_bits"] == 3
    # the plan comes before anything is spent
    assert err.index("3 units") < err.index("[1/3]") < err.index("[3/3]")

    code, out, _ = program("evaluate", "a", "--data", "test.npz", "--json")
    measured = json.loads(out)
    assert (code, measured["samples"]) == (0, 20)
    assert measured["accuracy"] * 20 == pytest.approx(round(measured["accuracy"] * 20))
    assert measured["agreement_with_float"] >= 0.5

    code, out, _ = program("flatness", "a", "--samples", 16, "--magnitudes", 0, 0.5, "--directions", 2, "--out", "f")
    assert code == 0
    assert "50 %" in out
    rows = table(tmp_path / "f/flatness.csv")
    assert [float(row["magnitude"]) for row in rows] == [0, 0, 0.5, 0.5]
    assert float(rows[0]["loss"]) < float(rows[2]["loss"])
    assert (tmp_path / "f/flatness.svg").read_text().count("<svg") == 1

    assert program("export", "a", "--onnx", "a.onnx")[0] == 0
    assert (tmp_path / "a.onnx").stat().st_size > 1000
    assert (
        program("quantize", *QUICK, "--w-bits", 3, "--a-bits", 3, "--out", "a", "--json")[1]
        == json.dumps(result, indent=2) + "\n"
    )


def test_a_plan_is_printed_and_costs_nothing(program, tmp_path):
    before = {entry.name for entry in tmp_path.iterdir()}
    code, out, _ = program("plan", "net.py:small", "--calib", "calib.npz", "--w-bits", 2, "--override", "2:w_bits=5")
    assert code == 0
    assert "3 units" in out
    code, out, _ = program("plan", "net.py:small", "--calib", "calib.npz", "--override", "2:w_bits=5", "--json")
    plan = json.loads(out)
    assert code == 0
    assert [(each["path"], each["bits"]) for each in plan["weights"]] == [("0", 8), ("2", 5), ("5", 8)]
    assert {entry.name for entry in tmp_path.iterdir()} - before <= {"__pycache__"}


def test_a_plan_of_a_librarys_model_needs_no_data(program):
    code, out, _ = program("plan", "torchvision:resnet18", "--json")
    plan = json.loads(out)
    assert code == 0
    assert sum(unit["kind"] == "block" for unit in plan["units"]) == 8
    assert len(plan["weights"]) == 21


def test_lambda_follows_the_architecture_unless_it_is_set():
    def of(*pairs):
        return cli.Quantisation(set=pairs).quantisation("timm:mobilenetv2_100").reg_weight

    assert (of(), of("reg_weight=0.01")) == (0.1, 0.01)
    assert cli.Quantisation().quantisation("timm:resnet18").reg_weight == 0.01
    assert type(cli.Quantisation().quantisation("lite0")) is cli.QDropConfig


def test_nearest_rounding_needs_no_iterations_and_draws_no_curves(program, tmp_path):
    code, out, _ = program("quantize", *QUICK, "--method", "nearest", "--out", "a", "--quiet", "--json")
    assert (code, json.loads(out)["seconds"]) == (0, 0)
    assert (tmp_path / "a/report.csv").read_text().count("\n") == 1
    assert not (tmp_path / "a/loss.png").exists()


def test_an_interrupted_run_goes_on_to_the_same_model(program, monkeypatch, tmp_path):
    assert program("quantize", *QUICK, "--out", "whole", "--quiet")[0] == 0
    line = job._line

    def interrupt(result):
        if result.name == "2":
            raise KeyboardInterrupt
        return line(result)

    monkeypatch.setattr(job, "_line", interrupt)
    code, out, err = program("quantize", *QUICK, "--out", "a", "--quiet")
    assert (code, out) == (130, "")
    assert "kept in a, go on with --resume" in err
    monkeypatch.setattr(job, "_line", line)
    assert program("quantize", *QUICK, "--out", "a", "--quiet")[0] == 2
    assert program("quantize", *QUICK, "--out", "a", "--resume", "--quiet")[0] == 0
    models = [safetensors.numpy.load_file(tmp_path / name / "model.safetensors") for name in ("whole", "a")]
    assert all(np.array_equal(models[0][key], models[1][key]) for key in models[0])
    records = [json.loads(text) for text in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    assert [record["name"] for record in records] == ["0", "2", "5"]


def test_what_the_engine_warns_of_is_one_line_and_in_the_log(program, tmp_path):
    code, _, err = program("quantize", *QUICK, "--samples", 8, "--out", "a")
    assert code == 0
    assert "warning: only 8 calibration samples" in err
    assert "only 8 calibration samples" in (tmp_path / "a/log.jsonl").read_text()
    assert warnings.showwarning.__module__ != "qdrop.job"


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_methods_are_compared_on_labelled_samples(program, request, tmp_path, processes):
    if not processes:
        request.getfixturevalue("here")
    words = ("--methods", "nearest,qdrop", "--bits", "8/8,2/2", "--seeds", 1, "--out", "c")
    code, out, err = program("compare", *QUICK, "--data", "test.npz", *words, "--json")
    rows = json.loads(out)
    assert code == 0
    assert [(row["method"], row["w_bits"], row["seed"]) for row in rows] == [
        (method, bits, 0) for bits in (8, 2) for method in ("nearest", "qdrop")
    ]
    assert len({row["float_accuracy"] for row in rows}) == 1
    assert all(row["sqnr_db"] > 20 for row in rows if row["w_bits"] == 8)
    assert all(row["sqnr_db"] < 20 for row in rows if row["w_bits"] == 2)
    assert ("[4/4]" in err) == processes
    written = table(tmp_path / "c/compare.csv")
    assert [float(row["accuracy"]) for row in written] == pytest.approx([row["accuracy"] for row in rows])
    assert (tmp_path / "c/compare.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "c/unfinished").exists()
    code, again, err = program("compare", *QUICK, "--data", "test.npz", *words, "--json")
    assert (code, again, err) == (0, out, "")


@pytest.fixture
def here(monkeypatch):
    """Points are measured in this process; what processes of their own do is tested in core-utils, and above."""

    def map_jobs(function, jobs, *, done, **_):
        yield from (_attempt(function, key, each, None) for key, each in jobs.items() if key not in done)

    monkeypatch.setattr(comparison, "map_jobs", map_jobs)


def test_a_failed_point_is_named_and_only_it_is_repeated(program, here, monkeypatch, tmp_path):
    real, measured = comparison.measure, []

    def measure(point):
        measured.append(point.key)
        if point.config.seed == 1 and not (tmp_path / "mended").exists():
            raise KeyError("by chance")
        return real(point)

    monkeypatch.setattr(comparison, "measure", measure)
    words = ("compare", *QUICK, "--methods", "nearest", "--bits", "4/4", "--seeds", 3, "--out", "c", "--quiet")
    code, out, err = program(*words)
    assert code == 1
    assert err == "nearest-w4a4-seed1 failed: KeyError: 'by chance'\n"
    assert "nearest" in out
    assert [row["seed"] for row in table(tmp_path / "c/compare.csv")] == ["0", "2"]
    assert program(*words)[0] == 2  # it is unfinished
    (tmp_path / "mended").write_text("")
    assert program(*words, "--resume")[0] == 0
    assert measured == [f"nearest-w4a4-seed{seed}" for seed in (0, 1, 2, 1)]
    assert [row["seed"] for row in table(tmp_path / "c/compare.csv")] == ["0", "1", "2"]
    assert not (tmp_path / "c/unfinished").exists()


def test_a_point_on_samples_without_labels_is_bad_input(program, here):
    words = ("--methods", "nearest", "--bits", "4/4", "--seeds", 1, "--data", "calib.npz", "--quiet")
    code, out, err = program("compare", *QUICK, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "have no labels" in err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["quantize", "net.py:small"], "--calib"),
        (["quantize", *QUICK, "--w-bits", "9"], "--w-bits: w_bits must be a whole number from 2 to 8, got 9"),
        (["quantize", *QUICK, "--set", "drop_p=2"], "--set drop_p=2: drop_p must lie in [0, 1]"),
        (["quantize", *QUICK, "--set", "dropp=0.5"], "did you mean 'drop_p'?"),
        (["quantize", *QUICK, "--override", "2"], "--override 2: expected PATTERN:key=value"),
        (["quantize", *QUICK, "--override", "2:bits=3"], "--override 2:bits=3: unknown key 'bits'"),
        (["quantize", *QUICK, "--method", "best"], "--method"),
        (["quantize", *QUICK, "--device", "quantum"], "--device quantum"),
        (["quantize", *QUICK, "--samples", "0"], "samples must be at least 1"),
        (["quantize", *QUICK, "--config", "none.toml"], "--config none.toml does not exist"),
        (["quantize", *QUICK, "--out", "net.py"], "net.py is not a folder"),
        (["quantize", "net.py:small", "--calib", "nowhere"], "nowhere does not exist"),
        (["quantize", "net.py:smal", "--calib", "calib.npz"], "did you mean 'small'?"),
        (
            ["quantize", "torchvision:resnet18", "--calib", "calib.npz"],
            "random weights (add --weights FILE or --download)",
        ),
        (["quantize", "net.py:small", "--calib", "calib.npz", "--weights", "none.pt"], "none.pt cannot be read"),
        (["plan", "net.py:small", "--size", "8", "--mean", "0.5"], "mean and std take 1 or 3 values each, got 1 and 3"),
        (["evaluate", "nowhere", "--data", "test.npz"], "nowhere is no folder of `qdrop quantize`"),
        (["export", "nowhere", "--onnx", "x.onnx"], "nowhere is no folder of `qdrop quantize`"),
        (["flatness", "nowhere"], "nowhere is no folder of `qdrop quantize`"),
        (["compare", *QUICK, "--methods", "best"], "--methods best: methods are nearest, adaround, brecq"),
        (["compare", *QUICK, "--bits", "4"], "--bits 4: give bits of weights and activations like 2/4"),
        (["compare", *QUICK, "--bits", "4/9"], "a_bits must be a whole number from 2 to 8, got 9"),
        (["compare", *QUICK, "--seeds", "0"], "--seeds must be at least 1"),
        (["compare", *QUICK, "--workers", "0"], "--workers must be at least 1"),
        (["reproduce", "--seeds", "0"], "--seeds 0 is too few"),
        (["demo"], "demo"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(program, tmp_path, words, complaint):
    before = (tmp_path / "net.py").read_text()
    code, out, err = program(*words, *(["--quiet"] if words[0] in ("quantize", "compare") else []))
    assert (code, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1
    assert (tmp_path / "net.py").read_text() == before


def test_evaluation_without_labels_is_an_error(program):
    program("quantize", *QUICK, "--method", "nearest", "--out", "a", "--quiet")
    code, _, err = program("evaluate", "a", "--data", "calib.npz")
    assert (code, err.count("\n")) == (2, 1)
    assert "have no labels" in err


def test_no_help_loads_torch():
    code = """
import sys
from qdrop import cli
for verb in ([], ["plan"], ["quantize"], ["evaluate"], ["export"], ["compare"], ["flatness"], ["reproduce"], ["bench"]):
    sys.argv = ["qdrop", *verb, "--help"]
    assert cli.main() == 0, verb
sys.exit(any(name in sys.modules for name in ("torch", "numba", "matplotlib", "timm")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "runs that code" in " ".join(done.stdout.replace("│", " ").split())


def test_the_miniature_is_quantised_on_the_embedded_images(program, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(miniature, "EPOCHS", 1)
    words = ("miniature", "--calib", "fashion-mnist", "--samples", 64, "--method", "nearest", "--set", "w_bits=8")
    assert program("quantize", *words, "--a-bits", 8, "--out", "a", "--quiet")[0] == 0
    code, out, _ = program("evaluate", "a", "--data", "fashion-mnist", "--json")
    measured = json.loads(out)
    assert (code, measured["samples"]) == (0, 2000)
    assert abs(measured["accuracy"] - measured["float_accuracy"]) < 0.02
    assert len(list((tmp_path / "cache/qdrop").glob("float-*.safetensors"))) == 1
