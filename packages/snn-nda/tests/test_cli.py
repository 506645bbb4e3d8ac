"""The job from the shell's side."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from core_utils.spiking.events import read_events
from snn_nda import cli

QUICK = ("--epochs", "2", "--time-steps", "2", "--set", "train_per_class=2", "--set", "test_per_class=3", "--quiet")

SMALL = ("--set", "batch_size=10")


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["snn-nda", *map(str, words)])
        code = cli.main()
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def recordings(program, tmp_path):
    """Simulated recordings of ten classes in the layout of N-Cars."""
    assert program("simulate", "--train", "20", "--test", "10", "--time-steps", "2", "--out", "rec", "--json")[0] == 0
    return tmp_path / "rec"


OTHER = ("--data", "rec", "--dataset", "other")
FRAMES = ("--sensor", "24", "24", "--time-steps", "2", "--size", "12", "--quiet")


def test_trainings_of_several_seeds_are_compared_by_policy(program, tmp_path):
    for policy in ("none", "M1N1"):
        code, out, _ = program("train", "--policy", policy, "--seeds", "3", *QUICK, "--out", policy, "--json")
        assert code == 0
        results = json.loads(out)
        assert sorted(results) == ["seed-0", "seed-1", "seed-2"]
        for result in results.values():
            assert result["gap"] == pytest.approx(result["train_accuracy"] - result["test_accuracy"])
            assert result["test"]["accuracy"] == result["test_accuracy"]
            assert result["selected_on"] == "last epoch"
    assert {entry.name for entry in (tmp_path / "none/seed-1").iterdir()} >= {
        "model.safetensors",
        "log.jsonl",
        "config.json",
        "gap.json",
        "split.json",
        "figures",
    }
    code, out, _ = program("gap", "--runs", "none", "M1N1", "--json")
    assert code == 0
    none, nda = json.loads(out)
    assert (none["arm"], nda["arm"], nda["seeds"]) == ("none", "M1N1", [0, 1, 2])
    assert nda["gap_gain"]["n"] == 3
    assert nda["gap_gain"]["mean"] == pytest.approx(none["gap"] - nda["gap"])
    assert json.loads((tmp_path / "runs/gap/gap.json").read_text()) == json.loads(out)
    assert (tmp_path / "runs/gap/gap.svg").read_text().count("<svg") == 1
    table = " ".join(program("gap", "--runs", "none", "M1N1")[1].split())
    assert "unseen" in table
    assert "[" in table


def test_a_finished_training_is_shown_again_and_its_table_says_what_selection_would_add(program):
    first = program("train", *QUICK, "--out", "a", "--json")
    assert first[0] == 0
    assert program("train", *QUICK, "--out", "a", "--json")[1] == first[1]
    table = program("train", *QUICK, "--out", "a")[1]
    assert "taking the best of its epochs would add" in table


def test_recordings_in_a_folder_are_prepared_trained_on_and_drawn(program, recordings, tmp_path):
    code, out, _ = program("prepare", *OTHER, *FRAMES, "--json")
    assert code == 0
    made = json.loads(out)
    assert made["recordings"] == [20, 10]
    assert np.load(made["train"]).shape == (20, 2, 2, 12, 12)
    words = ["train", *OTHER, "--set", "sensor=[24, 24]", "--set", "label_safe_flip=true", "--size", "12"]
    words += ["--time-steps", "2", "--epochs", "1", "--set", "batch_size=10", "--set", "validation=0.5", "--quiet"]
    before = sorted((tmp_path / "rec/.frames").glob("*.npy"))
    code, out, _ = program(*words, "--out", "a", "--json")
    assert code == 0
    assert json.loads(out)["measured_on"] == "validation"
    assert sorted((tmp_path / "rec/.frames").glob("*.npy")) == before
    split = json.loads((tmp_path / "a/split.json").read_text())
    assert [len(split[part]) for part in ("train", "validation", "test")] == [10, 10, 10]
    code, out, _ = program("preview", *OTHER, *FRAMES, "--index", "3", "--policy", "M1N1", "--json")
    assert code == 0
    assert (tmp_path / json.loads(out)["png"]).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / json.loads(out)["gif"]).read_bytes().startswith(b"GIF89a")


def test_a_policy_that_mirrors_meets_recordings_whose_labels_may_change(program, recordings):
    words = [
        "train",
        *OTHER,
        "--set",
        "sensor=[24, 24]",
        "--size",
        "12",
        "--time-steps",
        "2",
        "--epochs",
        "1",
        "--quiet",
    ]
    code, _, err = program(*words, "--out", "a")
    assert code == 2
    assert "the policy mirrors" in err
    words += ["--set", "batch_size=10", "--set", "mix=cutmix"]
    unmirrored = "flip = 0.0\nmagnitude = 1\n"
    (recordings.parent / "policy.toml").write_text(unmirrored)
    assert program(*words, "--policy", "policy.toml", "--out", "b")[0] == 0


def test_a_recording_is_described(program, recordings):
    file = sorted(recordings.glob("train/*/*.dat"))[0]
    code, out, _ = program("info", file, "--json")
    events = read_events(file)
    assert code == 0
    (found,) = json.loads(out).values()
    assert found["events"] == len(events)
    assert found["duration_us"] == int(events["t"][-1] - events["t"][0])
    assert found["x_max"] <= 23
    assert f"{len(events)}" in program("info", file)[1]


def test_an_encoder_is_pretrained_probed_and_fine_tuned(program, tmp_path):
    code, out, _ = program("pretrain", *QUICK, *SMALL, "--set", "dim=16", "--out", "p", "--json")
    assert code == 0
    assert json.loads(out)["healthy_spread"] == 0.25
    assert (tmp_path / "p/encoder.safetensors").is_file()
    assert (tmp_path / "p/figures/spread.svg").read_text().count("<svg") == 1
    code, out, _ = program("probe", "--run", "p", "--json")
    assert code == 0
    probes = json.loads(out)
    assert sorted(probes) == ["new", "pretrained"]
    assert probes["new"]["train_accuracy"] > 0.5  # random features tell 20 recordings apart
    assert probes["pretrained"] != probes["new"]
    assert "pretrained" in program("probe", "--run", "p")[1]
    results = [
        json.loads(program("train", *QUICK, *start, "--out", f"f{len(start)}", "--json")[1])
        for start in ((), ("--start", "p"))
    ]
    assert results[0]["train_loss"] != results[1]["train_loss"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["train", "--data", "nowhere"], "nowhere does not exist"),
        (["train", "--epochs", "0"], "--epochs: epochs must be at least 1, got 0"),
        (["train", "--policy", "M9N1"], "--policy: policy 'M9N1' cannot be used: magnitude must be 1, 2 or 3, got 9"),
        (["train", "--policy", "nad"], "did you mean 'nda'"),
        (["train", "--policy", "none.toml"], "none.toml does not exist"),
        (
            ["train", "--policy", "code"],
            "--policy: policy 'code' cannot be used: the preset code is not defined for the data set miniature",
        ),
        (["train", "--set", "epoch=1"], "did you mean 'epochs'?"),
        (["train", "--network", "vgg"], "--network: network must be one of tiny_vgg, vgg11"),
        (["train", "--dataset", "mnist"], "--dataset: dataset must be one of miniature, cifar10-dvs"),
        (["train", "--dataset", "cifar10-dvs"], "dataset cifar10-dvs needs its folder (add --data DIR)"),
        (["train", "--dataset", "other"], "sensor must be given with dataset other"),
        (["train", "--set", "validation=0.5"], "the miniature holds nothing out"),
        (["train", "--size", "48"], "size must be 24 with the miniature, got 48"),
        (["train", "--seeds", "2", "--seed", "1"], "--seeds 2 must be at least 1 and stand without --seed"),
        (["train", "--preset", "n-cars", "--config", "c.toml"], "--preset and --config are two configurations"),
        (["train", "--preset", "cifar10-dvs"], "dataset cifar10-dvs needs its folder"),
        (["train", "--preset", "n-caltech101"], "dataset n-caltech101 needs its folder"),
        (["train", "--preset", "n-cars"], "dataset n-cars needs its folder"),
        (["train", "--device", "quantum"], "--device quantum"),
        (["train", "--start", "nowhere"], "nowhere is no folder of `snn-nda pretrain`"),
        (["train", "--out", "file"], "file is not a folder"),
        (["gap", "--runs", "nowhere"], "nowhere is no folder of `snn-nda train`"),
        (["gap"], "--runs"),
        (["pretrain", "--policy", "none"], "policy must not be none: two equal views teach nothing"),
        (["pretrain", "--set", "batch_size=1"], "batch_size must be at least 2, got 1"),
        (["probe", "--run", "nowhere"], "nowhere is no folder of `snn-nda pretrain`"),
        (["prepare"], "--data is missing"),
        (["prepare", "--data", "."], "--sensor WIDTH HEIGHT belongs to --dataset other"),
        (["prepare", "--data", "nowhere", "--dataset", "n-cars"], "nowhere"),
        (["preview", "--index", "1000"], "--index must lie in 0..49, got 1000"),
        (["simulate", "--source", "nowhere"], "nowhere"),
        (["info", "file"], "file is of no known format"),
        (["reproduce", "--seeds", "0"], "--seeds 0 is too few"),
        (["reproduce", "faster"], "no claim 'faster'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(program, tmp_path, words, complaint):
    (tmp_path / "file").write_text("the user's")
    code, out, err = program(*words)
    assert (code, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "the user's"


def test_trainings_that_differ_otherwise_are_not_compared(program):
    program("train", "--policy", "none", *QUICK, "--out", "a")
    program("train", "--policy", "M1N1", *QUICK, "--set", "learning_rate=1e-4", "--out", "b")
    code, _, err = program("gap", "--runs", "a", "b")
    assert code == 2
    assert "b and a differ in learning_rate" in err
    assert "is a second training of policy none with seed 0" in program("gap", "--runs", "a", "a")[2]
    assert "no run of the baseline 'nda'" in program("gap", "--runs", "a", "--baseline", "nda")[2]


def test_a_damaged_encoder_is_named(program, tmp_path):
    program("pretrain", *QUICK, *SMALL, "--set", "dim=8", "--out", "p")
    (tmp_path / "p/encoder.safetensors").write_bytes(bytes(100))
    code, _, err = program("probe", "--run", "p")
    assert (code, err.count("\n")) == (2, 1)
    assert "p/encoder.safetensors cannot be read" in err


def test_a_signal_saves_and_the_resumed_run_ends_as_the_uninterrupted_one(program, tmp_path):
    words = ["train", "--epochs", "12", *QUICK[2:], "--json"]
    whole = json.loads(program(*words, "--out", "whole")[1])
    start = "import sys; from snn_nda.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", start, *words, "--out", "cut"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    log, deadline = tmp_path / "cut" / "log.jsonl", time.time() + 100
    while not log.exists() and time.time() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "go on with --resume" in err
    assert len(log.read_text().splitlines()) < 12
    assert json.loads(program(*words, "--out", "cut", "--resume")[1]) == whole
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert models[0] == models[1]


def test_help_names_every_command_without_torch():
    code = "import sys; from snn_nda.cli import main; sys.argv = ['snn-nda', '--help']; main(); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    verbs = ("prepare", "preview", "train", "gap", "pretrain", "probe", "simulate", "info", "reproduce", "bench")
    assert all(verb in out for verb in verbs)
    assert "torch" not in out.splitlines()[-1].split()
