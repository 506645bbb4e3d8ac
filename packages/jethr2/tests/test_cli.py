"""The job from the shell's side."""

import json
import math
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from flying import needs_gl
from PIL import Image

from jethr2 import RobotParams, Trajectory, cli, load_model, monte_carlo
from jethr2.perturbations import sample_errors
from jethr2.replaying import log_of

HEAVY = ("mujoco", "numba", "scipy", "jax", "matplotlib", "pybullet", "gymnasium")


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["jethr2", *map(str, words)])
        code = cli.main()
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def facts(program):
    def run(*words):
        code, out, err = program(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    return run


def refused(program, *words):
    code, out, err = program(*words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("words", [["--help"], ["simulate", "--help"], ["ablate", "--help"], ["replay", "--help"]])
def test_help_loads_no_heavy_library(words):
    code = f"""
import sys
from jethr2 import cli
sys.argv = ["jethr2", *{words!r}]
assert cli.main() == 0
loaded = sorted(set({HEAVY!r}) & set(sys.modules))
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_info_prints_the_specifications_constants_and_where_they_come_from(facts, program):
    found = facts("info")
    assert found["mass_kg"] == pytest.approx(17.0, abs=1e-12)
    assert found["thrust_to_weight"] == pytest.approx(20 / 17)
    assert found["hover_throttle"] == pytest.approx(0.85)
    effects = {row["change"]: row for row in found["authority"]}
    assert effects["both feet +1 deg"]["moment"][1] == pytest.approx(-0.67636, abs=1e-5)
    sources = {row["field"]: row["source"] for row in found["provenance"]}
    assert (sources["robot.mass"], sources["controller.natural_frequency"]) == ("A", "S")
    assert found["error_budget"][-1]["source"] == "all"
    code, out, _ = program("info")
    assert code == 0
    assert "robot.joint_kp" in out
    assert "-0.6764" in out


def test_settings_reach_the_robot_and_a_typed_option_wins(facts, tmp_path):
    (tmp_path / "robot.toml").write_text("[robot]\nmass = 18.0\n[controller]\nu0 = 0.9\n")
    assert facts("info", "--config", "robot.toml")["mass_kg"] == pytest.approx(18.0)
    assert facts("info", "--config", "robot.toml", "--set", "robot.mass=16")["mass_kg"] == pytest.approx(16.0)
    options = ("simulate", "--duration", 1, "--set", "controller.mode=none")
    assert facts(*options) != facts(*options, "--mode", "full")


def test_a_flight_is_printed_with_units_and_kept(facts, program):
    found = facts("simulate", "--errors", "random", "--trial", 3, "--duration", 1, "--out", "run.npz")
    flight = Trajectory.from_npz("run.npz").metrics()
    assert found["peak_tilt_deg"] == pytest.approx(math.degrees(flight["peak_tilt"]))
    assert found["max_height_m"] == flight["max_height"]
    assert (found["time_to_goal_s"], found["success"]) == (None, False)  # a second is too short
    # The same trial of a study has the same errors and noise, to the bit.
    study = monte_carlo(4, ("full",), duration=1.0, nthread=1)
    assert study.metrics["full"].peak_tilt[3] == flight["peak_tilt"]
    assert "exists" in refused(program, "simulate", "--duration", 1, "--out", "run.npz")
    facts("simulate", "--duration", 0.1, "--out", "run.npz", "--overwrite")
    facts("simulate", "--duration", 0.1, "--out", "run.csv")


def test_a_flight_is_drawn_as_curves_at_once_or_later(facts, program):
    facts("simulate", "--duration", 0.2, "--out", "run.npz", "--plot", "now.svg")
    found = facts("render", "run.npz", "--plot", "later.png")
    assert found == {"plot": "later.png"}
    assert "thrust (% of a fan" in (Path("now.svg")).read_text()
    assert Path("later.png").read_bytes().startswith(b"\x89PNG")
    assert "render takes --storyboard" in refused(program, "render", "run.npz")
    assert "--plot later.png exists" in refused(program, "render", "run.npz", "--plot", "later.png")
    assert "--video film.avi must end in .mp4 or .gif" in refused(program, "simulate", "--video", "film.avi")


def test_without_a_gl_backend_the_flight_is_kept_and_one_line_says_what_is_missing(tmp_path):
    words = ["jethr2", "simulate", "--duration", "0.1", "--out", "run.npz", "--video", "film.gif", "--quiet"]
    code = f"import sys; from jethr2 import cli; sys.argv = {words!r}; sys.exit(cli.main())"
    environment = os.environ | {"MUJOCO_GL": "off"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "MUJOCO_GL" in result.stderr
    assert "max_height_m" in result.stdout
    assert len(Trajectory.from_npz(tmp_path / "run.npz")["time"]) == 51
    assert not (tmp_path / "film.gif").exists()


def test_a_storyboard_and_a_film_are_files_of_their_kind(facts):
    needs_gl()
    facts("simulate", "--duration", 0.1, "--out", "run.npz")
    found = facts("render", "run.npz", "--storyboard", "board.png", "--frames", 2, "--video", "film.gif")
    assert found == {"storyboard": "board.png", "video": "film.gif"}
    with Image.open("board.png") as board, Image.open("film.gif") as film:
        assert (board.size, film.n_frames) == ((480, 480), 4)


def test_a_log_of_the_same_flight_differs_by_nothing(facts, program):
    options = ("--errors", "canned", "--trial", 2, "--duration", 0.5)
    facts("simulate", *options, "--out", "run.npz")
    model = load_model(RobotParams())
    log_of(model, Trajectory.from_npz("run.npz")).to_csv("log.csv")
    rows = {row["column"]: row for row in facts("replay", "log.csv", *options, "--plot", "both.svg")}
    assert {row["largest"] for row in rows.values()} == {0.0}
    assert rows["left_knee"]["rows"] == 251
    assert "simulated" in Path("both.svg").read_text()
    other = {row["column"]: row for row in facts("replay", "log.csv", "--duration", 0.5)}
    assert other["pitch"]["rms"] > 0
    Path("bad.csv").write_text("t [s],roll [deg]\n0,0\n1,0\n")
    assert "lacks the column 'pitch'" in refused(program, "replay", "bad.csv")


def test_errors_come_from_a_file_or_the_canned_ones(facts, program, tmp_path):
    sample_errors(2, seed=4).to_csv(tmp_path / "errors.csv")
    options = ("simulate", "--duration", 0.8, "--trial", 1)
    random = facts(*options, "--errors", "random", "--seed", 4)
    assert facts(*options, "--errors", "errors.csv", "--seed", 4) == random
    assert facts(*options, "--errors", "canned", "--seed", 4) != random
    assert "holds 2 trials" in refused(program, "simulate", "--errors", "errors.csv", "--trial", 2)


def test_ablate_prints_both_counts_the_tests_and_the_criteria(facts, program):
    options = ("ablate", "--n", 6, "--out", "study", "--quiet")
    found = facts(*options)
    assert [row["case"] for row in found["rows"]] == ["none", "differential", "pitch_only", "yaw_only", "full"]
    assert {(row["case"], row["ignore_yaw"]) for row in found["comparisons"]} >= {("differential", True)}
    same = monte_carlo(6, ("full", "differential"), nthread=1)
    assert found["rows"][-1]["success"] == int(same.success("full").sum())
    assert not found["criteria"]["full over none: p < 1e-6"]  # six trials cannot show it
    code, out, err = program(*options, "--require")  # the finished folder is read
    assert code == 1, err
    assert "differential" in out
    assert "median peak yaw falls more than 5 times" in out
    assert json.loads((Path("study") / "result.json").read_text())["done"] == 6


def test_an_interrupted_study_is_finished_by_resume_with_the_same_bits(tmp_path, facts):
    options = ("monte-carlo", "--n", 600, "--modes", "full", "--duration", 0.6)
    code = "import sys; from jethr2 import cli; sys.exit(cli.main())"
    command = [sys.executable, "-c", code, *map(str, options), "--out", "stopped"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130, first + rest
    assert "--resume" in rest
    assert 0 < json.loads((tmp_path / "stopped" / "partial.json").read_text())["done"] < 600
    assert facts(*options, "--out", "stopped", "--resume") == facts(*options, "--out", "whole")


def test_a_study_of_given_errors_has_a_trial_per_row_and_any_modes(facts, program, tmp_path):
    sample_errors(3, seed=2).to_csv(tmp_path / "errors.csv")
    options = ("monte-carlo", "--modes", "full,none", "--duration", 0.3, "--quiet")
    given = facts(*options, "--errors", "errors.csv", "--seed", 2, "--out", "given")
    drawn = facts(*options, "--n", 3, "--seed", 2, "--out", "drawn")
    assert given == drawn
    assert [row["case"] for row in given["rows"]] == ["full", "none"]
    scales = facts(*options, "--n", 2, "--error-scale", 1, 2, "--out", "scales")
    assert [study["error_scale"] for study in scales] == [1, 2]
    assert sorted(path.name for path in (tmp_path / "scales").iterdir()) == [
        "error_scale=1",
        "error_scale=2",
        "success.svg",
    ]
    assert "another" in refused(program, *options, "--n", 2, "--seed", 9, "--out", "drawn", "--resume")


def test_processes_give_the_same_bits(facts):
    options = ("monte-carlo", "--n", 4, "--modes", "full", "--duration", 0.3, "--quiet")
    assert facts(*options, "--out", "one") == facts(*options, "--out", "two", "--workers", 2)


def test_a_sweep_has_a_row_per_value_and_mode(facts, program):
    rows = facts("sweep", "--tw", "0.9:1.3:3", "--n", 2, "--duration", 0.8, "--quiet")
    assert [(row["thrust_to_weight"], row["case"]) for row in rows] == [
        (value, mode) for value in (0.9, 1.1, 1.3) for mode in ("full", "differential")
    ]
    heights = [row["height_median"] for row in rows if row["case"] == "full"]
    assert heights[0] < 0.02 < heights[1] < heights[2]  # the legs stretch even where the thrust is too small
    code, out, _ = program("sweep", "--parameter", "u0=0.9,1", "--n", 1, "--duration", 0.1, "--out", "u0", "--quiet")
    assert code == 0
    assert "differential" in out


def test_allocation_and_legs_have_the_specifications_values(facts):
    found = facts("allocate", "--wrench", 170, 1, -2, 0.3, "--method", "qp")
    assert max(map(abs, found["residual"].values())) < 5e-3
    angles = facts("ik", "--sole", 0.03, 0.1168, 0)
    assert list(angles.values()) == pytest.approx([0, 0, -59.77017, 72.66959, -12.89942], abs=1e-4)
    turned = facts("ik", "--sole", 0, 0.1168, 0, "--yaw", 10)
    assert list(turned.values()) == pytest.approx([0, 10, -55.14487, 73.61290, -18.46804], abs=1e-4)
    base = ("--base-rpy", 0, 0, 90, "--yaw", 90)  # everything is turned with the base
    assert list(facts("ik", "--sole", -0.1168, 0, 0, *base).values()) == pytest.approx(
        [0, 0, -55.14487, 73.61290, -18.46804], abs=1e-4
    )


def test_exports_can_be_read_again(facts, program, tmp_path):
    facts("export", "--urdf", "robot.urdf", "--mjcf", "robot.xml", "--folder", "model")
    assert ElementTree.parse(tmp_path / "robot.urdf").getroot().tag == "robot"
    own = load_model(RobotParams())
    for path in ("robot.xml", "model/jethr2.xml"):
        np.testing.assert_allclose(load_model(tmp_path / path).body_mass, own.body_mass, atol=1e-9)
    assert facts("info", "--model", "robot.xml")["mass_kg"] == pytest.approx(17.0)
    assert "exists" in refused(program, "export", "--urdf", "robot.urdf")
    assert "--urdf FILE" in refused(program, "export")


def test_the_engines_agree_and_a_tolerance_that_is_missed_is_a_failed_check(program):
    pytest.importorskip("pybullet")
    options = ("crosscheck", "--duration", 0.1, "--json")
    code, out, _ = program(*options)
    found = json.loads(out[out.index("{") :])
    assert (code, found["agree"]) == (0, True)
    assert found["order"] == pytest.approx(1, abs=0.1)
    assert program(*options, "--tolerance", 1e-9)[0] == 1


def test_a_robot_that_cannot_lift_is_named(program):
    code, _, err = program("info", "--set", "robot.thrust_to_weight=0.9")
    assert code == 0
    assert err.startswith("warning: ")
    assert "cannot lift" in err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["info", "--set", "robot.mas=3"], "did you mean 'mass'"),
        (["info", "--set", "robot.mass=-1"], "robot.mass=-1"),
        (["info", "--set", "robot.mass=nan"], "finite"),
        (["info", "--model", "none.xml"], "none.xml"),
        (["simulate", "--mode", "half"], "half"),
        (["simulate", "--errors", "none.csv"], "none.csv"),
        (["simulate", "--errors", "random", "--seed", "-1"], "seed"),
        (["simulate", "--trial", "-1"], "--trial"),
        (["simulate", "--out", "run.txt"], ".npz or .csv"),
        (["simulate", "--duration", "0"], "duration"),
        (["ablate", "--n", "0"], "n must be"),
        (["ablate", "--workers", "0"], "workers"),
        (["ablate", "--resume", "--overwrite"], "exclude"),
        (["monte-carlo", "--modes", "ful"], "did you mean 'full'"),
        (["monte-carlo", "--n", "1", "--error-scale", "-1"], "error_scale"),
        (["sweep", "--tw", "a:b"], "START:STOP:COUNT"),
        (["sweep"], "--tw"),
        (["sweep", "--parameter", "fan_lag=1"], "did you mean"),
        (["ik", "--sole", "0", "0", "-1"], "reaches"),
        (["allocate", "--wrench", "nan", "0", "0", "0"], "finite"),
    ],
)
def test_bad_input_is_named_in_one_line(program, words, complaint):
    assert complaint in refused(program, *words)
