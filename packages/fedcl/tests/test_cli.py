"""The program from the shell's side."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch

from core_utils.jobs import JobResult
from fedcl import cli
from fedcl.job import ModelTable, _backbone, make_model
from fedcl.models.backbones import wrn26

QUICK = (
    *("--set", "scenario.dataset=digits", "--set", "scenario.clients=2", "--set", "scenario.per_client=60"),
    *("--set", "scenario.tasks=2"),
    *("--set", "client.local_steps=3", "--set", "client.lr=0.1", "--rounds", "1", "--quiet"),
)


def call(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fedcl", *map(str, words)])
        return cli.main()


@pytest.fixture
def program(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = call(*words)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs of two optimisers and two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        for name in ("fedavg", "fedyogi"):
            words = ("--set", f"server.optimizer={name}", "--seed", seed, "--out", folder / f"{name}{seed}")
            assert call("run", *QUICK, *words) == 0
    return folder


def test_a_run_leaves_matrix_curves_and_checkpoint(runs, program):
    folder = runs / "fedyogi0"
    result = json.loads((folder / "result.json").read_text())
    matrix = np.loadtxt(folder / "accuracy.csv", delimiter=",")
    np.testing.assert_allclose(matrix, result["accuracy_matrix"], atol=1e-6)
    assert result["accuracy"] == pytest.approx(matrix[-1].mean(), abs=1e-6)
    assert len((folder / "log.jsonl").read_text().splitlines()) == result["rounds"] == 2
    assert (folder / "checkpoint/federation.safetensors").is_file()
    assert (folder / "figures/accuracy-matrix.svg").read_text().count("<svg") == 1
    code, out, _ = program("run", *QUICK, "--out", folder, "--json")
    assert (code, json.loads(out)) == (0, result)


@pytest.mark.parametrize("engine", ["stacked", "flwr"])
def test_engines_give_the_same_run(runs, program, engine):
    code, out, _ = program("run", *QUICK, "--engine", engine, "--out", "other", "--json")
    assert code == 0
    expected = json.loads((runs / "fedyogi0/result.json").read_text())
    assert json.loads(out)["accuracy_matrix"] == expected["accuracy_matrix"]


def test_runs_are_compared_with_intervals_over_seeds(runs, program, tmp_path):
    folders = [runs / f"{name}{seed}" for name in ("fedavg", "fedyogi") for seed in (0, 1)]
    code, out, _ = program("compare", *folders, "--out", "c", "--json")
    assert code == 0
    rows = json.loads(out)
    assert [(row["runs"], row["n"]) for row in rows] == [("optimizer=fedavg", 2), ("optimizer=fedyogi", 2)]
    own = [json.loads((runs / f"fedavg{seed}/result.json").read_text())["accuracy"] for seed in (0, 1)]
    assert rows[0]["accuracy"] == pytest.approx(np.mean(own))
    # Two values: the half-width is t(1, 97.5 %) times half of their distance.
    assert rows[0]["accuracy high"] - rows[0]["accuracy"] == pytest.approx(12.7062 * abs(own[0] - own[1]) / 2, rel=1e-4)
    assert len((tmp_path / "c/comparison.csv").read_text().splitlines()) == 3
    assert (tmp_path / "c/curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "c/curves.svg").read_text().count("<svg") == 1
    code, _, err = program("compare", folders[0], folders[0])
    assert code == 2
    assert "two runs of all have one seed" in err


def test_drift_is_shown_round_by_round(runs, program, tmp_path):
    code, out, _ = program("drift", runs / "fedyogi0", "--out", "d.svg", "--json")
    assert code == 0
    rows = json.loads(out)
    assert [row["round"] for row in rows] == list(range(2))
    assert all(row["local_accuracy"] is not None for row in rows)
    assert (tmp_path / "d.svg").read_text().count("<svg") == 1


def inline(function, jobs, *, done=(), **_):
    """Jobs in this process; the real pool has tests of its own."""
    for key, job in jobs.items():
        if key not in done:
            yield JobResult(key, function(job), None, 0.1)


def test_a_sweep_is_a_grid_with_intervals_and_a_heat_map(program, tmp_path, monkeypatch):
    monkeypatch.setattr("core_utils.jobs.map_jobs", inline)
    words = ("sweep", *QUICK[:-3], "--set", "run.rounds=1", "--quiet", "--seeds", "2", "--out", "s")
    grid = ("--over", "client_lr=0.05,0.2", "--over", "server_lr=0.01,0.1")
    code, out, _ = program(*words, *grid, "--json")
    assert code == 0
    rows = json.loads(out)
    assert [(row["client_lr"], row["server_lr"]) for row in rows] == [
        ("0.05", "0.01"),
        ("0.05", "0.1"),
        ("0.2", "0.01"),
        ("0.2", "0.1"),
    ]
    assert rows[0]["accuracy"]["low"] <= rows[0]["accuracy"]["mean"] <= rows[0]["accuracy"]["high"]
    assert (tmp_path / "s/figures/heat.svg").read_text().count("<svg") == 1
    assert len(list((tmp_path / "s/cells").rglob("*.json"))) == 8
    assert program(*words, *grid)[0] == 0  # a finished sweep is shown again


def test_a_task_s_student_is_pruned_and_exported(runs, program, tmp_path):
    code, out, _ = program(
        "prune", "--run", runs / "fedyogi0", "--blocks", "1", "--steps", "5", "--out", "p.safetensors", "--json"
    )
    assert code == 0
    report = json.loads(out)
    assert len(report["main"]) == 1
    assert report["flops"][1] < report["flops"][0]
    assert 0 <= report["accuracy_fine_tuned"] <= 1
    state = safetensors.torch.load((tmp_path / "p.safetensors").read_bytes())
    assert not state[f"kept{report['main'][0]}"][0]
    assert program("export", "--run", runs / "fedyogi0", "--out", "t.safetensors")[0] == 0
    full = ("export", "--run", runs / "fedyogi0", "--format", "full", "--out", "f.safetensors")
    assert program(*full)[0] == 0
    own, whole = (safetensors.torch.load((tmp_path / f"{name}.safetensors").read_bytes()) for name in "tf")
    assert set(whole) - set(own) == {name for name in whole if name.startswith("backbone.")}
    code, _, err = program("export", "--run", runs / "fedyogi0", "--task", "9", "--out", "x.safetensors")
    assert (code, "--task must lie in 0..1, got 9" in err) == (2, True)
    code, _, err = program("prune", "--run", runs / "fedyogi0", "--blocks", "4", "--proxy-threshold", "1.0")
    assert (code, "cuts the last path" in err) == (2, True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_onnx_gives_the_student_s_logits(runs, program, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from fedcl.commands.folders import restored

    code, _, err = program("export", "--run", runs / "fedyogi0", "--format", "onnx", "--out", "s.onnx")
    assert code == 0, err
    federation = restored(runs / "fedyogi0")
    model = federation.trainer.model(0, federation.server.theta(0))
    images = federation.scenario.test(0).x[:5]
    (logits,) = runtime.InferenceSession(tmp_path / "s.onnx").run(None, {"images": images})
    np.testing.assert_allclose(logits, model(torch.from_numpy(images)).detach(), atol=1e-5)


def test_a_scenario_is_made_shown_and_run(program, tmp_path):
    words = ("--set", "scenario.dataset=digits", "--set", "scenario.alpha=0.3", "--seed", "4")
    code, out, _ = program("scenario", "make", *words, "--out", "sc", "--json")
    assert code == 0
    facts = json.loads(out)
    assert np.sum(facts["images"]) == 1437
    assert (tmp_path / "sc/parts.svg").is_file()
    code, shown, _ = program("scenario", "show", "sc", "--json")
    assert json.loads(shown)["digest"] == facts["digest"]
    assert f"seed 4, digest {facts['digest'][:16]}" in program("scenario", "show", "sc")[1]
    code, _, err = program("scenario", "make", *words, "--out", "sc")
    assert (code, "is not empty" in err) == (2, True)
    words = ("--set", "scenario.made=sc", "--set", "client.local_steps=1", "--rounds", "1", "--quiet")
    assert program("run", *words, "--out", "r")[0] == 0


def test_a_toml_file_mirrors_the_tables_and_typed_options_win(program, tmp_path):
    (tmp_path / "c.toml").write_text(
        '[scenario]\ndataset = "digits"\nclients = 2\ntasks = 2\n[server]\noptimizer = "fedadam"\nbetas = [0.8, 0.9]\n'
        "[client]\nlocal_steps = 2\n[run]\nrounds = 3\nseed = 5\n"
    )
    assert program("run", "--config", "c.toml", "--rounds", "1", "--out", "r", "--quiet")[0] == 0
    asked = json.loads((tmp_path / "r/config.json").read_text())
    assert (asked["run"]["rounds"], asked["run"]["seed"], asked["server"]["betas"]) == (1, 5, [0.8, 0.9])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "server.optimiser=fedavg"), "unknown key 'server.optimiser' (did you mean 'optimizer'?)"),
        (("--set", "server.tau=0"), "tau must be above 0, got 0.0"),
        (("--set", "server.betas=[0.9, 1.0]"), "betas[1] must lie in [0, 1), got 1.0"),
        (("--set", "server.scope=every"), "server.scope must be one of task, shared, all, got 'every'"),
        (("--set", "client.lr=fast"), "client.lr must be of type float, got 'fast'"),
        (("--set", "scenario.tasks=4"), "10 classes cannot be split into 4 equal tasks"),
        (("--set", "scenario.alpha=-1"), "alpha must be a finite number above 0, got -1.0"),
        (("--set", "server.noise_multiplier=1.0"), "noise_multiplier needs clip_norm"),
        (("--set", "model.backbone=vgg"), "backbone must be mlp, wrn26, torchvision:NAME or timm:NAME, got 'vgg'"),
        (("--set", "model.weights=none.safetensors"), "none.safetensors cannot be read"),
        (("--set", "scenario.dataset=cifar100"), "dataset cifar100 needs --data"),
        (("--device", "cuda:9"), "--device cuda:9 is not available here"),
        (("--engine", "ray"), "ray"),
        (("--config", "none.toml"), "--config none.toml does not exist"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(program, words, message):
    code, out, err = program("run", *words, "--out", "r", "--quiet")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sweep", "--out", "s"), "--over names nothing"),
        (("sweep", "--over", "speed=1,2", "--out", "s"), "--over speed=1,2: expected name=value,value"),
        (("sweep", "--over", "client_lr=0.1,0.1", "--out", "s"), "names a value twice"),
        (("sweep", "--over", "server_lr=0", "--out", "s"), "lr must be above 0"),
        (("drift", "none"), "none/log.jsonl is missing or damaged"),
        (("compare", "none"), "none is no folder of a finished `fedcl run`"),
        (("scenario", "make"), "scenario make takes --out DIR"),
        (("scenario", "show", "none"), "none/scenario.json or its arrays cannot be read"),
        (("prune", "--run", "none"), "none is no folder of a finished `fedcl run`"),
        (("deploy", "local", "--nodes", "0"), "--nodes must be at least 1, got 0"),
    ],
)
def test_other_commands_name_what_is_wrong(program, words, message):
    code, _, err = program(*words)
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err


def test_doctor_sees_that_the_engines_agree(program, monkeypatch):
    code, out, _ = program("doctor", "--json")
    facts = json.loads(out)
    assert (code, facts["agree"]) == (0, True)
    assert facts["stacked"] < 1e-5
    monkeypatch.setattr("fedcl.diagnosis.TOLERANCE", -1.0)
    assert program("doctor")[0] == 1


def test_an_app_is_written(program, tmp_path):
    assert program("deploy", "app", "--out", "app", "--set", "run.rounds=2")[0] == 0
    assert json.loads((tmp_path / "app/fedcl_app/config.json").read_text())["run"]["rounds"] == 2
    assert "fedcl_app.server:app" in (tmp_path / "app/pyproject.toml").read_text()


def test_an_interrupted_run_ends_with_130_and_goes_on(tmp_path):
    words = [sys.executable, "-c", "import sys; from fedcl.cli import main; sys.exit(main())", "run", *QUICK[:-3]]
    words += ["--rounds", "8", "--out", str(tmp_path / "r"), "--set", "run.diagnose=never"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    log, end = tmp_path / "r/log.jsonl", time.monotonic() + 120
    while not (log.is_file() and log.stat().st_size) and time.monotonic() < end and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with --resume" in err.splitlines()[-1]
    done = subprocess.run([*words, "--resume"], capture_output=True, timeout=300, check=False)
    assert done.returncode == 0
    assert [json.loads(line)["round"] for line in log.read_text().splitlines()] == list(range(16))


def test_backbones_take_weights_of_their_own_networks_alone(program, tmp_path):
    torch.manual_seed(3)
    source = wrn26(32)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": source.state_dict()}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        backbone = _backbone(ModelTable(backbone="wrn26", weights=tmp_path / name), (3, 64, 64), 0)
        assert torch.equal(backbone.blocks[2].conv1.weight, source.blocks[2].conv1.weight)
    code, _, err = program("run", "--set", "model.weights=w.pt", "--out", "r", "--quiet")
    assert code == 2
    assert "w.pt holds another network's weights" in err
    (tmp_path / "w.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    code, _, err = program("run", "--set", "model.weights=w.pt", "--out", "r", "--quiet")
    assert (code, err.count("\n")) == (2, 1)
    assert "w.pt cannot be read" in err


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
def test_networks_of_libraries_become_students(name):
    pytest.importorskip(name.partition(":")[0])
    student = make_model(ModelTable(backbone=name), (3, 32, 32), 0)(5)
    assert student(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    assert len(student.backbone.blocks) == 8


def test_unknown_networks_are_named(program):
    pytest.importorskip("torchvision")
    code, _, err = program("run", "--set", "model.backbone=torchvision:resnet1", "--out", "r", "--quiet")
    assert code == 2
    assert "backbone torchvision:resnet1" in err
