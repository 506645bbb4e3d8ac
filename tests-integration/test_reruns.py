"""The command that a report shows beside a claim, pasted into a shell, measures that claim as the report did."""

import shlex
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from core_utils import claims, cli
from core_utils.page import rerun

CLAIMS = {
    f"{package.name} {claim.id}": (package.name, claim) for package in claims.discover() for claim in package.claims
}


@pytest.fixture
def pasted(monkeypatch, tmp_path):
    """Runs a command of ours up to the measurement; gives the claims and the settings that would be measured."""

    def run(command):
        asked = []

        def evaluate(chosen, **settings):
            asked.append(([claim.id for claim in chosen], settings))
            return []

        monkeypatch.setattr(cli, "evaluate", evaluate)
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        monkeypatch.chdir(tmp_path)
        (program,) = entry_points(group="console_scripts", name=sys.argv[0])
        assert program.load()() == cli.DONE
        ((chosen, settings),) = asked
        return chosen, settings

    return run


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_of_the_demo_is_measured_again_with_its_seeds(name, pasted):
    package, claim = CLAIMS[name]
    seeds = {} if claim.full_only else {seed: Path(str(seed)) for seed in range(claim.seeds)}
    chosen, settings = pasted(rerun(package, claims.Result(claim, None, workdirs=seeds)))
    assert chosen == [claim.id]
    assert (settings["seeds"], settings["full"], settings["data"]) == (claim.seeds, claim.full_only, None)


def test_data_device_and_length_are_those_of_the_result(pasted, tmp_path):
    package, claim = next(iter(CLAIMS.values()))
    data = tmp_path / "a folder"
    data.mkdir()
    given = {"data": data, "device": "cuda:1", "full": True}
    chosen, settings = pasted(rerun(package, claims.Result(claim, None, settings=given, workdirs={0: tmp_path})))
    assert chosen == [claim.id]
    assert {name: settings[name] for name in given} == given
    assert settings["seeds"] == 1
