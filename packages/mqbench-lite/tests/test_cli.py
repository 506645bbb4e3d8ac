"""The job from the shell's side."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hosts import ONNXRUNTIME
from small import weights

from mqbench_lite import cli

HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "numba", "matplotlib", "scipy")
FEW = ("--set", "calibration=64", "--set", "batch_size=32", "--quiet")


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["mqbench-lite", *map(str, words)])
        code = cli.main()
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def net(tmp_path):
    return ("--weights", weights(tmp_path))


def refused(program, *words):
    code, out, err = program(*words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("words", [["--help"], ["quantize", "--help"], ["grid", "--help"], ["profiles"]])
def test_help_and_profiles_load_no_heavy_library(words):
    code = f"""
import sys
from mqbench_lite import cli
sys.argv = ["mqbench-lite", *{words!r}]
assert cli.main() == 0
loaded = sorted(set({HEAVY!r}) & set(sys.modules))
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_the_doctor_lists_engines_algorithms_and_what_saturates(program):
    code, out, err = program("doctor", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["engines"]["onnxruntime"]["onnxruntime"]
    assert {"lsq", "adaround", "minmax"} <= set(facts["algorithms"])
    assert "8-bit weights" in facts["advice"]
    assert "onnxruntime" in program("doctor")[1]


def test_profiles_are_listed_shown_and_checked(program, tmp_path):
    rows = json.loads(program("profiles", "--json")[1])
    assert {row["profile"]: row["engine"] for row in rows}["tensorrt"] == "exported, not run"
    code, out, _ = program("profiles", "tvm")
    assert (code, "pot_scale = true" in out) == (0, True)
    text = program("profiles", "onnxruntime")[1].replace("symmetric = true", "symmetric = false", 1)
    (tmp_path / "mine.toml").write_text(text)
    code, out, _ = program("profiles", "mine.toml")
    assert code == 1
    assert "weight.symmetric" in out
    assert "did you mean 'tvm'" in refused(program, "profiles", "tvn")


def test_a_quantised_network_is_exported_and_its_engine_agrees_to_the_bit(program, net):
    words = ("quantize", *net, *FEW, "--profile", ONNXRUNTIME, "--out", "run", "--json")
    code, out, err = program(*words)
    assert code == 0, err
    found = json.loads(out)
    assert found["files"] == ["model.onnx", "model.qparams.json"]
    assert [layer["weight_bits"] for layer in found["layers"]] == [8] * 10
    code, out, err = program("verify", "run/model.onnx", "--count", 100, "--report", "page.html", "--json")
    assert code == 0, err
    (engine,) = json.loads(out)["engines"]
    assert (engine["differing"], engine["logits"]) == (0, 1000)
    assert "0 of 1000" in Path("page.html").read_text()
    assert "page.html exists" in refused(program, "verify", "run/model.onnx", "--report", "page.html")
    code, _, err = program("verify", "run/model.onnx", "--engines", "openvino", "--count", 50)
    assert (code, "the engine is off by up to" in err) == (1, True)
    again = program(*words)
    assert json.loads(again[1]) == found  # a finished run is shown, not repeated


@pytest.mark.slow
def test_encodings_for_devices_that_are_not_here_are_written(program, net):
    for kind, name in (("tensorrt", "model.cache"), ("snpe", "model.encodings")):
        profile = "tensorrt" if kind == "tensorrt" else "snpe"
        words = ("quantize", *net, *FEW, "--profile", profile, "--format", kind, "--out", kind)
        code, _, err = program(*words)
        assert code == 0, err
        assert Path(kind, name).is_file()


def test_each_layer_is_weighed_alone(program, net):
    code, out, err = program("sensitivity", *net, *FEW, "--bits", "2/2", "--plot", "layers.svg", "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert len(rows) == 10
    assert [row["sqnr_db"] for row in rows] == sorted(row["sqnr_db"] for row in rows)
    assert "one layer at a time" in Path("layers.svg").read_text()
    easier = json.loads(program("sensitivity", *net, *FEW, "--bits", "8/8", "--json")[1])
    assert min(row["sqnr_db"] for row in easier) > max(row["sqnr_db"] for row in rows)


@pytest.mark.slow
def test_a_grid_prints_its_leaderboard(program, net, tmp_path):
    (tmp_path / "grid.toml").write_text(
        f'weights = "{net[1]}"\nalgorithms = ["minmax", "mse"]\nprofiles = ["academic", "tvm"]\nseeds = 1\ncalibration = 64\n'
    )
    code, out, err = program("grid", "--config", "grid.toml", "--out", "g", "--quiet")
    assert code == 0, err
    assert "W/A 4/4" in out
    assert Path("g/leaderboard.html").is_file()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("quantize", "--bits", "9/8"), "give 2 to 8"),
        (("quantize", "--network", "residuall"), "did you mean 'residual'"),
        (("quantize", "--algorithm", "lsqq"), "there is no algorithm 'lsqq'"),
        (("quantize", "--profile", "trt"), "there is no profile 'trt'"),
        (("quantize", "--set", "stepps=3"), "stepps"),
        (("quantize", "--weights", "missing.safetensors"), "missing.safetensors"),
        (("verify", "missing.onnx"), "missing.onnx"),
        (("verify", "net.safetensors"), "net.safetensors"),
        (("grid", "--set", 'data="nowhere"'), "data nowhere is no folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(program, net, words, complaint, tmp_path):
    extra = net if words[0] == "quantize" and not {"--network", "--weights"} & set(words) else ()
    code, _, err = program(*words, *extra, "--quiet")
    assert complaint in err
    assert (code, err.count("\n")) == (2, 1)
    assert "Traceback" not in err
    assert not (tmp_path / "runs" / "quantize" / "model.onnx").exists()


def test_training_survives_ctrl_c_and_ends_as_if_it_had_not_been_stopped(program, net, tmp_path):
    words = ["quantize", "--algorithm", "lsq", "--bits", "4/4", *map(str, net), *FEW, "--set", "steps=12", "--json"]
    code, whole, _ = program(*words, "--out", "a")
    assert code == 0
    script = "import sys; from mqbench_lite import cli; sys.exit(cli.main())"
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    stopped = subprocess.Popen([sys.executable, "-c", script, *words, "--out", "b"], cwd=tmp_path, env=env)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "b").glob("checkpoint*/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    stopped.send_signal(signal.SIGINT)
    assert stopped.wait(timeout=120) in (0, 130)
    code, again, _ = program(*words, "--out", "b", "--resume")
    assert code == 0
    assert json.loads(again) == json.loads(whole)  # the file's digest among it
