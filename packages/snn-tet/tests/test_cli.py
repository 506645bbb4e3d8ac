"""The job from the shell's side."""

import json
import signal
import subprocess
import sys
import time

import pytest

from snn_tet import cli

QUICK = ("--epochs", "2", "--time-steps", "3", "--set", "train_per_class=2", "--set", "batch_size=10")


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["snn-tet", *map(str, words)])
        code = cli.main()
        return code, *capsys.readouterr()

    return run


def test_a_trained_network_is_evaluated_from_its_folder(program, tmp_path):
    code, out, _ = program("train", *QUICK, "--out", "a", "--json", "--quiet")
    assert code == 0
    trained = json.loads(out)
    assert len(trained["prefix"]) == 3
    assert trained["selected_on"] == "last epoch"
    assert {entry.name for entry in (tmp_path / "a").iterdir()} >= {
        "model.safetensors",
        "log.jsonl",
        "config.json",
        "figures",
    }
    assert (tmp_path / "a/figures/accuracy_vs_steps.svg").read_text().startswith("<?xml")
    code, out, _ = program("evaluate", "--run", "a", "--json")
    assert (code, json.loads(out)) == (0, {name: trained[name] for name in ("prefix", "single")})
    code, out, _ = program("evaluate", "--run", "a", "--time-steps", "2")
    assert code == 0
    assert f"{100 * trained['prefix'][1]:.1f} %" in out
    assert program("train", *QUICK, "--out", "a", "--json")[1] == program("train", *QUICK, "--out", "a", "--json")[1]


def test_stages_take_the_place_of_epochs_and_are_logged_apart(program, tmp_path):
    words = ["--stages", "2:2,3:1:1e-4", "--time-steps", "3", "--set", "train_per_class=2", "--quiet", "--json"]
    code, out, _ = program("train", *words, "--out", "a")
    assert code == 0
    assert len(json.loads(out)["prefix"]) == 3
    records = [json.loads(line) for line in (tmp_path / "a/log.jsonl").read_text().splitlines()]
    assert [record["stage"] for record in records] == ["stage-0-2-steps"] * 2 + ["stage-1-3-steps"]


def test_early_exit_says_how_many_steps_it_took(program):
    program("train", *QUICK, "--out", "a", "--quiet")
    for threshold, steps in ((0.0, 1.0), (1.01, 3.0)):
        result = json.loads(program("evaluate", "--run", "a", "--early-exit", threshold, "--json")[1])
        assert result["early_exit"]["mean_steps"] == steps
        assert result["early_exit"]["accuracy"] == pytest.approx(result["prefix"][int(steps) - 1])
    assert "after 3.00 steps on average" in program("evaluate", "--run", "a", "--early-exit", "1.01")[1]


def test_energy_is_counted_layer_by_layer(program):
    program("train", *QUICK, "--out", "a", "--quiet")
    report = json.loads(program("energy", "--run", "a", "--samples", "20", "--json")[1])
    assert report["samples"] == 20
    # The first layer multiplies: 2 x 16 kernels of 3 x 3 on 24 x 24 pixels whose borders see less, at 3 steps.
    inner, outer = 22 * 22 * 9 + 4 * 22 * 6 + 4 * 4, 2 * 16 * 3
    assert report["layers"][0] == {"name": "blocks.0.conv", "accumulates": 0.0, "multiplies": inner * outer}
    assert all(layer["multiplies"] == 0 for layer in report["layers"][1:])
    multiplies, accumulates = (sum(layer[kind] for layer in report["layers"]) for kind in ("multiplies", "accumulates"))
    assert report["theoretical_energy_uj"] == pytest.approx(4.6e-6 * multiplies + 0.9e-6 * accumulates)
    assert len(report["firing_rates"]) == 3
    out = " ".join(program("energy", "--run", "a", "--samples", "20")[1].split())
    assert "theoretical energy" in out
    assert "no memory traffic" in out


def test_a_network_is_exported(program, tmp_path):
    import nir

    program("train", *QUICK, "--out", "a", "--quiet")
    assert program("export", "--run", "a", "--out", "model.nir")[0] == 0
    kinds = {type(node).__name__ for node in nir.read(tmp_path / "model.nir").nodes.values()}
    assert kinds == {"Input", "Conv2d", "LIF", "AvgPool2d", "Flatten", "Affine", "Output"}


