"""The job from the shell's side."""

import json
import subprocess
import sys

import pytest

from snasnet import cli

CELL = "0302 0030 3003 0000"
SMALL = ("--batch", "16", "--width", "3", "--hidden", "8", "--time-steps", "2")


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["snasnet", *map(str, words)])
        code = cli.main()
        return code, *capsys.readouterr()

    return run


def test_cells_are_drawn_by_the_seed(program):
    code, out, _ = program("sample", "--n", "5", "--seed", "3")
    assert code == 0
    assert len(out.splitlines()) == 5
    assert program("sample", "--n", "5", "--seed", "3")[1] == out
    drawn = json.loads(program("sample", "--n", "5", "--seed", "3", "--json")[1])
    assert [" ".join("".join(map(str, row)) for row in cell["matrix"]) for cell in drawn] == out.splitlines()


def test_a_cell_is_scored_and_costed(program):
    code, out, _ = program("score", CELL, *SMALL, "--json")
    assert code == 0
    found = json.loads(out)
    again = json.loads(program("score", CELL, *SMALL, "--json")[1])
    assert found["score"] == again["score"] < 0
    assert found["parameters"] > 1000
    assert len(found["rates"]) == 13


def test_a_search_is_trained_from_evaluated_and_exported(program, tmp_path):
    words = ("search", *SMALL, "--n", "5", "--kind", "forward", "--out", "s", "--quiet", "--json")
    code, out, _ = program(*words)
    assert code == 0
    found = json.loads(out)
    assert found["draws"] == 5
    scores = [row["score"] for row in found["table"] if row["status"] == "ok"]
    assert scores == sorted(scores, reverse=True)
    assert program(*words)[1] == out  # finished: shown again
    assert len((tmp_path / "s/log.jsonl").read_text().splitlines()) == len(found["table"])
    assert (tmp_path / "s/figures/cell.svg").read_text().count("<svg") == 1
    train = ("--epochs", "1", "--set", "width=3", "--set", "hidden=8", "--quiet", "--json")
    code, out, _ = program("train", "--from", "s", *train, "--out", "t")
    assert code == 0
    trained = json.loads(out)
    assert trained["cell"].replace(" ", "-") == found["table"][0]["id"]
    evaluated = json.loads(program("evaluate", "--run", "t", "--json")[1])
    assert evaluated["test_accuracy"] == trained["test_accuracy"]
    energy = json.loads(program("profile", "--run", "t", "--samples", "10", "--json")[1])
    assert energy["samples"] == 10
    assert "spikes per image" in energy["note"]
    assert program("export", "--run", "t", "--out", "cell.json", "--format", "json")[0] == 0
    assert json.loads((tmp_path / "cell.json").read_text())["id"] == found["table"][0]["id"]
    code, _, err = program("compare", "--search", "s", "--runs", "t")
    assert (code, err.count("\n")) == (2, 1)
    assert "at least 3 trained cells, the table holds 1" in err


def test_a_search_of_other_settings_is_refused(program):
    program("search", *SMALL, "--n", "1", "--out", "s", "--quiet")
    code, _, err = program("search", *SMALL, "--n", "2", "--out", "s", "--quiet", "--resume")
    assert (code, err.count("\n")) == (2, 1)


def test_a_cell_is_drawn(program, tmp_path):
    assert program("plot", CELL)[0] == 0
    assert (tmp_path / "cell.svg").read_text().count("<svg") == 1
    assert program("plot", CELL, "--out", "c.dot")[0] == 0
    assert (tmp_path / "c.dot").read_text().startswith("digraph")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["score", "0302 0030 3003"], "has 4 rows"),
        (["score", "0302 0130 3003 0000"], "row 1, column 1: the diagonal"),
        (["score", "0300 0003 0000 0000"], "no direct edge from input to output"),
        (["score", CELL, "--batch", "1"], "--batch must lie in 2.."),
        (["score", CELL, "--data", "nowhere", "--dataset", "fashion"], "nowhere does not exist"),
        (["score", CELL, "--dataset", "mnist"], "dataset must be one of digits, fashion, cifar"),
        (["score", CELL, "--time-steps", "0"], "T must be at least 1, got 0"),
        (["sample", "--n", "0"], "--n must be at least 1"),
        (["search", "--n", "3", "--max-params", "10", "--quiet"], "none of 1000 draws keeps the constraints"),
        (["search", "--kind", "sideways"], "--kind"),
        (["train", CELL, "--from", "s"], "a cell and --from are two architectures"),
        (["train", "--from", "nowhere"], "nowhere is no folder of a finished `snasnet search`"),
        (["train", CELL, "--set", "widht=3"], "did you mean 'width'?"),
        (["evaluate", "--run", "nowhere"], "--run nowhere is no folder of `snasnet train`"),
        (["compare", "--search", "nowhere"], "nowhere is no folder of a finished `snasnet search`"),
        (["plot", CELL, "--out", "c.png"], "must end in .svg or .dot"),
        (["reproduce", "faster"], "no claim 'faster'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(program, words, complaint):
    code, out, err = program(*words)
    assert (code, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1


def test_neither_import_nor_help_loads_torch():
    program = "import sys; from snasnet.cli import main; sys.argv = ['snasnet', '--help']; main(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "search" in done.stdout
