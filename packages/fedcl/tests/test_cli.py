"""The job from the shell's side."""

import json
import sys

import numpy as np
import pytest

from fedcl import cli


@pytest.fixture
def program(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["fedcl", *map(str, words)])
        code = cli.main()
        return code, *capsys.readouterr()

    return run


def test_rates_become_final_states(program, tmp_path):
    rates = tmp_path / "rates.csv"
    rates.write_text("rate\n-1.0\n0.0\n")
    code, out, _ = program("integrate", "--rates", rates, "--step", "0.001", "--out", tmp_path / "run", "--json")
    assert code == 0
    np.testing.assert_allclose(json.loads(out)["states"], [np.exp(-1), 1.0], atol=1e-3)
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == json.loads(out)


@pytest.mark.parametrize(
    ("content", "complaint"), [("speed\n1\n", "no column `rate`"), ("rate\nfast\n", "line 2: 'fast' is no number")]
)
def test_a_bad_file_is_named_in_one_line(program, tmp_path, content, complaint):
    rates = tmp_path / "rates.csv"
    rates.write_text(content)
    code, out, err = program("integrate", "--rates", rates, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1


def test_a_missing_file_is_bad_input(program, tmp_path):
    code, _, err = program("integrate", "--rates", tmp_path / "none.csv", "--out", tmp_path / "run")
    assert code == 2
    assert "none.csv" in err