def test_a_landscape_is_written_as_picture_and_numbers(program, tmp_path):
    program("train", *QUICK, "--out", "a", "--quiet")
    code, out, _ = program("landscape", "--run", "a", "--points", "3", "--samples", "10", "--out", "l", "--json")
    assert code == 0
    rows = [
        [float(value) for value in line.split(",")] for line in (tmp_path / "l/landscape.csv").read_text().splitlines()
    ]
    assert [len(row) for row in rows] == [3, 3, 3]
    assert json.loads(out)["lowest"] == pytest.approx(min(map(min, rows)))
    assert (tmp_path / "l/landscape.svg").read_text().count("<svg") == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["train", "--data", "nowhere"], "data folder nowhere does not exist"),
        (["train", "--time-steps", "-1"], "--time-steps: time_steps must be at least 1, got -1"),
        (["train", "--set", "lam=nan"], "--set lam=nan: lam must be a finite number"),
        (["train", "--set", "lamb=1"], "did you mean 'lam'?"),
        (["train", "--config", "none.toml"], "--config none.toml does not exist"),
        (["train", "--loss", "mse"], "--loss"),
        (["train", "--network", "vgg"], "--network: network must be one of tiny_vgg, vggsnn"),
        (["train", "--dataset", "mnist"], "--dataset: dataset must be one of miniature, cifar10"),
        (["train", "--dataset", "cifar10"], "dataset cifar10 needs its folder (add --data DIR)"),
        (["train", "--stages", "2:5,x"], "--stages: stages must be like 2:25"),
        (["train", "--stages", "2:5,3:5"], "stages must end at time_steps 5, got '3:5'"),
        (["train", "--set", "validation=0.5"], "the miniature holds nothing out"),
        (["train", "--preset", "cifar10", "--config", "c.toml"], "--preset and --config are two configurations"),
        (["train", "--preset", "cifar10"], "dataset cifar10 needs its folder"),
        (["train", "--preset", "cifar100"], "dataset cifar100 needs its folder"),
        (["train", "--preset", "cifar10-dvs"], "dataset cifar10-dvs needs its folder"),
        (["train", "--preset", "imagenet"], "dataset imagenet needs its folder"),
        (["train", "--device", "quantum"], "--device quantum"),
        (["train", "--out", "file"], "file is not a folder"),
        (["evaluate", "--run", "nowhere"], "nowhere is no folder of `snn-tet train`"),
        (["evaluate"], "--run"),
        (["prepare", "--data", "nowhere"], "nowhere"),
        (["landscape", "--run", "nowhere"], "nowhere is no folder of `snn-tet train`"),
        (["landscape", "--run", "nowhere", "--samples", "0"], "--samples and --span must be positive"),
        (["energy", "--run", "nowhere"], "nowhere is no folder of `snn-tet train`"),
        (["export", "--run", "nowhere", "--out", "x.nir"], "nowhere is no folder of `snn-tet train`"),
        (["reproduce", "--seeds", "0"], "--seeds 0 is too few"),
        (["reproduce", "faster"], "no claim 'faster'"),
        (["bench", "conv"], "no benchmark 'conv' (known: lif-"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(program, tmp_path, words, complaint):
    (tmp_path / "file").write_text("the user's")
    code, out, err = program(*words)
    assert (code, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "the user's"


@pytest.mark.parametrize("content", [b"", b"\0" * 100])
def test_damaged_or_foreign_weights_are_named(program, tmp_path, content):
    program("train", *QUICK, "--out", "a", "--quiet")
    (tmp_path / "a/model.safetensors").write_bytes(content)
    code, _, err = program("evaluate", "--run", "a")
    assert (code, err.count("\n")) == (2, 1)
    assert "a/model.safetensors cannot be read" in err


def test_weights_of_another_network_are_named_by_key(program, tmp_path):
    import safetensors.torch

    from snn_tet import tiny_vgg

    program("train", *QUICK, "--out", "a", "--quiet")
    (tmp_path / "a/model.safetensors").write_bytes(safetensors.torch.save(tiny_vgg(3, 10).state_dict()))
    assert "belongs to another network: blocks.0.conv.weight" in program("evaluate", "--run", "a")[2]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_resumed_run_ends_as_the_uninterrupted_one(program, tmp_path, number, code):
    words = ["train", "--epochs", "8", *QUICK[2:], "--json"]
    whole = json.loads(program(*words, "--out", "whole")[1])
    start = "import sys; from snn_tet.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", start, *words, "--out", "cut"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    log, deadline = tmp_path / "cut" / "log.jsonl", time.time() + 60
    while not log.exists() and time.time() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err == "snn-tet: interrupted; what is finished is kept in cut, go on with --resume\n"
    assert len(log.read_text().splitlines()) < 8
    assert json.loads(program(*words, "--out", "cut", "--resume")[1]) == whole
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert models[0] == models[1]


def test_help_names_every_command_without_torch():
    code = "import sys; from snn_tet.cli import main; sys.argv = ['snn-tet', '--help']; main(); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(verb in out for verb in ("train", "evaluate", "reproduce", "bench"))
    assert "torch" not in out.splitlines()[-1].split()
