"""The job from the shell's side."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from core_utils.jobs import JobResult
from diffract import SamplingWarning, cli
from diffract.exports import load_height_map
from diffract.meshes import read_stl

SMALL = (
    "--preset", "mini", "--set", "shape=[32,32]", "--set", "object_side=20", "--set", "method=auto", "--set", "pad=2.0",
    "--set", "geometry.n_layers=2", "--set", "train.epochs=2", "--set", "train.steps_per_epoch=4", "--set", "train.pairs=4",
    "--set", "train.n=4",
)  # fmt: skip


def call(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["diffract", *map(str, words)])
        return cli.main()


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = call(*words)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One training for all workers of pytest-xdist."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "trained"
    try:
        folder.mkdir()
    except FileExistsError:
        deadline = time.monotonic() + 200
        while not (folder / "run/result.json").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        return folder / "run"
    assert call("train", *SMALL, "--out", folder / "run", "--quiet", "--json") == 0
    return folder / "run"


def test_a_check_says_what_each_distance_will_do(program):
    code, out, _ = program("check", "--preset", "luo2022", "--json")
    found = json.loads(out)
    assert code == 0
    assert [row["used"] for row in found["stretches"]] == ["rs"] * 4
    assert all(row["error"] < 2e-3 for row in found["stretches"])
    assert found["pairs_a_step"] == 80
    assert found["megabytes_a_pair"] < 10
    code, out, _ = program("check", *SMALL, "--set", "method=asm", "--set", "geometry.object_to_diffuser=40 mm")
    assert (code, "refused" in out) == (1, True)


def test_a_training_leaves_layers_diffusers_and_pictures(program, trained):
    result = json.loads((trained / "result.json").read_text())
    assert set(result["pcc"]) == {"none", "new", "new_std", "known", "known_std"}
    assert np.load(trained / "known_diffusers.npy").shape == (4, 32, 32)
    for name in ("curves", "layers", "montage"):
        assert (trained / f"figures/{name}.svg").read_text().count("<svg") == 1
    code, out, _ = program("train", *SMALL, "--out", trained)
    assert (code, "32 x 32 pixels" in out) == (0, True)
    code, _, err = program("train", *SMALL, "--seed", "5", "--out", trained)
    assert (code, err.count("\n")) == (2, 1)
    assert "seed is 0 there, 5 here" in err


@pytest.mark.filterwarnings("ignore:propagation by auto over:diffract.SamplingWarning")
def test_a_trained_network_is_evaluated_beside_baselines(program, trained, tmp_path):
    words = ("evaluate", "--run", trained, "--count", "6", "--diffusers", "new:3", "--out", "e", "--json")
    with pytest.warns(SamplingWarning, match=r"over 208\.4 mm on \(32, 32\) pixels"):  # to the paper's lens
        code, out, _ = program(*words)
    found = json.loads(out)
    assert code == 0
    assert set(found["pcc"]) == {"network", "free space", "hyperbolic lens"}
    assert len((tmp_path / "e/pcc.csv").read_text().splitlines()) == 1 + 3 * 6 * 3
    assert (tmp_path / "e/montage.png").read_bytes().startswith(b"\x89PNG")
    assert program("evaluate", "--run", trained, "--count", "3", "--diffusers", "known", "--out", "k")[0] == 0
    code, out, _ = program(
        "evaluate", "--run", trained, "--objects", "bars", "--diffusers", "none", "--out", "b", "--json"
    )
    assert (code, len(json.loads(out)["periods"])) == (0, 5)


def tolerances_of(program, trained, *words):
    code, out, _ = program(
        "tolerance", "--run", trained, *words, "--count", "3", "--diffusers", "2", "--out", "t", "--json", "--quiet"
    )
    assert code == 0
    return {(row["kind"], round(row["size"], 9)): row["loss"] for row in json.loads(out)["rows"]}


def test_tolerances_are_tabulated(program, trained, tmp_path):
    lost = tolerances_of(program, trained, "--lateral", "0:0.6mm:0.3mm", "--levels", "2,64", "--thickness", "0.2 mm")
    assert len(lost) == 3 + 2 + 1
    assert lost["lateral", 0.0] == pytest.approx(0, abs=1e-5)
    assert lost["lateral", 0.6e-3] > 0
    assert lost["levels", 2.0] > 3 * abs(lost["levels", 64.0])
    assert lost["thickness", 0.2e-3] > 0.01
    assert len((tmp_path / "t/tolerance.csv").read_text().splitlines()) == 7
    assert (tmp_path / "t/tolerance.png").exists()


@pytest.mark.slow
def test_every_kind_of_error_costs_nothing_where_it_is_none_and_tells_where_it_is_some(program, trained):
    words = (
        "--wavelength",
        "-0.05,0",
        "--index",
        "0,0.2",
        "--axial",
        "0mm,1mm",
        "--rotation",
        "0,0.1",
        "--tilt",
        "0,0.1",
    )
    lost = tolerances_of(program, trained, *words)
    for kind in ("wavelength", "index", "axial", "rotation", "tilt"):
        assert lost[kind, 0.0] == pytest.approx(0, abs=2e-3)
    for largest in (("wavelength", -0.05), ("index", 0.2), ("axial", 1e-3), ("rotation", 0.1), ("tilt", 0.1)):
        assert abs(lost[largest]) > 1e-4


def test_layers_are_exported_come_back_and_are_simulated_again(program, trained, tmp_path):
    words = ("export", "--run", trained, "--format", "stl,png16,slm", "--levels", "16", "--out", "x", "--json")
    code, out, _ = program(*words)
    found = json.loads(out)
    assert (code, len(found["files"])) == (0, 6)
    assert abs(found["pcc_made"] - found["pcc_designed"]) < 0.05
    assert 0 < found["light_passed"] < 1
    phase = load_height_map(tmp_path / "x/layer-1.png")
    assert len(np.unique(np.rint(np.mod(phase, 2 * np.pi) / (2 * np.pi) * 16) % 16)) <= 16
    assert len(read_stl((tmp_path / "x/layer-2.stl").read_bytes())) > 32 * 32 * 4
    code, out, _ = program("export", "--run", trained, "--diffusers", "--format", "npy", "--out", "d", "--json")
    assert (code, len(json.loads(out)["files"])) == (0, 4)


def test_diffusers_are_drawn_measured_and_written(program, tmp_path):
    code, out, _ = program(
        "diffuser", *SMALL, "--n", "3", "--length", "3 lambda", "--rms-phase", "1.5", "--stl", "--json"
    )
    found = json.loads(out)
    assert code == 0
    assert found["rms_phase"]["expected"] == 1.5
    assert found["length_phase"]["expected"] == pytest.approx(3)
    assert np.load(tmp_path / "diffusers.npy").shape == (3, 32, 32)
    assert len(list(tmp_path.glob("diffusers-*.stl"))) == 3


def inline(function, jobs, *, done=(), **_):
    """Jobs in this process; the real pool has tests of its own."""
    for key, job in jobs.items():
        if key not in done:
            yield JobResult(key, function(job), None, 0.1)


def test_a_sweep_trains_each_cell_once(program, tmp_path, monkeypatch):
    monkeypatch.setattr("core_utils.jobs.map_jobs", inline)
    words = ("sweep", *SMALL, "--over", "n=1,4", "--out", "s", "--quiet", "--json")
    code, out, _ = program(*words)
    found = json.loads(out)
    assert code == 0
    assert [row["value"] for row in found["rows"]] == ["1", "4"]
    assert (tmp_path / "s/table.csv").read_text().splitlines()[0] == "value,seed,none,known,new,new_std"
    (tmp_path / "s/result.json").unlink()
    (tmp_path / "s/cells/4-seed0.json").unlink()
    assert json.loads(program(*words, "--resume")[1]) == found
    for over, message in (
        ("n", "names no values"),
        ("depth=1", "no such setting"),
        ("layers=0", "n_layers must be at least 1"),
    ):
        code, _, err = program("sweep", *SMALL, "--over", over, "--out", "bad", "--quiet")
        assert (code, err.count("\n"), message in err) == (2, 1, True), err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["train", "--preset", "mini", "--set", "pitch=0.3"], "another unit"),
        (["train", "--preset", "mini", "--set", "wavelength=0.75 furlong"], "unknown unit 'furlong'"),
        (["train", "--preset", "mini", "--set", "train.epoch=3"], "did you mean 'epochs'"),
        (["train", "--preset", "mini", "--set", "train.n=0"], "n must be at least 1"),
        (["train", "--preset", "mini", "--data", "nowhere"], "--data nowhere does not exist"),
        (["train", "--config", "none.toml"], "none.toml does not exist"),
        (["train", "--preset", "mini", "--config", "c.toml"], "exclude each other"),
        (["train", "--preset", "mini", "--devices", "7"], "7 devices"),
        (["evaluate", "--run", "nowhere"], "is no folder of `diffract train`"),
        (["evaluate", "--run", "RUN", "--diffusers", "new:0"], "new:N needs a positive number"),
        (["evaluate", "--run", "RUN", "--diffusers", "old"], "'old' is nothing known"),
        (["evaluate", "--run", "RUN", "--diffusers", "other.npy"], "has the shape (2, 8, 8)"),
        (["evaluate", "--run", "RUN", "--objects", "stars"], "'stars' is nothing known"),
        (["tolerance", "--run", "RUN", "--lateral", "0:1:0.1"], "has no unit"),
        (["tolerance", "--run", "RUN", "--lateral", "1mm:0mm:0.1mm"], "is no range"),
        (["tolerance", "--run", "RUN", "--levels", "1"], "at least 2"),
        (["tolerance", "--run", "RUN", "--tilt", "much"], "is no list of numbers"),
        (["tolerance", "--run", "RUN", "--material", "glass"], "write n=1.72"),
        (["export", "--run", "RUN", "--format", "obj"], "format must be one of stl"),
        (["export", "--run", "RUN", "--format", "slices"], "height of a printer's layer"),
        (["export", "--run", "RUN", "--material", "n=0.9"], "above the medium's"),
        (["export", "--run", "RUN", "--step", "3 mm"], "higher than a full wave"),
        (["export", "--run", "RUN", "--levels", "1"], "levels must be at least 2"),
        (["diffuser", "--preset", "mini", "--length", "3 lambda"], "needs --rms-phase"),
        (["diffuser", "--preset", "mini", "--threshold", "1.7", "--n", "2"], "rad apart on average"),
        (["diffuser", "--preset", "mini", "--out", "d.txt"], "must end in .npy"),
        (["reproduce", "everything"], "no claim 'everything'"),
        (["dream"], "dream"),
    ],
)
def test_bad_input_is_one_line_and_code_2(program, trained, tmp_path, words, complaint):
    np.save(tmp_path / "other.npy", np.zeros((2, 8, 8), np.float32))
    (tmp_path / "c.toml").write_text("")
    code, out, err = program(*(str(trained) if word == "RUN" else word for word in words))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert complaint in err


def test_damaged_layers_are_named(program, trained, tmp_path):
    shutil.copytree(trained, "copy")
    layers = tmp_path / "copy/layers.safetensors"
    layers.write_bytes(layers.read_bytes()[:100])
    code, _, err = program("export", "--run", "copy")
    assert (code, err.count("\n")) == (2, 1)
    assert "layers.safetensors is missing or damaged" in err
    (tmp_path / "copy/result.json").unlink()
    code, _, err = program("export", "--run", "copy")
    assert (code, "is not finished" in err) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_training_that_is_ended_from_outside_goes_on_bit_for_bit(program, trained, tmp_path, number, code):
    words = ("train", *SMALL, "--set", "train.epochs=9000", "--out", "cut", "--quiet", "--json")
    script = "import sys; from diffract.cli import main; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", script, *words], cwd=tmp_path, env=os.environ)
    log = tmp_path / "cut/log.jsonl"
    deadline = time.monotonic() + 90
    while not (log.exists() and log.read_text().count("\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(60) == code
    reached = log.read_text().count("\n")
    assert 3 <= reached < 8000
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # what is left of the training would take long: end it at the next epoch
        from diffract import training

        real = training._epoch

        def short(job, state, interrupted, advance):
            if state.epoch > reached + 1:
                signal.raise_signal(signal.SIGINT)
            return real(job, state, interrupted, advance)

        patch.setattr(training, "_epoch", short)
        assert program(*words)[0] == 2
        assert program(*words, "--resume")[0] == 130
        whole = [*words[:-4], "--out", "whole", "--quiet", "--json"]
        assert program(*whole)[0] == 130
    figures = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (tmp_path / run / "log.jsonl").read_text().splitlines()
        ]
        for run in ("cut", "whole")
    ]
    assert figures[0] == figures[1][: len(figures[0])]
    assert len(figures[0]) > reached
